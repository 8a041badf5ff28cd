"""Scoring a network by the Frechet distance of its samples to real images; nothing is written."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edm2.metrics import ClassAccuracy, Detector, FeatureStatistics, feature_statistics, frechet_distance
from edm2.metrics.features import BATCH, ReportProgress, displayed, features_of_batches, read_ahead
from edm2.metrics.frechet import frechet_deviation
from edm2.networks import Precond
from edm2.sampling.generation import generate, require_finite
from edm2.sampling.guidance import EVERYWHERE, Interval
from edm2.sampling.samplers import HEUN, Solver
from edm2.sampling.samplers.heun import Denoiser
from edm2.training import Codec, Dataset
from edm2.training.distributed.processes import ONE_PROCESS, Processes


@dataclass(frozen=True)
class Score:
    """How good a set of samples is."""

    distance: float
    """Frechet distance to real images; lower is better."""
    deviation: float | None
    """How much `distance` varies with the seeds (standard deviation); None if that is dear to know."""
    accuracy: float | None
    """Share of samples recognized as the class they were asked for; None if nobody can tell."""


@dataclass(frozen=True)
class Evaluator:
    """What samples are compared with, and by what."""

    detector: Detector
    """Turns images into features."""
    reference: FeatureStatistics
    """Of the features of real images."""
    accuracy: ClassAccuracy | None = None
    """Recognizes classes by the same features."""

    def score(self, features: Tensor | np.ndarray, classes: Sequence[int] | None = None) -> Score:
        """Score samples by their features [N, D]; `classes` are those that they were asked for."""
        features = np.asarray(features, dtype=np.float64)
        recognized = None if self.accuracy is None or classes is None else self.accuracy(features, classes)
        distance = frechet_distance(feature_statistics(features), self.reference)
        return Score(distance, frechet_deviation(features, self.reference), recognized)

    def floor(self, dataset: Dataset, count: int, processes: Processes = ONE_PROCESS) -> float:
        """Frechet distance of `count` real images drawn with replacement: what perfect samples would score.

        Processes share the work; all get the same.
        """
        drawn = np.random.Generator(np.random.PCG64(0)).integers(len(dataset), size=count)
        parts = [drawn[start : start + BATCH] for start in range(0, count, BATCH)]
        images = read_ahead(dataset, processes.share(parts))
        features = [batch for [batch] in features_of_batches(images, len(parts), [self.detector], processes)]
        return frechet_distance(feature_statistics(torch.cat(features)), self.reference)

    def to_json(self) -> dict[str, Any]:
        """Tells judges apart."""
        digest = hashlib.sha256(self.reference.mu.tobytes() + self.reference.sigma.tobytes())
        return {
            "detector": self.detector.name,
            "reference": [self.reference.num_images, digest.hexdigest()[:16]],
            "accuracy": self.accuracy is not None,
        }


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn."""

    count: int = 500
    """Samples per score; published ones take 50,000."""
    num_steps: int = 32
    """Sampling steps."""
    interval: Interval = EVERYWHERE
    """Noise levels with guidance."""
    dtype: torch.dtype = torch.float32
    """Of activations."""
    solver: Solver = HEUN
    """Takes the steps."""

    def classes(self, label_dim: int, seeds: Sequence[int]) -> list[int] | None:
        """As many of each class as of any other, in turn."""
        return [seed % label_dim for seed in seeds] if label_dim else None

    def seeds(self, set_number: int) -> range:
        """Those of a set; sets have no seed in common."""
        return range(set_number * self.count, (set_number + 1) * self.count)

    def images(
        self, net: Precond, codec: Codec, guide: Denoiser | None, guidance: float, parts: Sequence[Sequence[int]]
    ) -> Iterator[Tensor]:
        """Images of the seeds of each part: uint8 [N, C, H, W] in 0..255.

        Raises:
            SamplingError: samples that are not finite.
        """
        for seeds in parts:
            classes = self.classes(net.config.label_dim, seeds)
            batches = generate(
                net, seeds, classes, guide, guidance, self.interval, BATCH, self.solver.sample, num_steps=self.num_steps
            )
            for batch in require_finite(batches):
                yield codec.to_display(codec.decode(batch.samples))

    def to_json(self) -> dict[str, Any]:
        """What decides the images besides the networks."""
        low, high = self.interval
        shown = [low, None if high == float("inf") else high]
        other_solver = {} if self.solver == HEUN else {"solver": self.solver.name}  # scores from before there were any
        return {
            "count": self.count,
            "steps": self.num_steps,
            "interval": shown,
            "dtype": str(self.dtype),
            **other_solver,
        }


def score_network(
    net: Precond,
    codec: Codec,
    judge: Evaluator,
    drawing: Drawing,
    guide: Denoiser | None = None,
    guidance: float = 1.0,
    set_number: int = 0,
    processes: Processes = ONE_PROCESS,
    report: ReportProgress = lambda n: None,
) -> Score:
    """Score a folded network by one set of seeds.

    Batches are the same however many processes share them, so the score is that of one process.

    Args:
        net: Denoiser, where it is to be computed.
        codec: Its way to pixels.
        judge: What to compare with.
        drawing: How to sample.
        guide: Denoiser to guide away from, with `guidance` as weight.
        guidance: 1 is none.
        set_number: Which seeds.
        processes: Who shares the work; all get the same score.
        report: Hears of images that are done.
    """
    seeds = drawing.seeds(set_number)
    parts = [seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)]
    images = drawing.images(net, codec, guide, guidance, processes.share(parts))
    features = [batch for [batch] in features_of_batches(images, len(parts), [judge.detector], processes, report)]
    return judge.score(torch.cat(features), drawing.classes(net.config.label_dim, seeds))


def evaluator_by(
    dataset: Dataset, detector: Detector, reference: Callable[[Dataset, Detector], FeatureStatistics]
) -> Evaluator:
    """A judge that compares with all images of a dataset, and recognizes classes where pixels are features.

    Args:
        dataset: Real images.
        detector: What compares.
        reference: `edm2.metrics.reference_of`, or what takes its place.

    Raises:
        ValueError: the data are not pixels, or do not suit the detector.
    """
    statistics = reference(dataset, detector)
    if detector.name != "pixels" or dataset.num_classes < 2:
        return Evaluator(detector, statistics)
    indices = range(len(dataset))
    features = detector(displayed(dataset, indices))
    return Evaluator(detector, statistics, ClassAccuracy(features, dataset.labels(indices).numpy()))
