"""Training (Karras et al. 2024, arXiv 2312.02696v2).

The files in the order of a datum's way through them:

    files.py, zip_files.py   the files of a folder or a ZIP
    archive.py, index.py  what they mean: images, latents, labels; kept for the next time
    data.py               images and labels by index, from files or memory
    patience.py, tolerance.py   reads that fail: tried again; broken files: skipped, up to a number
    order.py, loader.py   which image stands at which place of the run; batches read ahead
    codec.py, latents.py  stored pixels or latents <-> what the network sees
    randomness.py         noise, noise level, label dropout and mirroring, by place
    feed.py               all of the above: what the network sees, step by step
    noise.py              the distributions of noise levels (Eq. 15)
    weighting.py          how the squared error counts at each noise level (Eq. 21)
    snr_weightings.py     what other papers proposed: P2, Min-SNR and their kin
    bins.py, pareto.py    bins of noise levels, and weights that let all of them improve at once
    weighting_by_name.py  the choice among all of these
    objective.py          the loss (Eqs. 14-15)
    schedule.py           the learning rate (Eq. 67), and when things are due
    learner.py            one step: Algorithm 1, Adam and the averages
    trainer.py            the loop, and what happens between steps
    initialization.py     the first weights: fresh ones, or those of a snapshot
    distributed.py        the processes of a job, and how they wait for each other
    parallel.py           one process, copies (DDP) or shares (FSDP2) of the weights
    recompute.py          activations computed twice instead of kept
    heap.py               memory of the CPU, kept for the next tensor
    stopping.py           signals and time limits: all processes stop together
    speed.py              images per second on the first steps
    totals.py             what is added up between two reports
    explosion.py          telling a loss that explodes from one that is merely high
    anomaly.py            the layer in which the first NaN or infinity appears
    diagnostics/          instruments: activations, weights, updates, gradients
    holdout.py            the loss per noise level on images not trained on
    monitor.py            status line, stats.jsonl, TensorBoard
    output.py             reports, samples, snapshots, raw weights
    checkpoint.py, safe_metadata.py   complete state, to resume from; read without executing anything
    disk.py               what a run will write, and whether there is room
    trouble.py            what ends a run, and the line that says so
    run_folder.py         where a run keeps its files
    config.py, field_types.py   the description of a run, checked
    units.py              large numbers for people
"""

from edm2.training.bins import NoiseBins, bin_gradients, equal_bins, x0_gradients
from edm2.training.checkpoint import CheckpointError
from edm2.training.codec import Codec, PixelCodec, codec_from_json
from edm2.training.config import TrainingConfig
from edm2.training.data import ArrayDataset, Dataset, DatasetError, open_dataset
from edm2.training.latents import LatentCodec
from edm2.training.noise import (
    NOISE_DISTRIBUTIONS,
    DDPMCosine,
    DDPMLinear,
    LnNormal,
    LnUniform,
    NoiseDistribution,
    levels,
    noise_distribution,
)
from edm2.training.objective import DenoisingLoss, EDM2Loss
from edm2.training.pareto import Pareto, pareto_objective, pareto_weights
from edm2.training.run_folder import RunFolder, RunFolderError, read_run_config
from edm2.training.schedule import inverse_sqrt_lr
from edm2.training.snr_weightings import P2, Constant, Eps, InDataUnits, MaxSNR, MinSNR, SoftMinSNR, V
from edm2.training.trainer import Trainer, TrainingError
from edm2.training.weighting import EDM, Relative, StaticWeighting, Uncertainty, Weighting, normalized
from edm2.training.weighting_by_name import SNR_CONVENTIONS, WEIGHTINGS, make_weighting

__all__ = [
    "EDM",
    "NOISE_DISTRIBUTIONS",
    "P2",
    "SNR_CONVENTIONS",
    "WEIGHTINGS",
    "ArrayDataset",
    "CheckpointError",
    "Codec",
    "Constant",
    "DDPMCosine",
    "DDPMLinear",
    "Dataset",
    "DatasetError",
    "DenoisingLoss",
    "EDM2Loss",
    "Eps",
    "InDataUnits",
    "LatentCodec",
    "LnNormal",
    "LnUniform",
    "MaxSNR",
    "MinSNR",
    "NoiseBins",
    "NoiseDistribution",
    "Pareto",
    "PixelCodec",
    "Relative",
    "RunFolder",
    "RunFolderError",
    "SoftMinSNR",
    "StaticWeighting",
    "Trainer",
    "TrainingConfig",
    "TrainingError",
    "Uncertainty",
    "V",
    "Weighting",
    "bin_gradients",
    "codec_from_json",
    "equal_bins",
    "inverse_sqrt_lr",
    "levels",
    "make_weighting",
    "noise_distribution",
    "normalized",
    "open_dataset",
    "pareto_objective",
    "pareto_weights",
    "read_run_config",
    "x0_gradients",
]
