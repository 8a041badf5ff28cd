"""`edm2 ablate`: train many variants with the same seeds and budget, sweep the EMA length of each, compare them."""

import contextlib
import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.tools.options.groups import GroupedCommand, GroupedOption
from edm2.tools.options.parsing import FILE, FOLDER, PRECISION, SEEDS, SHARD, SIGMA_RELS
from edm2.tools.options.variants import Variant, check_common, given, planned, variants

if TYPE_CHECKING:
    from edm2.study.study import Failure, Outcome, Scoring, Trial
    from edm2.sweep.evaluator import Drawing, Evaluator
    from edm2.training import Dataset

Results = dict[str, "Outcome | Failure"]
"""By the names of trials."""

EPILOG = """\b
Examples:
  # The paper's ladder on handwritten digits: seven configurations, three seeds
  edm2 ablate --data digits --configs A,B,...,G --seeds 0-2 --out ladder --steps 18
\b
  # Weightings of noise levels, all without learned uncertainty but the first
  edm2 ablate --data digits --weightings uncertainty,edm,eps,p2,min-snr --seeds 0-2 --out weightings
\b
  # How much the decay of the learning rate matters, with and without a choice of the EMA length
  edm2 ablate --data digits --vary decay=150,300,600,1200,2400 --out decay
\b
  # Options of edm2 train for all runs stand after --
  edm2 ablate --data photos/ --configs A,D,G --out study --detector efficientnet-lite0 -- --duration 2Mi --xflip
\b
  # Eight GPUs, no scheduler: a share for each, then the tables
  for i in 1 2 3 4 5 6 7 8; do
    CUDA_VISIBLE_DEVICES=$((i - 1)) edm2 ablate --data photos/ --configs A,B,...,G --out study --share $i/8 &
  done; wait
  edm2 ablate --data photos/ --configs A,B,...,G --out study

\b
On CPU cores, put this before each command of a share:
  OMP_NUM_THREADS=1

Interrupted? Run the same command again: finished runs and known scores are not computed again, failed runs not tried
again until their folders are removed. Variants and seeds may be added. OUT/runs/LABEL-seedK is an ordinary run: plot,
sweep and sample it with the other commands.
"""

_what = partial(click.option, cls=GroupedOption, group="What is compared")
_score = partial(click.option, cls=GroupedOption, group="How it is scored")
_where = partial(click.option, cls=GroupedOption, group="Where it goes, and who does it")


