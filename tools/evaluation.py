"""Scores of a run while it trains, as `edm2 sweep` would compute them of its latest snapshots."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from edm2.post_hoc_ema.files import first_line
from edm2.sampling.conditions import held_out_conditions
from edm2.sweep.averages import Averages
from edm2.sweep.evaluator import SampleSettings
from edm2.sweep.score_cache import ScoreCache
from edm2.sweep.sweep import Range, ScoredPoint, Sweeper
from edm2.tools.options.evaluators import codec_of, default_detector, load_evaluator
from edm2.tools.progress import progress_bar
from edm2.training import Dataset, RunFolder, Trainer, TrainingConfig, open_dataset
from edm2.training.callbacks import Callback
from edm2.training.config import DTYPES
from edm2.training.distributed.processes import ONE_PROCESS


class Evaluation(Callback):
    """Scores some EMA lengths at every n-th snapshot: a callback of `Trainer`.

    Scores go to the run's sweep.jsonl, where `edm2 sweep` finds them; samples are those that it would draw by default.
    The reference is computed at once, so that missing files show before a run of days.

    Arguments are the run and its data, and the values of `--eval` and the options beside it.
    """

    def __init__(
        self,
        config: TrainingConfig,
        sigma_rels: Sequence[float],
        every: int,
        count: int,
        detector: str | None,
        data: str | None,
        ref: Path | None,
        trained_on: Dataset,
    ) -> None:
        self.config = config
        self.sigma_rels = list(sigma_rels)
        self.every = every
        dtype = DTYPES["fp16" if config.device.startswith("cuda") else "fp32"]
        self.sampling = SampleSettings(count, dtype=dtype, conditions=held_out_conditions(config, trained_on))
        real = None
        if ref is None:
            real = trained_on if data is None else open_dataset(data)
        detector = detector or default_detector(trained_on.shape, trained_on.kind == "pixels")
        self.evaluator = load_evaluator(detector, None, real, ref, config.device, ONE_PROCESS, progress_bar)

    def on_snapshot(self, trainer: Trainer) -> dict[str, float]:
        """Score the averages of this time, at every n-th snapshot; a failure is printed and must not end the run."""
        images_seen = trainer.images_seen
        number = images_seen // self.config.snapshot_every
        if number % self.every and images_seen < self.config.duration:
            return {}
        try:
            results = self._results(images_seen)
        except (ValueError, OSError, RuntimeError) as error:
            tqdm.write(f"not scored at {images_seen:,} images: {first_line(error)}")
            return {}
        title = self.evaluator.title
        numbers = ", ".join(f"{result.distance:.4f} at EMA {result.point.sigma_rel:g}" for result in results)
        tqdm.write(f"{title} at {images_seen:,} images: {numbers}")
        return {f"{title}/{result.point.sigma_rel:g}": result.distance for result in results}

    def _results(self, images_seen: int) -> list[ScoredPoint]:
        averages = Averages(self.config.out)
        codec = codec_of(self.config.out, averages.metadata, None)
        known = ScoreCache(RunFolder(self.config.out).path / "sweep.jsonl")
        device = torch.device(self.config.device)
        sweeper = Sweeper(averages, codec, self.evaluator, self.sampling, known=known, device=device)
        return sweeper.results(Range([images_seen], self.sigma_rels).points())
