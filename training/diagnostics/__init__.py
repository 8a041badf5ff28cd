"""Instruments that show why EDM2 works (arXiv 2312.02696v2, Sections 2.1 to 2.5, Figures 3 and 15).

layers.py         which layers are looked at, in which buckets
magnitudes.py     magnitudes per feature, and their maximum and mean per bucket
batches.py        the images, noise levels and noise that the network is shown
activations.py    activation magnitudes of the averaged network
weights.py        weight magnitudes, averaged and raw
updates.py        relative update and effective learning rate of one step
noise_levels.py   gradient norm, loss and u(sigma) per noise level; shares of clipped and non-finite numbers
diagnostics.py    when all that is measured, on how much, and the record
"""

from edm2.training.diagnostics.diagnostics import Diagnostics

__all__ = ["Diagnostics"]
