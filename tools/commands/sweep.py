"""`edm2 sweep`: score many EMA lengths, times and guidance weights of a run, draw the curves, name the best."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.metrics.registry import DETECTOR_NAMES, METRICS
from edm2.sampling.samplers import Sampler
from edm2.tools.options.conditions import CONDITION_HELP, HELD_OUT_HELP, conditions_to_score
from edm2.tools.options.groups import GroupedCommand, option_group
from edm2.tools.options.guides import is_guide_run, make_guide
from edm2.tools.options.networks import (
    CODEC_HELP,
    NET_FROM_HELP,
    check_external,
    check_guidance,
    check_own_precision,
    chosen_precision,
    network_maker,
    source_digests,
)
from edm2.tools.options.parsing import (
    DEVICE,
    FILE,
    FOLDER,
    IMAGES,
    INTERVAL,
    LEVELS,
    SAMPLING_PRECISION,
    SAMPLING_PRECISION_HELP,
    SIGMA_RELS,
    STEPS,
    TIMES,
    WEIGHTS,
)
from edm2.tools.options.sampling import check_levels_alone, sampler_option, warn_of_few_evaluations, way_of_sampling

if TYPE_CHECKING:
    from edm2.sweep.averages import Averages
    from edm2.sweep.sweep import Range, ScoredPoint, Sweep, Sweeper
    from edm2.training import Codec, Dataset

EPILOG = """\b
Examples:
  # Twelve lengths at the end of a run
  edm2 sweep runs/digits
\n\b
  # How the best length moved with training
  edm2 sweep runs/digits --at 64000,128000,...,512000 --std 0.02,0.03,...,0.25 --out moving/
\n\b
  # Guidance by the network itself: length and weight together, closing in on the best with 40 points
  edm2 sweep runs/photos --unlabelled-guide --guidance 1,1.5,...,3 --std 0.02,0.06,...,0.22 --search 40
\n\b
  # Autoguidance by a smaller network early in its training, whose length is chosen too
  edm2 sweep runs/big --guide runs/small --guide-at 128Mi --guidance 1.5,2,2.5 --guide-std 0.05,0.1,0.15 --search 60
\n\b
  # A distilled run (edm2 distill): the best EMA length for each number of evaluations
  edm2 sweep runs/map --steps 1,2,4 --samples 2000
\n\b
  # As published: FID of 50,000 images, the lowest of three sets of seeds
  edm2 sweep runs/img512-s --detector fid --ref img512.pkl --samples 50000 --repeats 3 --std 0.05,0.1,0.15 --search 12

\b
On eight GPUs, put this before the command:
  torchrun --standalone --nproc-per-node 8 -m

