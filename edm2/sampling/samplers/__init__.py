"""Solvers beside Heun's method, called as `edm2.sample_heun`: one evaluation of the denoiser per step.

All solve the probability-flow ODE dx/dt = d(x, t) = (x - D(x; t)) / t over the same noise levels, and remember what
earlier evaluations said. They differ in what they extrapolate from there:

    deis.py        the slope d, by a polynomial in ln t: needs the fewest evaluations
    dpmpp.py       the denoised image D, by a line in ln t
    euler.py       nothing
    multistep.py   what they have in common
    registry.py    all of them by name, Heun's method included, with what they cost

docs/solvers.md has measurements and a recommendation.
"""

from edm2.sampling.samplers.registry import HEUN, SAMPLERS, Sampler

__all__ = ["HEUN", "SAMPLERS", "Sampler"]
