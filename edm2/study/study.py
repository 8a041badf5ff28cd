"""A study of variants: runs on the same data with the same seeds and budget, each scored at many EMA lengths.

A trial is one run of a study. What it came to is kept in its folder (`ablation.json`), so an interrupted study goes on
where it was, and tables can be made at any time of what is finished.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from edm2.io.model import load, read_metadata
from edm2.networks import Precond, fold
from edm2.planning.costs import count_parameters
from edm2.post_hoc_ema import atomic_output
from edm2.sampling.generation import SamplingError
from edm2.sweep.averages import RAW, Averages
from edm2.sweep.evaluator import Evaluator, SampleSettings, Score, score_network
from edm2.sweep.score_cache import ScoreCache, key_of
from edm2.sweep.sweep import Point, ScoredPoint, Sweeper
from edm2.training import Codec, Dataset, RunFolder, TrainingConfig, TrainingError, codec_from_json
from edm2.training.config import CHANGEABLE
from edm2.training.data.dataset import split_holdout
from edm2.training.diagnostics.holdout import LossPerLevel, evenly_spaced, loss_at_levels
from edm2.training.run.logging import read_stats

SIGMAS = tuple(round(10 ** (k / 5), 4) for k in range(-10, 9))
"""Noise levels at which all variants are compared, whatever they were trained on: five per decade, 0.01 to 39.8."""

ANY = "any"
"""Instead of the key of a scoring."""

LOSS_IMAGES = 500
"""At most so many images tell the loss per noise level."""


@dataclass(frozen=True)
class Trial:
    """One run of a study."""

    label: str
    """Of the variant."""
    config: TrainingConfig
    """What is trained, with which seed, in which folder."""

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.config.seed

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.label}, seed {self.seed}"

    @property
    def folder(self) -> RunFolder:
        """The run's."""
        return RunFolder(self.config.out)

    @property
    def is_trained(self) -> bool:
        """Whether the run is finished."""
        path = self.folder.raw_weights
        return path.is_file() and read_metadata(path)["images_seen"] == self.config.duration

    @property
    def is_finished(self) -> bool:
        """Whether it came to anything, however that was scored."""
        return self._result.is_file()

    @cached_property
    def key(self) -> str:
        """Of everything that decides what is trained."""
        settings = self.config.to_json()
        return key_of({name: settings[name] for name in settings if name not in CHANGEABLE - {"duration"}})

    @property
    def _result(self) -> Path:
        return self.folder.path / "ablation.json"

    def result(self, scoring: "Scoring") -> "Outcome | Failure | None":
        """What is known of it; None if it is not trained, or not scored in this way."""
        try:
            kept = json.loads(self._result.read_text(encoding="utf-8"))
            if kept["trial"] == self.key and kept["scoring"] in (scoring.key, ANY):
                failed = "failure" in kept
                return Failure(**kept["failure"]) if failed else Outcome.from_json(kept["outcome"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # unknown, or of another version: scores are found again in sweep.jsonl
        return None

    def keep(self, result: "Outcome | Failure", scoring: "Scoring | None") -> None:
        """Remember what this came to; `scoring` is None for runs that cannot be trained, however they were scored."""
        name = "failure" if isinstance(result, Failure) else "outcome"
        kept = {"trial": self.key, "scoring": scoring.key if scoring else ANY, name: asdict(result)}
        with atomic_output(self._result) as temporary:
            temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Failure:
    """What a trial came to that could not be trained, or not be scored."""

    label: str
    """Of the variant."""
    seed: int
    """Of the run."""
    message: str
    """What went wrong."""


@dataclass(frozen=True)
class Outcome:
    """What a trial came to."""

    label: str
    """Of the variant."""
    seed: int
    """Of the run."""
    distances: dict[float, float]
    """Frechet distance by EMA length."""
    accuracy: float | None
    """Share of samples recognized as the class they were asked for, at the best length; None if nobody can tell."""
    raw: float | None
    """Distance of the weights without averaging."""
    traditional: float | None
    """Distance of the run's traditional EMA; None if it kept none."""
    traditional_length: float | None
    """sigma_rel of that one."""
    real_data_fd: float | None
    """Distance of as many real images."""
    levels: LossPerLevel
    """lambda(sigma) (D - y)² at the best length."""
    held_out: bool
    """Whether `levels` were measured on images that were not trained on."""
    training_loss: float
    """At the end, as it was minimized: comparable between seeds only."""
    seconds: float
    """That training took."""
    parameters: int
    """Trainable numbers."""

    @property
    def best(self) -> float:
        """The EMA length with the lowest distance."""
        return min(self.distances, key=self.distances.__getitem__)

    @property
    def distance(self) -> float:
        """The lowest."""
        return self.distances[self.best]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Outcome":
        """From `asdict`, through JSON, whose names are strings and whose tuples are lists."""
        distances = {float(length): distance for length, distance in values["distances"].items()}
        levels = LossPerLevel(tuple(values["levels"]["sigmas"]), tuple(values["levels"]["losses"]))
        return cls(**{**values, "distances": distances, "levels": levels})


@dataclass(frozen=True)
class Scoring:
    """How trials are scored: all of a study alike."""

    sigma_rels: tuple[float, ...]
    """EMA lengths."""
    evaluator: Evaluator
    """What samples are compared with."""
    sampling: SampleSettings
    """How they are drawn."""
    dataset: Dataset
    """Images of the study; those held out tell the loss per noise level."""
    real_images: bool = True
    """Whether `dataset` can be scored like samples: not if it holds latents."""

    @cached_property
    def key(self) -> str:
        """Of everything that decides an outcome, besides the trial."""
        asked = {"sigma_rels": self.sigma_rels, "sigmas": SIGMAS, "images": LOSS_IMAGES}
        return key_of({**asked, **self.sampling.to_json(), **self.evaluator.to_json()})

    def images(self, trial: Trial) -> int:
        """How many an outcome takes."""
        return self.sampling.count * (len(self.sigma_rels) + 1 + (trial.config.traditional_ema is not None))

    def outcome(self, trial: Trial, report: Callable[[int], object] = lambda n: None) -> Outcome:
        """Score a finished run; scores go into its sweep.jsonl, and those that are there are not computed again.

        Args:
            trial: The run.
            report: Hears of images that are drawn.

        Raises:
            TrainingError: the network puts out numbers that are not finite.
            ValueError: an EMA length cannot be had.
            OSError: snapshots are missing.
        """
        try:
            return self._outcome(trial, report)
        except SamplingError:
            raise self._not_finite(trial.config) from None

    def _outcome(self, trial: Trial, report: Callable[[int], object]) -> Outcome:
        averages = Averages(trial.folder.path)
        codec, device = codec_from_json(averages.metadata["codec"]), trial.config.device
        known = ScoreCache(trial.folder.path / "sweep.jsonl")
        sweeper = Sweeper(averages, codec, self.evaluator, self.sampling, known=known, device=device, report=report)
        results = sweeper.results([Point(averages.last, sigma_rel) for sigma_rel in self.sigma_rels])
        best = min(results, key=lambda result: result.distance)
        raw = sweeper.results([Point(averages.last, RAW)]) if averages.has_raw_weights(averages.last) else []
        traditional = _Traditional(trial, averages, codec, self, known)
        [net] = averages.networks(averages.last, [best.point.sigma_rel])
        return Outcome(
            label=trial.label,
            seed=trial.seed,
            distances={result.point.sigma_rel: result.distance for result in results},
            accuracy=best.score.accuracy,
            raw=_distance(raw),
            traditional=traditional.distance(report),
            traditional_length=traditional.sigma_rel,
            real_data_fd=sweeper.real_data_fd(self.dataset) if self.real_images else None,
            levels=self._loss_per_level(fold(net, self.sampling.dtype).to(device), codec, trial.config),
            held_out=trial.config.holdout > 0,
            parameters=count_parameters(trial.config.network),
            **_of_training(trial.folder.path),
        )

    def _loss_per_level(self, net: Precond, codec: Codec, config: TrainingConfig) -> LossPerLevel:
        """On the images that this run set aside, or on training images if there are none; `net` as it draws samples."""
        train_set, holdout_set = split_holdout(self.dataset, config.holdout, config.seed)
        chosen = evenly_spaced(holdout_set or train_set, LOSS_IMAGES)
        indices = range(len(chosen))
        images = codec.encode(chosen.images(indices).to(config.device), None)
        labels = chosen.labels(indices).to(config.device) if config.network.label_dim else None
        levels = loss_at_levels(net, images, labels, SIGMAS, config.images_per_forward)
        if not all(map(math.isfinite, levels.losses)):
            raise self._not_finite(config)
        return levels

    def _not_finite(self, config: TrainingConfig) -> TrainingError:
        remedy = "lower the learning rate" if self.sampling.dtype == torch.float32 else "score with --precision fp32"
        return TrainingError(f"{config.out}: the network's output is not finite; {remedy}")


def _distance(results: list[ScoredPoint]) -> float | None:
    return results[0].distance if results else None


def _of_training(folder: Path) -> dict[str, float]:
    records = read_stats(folder / "stats.jsonl")
    return {"training_loss": records[-1]["loss"], "seconds": sum(record["seconds"] for record in records)}


@dataclass(frozen=True)
class _Traditional:
    """The traditional EMA of a run, if it kept one."""

    trial: Trial
    averages: Averages
    codec: Codec
    scoring: Scoring
    known: ScoreCache

    @property
    def path(self) -> Path:
        return self.trial.folder.traditional_ema

    @cached_property
    def sigma_rel(self) -> float | None:
        """Its length: the sigma_rel of its profile."""
        return read_metadata(self.path)["sigma_rel"] if self.path.is_file() else None

    def distance(self, report: Callable[[int], object]) -> float | None:
        """Known, or computed."""
        if self.sigma_rel is None:
            return None
        facts = {
            "run": self.averages.fingerprint(self.averages.last),
            "traditional_ema": self.trial.config.traditional_ema,
            "codec": self.codec.to_json(),
            **self.scoring.sampling.to_json(),
            **self.scoring.evaluator.to_json(),
        }
        score = self.known.get(facts)
        if score is not None:
            report(self.scoring.sampling.count)
            return score.distance
        score = self._score(report)
        self.known.add(
            facts, {"traditional_ema": self.sigma_rel, "detector": self.scoring.evaluator.detector.name}, score
        )
        return score.distance

    def _score(self, report: Callable[[int], object]) -> Score:
        net = fold(load(self.path), self.scoring.sampling.dtype).to(self.trial.config.device)
        return score_network(net, self.codec, self.scoring.evaluator, self.scoring.sampling, report=report)