Interrupted? Run the same command again: scores that are known (sweep.jsonl) are not computed again.
"""


_what, _guidance, _score, _where, _machine = map(
    option_group, ("What is tried", "Guidance", "How it is scored", "Where it goes", "Machine")
)


@click.command(cls=GroupedCommand, epilog=EPILOG)
@click.argument("run", type=FOLDER)
@_what(
    "--std",
    "--sigma-rel",
    "sigma_rels",
    type=SIGMA_RELS,
    default="0.02,0.04,...,0.24",
    show_default=True,
    help="EMA lengths.",
)
@_what("--net-from", metavar="MODULE:CALLABLE", help=NET_FROM_HELP)
@_what("--codec", "codec_from", metavar="MODULE:CALLABLE", help=CODEC_HELP)
@_what("--condition", "conditions", multiple=True, metavar="NAME=VALUE", help=f"{CONDITION_HELP} {HELD_OUT_HELP}")
@_what("--at", "times", type=TIMES, help="Images seen, times with snapshots; default: the last.")
@_what("--search", "budget", type=click.IntRange(1), help="Close in on the best with at most so many points per time.")
@_guidance("--guidance", "guidances", type=WEIGHTS, help="Weights; default: 1, which is none.")
@_guidance("--unlabelled-guide", is_flag=True, help="Guide away from the network itself without classes.")
@_guidance("--guide", help="Guide away from the averages of another run, or from one network.")
@_guidance("--guide-at", type=IMAGES, help="Images seen by the guide's run; default: its last snapshot.")
@_guidance(
    "--guide-std", "guide_sigma_rels", type=SIGMA_RELS, help="EMA lengths of the guide's run; default: as --std."
)
@_guidance("--interval", type=INTERVAL, help="Noise levels with guidance; default: all.")
@_score("--detector", help=f"{DETECTOR_NAMES}.")
@_score("--metric", help="Metric in place of the Frechet distance, such as kid; needs --ref.")
@_score("--weights", type=FILE, help="File with the detector's weights; default: fetched once.")
@_score("--data", help="Real images to compare with; default: those of the run.")
@_score("--ref", type=FILE, help="Statistics of real images in their place (edm2 metrics ref, or published).")
@_score("--samples", "count", type=click.IntRange(2), default=500, show_default=True, help="Images per point.")
@_score("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Sets of seeds; the lowest counts.")
@_score("--steps", type=STEPS, help="Sampling steps; default: 32, of a map 2. Several (1,2,4) are swept in turn.")
@_score("--levels", type=LEVELS, help="Noise levels that a map jumps between; default: its own for --steps.")
@sampler_option(_score)
@_score("--vae", help="VAE to decode with, folder or hub id; default: the one that the run names.")
@_where("--out", type=FOLDER, help="Folder for scores, plot and statistics of real images.  [default: RUN]")
@_where("--compare", "others", type=FOLDER, multiple=True, help="Another sweep's folder, to draw too; may be repeated.")
@_machine("--precision", type=SAMPLING_PRECISION, help=SAMPLING_PRECISION_HELP)
@_machine("--device", type=DEVICE, help="cpu, cuda or mps; default: the fastest here.")
def sweep(
    run: Path,
    sigma_rels: list[float],
    net_from: str | None,
    codec_from: str | None,
    conditions: tuple[str, ...],
    times: list[int] | None,
    budget: int | None,
    guidances: list[float] | None,
    unlabelled_guide: bool,
    guide: str | None,
    guide_at: int | None,
    guide_sigma_rels: list[float] | None,
    interval: tuple[float, float] | None,
    detector: str | None,
    metric: str | None,
    weights: Path | None,
    data: str | None,
    ref: Path | None,
    count: int,
    repeats: int,
    steps: list[int] | None,
    levels: tuple[float, ...] | None,
    sampler: Sampler | None,
    vae: str | None,
    out: Path | None,
    others: tuple[Path, ...],
    precision: str | None,
    device: str | None,
) -> None:
    """Score many EMA lengths of RUN, at several times and with several guidance weights, and plot the curves.

    RUN is a run folder, or a folder of snapshots or published pickles. Every network is averaged from the snapshots,
    draws the same seeds, as many of each class, and is scored by the Frechet distance of its images to real ones; none
    of it is written. Small images are compared pixel by pixel, others by the features of a network (--detector). Bands
    in the plot are two standard deviations, from halves of the images.
    """
    check_guidance(guide, unlabelled_guide, guidances, interval)
    if not (guide and is_guide_run(guide)) and (guide_at is not None or guide_sigma_rels is not None):
        raise click.UsageError(
            "--guide-at and --guide-std choose an average of a guide's run: give its folder as --guide"
        )
    check_own_precision(precision, net_from)
    if metric not in (None, *METRICS):
        raise click.UsageError(f"--metric {metric}: there are {', '.join(METRICS)}; default: the Frechet distance")
    if metric is not None and ref is None:
        raise click.UsageError(f"--metric {metric} compares with features of real images: give --ref")
    from edm2.sampling.guidance import EVERYWHERE
    from edm2.sweep.averages import Averages
    from edm2.sweep.evaluator import SampleSettings
    from edm2.sweep.score_cache import ScoreCache
    from edm2.sweep.sweep import Range, Sweeper
    from edm2.tools.options.evaluators import codec_of, default_detector, load_evaluator, load_metric_evaluator
    from edm2.tools.progress import progress_bar
    from edm2.tools.reports.draw_commands import draw_commands
    from edm2.tools.reports.tables import print_point, read_sweep, table_of
    from edm2.tools.run import use_device
    from edm2.training import PixelCodec
    from edm2.training.config import DTYPES
    from edm2.training.distributed.processes import joined_processes

    compared = {title: read_sweep(folder / "sweep.csv") for title, folder in _titles(others).items()}
    averages = Averages(run, make_net=(make_net := network_maker(net_from)))
    check_external(run, averages.metadata, net_from)
    codec = codec_of(run, averages.metadata, vae, codec_from)
    dataset = None if ref else _real_images(averages, codec, data)
    of_samples = conditions_to_score(run, conditions, count, getattr(averages.config, "conditions", ()), dataset)
    ways = ways_of_sampling(averages, sampler, steps, levels, guide is not None or unlabelled_guide)
    area = Range(times or [averages.last], sigma_rels, guidances or [1.0], guide_sigma_rels or [None])
    _check_area(averages, area, budget)
    out = out or run

    with joined_processes() as processes:
        averages.max_bytes //= processes.local_count  # each reconstructs for itself
        guides = make_guide(averages, guide, unlabelled_guide, guide_at, make_net)
        bar = partial(progress_bar, hidden=not processes.is_first)
        on = use_device(processes, device)
        shown = averages.shape if dataset is None or codec_from is None else dataset.shape
        name = detector or default_detector(shown, isinstance(codec, PixelCodec) or codec_from is not None)
        evaluator: Any = (
            load_evaluator(name, weights, dataset, ref, on, processes, bar, out)
            if metric is None
            else load_metric_evaluator(metric, name, weights, ref, on)
        )
        dtype = DTYPES[chosen_precision(precision, on.type, net_from)]
        cache = ScoreCache(out / "sweep.jsonl")
        programs = {"--net-from": net_from, "--codec": codec_from}
        if processes.is_first:
            _warn_of_snapshots(averages, area)
            for solver, num_steps, _ in ways:
                warn_of_few_evaluations(solver, num_steps)
        for solver, num_steps, jumps in ways:
            sampling = SampleSettings(count, num_steps, interval or EVERYWHERE, dtype, solver, jumps, of_samples)
            sweeper = Sweeper(averages, codec, evaluator, sampling, guides, repeats, cache, processes, on)
            sweeper.programs = source_digests(net_from, codec_from, averages.classes)
            if processes.is_first:
                _announce(area, budget, sweeper)
                sweeper.scored = print_point
            result = sweeper.sweep(area, dataset, budget, bar)
            if processes.is_first:
                name = table_of(out, num_steps).stem if len(ways) == 1 else f"sweep-{num_steps}"
                _report(result, area, out, compared, name)
                best = result.best.point
                commands = draw_commands(averages, sampling, best, guides, guide, programs, conditions=conditions)
                click.echo("\n  ".join(["The best network, and images of it:", *commands]))


def _titles(folders: Sequence[Path]) -> dict[str, Path]:
    """Titles of folders: their names, or their whole paths where two have the same name."""
    names = [folder.name for folder in folders]
    return {folder.name if names.count(folder.name) == 1 else str(folder): folder for folder in folders}


def _real_images(averages: "Averages", codec: "Codec", data: str | None) -> "Dataset":
    """Open the real images: those named, else those of the run."""
    from edm2.training import PixelCodec, open_dataset
    from edm2.training.run.run_folder import open_run_data

    dataset = open_run_data(averages.folder) if data is None else open_dataset(data)
    if isinstance(codec, PixelCodec) and dataset.shape != averages.shape:
        raise ValueError(
            f"{data or dataset.name}: images are {dataset.shape}, but {averages.folder} draws {averages.shape} "
            "(channels, height, width)"
        )
    return dataset


def _check_area(averages: "Averages", area: "Range", budget: int | None) -> None:
    """Refuse averages that cannot be made, and a budget that is too small, before anything is computed."""
    from edm2.sweep.search import check_budget

    for time in area.times:
        averages.check(time, area.sigma_rels)
    if budget is not None:
        check_budget(area.axes(), budget)


def ways_of_sampling(
    averages: "Averages",
    sampler: Sampler | None,
    steps: list[int] | None,
    levels: tuple[float, ...] | None,
    is_guided: bool,
) -> list[tuple[Sampler, int, tuple[float, ...] | None]]:
    """Sampler, steps and levels of each sweep: as asked for, else those that suit the network.

    Raises:
        ValueError: they do not suit it.
    """
    from edm2.sampling.external import ways_to_sample

    check_levels_alone(levels, sampler, steps)
    name, (abilities, known) = str(averages.folder), ways_to_sample(averages.metadata)
    numbers: Sequence[int | None] = steps or [None]
    return [way_of_sampling(name, abilities, known, sampler, number, levels, is_guided) for number in numbers]


def _report(result: "Sweep", area: "Range", out: Path, compared: "dict[str, Sweep]", name: str) -> None:
    """Write and print the table, and draw the curves."""
    from edm2.post_hoc_ema.files import plain_line
    from edm2.tools.figures.sweep import plot_sweep
    from edm2.tools.reports.tables import print_sweep, write_sweep

    here = f"{result.title} of {result.samples:,} samples"
    for title, other in compared.items():
        there = here if other.samples is None else f"{plain_line(other.title)} of {other.samples:,} samples"
        if there != here:
            click.echo(f"Warning: {title} has {there}, this sweep {here}: their heights do not compare", err=True)
    write_sweep(out / f"{name}.csv", result)
    plot_sweep(out / f"{name}.png", result, {title: sweep.averages for title, sweep in compared.items()})
    print_sweep(result)
    click.echo(f"\nThe curve: {out / f'{name}.png'}, the numbers: {out / f'{name}.csv'}.")
    _warn_of_edges(area, result.best)


def _warn_of_snapshots(averages: "Averages", area: "Range") -> None:
    """Warn of EMA lengths that the snapshots can reconstruct only roughly."""
    from edm2.tools.reports.reconstruction import LARGE_ERROR, warn_of_missing

    warn_of_missing(averages.snapshots, "averages are made without")
    for time in area.times:
        rough = {s: error for s, error in averages.errors(time, area.sigma_rels).items() if error > LARGE_ERROR}
        if rough:
            worst = max(rough, key=rough.__getitem__)
            click.echo(
                f"Warning: at {time:,} images there are too few snapshots for the EMA lengths "
                f"{', '.join(f'{s:g}' for s in rough)}: profiles are up to {100 * rough[worst]:.0f} % off ({worst:g}).",
                err=True,
            )


def _announce(area: "Range", budget: int | None, sweeper: "Sweeper") -> None:
    """Print the size of the sweep before it starts."""
    points = len(area.points()) if budget is None else budget * len(area.times)
    sampling = sweeper.sampling
    cost = sampling.sampler.cost(sampling.num_steps)
    if sampling.conditions is not None:
        values = max(map(len, sampling.conditions.rows.values()))
        click.echo(f"Samples get {values:,} values of {', '.join(sampling.conditions.rows)} in turn.")
    images = f"{points * sampling.count * sweeper.repeats:,} images ({cost})"
    if budget is None:
        click.echo(f"{points} points, {images}, compared by {sweeper.evaluator.title}.")
        return
    times = f" at each of {len(area.times)} times" if len(area.times) > 1 else ""
    click.echo(f"A search with at most {budget} points{times}, {images}, by {sweeper.evaluator.title}.")


def _warn_of_edges(area: "Range", best: "ScoredPoint") -> None:
    """Print a hint where the best value is the end of its list: the minimum may lie beyond."""
    chosen = (
        ("--std", best.point.sigma_rel, area.sigma_rels),
        ("--guidance", best.point.guidance, area.guidances),
        ("--guide-std", best.point.guide_sigma_rel, area.guide_sigma_rels),
    )
    for option, value, values in chosen:
        no_guidance = option == "--guidance" and value == 1  # below 1 nobody looks
        if len(values) > 1 and value in (values[0], values[-1]) and not no_guidance:
            click.echo(f"The best value of {option}, {value:g}, is the end of its list: the minimum may lie beyond.")
