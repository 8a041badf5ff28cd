"""Averages of a network's weights whose EMA length is chosen after training, for any PyTorch module.

A power-function profile weights past parameters θ(τ), 0 < τ <= t, in proportion to τ^γ: the initial ones do not count,
and the profile's standard deviation is a fixed fraction of the run, its EMA length `sigma_rel`. A few tracked profiles
span all others: snapshots of two averages, stored along the run, rebuild the average of any EMA length at any stored
time (Karras et al. 2024, arXiv 2312.02696v2, "the paper", Section 3 and Appendix C). Time is counted in images seen.

    profile.py         what a profile is: EMA length, update rule, inner products, coefficients, the error to expect
    conversions.py     other ways to name an EMA length, such as a half-life
    session.py         PostHocEMA: averages, files and weights to validate with, in one object
    callbacks.py       the same in Lightning, transformers' Trainer and Accelerate
    averages.py        averages of parameters: the base of all trackers
    tracker.py         PowerFunctionEMA, kept while training; IntervalMeans, in half the memory; TraditionalEMA
    modules.py         parameters under plain names, whatever wraps a module; what cannot be averaged
    snapshot.py        the files in which averages are kept
    reconstruction.py  snapshots and EMA lengths -> weights (Algorithm 3)
    selection.py       which snapshots that takes, and which do not belong together
    streaming.py       its sums, in bounded memory and by several threads
    foreign/           files of other programs as snapshots, averages of LoRAs, one call from a folder to an average
    planning.py        which snapshots to store, and in which precision
    tensor_files.py    parts of safetensors files, read and written
    files.py           files that appear complete or not at all, and texts from untrusted files

Public names are loaded on first use: the mathematics and the files need no torch.
"""

from edm2 import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
