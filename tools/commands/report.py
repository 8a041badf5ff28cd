"""`edm2 report`: one page that shows runs, with a slider for the EMA length."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.tools.options.groups import GroupedCommand, option_group
from edm2.tools.options.guides import make_guide
from edm2.tools.options.networks import CODEC_HELP, NET_FROM_HELP, check_external, check_guidance, network_maker
from edm2.tools.options.parsing import DEVICE, FILE, FOLDER, SIGMA_RELS, TIMES, WEIGHTS

if TYPE_CHECKING:
    from edm2.report.page import Axes, ReportedRun
    from edm2.sweep.averages import Averages
    from edm2.sweep.evaluator import SampleSettings
    from edm2.sweep.sweep import Point, Sweep

STEPS = 18
"""Sampling steps of a grid."""

SCORED, SCORING_STEPS = 200, 12
"""Images and sampling steps per EMA length of --score, a quick pass."""

EPILOG = """\b
Examples:
  # A run, finished or not; again later, and only what is new is drawn. Its sweep's scores stand over the slider
  edm2 report runs/photos
\n\b
  # No sweep yet? Scores of a quick pass
  edm2 report runs/photos --score
\n\b
  # A slider for guidance, too
  edm2 report runs/photos --unlabelled-guide --guidance 1,1.5,2
\n\b
  # Runs side by side, the same seeds and plots
  edm2 report before=runs/photos after=runs/photos-2 --out comparison.html
