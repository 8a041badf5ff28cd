"""Data for training, from files to batches of what the network sees.

dataset.py        images by index, in memory or in files
archive/          what lies in a folder or ZIP: images, arrays, labels
conditions.py     what images are conditioned on: read, padded, measured, or made of them
order.py          the shuffled, endless order of images
loader.py         reading ahead in worker processes
codecs.py         pixels <-> network input
transfer.py       copies to the device, while it computes
own_codec.py      codecs of the user's own, by module:callable
vae.py            moments of a VAE -> latents <-> pixels
torch_dataset.py  any dataset of PyTorch
batches.py        all of it together: the batches of a run
"""
