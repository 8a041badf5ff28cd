"""Samplers: solvers of the probability-flow ODE dx/dt = d(x, t) = (x - D(x; t)) / t, from noise level 80 to 0.

    heun.py        EDM's Algorithm 2: two evaluations of the denoiser per step, and optional churn
    deis.py        DEIS: one evaluation, the slope d extrapolated by a polynomial in ln t; needs the fewest in all
    dpmpp.py       DPM-Solver++(2M): one evaluation, the denoised image D extrapolated by a line in ln t
    euler.py       Euler's method: one evaluation, nothing extrapolated
    flow_map.py    jumps of a distilled network from level to level, in one to four evaluations
    multistep.py   the loop of samplers that extrapolate from earlier evaluations
    registry.py    all of them by name, with the number of their evaluations

A new sampler is one file with a function called as `edm2.sample_heun`, and one entry in registry.py. docs/solvers.md
has measurements and a recommendation.
"""

from edm2.sampling.samplers.registry import HEUN, MAP, SAMPLERS, Sampler

__all__ = ["HEUN", "MAP", "SAMPLERS", "Sampler"]
