"""Making datasets, and measuring them; `edm2.training.data.dataset` reads them.

conversion.py    images of any size -> images of one size
huggingface.py   where they may come from, beside folders and ZIPs
encoding.py      images of one size -> latents, the moments of a VAE (moments.py)
checking.py      broken images, found before training
measuring.py     mean, standard deviation and sigma_data of a dataset
description.py   what a dataset says about itself, written into its dataset.json
parts.py         work in parts that survive being stopped, and the ZIP that they become
"""
