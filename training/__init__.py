"""Training (Karras et al. 2024, arXiv 2312.02696v2).

The files in the order of a datum's way through them:

    files.py, zip_files.py   the files of a folder or a ZIP
    archive.py, index.py  what they mean: images, latents, labels; kept for the next time
    data.py               images and labels by index, from files or memory
    order.py, loader.py   which image stands at which place of the run; batches read ahead
    codec.py, latents.py  stored pixels or latents <-> what the network sees
    randomness.py         noise, noise level, label dropout and mirroring, by place
    feed.py               all of the above: what the network sees, step by step
    weighting.py          how the squared error counts at each noise level (Eq. 21)
    objective.py          the loss (Eqs. 14-15)
    schedule.py           the learning rate (Eq. 67), and when things are due
    trainer.py            the loop: one step, and what happens between steps
    speed.py              images per second on the first steps
    totals.py             what is added up between two reports
    holdout.py            the loss per noise level on images not trained on
    monitor.py            status line, stats.jsonl, TensorBoard
    checkpoint.py         complete state, to resume from
    run_folder.py         where a run keeps its files
    config.py             the description of a run
"""

from edm2.training.checkpoint import CheckpointError
from edm2.training.codec import Codec, PixelCodec, codec_from_json
from edm2.training.config import TrainingConfig
from edm2.training.data import ArrayDataset, Dataset, DatasetError, open_dataset
from edm2.training.latents import LatentCodec
from edm2.training.objective import EDM2Loss
from edm2.training.run_folder import RunFolder, RunFolderError, read_run_config
from edm2.training.schedule import inverse_sqrt_lr
from edm2.training.trainer import Trainer, TrainingError
from edm2.training.weighting import EDM, Uncertainty, Weighting

__all__ = [
    "EDM",
    "ArrayDataset",
    "CheckpointError",
    "Codec",
    "Dataset",
    "DatasetError",
    "EDM2Loss",
    "LatentCodec",
    "PixelCodec",
    "RunFolder",
    "RunFolderError",
    "Trainer",
    "TrainingConfig",
    "TrainingError",
    "Uncertainty",
    "Weighting",
    "codec_from_json",
    "inverse_sqrt_lr",
    "open_dataset",
    "read_run_config",
]
