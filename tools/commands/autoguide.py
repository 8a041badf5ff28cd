"""`edm2 autoguide`: train a guide, find the best guidance of a run, write it as one network."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edm2.metrics.registry import DETECTOR_NAMES
from edm2.sampling.samplers import HEUN, Sampler
from edm2.tools.options.conditions import conditions_to_score
from edm2.tools.options.groups import GroupedCommand, option_group
from edm2.tools.options.networks import chosen_precision
from edm2.tools.options.parsing import (
    DEVICE,
    FILE,
    FOLDER,
    IMAGES,
    SAMPLING_PRECISION,
    SAMPLING_PRECISION_HELP,
    SIGMA_RELS,
    WEIGHTS,
)
from edm2.tools.options.sampling import sampler_option, warn_of_few_evaluations

if TYPE_CHECKING:
    from edm2.sweep.autoguidance import Comparison
    from edm2.sweep.averages import Averages
    from edm2.training import Dataset, TrainingConfig
    from edm2.training.distributed.processes import Processes

GUIDES = ("unlabelled", "small", "early", "ema", "dropout")
"""As in edm2.sweep.guidance_methods, which is slow to import."""

EPILOG = """\b
Examples:
  # A guide of two thirds of the width and a sixteenth of the images, then the table of all kinds of guidance
  edm2 autoguide runs/photos
\n\b
  # Nothing is trained: guides that the run has anyway, on a CPU with a fast solver
  edm2 autoguide runs/photos --guides unlabelled,early,ema,dropout --solver deis --steps 12
\n\b
  # A longer guide, and a search by features with many samples
  edm2 autoguide runs/photos --guide-duration 4Mi --detector efficientnet-lite0 --samples 5000 --search 60

\b
On eight GPUs, put this before the command:
  torchrun --standalone --nproc-per-node 8 -m

OUT/guided.json is network and guide as one network: for edm2 generate, edm2 metrics gen, edm2.load and pipelines.