"""

_page, _grids, _guidance, _machine = map(option_group, ("The page", "What is drawn", "Guidance", "Networks, machine"))


@click.command(cls=GroupedCommand, epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, metavar="[NAME=]RUN...")
@_page("--out", type=FILE, help="HTML file.  [default: RUN/report.html; with several runs: report.html]")
@_page("--cache", type=FOLDER, help="Folder for pictures that are made once.  [default: RUN/report]")
@_page("--sweep", "swept", type=FOLDER, help="Folder with the scores of a sweep of the run.  [default: RUN]")
@_page("--score", is_flag=True, help=f"Score the EMA lengths now, by {SCORED} images of {SCORING_STEPS} steps each.")
@_page("--neighbours/--no-neighbours", default=True, show_default=True, help="Show nearest training images.")
@_grids("--std", "--sigma-rel", "sigma_rels", type=SIGMA_RELS, help="EMA lengths; default: the sweep's, else nine.")
@_grids("--at", "times", type=TIMES, help="Images seen; default: near 1/8, 1/4, 1/2 of the run, and the last.")
@_grids("--images", type=click.IntRange(1, 64), default=32, show_default=True, help="Images of a grid, about.")
@_grids("--steps", "num_steps", type=click.IntRange(1), help=f"Sampling steps.  [default: {STEPS}; 2 of a flow map]")
@_guidance(
    "--guidance", "guidances", type=WEIGHTS, help="Weights; default: those of the sweep, where there is a guide."
)
@_guidance("--unlabelled-guide", is_flag=True, help="Guide away from the network itself without classes.")
@_guidance("--guide", help="Guide away from the averages of another run, or from one network.")
@_machine("--net-from", metavar="MODULE:CALLABLE", help=NET_FROM_HELP)
@_machine("--codec", "codec_from", metavar="MODULE:CALLABLE", help=CODEC_HELP)
@_machine("--vae", help="VAE to decode with, folder or hub id; default: the one that the run names.")
@_machine("--device", type=DEVICE, help="cpu, cuda or mps; default: the fastest here.")
@click.pass_context
def report(
    context: click.Context,
    runs: tuple[str, ...],
    out: Path | None,
    cache: Path | None,
    swept: Path | None,
    **given: Any,
) -> None:
    """Show runs on one page: what they are, how they went, and what each EMA length draws.

    The page is one HTML file that fetches nothing. Several runs share its plots and sliders, under their folder names
    or names of your choice. Runs may still be training.
    """
    import time

    from edm2.post_hoc_ema.files import check_output
    from edm2.report.page import require_report_packages, write_page
    from edm2.report.records import read_records
    from edm2.tools.figures.runs import folders_by_name
    from edm2.tools.progress import progress_bar

    start = time.perf_counter()
    check_guidance(given["guide"], given["unlabelled_guide"], given["guidances"] or ())
    if swept is not None and len(runs) > 1:
        raise click.UsageError("--sweep is of one run; the scores of several are looked for in their folders")
    records = [read_records(*named) for named in folders_by_name(runs).items()]  # all are runs, before any is drawn
    require_report_packages()
    out = out or (records[0].folder.path / "report.html" if len(runs) == 1 else Path("report.html"))
    check_output(out)
    opened = [_opened(run, cache or run.folder.path / "report", swept or run.folder.path, given) for run in records]
    _check_sliders(opened, given)
    if given["score"]:
        for run in opened:
            _score(context, run, given)
    axes = _axes(opened, given)
    with progress_bar(_announced(opened, axes)) as bar:
        for run in opened:
            run.grids = None if run.grids is None else replace(run.grids, report=bar.update)
        size = write_page(out, opened, axes, lambda run, point: _commands(run, point, given))
    for run in opened:
        for note in run.notes:
            click.echo(f"{run.name}: {note}", err=True)
    click.echo(f"{out}: {size / 1e6:.1f} MB, made in {time.perf_counter() - start:.0f} seconds")
    if size > 15e6:
        click.echo("Warning: a heavy page for a phone; fewer --images, --std or --at make it lighter", err=True)


def _opened(records: Any, cache: Path, swept: Path, given: dict[str, Any]) -> "ReportedRun":
    """Open what can be opened of a run; what cannot becomes a note on the page."""
    from edm2.post_hoc_ema.files import first_line
    from edm2.report.page import ReportedRun
    from edm2.report.pictures import PictureCache
    from edm2.sweep.averages import Averages
    from edm2.training.run.run_folder import open_run_data

    run = ReportedRun(records, PictureCache(cache))
    folder = records.folder.path
    try:
        run.dataset = open_run_data(folder)
    except (ValueError, OSError) as error:
        run.notes.append(f"No pictures of the dataset: {first_line(error)}")
    try:
        run.averages = Averages(folder, make_net=network_maker(given["net_from"]))
        check_external(folder, run.averages.metadata, given["net_from"])
    except (ValueError, OSError) as error:
        run.notes.append(f"No EMA slider: {first_line(error)}")
        return run
    _add_grids(run, given)
    run.sweep = _scores(swept, run)
    if run.sweep is None and swept != folder:  # --sweep
        raise click.ClickException(f"{swept}: holds no scores of a sweep; make them with edm2 sweep --out {swept}")
    run.sweep = run.sweep or _scores(_quick_scores(run), run)
    return run


def _add_grids(run: "ReportedRun", given: dict[str, Any]) -> None:
    """Prepare the drawing of grids and of nearest images."""
    from edm2.post_hoc_ema.files import first_line
    from edm2.report.grids import Grids, columns_of
    from edm2.sampling.conditions import held_out_conditions
    from edm2.tools.options.evaluators import codec_of, default_detector
    from edm2.tools.run import use_device
    from edm2.training import PixelCodec
    from edm2.training.distributed.processes import ONE_PROCESS

    averages = run.averages
    assert averages is not None
    device = use_device(ONE_PROCESS, given["device"])
    try:
        codec = codec_of(averages.folder, averages.metadata, given["vae"], given["codec_from"])
        guide = make_guide(averages, given["guide"], given["unlabelled_guide"], None, network_maker(given["net_from"]))
        if getattr(averages.config, "conditions", ()) and run.dataset is None:
            raise ValueError("samples take the conditions of its images, which are not there")
        of_samples = None if run.dataset is None else held_out_conditions(run.records.config, run.dataset)
        columns = columns_of(averages)
        count = -(-given["images"] // columns) * columns
        sampling = _sampling(averages, count, given["num_steps"], guide is not None)
    except (ValueError, OSError) as error:
        run.notes.append(f"No EMA slider: {first_line(error)}")
        return
    sampling = replace(sampling, conditions=of_samples)
    run.grids = Grids(averages, codec, sampling, run.cache, guide, device)
    if given["neighbours"] and run.dataset is not None:
        _add_detector(run, default_detector(averages.shape, isinstance(codec, PixelCodec)), device)


def _sampling(averages: "Averages", count: int, steps: int | None, is_guided: bool) -> "SampleSettings":
    """Settings of samples that suit a run's network; without `steps`, a flow map has steps of its own."""
    from edm2.sampling.samplers import MAP
    from edm2.sweep.evaluator import SampleSettings
    from edm2.tools.commands.sweep import ways_of_sampling

    asked = None if steps is None else [steps]
    [(sampler, own_steps, levels)] = ways_of_sampling(averages, None, asked, None, is_guided)
    return SampleSettings(count, own_steps if steps or sampler == MAP else STEPS, sampler=sampler, levels=levels)


def _add_detector(run: "ReportedRun", name: str, device: Any) -> None:
    from edm2.metrics import load_detector
    from edm2.post_hoc_ema.files import first_line
    from edm2.report.stills import MOST_IMAGES

    assert run.dataset is not None
    if len(run.dataset) > MOST_IMAGES:
        run.notes.append(f"No nearest images: {len(run.dataset):,} are many to search; see edm2 metrics neighbours")
        return
    try:
        run.detector = load_detector(name, None, device)
    except (ValueError, OSError) as error:
        run.notes.append(f"No nearest images: {first_line(error)}")


