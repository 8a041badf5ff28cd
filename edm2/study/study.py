"""A study of variants: runs on the same data with the same seeds and budget, each scored at many EMA lengths.

A trial is one run of a study. Its outcome is kept in its folder (`ablation.json`), so an interrupted study goes on
where it was, and tables can be made at any time of the finished runs.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from edm2.io.model import load, read_metadata
from edm2.planning.costs import count_parameters
from edm2.post_hoc_ema.files import atomic_output
from edm2.sampling.generation import SamplingError
from edm2.sweep.averages import RAW, Averages
from edm2.sweep.evaluator import Evaluator, SampleSettings
from edm2.sweep.score_cache import ScoreCache, key_of
from edm2.sweep.sweep import Point, ScoredPoint, Sweeper
from edm2.training import Dataset, RunFolder, TrainingConfig, TrainingError, codec_from_json
from edm2.training.config import CHANGEABLE
from edm2.training.data.batches import Batch
from edm2.training.data.dataset import split_holdout
from edm2.training.diagnostics.holdout import LossPerLevel, evenly_spaced, loss_at_levels
from edm2.training.run.files import is_free, write_json
from edm2.training.run.logging import read_stats

SIGMAS = tuple(round(10 ** (k / 5), 4) for k in range(-10, 9))
"""Noise levels at which all variants are compared, whatever they were trained on: five per decade, 0.01 to 39.8."""

DECIDING = {"duration", "data", "init"}
"""Settings that may change within a run, but decide its result."""

LOSS_IMAGES = 500
"""Largest number of images that the loss per noise level is measured on."""


class StudyFolderError(ValueError):
    """A folder cannot be used; the message is one line that names it and the remedy."""


def claim_study(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write study.json with the facts that all runs have in common, or check that it holds the same.

    Raises:
        StudyFolderError: the folder belongs to another study, or holds something else.
    """
    path, facts = folder / "study.json", json.loads(json.dumps(facts))  # tuples become lists, as they are in the file
    if path.exists():
        try:
            known = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise StudyFolderError(f"{path}: is damaged; mend it, or choose another --out") from None
        there, here = ({name: json.dumps(value) for name, value in side.items()} for side in (known, facts))
        if differing := [
            f"{name} is {there.get(name, 'not given')} there and {here.get(name, 'not given')} here"
            for name in {**there, **here}
            if there.get(name) != here.get(name)
        ]:
            raise StudyFolderError(
                f"{folder}: holds another study ({', '.join(differing)}); choose another --out, or repeat that one"
            )
        return
    if not is_free(folder):
        raise StudyFolderError(f"{folder}: is no empty folder and holds no study; choose another --out")
    write_json(path, facts)


@dataclass(frozen=True)
class Failure:
    """A trial that could not be trained, or not be scored."""

    label: str
    seed: int
    message: str


@dataclass(frozen=True)
class Outcome:
    """The scores of a trial; names are keys of `ablation.json`."""

    label: str
    """Label of the variant."""
    seed: int
    """Seed of the run."""
    distances: dict[float, float]
    """Frechet distance by sigma_rel."""
    accuracy: float | None
    """Fraction of samples recognized as their class, at the best EMA length; None without a classifier."""
    raw: float | None
    """Distance of the weights without averaging."""
    traditional: float | None
    """Distance of the run's traditional EMA; None if it kept none."""
    traditional_length: float | None
    """sigma_rel of the traditional EMA."""
    floor: float | None
    """Distance of as many real images."""
    levels: LossPerLevel
    """lambda(sigma) (D - y)² at the best EMA length."""
    held_out: bool
    """True if `levels` were measured on images that were not trained on."""
    training_loss: float
    """Minimized loss at the end, comparable between seeds only."""
    seconds: float
    """Duration of the training."""
    parameters: int
    """Trainable numbers."""

    @property
    def best(self) -> float:
        """The sigma_rel with the lowest distance."""
        return min(self.distances, key=self.distances.__getitem__)

    @property
    def distance(self) -> float:
        """Lowest distance."""
        return self.distances[self.best]

    @property
    def held_out_loss(self) -> float | None:
        """Mean loss over noise levels; None if it was measured on training images."""
        return self.levels.mean if self.held_out else None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Outcome":
        """Restore an outcome from `asdict`, of which JSON made names strings and tuples lists."""
        distances = {float(sigma_rel): distance for sigma_rel, distance in values["distances"].items()}
        levels = LossPerLevel(tuple(values["levels"]["sigmas"]), tuple(values["levels"]["losses"]))
        return cls(**{**values, "distances": distances, "levels": levels})


