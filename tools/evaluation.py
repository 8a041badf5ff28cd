"""Scores of a run while it trains: what `edm2 sweep` would say of its latest snapshots."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from edm2.post_hoc_ema.files import first_line
from edm2.sweep.averages import Averages
from edm2.sweep.evaluator import Drawing
from edm2.sweep.score_cache import ScoreCache
from edm2.sweep.sweep import Range, Result, Sweeper
from edm2.tools.options.evaluators import check_pixels, codec_of, default_detector, load_evaluator
from edm2.tools.run import image_bar
from edm2.training import Dataset, RunFolder, TrainingConfig, open_dataset
from edm2.training.config import DTYPES
from edm2.training.distributed.processes import ONE_PROCESS


class Evaluation:
    """Scores some EMA lengths at every n-th snapshot; hand it to `Trainer` as `on_snapshot`.

    Scores go to the run's sweep.jsonl, where `edm2 sweep` finds them; samples are those that it would draw by default.
    The reference is computed at once, so that what is missing shows before a run of days.

    Args:
        config: The run.
        sigma_rels: EMA lengths.
        every: n.
        count: Samples per score.
        detector: Name of a detector; None: what fits the data.
        data: Real images; None: those of the run.
        ref: Statistics of real images, in place of `data`.
        trained_on: What the run is trained on.

    Raises:
        ValueError: the data are no pixels, or do not suit the detector.
        OSError: a file is missing.
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
        self.drawing = Drawing(count, dtype=DTYPES["fp16" if config.device.startswith("cuda") else "fp32"])
        real = None
        if ref is None:
            real = trained_on if data is None else open_dataset(data)
            check_pixels(real)
        kind = "pixels" if trained_on.kind == "pixels" else "latents"
        about = {"network": config.network.to_json(), "codec": {"kind": kind}}
        self.judge = load_evaluator(
            detector or default_detector(about), None, real, ref, config.device, ONE_PROCESS, image_bar
        )

    def __call__(self, images_seen: int) -> dict[str, float]:
        """Score the averages of this time; nothing at most snapshots, or where it fails: a run must not end of it."""
        number = images_seen // self.config.snapshot_every
        if number % self.every and images_seen < self.config.duration:
            return {}
        try:
            results = self._results(images_seen)
        except (ValueError, OSError, RuntimeError) as error:
            tqdm.write(f"not scored at {images_seen:,} images: {first_line(error)}")
            return {}
        title = self.judge.detector.title
        told = ", ".join(f"{result.distance:.4f} at EMA {result.point.sigma_rel:g}" for result in results)
        tqdm.write(f"{title} at {images_seen:,} images: {told}")
        return {f"{title}/{result.point.sigma_rel:g}": result.distance for result in results}

    def _results(self, images_seen: int) -> list[Result]:
        averages = Averages(self.config.out)
        codec = codec_of(self.config.out, averages.metadata, None)
        known = ScoreCache(RunFolder(self.config.out).path / "sweep.jsonl")
        device = torch.device(self.config.device)
        sweeper = Sweeper(averages, codec, self.judge, self.drawing, known=known, device=device)
        return sweeper.results(Range([images_seen], self.sigma_rels).points())
