"""Data for training, from files to batches of what the network sees.

dataset.py      images by index, in memory or in files
archive.py      contents of a folder or ZIP: images, arrays, labels
files.py        reading from a folder; zip_files.py: from a ZIP
retry.py        repeating reads that fail for a while
index.py        a large ZIP's directory and labels in a file, so that it opens at once
order.py        the shuffled, endless order of images
loader.py       reading ahead in worker processes
codecs.py       pixels <-> network input
own_codec.py    codecs of the user's own, by module:callable
vae.py          moments of a VAE -> latents <-> pixels
batches.py      all of it together: the batches of a run
"""
