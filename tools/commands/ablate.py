"""`edm2 ablate`: train many variants with the same seeds and budget, sweep the EMA length of each, compare them."""

import contextlib
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.tools.options.groups import GroupedCommand, option_group
from edm2.tools.options.parsing import (
    FILE,
    FOLDER,
    SAMPLING_PRECISION,
    SAMPLING_PRECISION_HELP,
    SEEDS,
    SHARD,
    SIGMA_RELS,
)
from edm2.tools.options.variants import check_not_fixed, given, planned, variants

if TYPE_CHECKING:
    from edm2.study.study import Failure, Outcome, Scoring, Trial
    from edm2.training import Dataset

EPILOG = """\b
Examples:
  # The paper's ladder on handwritten digits: seven configurations, three seeds
  edm2 ablate --data digits --configs A,B,...,G --seeds 0-2 --out ladder --steps 18
\n\b
  # Weightings of noise levels, all without learned uncertainty but the first
  edm2 ablate --data digits --weightings uncertainty,edm,eps,p2,min-snr --seeds 0-2 --out weightings
\n\b
  # How much the decay of the learning rate matters, with and without a choice of the EMA length
  edm2 ablate --data digits --vary decay=150,300,600,1200,2400 --out decay
\n\b
  # Options of edm2 train for all runs stand after --
  edm2 ablate --data photos/ --configs A,D,G --out study --detector efficientnet-lite0 -- --duration 2Mi --xflip
\n\b
  # Eight GPUs, no scheduler: a share for each, then the tables; on CPU cores, put OMP_NUM_THREADS=1 before each command
  for i in 1 2 3 4 5 6 7 8; do
    CUDA_VISIBLE_DEVICES=$((i - 1)) edm2 ablate --data photos/ --configs A,B,...,G --out study --share $i/8 &
  done; wait
  edm2 ablate --data photos/ --configs A,B,...,G --out study

Interrupted? Run the same command again: finished runs and known scores are not computed again, failed runs not tried
again until their folders are removed. Variants and seeds may be added. OUT/runs/LABEL-seedK is an ordinary run: plot,
sweep and sample it with the other commands.
"""

_what, _score, _where = map(option_group, ("What is compared", "How it is scored", "Where it goes, and who does it"))


@click.command(cls=GroupedCommand, epilog=EPILOG, options_metavar="[OPTIONS]")
@_what("--data", required=True, help="As --data of edm2 train.")
@_what("--configs", metavar="A,B,...", help="Configurations of the paper's ladder, as --config of edm2 train.")
@_what("--weightings", metavar="NAME,...", help="Weightings, as --weighting of edm2 train.")
@_what("--vary", "varied", metavar="OPTION=V,...", multiple=True, help="Values of any option; may be repeated.")
@_what("--config", "letter", metavar="LETTER", help="Configuration under --weightings and --vary; default: G.")
@_what("--seeds", type=SEEDS, default="0", show_default=True, help="Seeds of each variant: 0-2.")
@_score("--std", "sigma_rels", type=SIGMA_RELS, default="0.02,0.04,...,0.24", show_default=True, help="EMA lengths.")
@_score("--fixed", type=float, help="The one length to compare all at, too; default: what suits all best.")
@_score("--detector", help="As --detector of edm2 sweep.")
@_score("--weights", type=FILE, help="File with the detector's weights; default: fetched once.")
@_score("--ref", type=FILE, help="Statistics of real images; default: those of the data.")
@_score("--samples", "count", type=click.IntRange(2), default=500, show_default=True, help="Images per score.")
@_score("--steps", "num_steps", type=click.IntRange(1), default=32, show_default=True, help="Sampling steps.")
@_score("--precision", type=SAMPLING_PRECISION, help=SAMPLING_PRECISION_HELP)
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
    out: Path,
    share: tuple[int, int] | None,
    report: bool,
    options: tuple[str, ...],
    **scored: Any,
) -> None:
    """Train variants with the same seeds and budget, sweep the EMA length of each, and compare them.

    Writes ablation.csv and ablation.md (distances of each at its best EMA length, at one length for all, without
    averaging; of runs with --diagnostics also how activations, weights and gradients grew), ablation.png (distance
    against EMA length), losses.csv and losses.png (loss on held-out images against noise level). Variants are compared
    with the first one.
    """
    common = (*(("--config", letter) if letter else ()), *options)
    check_not_fixed(common)
    chosen = variants(configs, weightings, varied)
    if fixed is not None and fixed not in sigma_rels:
        raise click.UsageError(f"--fixed {fixed:g} is none of the EMA lengths of --std")

    from edm2.study.study import Failure, Trial, claim_study, finished
    from edm2.training import open_dataset
    from edm2.training.config import CHANGEABLE

    dataset = open_dataset(data)
    runs = ((seed, v, out / "runs" / f"{v.folder_name}-seed{seed}") for seed in dict.fromkeys(seeds) for v in chosen)
    trials = [Trial(v.label, planned(dataset, data, str(run), seed, (*common, *v.options))) for seed, v, run in runs]
    nothing = f"{out}: none of these runs is finished; leave --report out to train and score them"
    if report and not (out / "study.json").exists():
        raise click.ClickException(nothing)
    settings = {name: value for name, value in given(common).items() if name not in CHANGEABLE - {"duration"}}
    claim_study(out, {"data": data, "images": len(dataset), "shape": dataset.shape, **settings}, dataset)
    scoring = _scoring(trials[0], dataset, out, tuple(sigma_rels), **scored)
    if report and not finished(trials, scoring):
        raise click.ClickException(nothing)
    first, step = share or (1, 1)
    mine = [] if report else range(first - 1, len(trials), step)
    images, samples = max(trial.config.duration for trial in trials), scoring.sampling.count
    click.echo(f"{len(trials)} runs of {images:,} images, of which {len(mine)} are done here. Each is scored at "
               f"{len(sigma_rels)} EMA lengths by {scoring.evaluator.title} of {samples:,} samples.")  # fmt: skip
    for number in mine:
        start, known = time.perf_counter(), trials[number].result(scoring)
        result = known or _result(trials[number], dataset, scoring)
        spent = "known" if known else f"{time.perf_counter() - start:.0f} s"
        if isinstance(result, Failure):
            found = f"failed: {result.message}"
        else:
            found = f"best EMA length {result.best:.3f}, distance {result.distance:.4f}"
        click.echo(f"[{number + 1}/{len(trials)}] {trials[number].name}  {spent:>8}  {found}")
    _write(out, trials, scoring, shlex.join(["edm2", "train", "--data", data, *common]), fixed)


