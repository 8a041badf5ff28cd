"""A study of variants: runs on the same data with the same seeds and budget, each scored at many EMA lengths.

A trial is one run of a study. Its result is kept in its folder (`ablation.json`), so an interrupted study goes on where
it was, and tables can be made at any time of the finished runs.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from edm2.io.model import load, read_metadata
from edm2.planning.costs import count_parameters
from edm2.sampling.conditions import held_out_conditions
from edm2.sampling.generation import SamplingError
from edm2.sweep.averages import Averages
from edm2.sweep.evaluator import Evaluator, SampleSettings
from edm2.sweep.score_cache import ScoreCache, key_of
from edm2.sweep.sweep import Point, Range, Sweeper
from edm2.training import Dataset, RunFolder, TrainingConfig, TrainingError, codec_from_json
from edm2.training.config import CHANGEABLE
from edm2.training.data.batches import Batch
from edm2.training.data.conditions import with_conditions
from edm2.training.data.dataset import split_holdout
from edm2.training.diagnostics.holdout import LossPerLevel, evenly_spaced, loss_at_levels
from edm2.training.run.files import is_free, listed_differences, write_json
from edm2.training.run.inputs import change_of_data, describe_data, read_inputs, write_inputs
from edm2.training.run.logging import read_stats

SIGMAS = tuple(round(10 ** (k / 5), 4) for k in range(-10, 9))
"""Noise levels at which all variants are compared, whatever they were trained on: five per decade, 0.01 to 39.8."""

DECIDING = {"duration", "data", "init"}
"""Settings that may change within a run, but decide its result."""

LOSS_IMAGES = 500
"""Largest number of images that the loss per noise level is measured on."""


def claim_study(folder: Path, facts: Mapping[str, Any], dataset: Dataset) -> None:
    """Write study.json with the facts that all runs have in common, or check that it holds the same.

    Images are known by their contents, as in a run; their path, the fact "data", may change.
    """
    path, facts = folder / "study.json", json.loads(json.dumps(facts))  # tuples become lists, as they are in the file
    if not path.exists():
        if not is_free(folder):
            raise ValueError(f"{folder}: is no empty folder and holds no study; choose another --out")
        write_json(path, facts)
    inputs, data = read_inputs(folder), describe_data(dataset)
    if change := change_of_data(inputs.get("data"), data):
        raise ValueError(f"{folder}: the study was begun with other images: {change}; choose another --out")
    there, here = ({k: json.dumps(v) for k, v in side.items()} for side in (json.loads(path.read_text()), facts))
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if inputs and "data" in differing:
        differing.remove("data")
    if differing:
        listed = listed_differences([(k, there.get(k, "not given"), here.get(k, "not given")) for k in differing])
        raise ValueError(f"{folder}: holds another study ({listed}); choose another --out or repeat that one")
    if inputs.get("data") != data:  # a report leaves the folder as it is
        write_inputs(folder, data, init=None)


@dataclass(frozen=True)
class Failure:
    """A trial that could not be trained, or not be scored."""

    label: str
    seed: int
    message: str


@dataclass(frozen=True)
class Outcome:
    """The scores of a trial; names are keys of `ablation.json`.

    Distances are Frechet distances. Accuracy is the fraction of samples recognized as their class; it and the losses
    lambda(sigma) (D - y)² per noise level are those of the best EMA length.
    """

    label: str
    seed: int
    distances: dict[float, float]  # by sigma_rel
    accuracy: float | None  # None without a classifier
    raw: float | None  # distance without averaging
    traditional: float | None  # distance of the run's traditional EMA, None if it kept none,
    traditional_length: float | None  # and its sigma_rel
    floor: float | None  # distance of as many real images
    levels: LossPerLevel
    held_out: bool  # True if `levels` were measured on images that were not trained on
    training_loss: float  # at the end; comparable between seeds only
    seconds: float  # of the training
    parameters: int

    @property
    def best(self) -> float:
        """The sigma_rel with the lowest distance."""
        return min(self.distances, key=self.distances.__getitem__)

    @property
    def distance(self) -> float:
        return self.distances[self.best]

    @property
    def held_out_loss(self) -> float | None:
        """Mean loss over noise levels; None if it was measured on training images."""
        return self.levels.mean if self.held_out else None


@dataclass(frozen=True)
class Trial:
    """One run of a study: the label of its variant, and its configuration with seed and folder."""

    label: str
    config: TrainingConfig

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.label}, seed {self.config.seed}"

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.config.out)

    @property
    def is_trained(self) -> bool:
        """True if the run is finished."""
        path = self.folder.raw_weights
        return path.is_file() and read_metadata(path)["images_seen"] == self.config.duration

    @cached_property
    def key(self) -> str:
        """Hash of all settings that decide the result of the training."""
        settings = self.config.to_json().items()
        return key_of({name: value for name, value in settings if name not in CHANGEABLE - DECIDING})

    def result(self, scoring: "Scoring") -> Outcome | Failure | None:
        """Read the result; None if the run is not trained, or not scored in this way."""
        try:
            kept = json.loads((self.folder.path / "ablation.json").read_text(encoding="utf-8"))
            if kept["trial"] != self.key or kept["scoring"] not in (scoring.key, "any"):
                return None
            if "failure" in kept:
                return Failure(**kept["failure"])
            values = kept["outcome"]  # JSON made names strings and tuples lists
            distances = {float(sigma_rel): distance for sigma_rel, distance in values["distances"].items()}
            levels = LossPerLevel(*(tuple(values["levels"][name]) for name in ("sigmas", "losses")))
            return Outcome(**{**values, "distances": distances, "levels": levels})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None  # unknown, or of another version: scores are found again in sweep.jsonl

    def keep(self, result: Outcome | Failure, scoring: "Scoring | None") -> None:
        """Write the result; `scoring` is None for a run that cannot be trained, which fails under any scoring."""
        name = "failure" if isinstance(result, Failure) else "outcome"
        kept = {"trial": self.key, "scoring": scoring.key if scoring else "any", name: asdict(result)}
        write_json(self.folder.path / "ablation.json", kept)


@dataclass(frozen=True)
class Scoring:
    """Settings by which all trials of a study are scored."""

    sigma_rels: tuple[float, ...]
    evaluator: Evaluator
    sampling: SampleSettings
    dataset: Dataset
    """Images of the study, some of which are held out for the loss per noise level."""
    real_images: bool = True
    """True if `dataset` can be scored like samples; latents cannot."""

    @cached_property
    def key(self) -> str:
        """Hash of everything that decides an outcome, besides the trial."""
        asked = {"sigma_rels": self.sigma_rels, "sigmas": SIGMAS, "images": LOSS_IMAGES}
        return key_of({**asked, **self.sampling.to_json(), **self.evaluator.to_json()})

    def outcome(self, trial: Trial, progress: Callable[[int], AbstractContextManager[Any]] = nullcontext) -> Outcome:
        """Score a finished run; scores are kept in its sweep.jsonl, and known ones are not computed again."""
        folder, config = trial.folder, trial.config
        averages, known = Averages(folder.path), ScoreCache(folder.path / "sweep.jsonl")
        codec = codec_from_json(averages.metadata["codec"])
        sampling = replace(self.sampling, conditions=held_out_conditions(config, self.dataset))
        sweeper = Sweeper(averages, codec, self.evaluator, sampling, known=known, device=config.device)
        try:
            area = Range([averages.last], self.sigma_rels)
            sweep = sweeper.sweep(area, self.dataset if self.real_images else None, progress=progress)
            traditional, traditional_sigma_rel = self._traditional(trial, sweeper)
            levels = self._loss_per_level(sweeper, sweep.best.point, config)
        except SamplingError:
            in_fp32 = self.sampling.dtype == torch.float32
            remedy = "lower the learning rate" if in_fp32 else "score with --precision fp32"
            raise TrainingError(f"{config.out}: the network's output is not finite; {remedy}") from None
        records = read_stats(folder.path / "stats.jsonl")
        return Outcome(
            label=trial.label,
            seed=config.seed,
            distances={result.point.sigma_rel: result.distance for result in sweep.averages},
            accuracy=sweep.best.score.accuracy,
            raw=sweep.raw.distance if sweep.raw else None,
            traditional=traditional,
            traditional_length=traditional_sigma_rel,
            floor=sweep.real_data_fd,
            levels=levels,
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

    def _loss_per_level(self, sweeper: Sweeper, best: Point, config: TrainingConfig) -> LossPerLevel:
        """Loss of the best average on held-out images, or on training images of a run that holds none out."""
        [net] = sweeper.averages.networks(best.images_seen, [best.sigma_rel])
        dataset = with_conditions(self.dataset, config.own_network.conditions, config.make_conditions)
        train_set, holdout_set = split_holdout(dataset, config.holdout, config.seed)
        chosen = evenly_spaced(holdout_set or train_set, LOSS_IMAGES)
        data, classes, conditions = chosen.read(range(len(chosen)))
        images = sweeper.codec.encode(data.to(config.device), None)
        labels = classes.to(config.device) if config.own_network.label_dim else None
        batch = Batch(images, labels, conditions)
        levels = loss_at_levels(sweeper.ready(net), batch, SIGMAS, config.images_per_forward)
        if not all(map(math.isfinite, levels.losses)):
            raise SamplingError("the loss is not finite")
        return levels


def finished(trials: Sequence[Trial], scoring: Scoring) -> dict[str, Outcome | Failure]:
    """Read the results of finished trials, by the trials' names."""
    results = {trial.name: trial.result(scoring) for trial in trials}
    return {name: result for name, result in results.items() if result is not None}
