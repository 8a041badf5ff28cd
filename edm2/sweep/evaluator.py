"""The score of a network: the distance of its samples to real images, drawn in memory."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edm2.metrics import Detector, FeatureStatistics, feature_statistics, frechet_distance, reference_of
from edm2.metrics.features import BATCH, ReportProgress, displayed, features_of_batches, read_ahead
from edm2.metrics.frechet import frechet_deviation
from edm2.metrics.reference import Collection
from edm2.metrics.scores import Metric
from edm2.sampling.conditions import SampleConditions
from edm2.sampling.external import SampledNetwork
from edm2.sampling.generation import drawn_by_default, generate, require_finite
from edm2.sampling.guidance import EVERYWHERE, Interval
from edm2.sampling.samplers import HEUN, Sampler
from edm2.sampling.samplers.heun import Denoiser
from edm2.training import Codec, Dataset
from edm2.training.distributed.processes import ONE_PROCESS, Processes


@dataclass(frozen=True)
class Score:
    """Score of a set of samples."""

    distance: float
    """Distance to real images; lower is better."""
    deviation: float | None
    """Standard deviation of `distance` over seeds; None if it is expensive to compute."""
    accuracy: float | None
    """Fraction of samples recognized as the class they were drawn for; None without a classifier."""


class ClassAccuracy:
    """Fraction of samples that a classifier of real images assigns to the class they were drawn for.

    Suits small images, where pixels are good features: on 8x8 digits the classifier itself is right 99 times of 100.

    It is made of the features of real images [N, D] and their classes, int [N].
    """

    def __init__(self, features: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        from sklearn.svm import SVC

        self._classifier = SVC(gamma="scale", C=10).fit(np.asarray(features), np.asarray(labels))

    def __call__(self, features: npt.ArrayLike, classes: npt.ArrayLike) -> float:
        """Accuracy in [0, 1] of samples [N, D] that were drawn for `classes` [N]."""
        return float(np.mean(self._classifier.predict(np.asarray(features)) == np.asarray(classes)))


@dataclass(frozen=True)
class Evaluator:
    """Comparison of samples with real images by the Frechet distance of their features."""

    detector: Detector
    """Function from images to features."""
    reference: FeatureStatistics
    """Statistics of the features of real images."""
    accuracy: ClassAccuracy | None = None
    """Classifier of the same features."""
    made_of: Mapping[str, str] = field(default_factory=dict)
    """Digests of the detector's weights and program, where the reference would not change with them."""

    @property
    def title(self) -> str:
        """Name of the distance."""
        return self.detector.title

    def score(self, features: Tensor | np.ndarray, classes: Sequence[int] | None = None) -> Score:
        """Score samples by their features [N, D]; `classes` are those that they were drawn for."""
        features = np.asarray(features, dtype=np.float64)
        recognized = None if self.accuracy is None or classes is None else self.accuracy(features, classes)
        distance = frechet_distance(feature_statistics(features), self.reference)
        return Score(distance, frechet_deviation(features, self.reference), recognized)

    def real_data_fd(self, dataset: Dataset, count: int, processes: Processes = ONE_PROCESS) -> float:
        """Frechet distance of `count` real images drawn with replacement: the score of perfect samples.

        Processes share the work; all get the same number.
        """
        drawn = np.random.Generator(np.random.PCG64(0)).integers(len(dataset), size=count).tolist()
        parts = [drawn[start : start + BATCH] for start in range(0, count, BATCH)]
        images = read_ahead(dataset, processes.shard(parts))
        features = [batch for [batch] in features_of_batches(images, len(parts), [self.detector], processes)]
        return frechet_distance(feature_statistics(torch.cat(features)), self.reference)

    def to_json(self) -> dict[str, Any]:
        """JSON that tells evaluators apart: known scores are found by it."""
        digest = hashlib.sha256(self.reference.mu.tobytes() + self.reference.sigma.tobytes())
        return {
            "detector": self.detector.name,
            "reference": [self.reference.num_images, digest.hexdigest()[:16]],
            "accuracy": self.accuracy is not None,
            **({"made of": dict(self.made_of)} if self.made_of else {}),
        }


@dataclass(frozen=True)
class MetricEvaluator:
    """Comparison by the first number of another registered metric, such as the kernel distance; as `Evaluator`."""

    detector: Detector
    metric: Metric
    name: str
    """Name in `edm2.metrics.registry.METRICS`."""
    reference_digest: str
    """Hash of the reference file."""
    made_of: Mapping[str, str] = field(default_factory=dict)
    """As of `Evaluator`."""

    @property
    def title(self) -> str:
        return f"{self.name} by {self.detector.name}"

    def score(self, features: Tensor, classes: Sequence[int] | None = None) -> Score:
        samples = Collection(len(features), self.metric.keep)
        samples.add(torch.as_tensor(features))
        first, *_ = self.metric(samples, self.detector.title)
        return Score(first.value, first.deviation, None)

    def to_json(self) -> dict[str, Any]:
        facts = {"detector": self.detector.name, "reference": self.reference_digest, "metric": self.name}
        return {**facts, **({"made of": dict(self.made_of)} if self.made_of else {})}