@dataclass(frozen=True)
class Trial:
    """One run of a study."""

    label: str
    """Label of the variant."""
    config: TrainingConfig
    """Configuration of the run: settings, seed and folder."""

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.label}, seed {self.config.seed}"

    @property
    def folder(self) -> RunFolder:
        """Folder of the run."""
        return RunFolder(self.config.out)

    @property
    def is_trained(self) -> bool:
        """True if the run is finished."""
        path = self.folder.raw_weights
        return path.is_file() and read_metadata(path)["images_seen"] == self.config.duration

    @property
    def result_file(self) -> Path:
        """File of the outcome or failure, whatever the scoring was."""
        return self.folder.path / "ablation.json"

    @cached_property
    def key(self) -> str:
        """Hash of all settings that decide the result of the training."""
        settings = self.config.to_json()
        return key_of({name: settings[name] for name in settings if name not in CHANGEABLE - DECIDING})

    def result(self, scoring: "Scoring") -> Outcome | Failure | None:
        """Read the result; None if the run is not trained, or not scored in this way."""
        try:
            kept = json.loads(self.result_file.read_text(encoding="utf-8"))
            if kept["trial"] == self.key and kept["scoring"] in (scoring.key, "any"):
                return Failure(**kept["failure"]) if "failure" in kept else Outcome.from_json(kept["outcome"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # unknown, or of another version: scores are found again in sweep.jsonl
        return None

    def keep(self, result: Outcome | Failure, scoring: "Scoring | None") -> None:
        """Write the result; `scoring` is None for a run that cannot be trained, which fails under any scoring."""
        name = "failure" if isinstance(result, Failure) else "outcome"
        kept = {"trial": self.key, "scoring": scoring.key if scoring else "any", name: asdict(result)}
        with atomic_output(self.result_file) as temporary:
            temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Scoring:
    """Settings by which all trials of a study are scored."""

    sigma_rels: tuple[float, ...]
    """EMA lengths."""
    evaluator: Evaluator
    """Comparison with real images."""
    sampling: SampleSettings
    """Settings of the samples."""
    dataset: Dataset
    """Images of the study, some of which are held out for the loss per noise level."""
    real_images: bool = True
    """True if `dataset` can be scored like samples; latents cannot."""

    @cached_property
    def key(self) -> str:
        """Hash of everything that decides an outcome, besides the trial."""
        asked = {"sigma_rels": self.sigma_rels, "sigmas": SIGMAS, "images": LOSS_IMAGES}
        return key_of({**asked, **self.sampling.to_json(), **self.evaluator.to_json()})

    def images(self, trial: Trial) -> int:
        """Number of images that an outcome takes."""
        return self.sampling.count * (len(self.sigma_rels) + 1 + (trial.config.traditional_ema is not None))

    def outcome(self, trial: Trial, report: Callable[[int], object] = lambda n: None) -> Outcome:
        """Score a finished run; scores are kept in its sweep.jsonl, and known ones are not computed again.

        Args:
            trial: The run.
            report: Called with a number of finished images.

        Raises:
            TrainingError: the network's output is not finite.
            ValueError: an EMA length cannot be reconstructed.
            OSError: snapshots are missing.
        """
        folder, config = trial.folder, trial.config
        averages = Averages(folder.path)
        codec = codec_from_json(averages.metadata["codec"])
        sweeper = Sweeper(
            averages, codec, self.evaluator, self.sampling, known=ScoreCache(folder.path / "sweep.jsonl"),
            device=config.device, report=report,
        )  # fmt: skip
        try:
            results = sweeper.results([Point(averages.last, sigma_rel) for sigma_rel in self.sigma_rels])
            raw = sweeper.results([Point(averages.last, RAW)]) if averages.has_raw_weights(averages.last) else []
            traditional, traditional_sigma_rel = self._traditional(trial, sweeper)
        except SamplingError:
            raise self._not_finite(config) from None
        best = min(results, key=lambda result: result.distance)
        records = read_stats(folder.path / "stats.jsonl")
        return Outcome(
            label=trial.label,
            seed=config.seed,
            distances={result.point.sigma_rel: result.distance for result in results},
            accuracy=best.score.accuracy,
            raw=raw[0].distance if raw else None,
            traditional=traditional,
            traditional_length=traditional_sigma_rel,
            floor=sweeper.real_data_fd(self.dataset) if self.real_images else None,
            levels=self._loss_per_level(sweeper, best, config),
            held_out=config.holdout > 0,
            training_loss=records[-1]["loss"],
            seconds=sum(record["seconds"] for record in records),
            parameters=count_parameters(config.network),
        )

    def _traditional(self, trial: Trial, sweeper: Sweeper) -> tuple[float | None, float | None]:
        """Distance and sigma_rel of the run's traditional EMA, if it kept one."""
        path, averages = trial.folder.traditional_ema, sweeper.averages
        if not path.is_file():
            return None, None
        sigma_rel = read_metadata(path)["sigma_rel"]
        facts = {"run": averages.fingerprint(averages.last), "traditional_ema": trial.config.traditional_ema}
        shown = {"traditional_ema": sigma_rel, "detector": self.evaluator.detector.name}
        score = sweeper.remembered(facts | sweeper.settings, shown, lambda: sweeper.score(sweeper.ready(load(path))))
        return score.distance, sigma_rel

    def _loss_per_level(self, sweeper: Sweeper, best: ScoredPoint, config: TrainingConfig) -> LossPerLevel:
        """Loss of the best average on held-out images, or on training images of a run that holds none out."""
        [net] = sweeper.averages.networks(best.point.images_seen, [best.point.sigma_rel])
        train_set, holdout_set = split_holdout(self.dataset, config.holdout, config.seed)
        chosen = evenly_spaced(holdout_set or train_set, LOSS_IMAGES)
        indices = range(len(chosen))
        images = sweeper.codec.encode(chosen.images(indices).to(config.device), None)
        labels = chosen.labels(indices).to(config.device) if config.own_network.label_dim else None
        levels = loss_at_levels(sweeper.ready(net), Batch(images, labels), SIGMAS, config.images_per_forward)
        if not all(map(math.isfinite, levels.losses)):
            raise self._not_finite(config)
        return levels

    def _not_finite(self, config: TrainingConfig) -> TrainingError:
        remedy = "lower the learning rate" if self.sampling.dtype == torch.float32 else "score with --precision fp32"
        return TrainingError(f"{config.out}: the network's output is not finite; {remedy}")


def finished(trials: Sequence[Trial], scoring: Scoring) -> dict[str, Outcome | Failure]:
    """Read the results of finished trials, by the trials' names."""
    results = {trial.name: trial.result(scoring) for trial in trials}
    return {name: result for name, result in results.items() if result is not None}
