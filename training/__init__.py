"""Training (Karras et al. 2024, arXiv 2312.02696v2), one room per subject.

    step.py            one step: Algorithm 1, Adam and the averages
    accumulation.py    its gradients from several forward passes; fewer images each when memory runs out
    draws.py           its noise levels and noise, and further random numbers of a loss, by position in the run
    pareto_updates.py  updates of weights of the loss that are learned from gradients
    trainer.py         the loop around the step: reports, snapshots, checkpoints, stop and resume
    callbacks.py       what users hang into the loop; grids of samples and a report of speed are such
    config.py          the description of a run, complete enough to repeat it
    schedule.py        the learning rate (Eq. 67), and times at which things are due
    randomness.py      random numbers that belong to an image's position in the run
    initialization.py  first weights: fresh ones, or those of a snapshot

    loss/              the objective: noise levels, the denoising loss and its weighting (Eqs. 14, 15 and 21)
    data/              from files to batches
    distributed/       several processes: ranks, strategies to share a network, stopping together
    run/               the folder of a run: logs, snapshots, samples, checkpoints
    diagnostics/       measurements: magnitudes, gradients, updates, held-out loss, anomalies

Public names are loaded on first use, so that importing the loss loads the loss and no more.
"""

from edm2 import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
