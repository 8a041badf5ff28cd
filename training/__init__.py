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

_HOMES = {
    "edm2.training.callbacks": ["Callback"],
    "edm2.training.config": ["TrainingConfig"],
    "edm2.training.data.codecs": ["Codec", "PixelCodec", "codec_from_json"],
    "edm2.training.data.dataset": ["ArrayDataset", "Dataset", "DatasetError", "open_dataset"],
    "edm2.training.data.vae": ["LatentCodec"],
    "edm2.training.loss.bins": ["NoiseBins", "equal_bins", "x0_gradients"],
    "edm2.training.loss.by_name": [
        "NOISE_DISTRIBUTIONS",
        "SNR_CONVENTIONS",
        "WEIGHTINGS",
        "make_weighting",
        "noise_distribution",
    ],
    "edm2.training.loss.noise": ["DDPMCosine", "DDPMLinear", "LnNormal", "LnUniform", "NoiseDistribution", "levels"],
    "edm2.training.loss.objective": ["DenoisingLoss", "EDM2Loss"],
    "edm2.training.loss.pareto": ["Pareto", "pareto_weights"],
    "edm2.training.loss.snr": ["Constant", "Eps", "InDataUnits", "MaxSNR", "MinSNR", "P2", "SoftMinSNR", "V"],
    "edm2.training.loss.weighting": ["EDM", "Relative", "StaticWeighting", "Uncertainty", "Weighting", "normalized"],
    "edm2.training.run.checkpoint": ["CheckpointError"],
    "edm2.training.run.run_folder": ["RunFolder", "RunFolderError", "read_run_config"],
    "edm2.training.schedule": ["inverse_sqrt_lr"],
    "edm2.training.step": ["TrainStep"],
    "edm2.training.trainer": ["Trainer", "TrainingError"],
}

__all__ = [name for names in _HOMES.values() for name in names]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