@dataclass(frozen=True)
class SampleSettings:
    """Settings of the samples that a score is computed from."""

    count: int = 500
    """Samples per score; published ones take 50,000."""
    num_steps: int = 32
    """Sampling steps."""
    interval: Interval = EVERYWHERE
    """Noise levels with guidance."""
    dtype: torch.dtype = torch.float32
    """Precision of activations."""
    sampler: Sampler = HEUN
    """Solver of the sampling ODE."""
    levels: tuple[float, ...] | None = None
    """Noise levels of a flow map; None: those of the network for this number of steps."""
    conditions: SampleConditions | None = None
    """Conditions besides the class, by the number of the sample."""

    def classes(self, net: SampledNetwork, seeds: Sequence[int]) -> list[int] | None:
        """Classes of these seeds: those of their conditions, else all that have images, in turn."""
        if self.conditions is not None and (of_conditions := self.conditions.classes_of(seeds)) is not None:
            return of_conditions
        classes = drawn_by_default(net)
        return [classes[seed % len(classes)] for seed in seeds] if classes else None

    def seeds(self, set_number: int) -> range:
        """Seeds of a set; sets have no seed in common."""
        return range(set_number * self.count, (set_number + 1) * self.count)

    def images(
        self, net: SampledNetwork, codec: Codec, guide: Denoiser | None, guidance: float, parts: Sequence[Sequence[int]]
    ) -> Iterator[Tensor]:
        """Draw the images of the seeds of each part: uint8 [N, C, H, W] in 0..255.

        Raises:
            SamplingError: samples that are not finite.
        """
        levels: dict[str, Any] = {} if self.levels is None else {"levels": self.levels}
        for seeds in parts:
            classes = self.classes(net, seeds)
            batches = generate(
                net,
                seeds,
                classes,
                guide,
                guidance,
                self.interval,
                BATCH,
                self.sampler.sample,
                conditions=None if self.conditions is None else self.conditions.of(seeds),
                num_steps=self.num_steps,
                **levels,
            )
            for batch in require_finite(batches):
                yield codec.to_display(codec.decode(batch.samples))

    def to_json(self) -> dict[str, Any]:
        """JSON of everything that decides the images besides the networks."""
        low, high = self.interval
        shown = [low, None if high == float("inf") else high]
        other_solver = {} if self.sampler == HEUN else {"solver": self.sampler.name}  # keys of older scores have none
        return {
            "count": self.count,
            "steps": self.num_steps,
            "interval": shown,
            "dtype": str(self.dtype),
            **other_solver,
            **({} if self.levels is None else {"levels": list(self.levels)}),
            **({} if self.conditions is None else {"conditions": self.conditions.digest()}),
        }


def score_network(
    net: SampledNetwork,
    codec: Codec,
    evaluator: Evaluator | MetricEvaluator,
    sampling: SampleSettings,
    guide: Denoiser | None = None,
    guidance: float = 1.0,
    set_number: int = 0,
    processes: Processes = ONE_PROCESS,
    report: ReportProgress = lambda n: None,
) -> Score:
    """Score a folded network by one set of seeds, guided away from `guide` if there is one.

    Batches are the same however many processes share them, so the score is that of one process; all get it. `report` is
    called with numbers of finished images.
    """
    seeds = sampling.seeds(set_number)
    parts = [seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH)]
    images = sampling.images(net, codec, guide, guidance, processes.shard(parts))
    features = [batch for [batch] in features_of_batches(images, len(parts), [evaluator.detector], processes, report)]
    return evaluator.score(torch.cat(features), sampling.classes(net, seeds))


def evaluator_by(dataset: Dataset, detector: Detector, statistics: FeatureStatistics | None = None) -> Evaluator:
    """Make an evaluator that compares with all images of a dataset, and recognizes classes where pixels are features.

    The `statistics` of the dataset's features are computed if they are not given.

    Raises:
        ValueError: the data are not pixels, or do not suit the detector.
    """
    statistics = statistics or reference_of(dataset, detector)
    if detector.name != "pixels" or dataset.num_classes < 2:
        return Evaluator(detector, statistics)
    indices = range(len(dataset))
    features = detector(displayed(dataset, indices))
    return Evaluator(detector, statistics, ClassAccuracy(features, dataset.labels(indices).numpy()))
