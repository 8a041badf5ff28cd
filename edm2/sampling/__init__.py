"""Images from noise.

samplers/       Heun's method (EDM's Algorithm 2) and others, and the registry of their names
guidance.py     guidance by another network, or by the same one without labels
conditions.py   conditions in all the forms that people have them
generation.py   `edm2.generate`: one image per seed, which depends on nothing else
drawing.py      many images into a store, decoded on the way
output.py       stores of images: a folder of files that can be filled in several runs, or memory
presets.py      the published settings of `edm2 generate --preset`
"""
