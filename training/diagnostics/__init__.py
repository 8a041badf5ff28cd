"""Measurements that show why EDM2 works (arXiv 2312.02696v2, Sections 2.1 to 2.5, Figures 3 and 15).

diagnostics.py   the schedule of the measurements, and their record
batches.py       the images, noise levels and noise that the network is measured on
layers.py        the layers that are measured, and the block that each is in
magnitudes.py    magnitudes of activations and weights: maximum and mean per resolution
updates.py       relative update and effective learning rate of one step
noise_levels.py  gradient norm, loss and u(sigma) per noise level; clipped and non-finite numbers
holdout.py       loss per noise level on held-out images
anomaly.py       the layer in which the first NaN or infinity appears
"""

from edm2.training.diagnostics.diagnostics import Diagnostics

__all__ = ["Diagnostics"]