@click.command(cls=GroupedCommand, epilog=EPILOG, options_metavar="[OPTIONS]")
@_what("--data", required=True, help="As --data of edm2 train.")
@_what("--configs", metavar="A,B,...", help="Configurations of the paper's ladder, as --config of edm2 train.")
@_what("--weightings", metavar="NAME,...", help="Weightings, as --weighting of edm2 train.")
@_what("--vary", "varied", metavar="OPTION=V,...", multiple=True, help="Values of any option; may be repeated.")
@_what("--config", "letter", metavar="LETTER", help="Configuration under --weightings and --vary; default: G.")
@_what("--seeds", type=SEEDS, default="0", show_default=True, help="Seeds of each variant: 0-2.")
@_score(
    "--std",
    "sigma_rels",
    type=SIGMA_RELS,
    default="0.02,0.04,...,0.24",
    show_default=True,
    help="EMA lengths.",
)
@_score("--fixed", type=float, help="The one length to compare all at, too; default: what suits all best.")
@_score("--detector", help="As --detector of edm2 sweep.")
@_score("--weights", type=FILE, help="File with the detector's weights; default: fetched once.")
@_score("--ref", type=FILE, help="Statistics of real images; default: those of the data.")
@_score("--samples", "count", type=click.IntRange(2), default=500, show_default=True, help="Images per score.")
@_score("--steps", "num_steps", type=click.IntRange(1), default=32, show_default=True, help="Sampling steps.")
@_score("--precision", type=PRECISION, help="Of activations while sampling; default: fp16 on CUDA, else fp32.")
@_where("--out", type=FOLDER, required=True, help="Folder of the study: runs, tables and figures.")
@_where("--share", type=SHARD, help="Do only the first of two shares of the runs (1/2), the second (2/2), ...")
@_where("--report", is_flag=True, help="Compute nothing: tables and figures of what is finished.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS OF edm2 train]")
def ablate(
    data: str,
    configs: str | None,
    weightings: str | None,
    varied: tuple[str, ...],
    letter: str | None,
    seeds: list[int],
    sigma_rels: list[float],
    fixed: float | None,
    detector: str | None,
    weights: Path | None,
    ref: Path | None,
    count: int,
    num_steps: int,
    precision: str | None,
    out: Path,
    share: tuple[int, int] | None,
    report: bool,
    options: tuple[str, ...],
) -> None:
    """Train variants with the same seeds and budget, sweep the EMA length of each, and compare them.

    Writes ablation.csv and ablation.md (distances of each at its best EMA length, at one length for all, without
    averaging; of runs with --diagnostics also how activations, weights and gradients grew), ablation.png (distance
    against EMA length), losses.csv and losses.png (loss on held-out images against noise level). Variants are compared
    with the first one.
    """
    common = (*(("--config", letter) if letter else ()), *options)
    chosen = _chosen(configs, weightings, varied, common)
    if fixed is not None and fixed not in sigma_rels:
        raise click.UsageError(f"--fixed {fixed:g} is none of the EMA lengths of --std")

    from edm2.study.folder import StudyFolder
    from edm2.study.study import Scoring
    from edm2.training import open_dataset

    dataset = open_dataset(data)
    folder = StudyFolder(out)
    trials = _trials(chosen, list(dict.fromkeys(seeds)), dataset, data, folder, common)
    if report:
        _check_finished(out, any(trial.is_finished for trial in trials))
    folder.claim(_facts(data, dataset, common))
    judge = _judge(trials[0], dataset, detector, weights, ref, out)
    drawing = _drawing(trials[0], count, num_steps, precision)
    scoring = Scoring(tuple(sigma_rels), judge, drawing, dataset, real_images=ref is None)
    if report:
        _check_finished(out, bool(_finished(trials, scoring)))
    number, shares = share or (1, 1)
    mine = [] if report else range(number - 1, len(trials), shares)
    _announce(trials, mine, scoring)
    _work(trials, mine, dataset, scoring)
    _write(out, trials, scoring, shlex.join(["edm2", "train", "--data", data, *common]), fixed)


# ------------------------------------------------------------------------------------------------------- the study


def _chosen(configs: str | None, weightings: str | None, varied: Sequence[str], common: Sequence[str]) -> list[Variant]:
    check_common(common)
    chosen = variants(configs, weightings, varied)
    names: dict[str, Variant] = {}
    for variant in chosen:
        other = names.setdefault(variant.folder_name.lower(), variant)
        if other is not variant:
            raise click.UsageError(f"{other.label} and {variant.label} would share a folder: leave one out")
    return chosen


def _trials(
    chosen: Sequence[Variant], seeds: Sequence[int], dataset: "Dataset", data: str, folder: Any, common: Sequence[str]
) -> list["Trial"]:
    """All runs, seed by seed, so that all variants can be compared early on."""
    from edm2.study.study import Trial

    return [
        Trial(v.label, planned(dataset, data, str(folder.run(v.folder_name, seed)), seed, (*common, *v.options)))
        for seed in seeds
        for v in chosen
    ]


def _facts(data: str, dataset: "Dataset", common: Sequence[str]) -> dict[str, Any]:
    """What all runs of a study have in common; more variants and seeds may come."""
    from edm2.training.config import CHANGEABLE

    settings = {name: value for name, value in given(common).items() if name not in CHANGEABLE - {"duration"}}
    return {"data": data, "images": len(dataset), "shape": dataset.shape, **settings}


def _judge(
    trial: "Trial", dataset: "Dataset", detector: str | None, weights: Path | None, ref: Path | None, out: Path
) -> "Evaluator":
    """The same for all trials; statistics of the data are kept in the study's folder."""
    from edm2.tools.options.evaluators import check_pixels, default_detector, load_evaluator
    from edm2.tools.run import image_bar
    from edm2.training.distributed.processes import ONE_PROCESS

    if ref is None:
        check_pixels(dataset)
    described = {"network": trial.config.network.to_json(), "codec": {"kind": dataset.kind}}
    name = detector or default_detector(described)
    return load_evaluator(name, weights, dataset, ref, trial.config.device, ONE_PROCESS, image_bar, out)


