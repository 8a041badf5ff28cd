"""The objective: noise levels, the denoising loss and its weighting (arXiv 2312.02696v2, Eqs. 14, 15 and 21).

objective.py  the loss of a denoiser at random noise levels (Eqs. 14 and 15)
noise.py      distributions of the noise level
weighting.py  learned uncertainty (Eq. 21), EDM's weighting (Eq. 16), and what can be done with static ones
snr.py        static weightings of other papers, functions of the signal-to-noise ratio
learned.py    learned uncertainty for other trainers, of timesteps or signal-to-noise ratios
pareto.py     weights that are learned from gradients, per bin of noise levels
bins.py       bins of noise levels, and the gradient of each
by_name.py    the table of weightings and distributions that the command line knows
"""
