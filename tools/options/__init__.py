"""Options that several commands share.

parsing     values of options, and their types for click
groups      options under headings in a command's help
networks    network, guide and guidance weight
sampling    seeds, classes, sampler, precision, device; the generator of samples
targets     destinations of generated images
evaluators  detector, reference and codec of scores
scoring     scores of `edm2 metrics`
variants    variants of `edm2 ablate`
"""