def _scoring(
    trial: "Trial",
    dataset: "Dataset",
    out: Path,
    sigma_rels: tuple[float, ...],
    detector: str | None,
    weights: Path | None,
    ref: Path | None,
    count: int,
    num_steps: int,
    precision: str | None,
) -> "Scoring":
    """Make the scoring of all trials; statistics of the data are kept in the study's folder."""
    from edm2.study.study import Scoring
    from edm2.sweep.evaluator import SampleSettings
    from edm2.tools.options.evaluators import default_detector, load_evaluator
    from edm2.tools.options.networks import chosen_precision
    from edm2.tools.progress import progress_bar
    from edm2.training.config import DTYPES
    from edm2.training.distributed.processes import ONE_PROCESS

    device = trial.config.device
    name = detector or default_detector(dataset.shape, dataset.kind == "pixels")
    evaluator = load_evaluator(name, weights, dataset, ref, device, ONE_PROCESS, progress_bar, out)
    sampling = SampleSettings(count, num_steps, dtype=DTYPES[chosen_precision(precision, device)])
    return Scoring(sigma_rels, evaluator, sampling, dataset, real_images=ref is None)


def _result(trial: "Trial", dataset: "Dataset", scoring: "Scoring") -> "Outcome | Failure":
    """Train and score a trial, as far as that is not done, and keep the result; train.log has the status lines."""
    from edm2.study.study import Failure
    from edm2.tools.progress import progress_bar
    from edm2.tools.run import train_interruptibly
    from edm2.training import TrainingError

    scored_by = None  # a run that cannot be trained has failed under any scoring
    try:
        trial.folder.claim(trial.config, dataset)
        if not trial.is_trained:
            with open(trial.folder.path / "train.log", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
                trainer = train_interruptibly(trial.config, dataset)
            if trainer.stop_requested:  # in its last step
                raise click.exceptions.Exit(130)
        scored_by = scoring
        result: Outcome | Failure = scoring.outcome(trial, progress_bar)
    except TrainingError as error:
        result = Failure(trial.label, trial.config.seed, str(error))
    trial.keep(result, scored_by)
    return result


def _write(out: Path, trials: Sequence["Trial"], scoring: "Scoring", command: str, fixed: float | None) -> None:
    """Write tables and figures of all finished runs; again, if another process has finished more meanwhile."""
    from edm2.study.study import finished
    from edm2.tools.reports.ablation import StudyReport

    written: dict[str, Outcome | Failure] = {}
    while (results := finished(trials, scoring)).keys() != written.keys():
        StudyReport(trials, list(results.values()), scoring, command, fixed).write(out)
        written = results
    if missing := [trial.name for trial in trials if trial.name not in written]:
        click.echo(f"{len(missing)} of {len(trials)} runs are missing: {'; '.join(missing)}")
    if written:
        click.echo(f"Tables and figures of {len(written)} runs: {out / 'ablation.md'}, ablation.png, losses.png, ...")