def _drawing(trial: "Trial", count: int, num_steps: int, precision: str | None) -> "Drawing":
    from edm2.sweep.evaluator import Drawing
    from edm2.training.config import DTYPES

    dtype = DTYPES[precision or ("fp16" if trial.config.device.startswith("cuda") else "fp32")]
    return Drawing(count, num_steps, dtype=dtype)


def _check_finished(out: Path, finished: bool) -> None:
    """Raises click.ClickException if there is nothing to report."""
    if not finished:
        raise click.ClickException(f"{out}: none of these runs is finished; leave --report out to train and score them")


def _announce(trials: Sequence["Trial"], mine: Sequence[int], scoring: "Scoring") -> None:
    """What is to come."""
    labels, seeds = {trial.label for trial in trials}, {trial.seed for trial in trials}
    images = max(trial.config.duration for trial in trials)
    click.echo(f"{len(trials)} runs of {images:,} images: {_count(labels, 'variant')}, {_count(seeds, 'seed')}.")
    title, samples = scoring.judge.detector.title, scoring.drawing.count
    click.echo(f"Each is scored at {len(scoring.sigma_rels)} EMA lengths by {title} of {samples:,} samples.")
    if len(mine) < len(trials):
        click.echo(f"{len(mine)} of them are done here.")


def _count(things: set[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' if len(things) != 1 else ''}"


# ------------------------------------------------------------------------------------------------------- its runs


def _work(trials: Sequence["Trial"], mine: Sequence[int], dataset: "Dataset", scoring: "Scoring") -> None:
    """Train and score the trials of those numbers, one line each."""
    width, digits = max(len(trial.name) for trial in trials), len(str(len(trials)))
    for number in mine:
        trial, start = trials[number], time.perf_counter()
        known = trial.result(scoring)
        result = known or _result(trial, dataset, scoring)
        spent = "known" if known else f"{time.perf_counter() - start:.0f} s"
        place = f"[{number + 1:>{digits}}/{len(trials)}]"
        click.echo(f"{place} {trial.name:<{width}} {spent:>8}  {_said(result)}")


def _result(trial: "Trial", dataset: "Dataset", scoring: "Scoring") -> "Outcome | Failure":
    """Train if need be, score, and remember."""
    from edm2.study.study import Failure
    from edm2.tools.run import image_bar
    from edm2.training import TrainingError

    how = None  # a run that cannot be trained has failed however it would be scored
    try:
        _train(trial, dataset)
        how = scoring
        with image_bar(scoring.images(trial)) as bar:
            result = scoring.outcome(trial, bar.update)
    except TrainingError as error:
        result = Failure(trial.label, trial.seed, str(error))
    trial.keep(result, how)
    return result


def _train(trial: "Trial", dataset: "Dataset") -> None:
    """Train, or go on; what the run says of itself goes to train.log in its folder."""
    from edm2.tools.run import train_interruptibly

    trial.folder.claim(trial.config)
    if trial.is_trained:
        return
    with open(trial.folder.path / "train.log", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        trainer = train_interruptibly(trial.config, dataset)
    if trainer.stop_requested:  # in its last step
        raise click.exceptions.Exit(130)


def _said(result: "Outcome | Failure") -> str:
    from edm2.study.study import Failure

    if isinstance(result, Failure):
        return f"failed: {result.message}"
    return f"best EMA length {result.best:.3f}, distance {result.distance:.4f}"


# ---------------------------------------------------------------------------------------------------- its results


def _write(out: Path, trials: Sequence["Trial"], scoring: "Scoring", command: str, fixed: float | None) -> None:
    """Tables and figures of what is finished, by whatever process; again, if one has finished more meanwhile."""
    from edm2.tools.reports.ablation import Report

    written: Results = {}
    while (results := _finished(trials, scoring)).keys() != written.keys():
        Report(trials, list(results.values()), scoring, command, fixed).write(out)
        written = results
    missing = [trial.name for trial in trials if trial.name not in written]
    if missing:
        click.echo(f"{len(missing)} of {len(trials)} runs are missing: {'; '.join(missing)}")
    if written:
        click.echo(f"Tables and figures of {len(written)} runs: {out / 'ablation.md'}, ablation.png, losses.png, ...")


def _finished(trials: Sequence["Trial"], scoring: "Scoring") -> Results:
    results = ((trial.name, trial.result(scoring)) for trial in trials)
    return {name: result for name, result in results if result is not None}