Interrupted? Run the same command again: the guide goes on, and known scores (sweep.jsonl) are not computed again.
"""

_guide, _what, _score, _where, _machine = map(
    option_group, ("The guide", "What is tried", "How it is scored", "Where it goes", "Machine")
)


class GuideNames(click.ParamType):
    """Names of guides, separated by commas."""

    name = "guides"

    def convert(
        self, value: str | tuple[str, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        names = tuple(value.split(",")) if isinstance(value, str) else value
        if unknown := [name for name in names if name not in GUIDES]:
            self.fail(f"{', '.join(unknown)}: there are {', '.join(GUIDES)}", param, ctx)
        return names


@click.command(cls=GroupedCommand, epilog=EPILOG)
@click.argument("run", type=FOLDER)
@_guide("--guide-run", type=FOLDER, help="An existing run in place of a guide that is trained.")
@_guide("--guide-channels", type=click.IntRange(1), help="Width of the guide; default: the next smaller one.")
@_guide("--guide-duration", type=IMAGES, help="Images to train it on, a fourth of RUN's at most; default: a sixteenth.")
@_what("--guides", type=GuideNames(), help=f"Guides to try: {', '.join(GUIDES)}; default: all that RUN has.")
@_what("--search", "budget", type=click.IntRange(1), default=24, show_default=True, help="Candidates per guide.")
@_what("--std", "sigma_rels", type=SIGMA_RELS, help="EMA lengths of the network to look at first.")
@_what("--guidance", "weights", type=WEIGHTS, help="Guidance weights to look at first.")
@_score("--detector", help=f"{DETECTOR_NAMES}.")
@_score("--weights", "detector_weights", type=FILE, help="File with the detector's weights; default: fetched once.")
@_score("--data", help="Real images to compare with, and to train on if they are the run's; default: those of the run.")
@_score("--ref", type=FILE, help="Statistics of real images to compare with (edm2 metrics ref, or published).")
@_score("--samples", "count", type=click.IntRange(8), default=500, show_default=True, help="Images per final score.")
@_score("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Sets of fresh seeds per final score.")
@_score("--steps", "num_steps", type=click.IntRange(2), default=32, show_default=True, help="Sampling steps.")
@sampler_option(_score, HEUN.name, of_maps=False)
@_score("--vae", help="VAE to decode with, folder or hub id; default: the one that the run names.")
@_where(
    "--out", type=FOLDER, help="Folder for the guide's run, scores, table and networks.  [default: RUN/autoguidance]"
)
@_machine("--precision", type=SAMPLING_PRECISION, help=SAMPLING_PRECISION_HELP)
@_machine("--device", type=DEVICE, help="cpu, cuda or mps; default: the fastest here.")
def autoguide(
    run: Path,
    guide_run: Path | None,
    guide_channels: int | None,
    guide_duration: int | None,
    guides: tuple[str, ...] | None,
    budget: int,
    sigma_rels: list[float] | None,
    weights: list[float] | None,
    detector: str | None,
    detector_weights: Path | None,
    data: str | None,
    ref: Path | None,
    count: int,
    repeats: int,
    num_steps: int,
    sampler: Sampler,
    vae: str | None,
    out: Path | None,
    precision: str | None,
    device: str | None,
) -> None:
    """Train a small guide for RUN, and find the guidance that draws the best images.

    A guide is a weaker network of the same kind of errors; samples are pushed away from it. Tried are RUN without
    classes (unlabelled), a narrower network that is trained for a fraction of the time (small), and guides that cost
    nothing: early snapshots of RUN, another EMA length (ema), RUN with dropout. Weight, EMA lengths of both and the
    guide's training time are found together: candidates are scored by a fourth of --samples, the best by more, the best
    of all by fresh seeds. Then an interval of noise levels is found for unlabelled and small.
    """
    trains = (guides is None or "small" in guides) and guide_run is None
    if not trains and (guide_channels or guide_duration):
        raise click.UsageError("--guide-channels and --guide-duration are for a guide that is trained")
    if guide_run is not None and guides is not None and "small" not in guides:
        raise click.UsageError("--guide-run is the guide small: add it to --guides, or leave --guide-run out")
    from edm2.sampling.external import ways_to_sample
    from edm2.sweep.autoguidance import GuidanceSearch
    from edm2.sweep.averages import KeptAverages
    from edm2.sweep.evaluator import SampleSettings
    from edm2.sweep.guidance_methods import Choices
    from edm2.sweep.score_cache import ScoreCache
    from edm2.sweep.sweep import Sweeper
    from edm2.tools.options.evaluators import codec_of, default_detector, load_evaluator
    from edm2.tools.progress import progress_bar
    from edm2.tools.reports.guidance import print_row
    from edm2.tools.run import use_device
    from edm2.training import PixelCodec, open_dataset
    from edm2.training.config import DTYPES
    from edm2.training.distributed.processes import joined_processes
    from edm2.training.run.run_folder import open_run_data

    averages = KeptAverages(run)
    if "denoise" not in ways_to_sample(averages.metadata)[0]:
        raise ValueError(f"{run}: is no denoiser, which alone can be guided; guide its teacher, and distil the two")
    out = out or run / "autoguidance"
    codec = codec_of(run, averages.metadata, vae)
    lists = {"sigma_rels": sigma_rels, "weights": weights}
    choices = Choices(**{name: tuple(values) for name, values in lists.items() if values is not None})
    choices.check(budget)
    guides = choices.available(averages, guides)
    named = None if data is None else open_dataset(data)
    compared = None if ref else named or open_run_data(run)
    with joined_processes() as processes:
        bar = partial(progress_bar, hidden=not processes.is_first)
        on = use_device(processes, device)
        if trains:
            guide_run = out / "guide"
            config = _guide_config(averages, guide_run, guide_channels, guide_duration, on.type)
            _train(config, open_run_data(run, named), processes)
        detector = detector or default_detector(averages.shape, isinstance(codec, PixelCodec))
        out.mkdir(parents=True, exist_ok=True)
        evaluator = load_evaluator(detector, detector_weights, compared, ref, on, processes, bar, out)
        of_samples = conditions_to_score(run, (), count, getattr(averages.config, "conditions", ()))
        sampling = SampleSettings(
            count, num_steps, dtype=DTYPES[chosen_precision(precision, on.type)], sampler=sampler, conditions=of_samples
        )
        cache = ScoreCache(out / "sweep.jsonl")
        averages.max_bytes //= processes.local_count  # each reconstructs for itself
        sweeper = Sweeper(
            averages, codec, evaluator, sampling, repeats=repeats, known=cache, processes=processes, device=on
        )
        search = GuidanceSearch(sweeper, budget, choices)
        if processes.is_first:
            search.found = partial(print_row, title=evaluator.title)
            click.echo(
                f"{budget} candidates per guide, at most {search.images(guides):,} images "
                f"({sampler.cost(num_steps)}, twice that with guidance), by {evaluator.title}."
            )
            warn_of_few_evaluations(sampler, num_steps)
        with bar(search.images(guides)) as progress:
            sweeper.report = progress.update
            small = KeptAverages(guide_run, averages.max_bytes) if guide_run and "small" in guides else None
            comparison = search.compare(guides, small)
        real_data_fd = None if compared is None else sweeper.real_data_fd(compared)
        if processes.is_first:
            _report(comparison, averages, out, evaluator.title, real_data_fd)


def _guide_config(
    averages: "Averages", out: Path, channels: int | None, duration: int | None, device: str
) -> "TrainingConfig":
    """Configure the guide by the run, as long as it has become."""
    from edm2.planning.guide import guide_config
    from edm2.training import read_run_config

    config = read_run_config(averages.folder)
    config = replace(config, duration=averages.last, device=device)
    try:
        return guide_config(config, str(out), channels, duration)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _train(config: "TrainingConfig", dataset: "Dataset", processes: "Processes") -> None:
    """Train the guide, as far as that is not done."""
    from edm2.study.study import Trial
    from edm2.tools.run import reported_once, run_training
    from edm2.training.run.inputs import describe_inputs

    with reported_once(processes):
        trial = Trial("guide", config)
        trial.folder.check(config, data=describe_inputs(dataset, config) if processes.is_first else None)
        if trial.is_trained:
            return
        if processes.is_first:
            network = config.own_network
            click.echo(f"Guide: {network.model_channels} channels, {config.duration:,} images, in {config.out}")
        run_training(config, dataset, (), processes)
        processes.wait()


def _report(comparison: "Comparison", averages: "Averages", out: Path, title: str, real_data_fd: float | None) -> None:
    """Write table, figure and the winner with its guide; say what came out."""
    from edm2.sweep.autoguidance import write_guided
    from edm2.tools.figures.guidance import plot_guidance
    from edm2.tools.reports.guidance import print_verdict, write_guidance

    (out / "guided.json").unlink(missing_ok=True)  # of an earlier search: it may have no winner now, or other networks
    write_guidance(out / "guidance.csv", comparison)
    plot_guidance(out / "guidance.png", comparison, title, real_data_fd)
    print_verdict(comparison, real_data_fd)
    click.echo(f"The table: {out / 'guidance.csv'}, the figure: {out / 'guidance.png'}.")
    winner = comparison.winner
    if winner is not None and winner.candidate.guide is not None:
        path = write_guided(out, winner, averages)
        click.echo(f"Network and guide as one network:\n  edm2 generate {path} --seeds 0-63 --grid guided.png")
