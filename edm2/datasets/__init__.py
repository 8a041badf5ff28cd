"""Making, checking and measuring datasets; `edm2.training.data.dataset` reads them.

conversion.py    images of any size -> images of one size
huggingface.py   images of a Hugging Face dataset, for conversion
encoding.py      images of one size -> latents, the moments of a VAE (moments.py)
pictures.py      pictures of all formats as a viewer shows them (tally.py counts what became of them)
conditions.py    conditions beside the images: checked, measured, described
embedding.py     captions -> tokens, a condition
depth.py         gray of 9 to 16 bits -> 8
checking.py      broken images, found before training
survey.py        sizes, channels and types of all images, from their headers
look.py          a picture of what the network will see; near-duplicates
measuring.py     mean, standard deviation and sigma_data of a dataset
description.py   writing statistics into dataset.json
parts.py         work in parts that survive an interruption, and the ZIP that they become
"""