def _scores(folder: Path, run: "ReportedRun") -> "Sweep | None":
    """Scores of the last sweep in a folder, of the steps that a run's pictures are drawn in; else known scores."""
    from edm2.report.scores import scores_in_cache
    from edm2.tools.reports.tables import read_sweep, table_of

    table = table_of(folder, STEPS if run.grids is None else run.grids.sampling.num_steps)
    found = read_sweep(table) if table.is_file() else scores_in_cache(folder / "sweep.jsonl")
    return found if found is not None and found.averages else None


def _quick_scores(run: "ReportedRun") -> Path:
    """Folder for the scores of --score, which later pages show too."""
    return run.cache.folder / "scores"


def _score(context: click.Context, run: "ReportedRun", given: dict[str, Any]) -> None:
    """Score the EMA lengths of the slider at the last time, by a quick sweep beside the page's pictures."""
    from edm2.report.grids import lengths_of
    from edm2.tools.commands.sweep import sweep

    if run.averages is None:
        return
    options = {name: given[name] for name in ("net_from", "codec_from", "vae", "device")}
    if run.grids is not None and run.grids.sampling.levels is None:  # a flow map takes few steps anyway
        options["steps"] = [SCORING_STEPS]
    lengths = given["sigma_rels"] or lengths_of(run.sweep)
    folder = _quick_scores(run)
    context.invoke(sweep, run=run.averages.folder, sigma_rels=lengths, count=SCORED, out=folder, **options)
    run.sweep = _scores(folder, run)


def _check_sliders(runs: "Sequence[ReportedRun]", given: dict[str, Any]) -> None:
    """Refuse times that no run has stored, and a guide without weights, before anything is scored or drawn."""
    averages = [run.grids.averages for run in runs if run.grids is not None]
    stored = {snapshot.images_seen for found in averages for snapshot in found.snapshots}
    for time in given["times"] or ():
        if averages and time not in stored:
            averages[0].check(time, [0.1])  # says which times there are
    is_guided = given["guide"] is not None or given["unlabelled_guide"]
    known = [] if given["score"] else _swept_weights(runs)  # a quick pass is without guidance
    if is_guided and not given["guidances"] and known in ([], [1.0]):
        raise click.UsageError("a guide needs weights, and no sweep here has any: give --guidance, such as 1,1.5,2")


def _swept_weights(runs: "Sequence[ReportedRun]") -> list[float]:
    """Guidance weights that sweeps of the runs have tried."""
    sweeps = [run.sweep for run in runs if run.grids is not None and run.sweep is not None]
    return sorted({result.point.guidance for sweep in sweeps for result in sweep.averages})


def _axes(runs: "Sequence[ReportedRun]", given: dict[str, Any]) -> "Axes | None":
    """Positions of the sliders; None where no run has networks to draw."""
    from edm2.report.grids import lengths_of, times_of
    from edm2.report.page import Axes
    from edm2.sweep.averages import RAW

    shown = [(run, run.grids) for run in runs if run.grids is not None]
    if not shown:
        return None
    sweep = next((run.sweep for run, _ in shown if run.sweep is not None), None)
    lengths = [RAW, *(given["sigma_rels"] or lengths_of(sweep))]
    times = {
        run.name: given["times"] or times_of(grids.averages, run.records.config.duration, run.sweep)
        for run, grids in shown
    }
    guidances = given["guidances"] or [1.0]
    if not given["guidances"] and (swept := _swept_weights(runs)):
        if all(grids.guide is not None for _, grids in shown):
            guidances = swept
        elif swept != [1.0]:
            click.echo("The sweep has guidance: give its --unlabelled-guide or --guide for a slider.", err=True)
    return Axes(lengths, times, guidances)


def _announced(runs: "Sequence[ReportedRun]", axes: "Axes | None") -> int:
    """Print how much is shown, known or drawn now; return the number of images."""
    total = 0
    for run in runs:
        if axes is not None and run.grids is not None:
            points = run.grids.possible(list(set(axes.points(run.name).values())))
            click.echo(f"{run.name}: {len(points)} grids of {run.grids.sampling.count} images")
            total += len(points) * run.grids.sampling.count
    return total


def _commands(run: "ReportedRun", point: "Point", given: dict[str, Any]) -> list[str]:
    from edm2.tools.reports.draw_commands import draw_commands

    grids = run.grids
    assert grids is not None  # only then there are points
    programs = {"--net-from": given["net_from"], "--codec": given["codec_from"], "--vae": given["vae"]}
    seeds = f"0-{grids.sampling.count - 1}"
    return draw_commands(
        grids.averages, grids.sampling, point, grids.guide, given["guide"], programs, seeds, ("--grid", "grid.png")
    )
