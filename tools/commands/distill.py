"""`edm2 distill`: make a flow map of a network, which draws in one to four evaluations."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.distillation.presets import PRESETS
from edm2.tools.commands.generate import generate
from edm2.tools.commands.train import begun_run, check_folder, in_options, open_in_turn, options_by_name, train
from edm2.tools.options.groups import TwoLevelCommand, option_group, options_of
from edm2.tools.options.networks import check_guidance
from edm2.tools.options.parsing import IMAGES, NUMBER, PRECISION, parse_image_count, parse_initial_network

if TYPE_CHECKING:
    from edm2.distillation.teacher import Teacher
    from edm2.training.distributed.processes import Processes

EPILOG = """\b
Examples:
  # A map of the digits of edm2 demo
  edm2 distill demo/best.safetensors --data digits --out runs/map
\n\b
  # From an autoguided teacher: the map is guided, and needs no guide any more
  edm2 distill best.safetensors --guide early.safetensors --guidance 1.4 --data digits --out runs/guided
\n\b
  # From a published checkpoint (edm2 convert)
  edm2 distill s.safetensors --data img512-latents.zip --out runs/s-map --micro-batch 32
\n\b
  # Without its data, on fifty thousand samples of the teacher
  edm2 distill s.safetensors --data teacher:50000 --out runs/s-map --micro-batch 32

Then edm2 generate runs/map --steps 2 draws from it, and edm2 sweep runs/map --steps 1,2,4 finds the best EMA length for
each number of evaluations. Interrupted? Run the same command again: it goes on from the last checkpoint. What the
options do, and what they bring: edm2 docs few_steps.
"""

TRAINED = (
    "duration", "dry_run", "measure", "batch_size", "ref_lr", "ref_batches", "rampup_images", "seed", "holdout",
    "P_mean", "P_std", "sigma_rels", "snapshot_every", "snapshot_precision", "keep_snapshots", "status_every",
    "sample_every", "checkpoint_every", "device", "micro_batch", "compile", "workers", "shard", "patience",
    "recompute", "max_seconds",
)  # fmt: skip
"""Options of `edm2 train` that mean the same here."""

GUIDED = ("guide", "unlabelled_guide", "guidance", "interval")
"""Options of `edm2 generate` that mean the same here."""

FIRST = ("data", "out", "preset", "init", "duration", "batch_size", "dry_run", "device", "micro_batch", *GUIDED)

SAMPLES = "teacher:"
"""Beginning of --data where it asks for samples of the teacher."""

REFERENCE = "\b\nPresets:\n" + "\n".join(f"  {name:<8} {preset.summary}" for name, preset in PRESETS.items())

_what = option_group("The run")
_map = option_group("The map")
_machine = option_group("Machine")


@click.command(cls=TwoLevelCommand, first=FIRST, epilog=EPILOG, reference=REFERENCE)
@click.argument("network")
@_what(
    "--data",
    required=True,
    help='Images to distil on, best those of NETWORK: "digits", a ZIP file or a folder; or teacher:N, as many samples '
    "of NETWORK, drawn into OUT-data.",
)
@_what("--out", required=True, help="Run folder; made if missing, resumed if it holds this run.")
@_what(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Settings that are not given; default: chosen by NETWORK. "
    + "; ".join(f"{name}: {preset.summary}" for name, preset in PRESETS.items()),
)
@_what("--init", metavar="SNAPSHOT", help="Snapshot to start from; default: NETWORK.")
@options_of(generate, GUIDED)
@_map("--anchor", type=NUMBER, help="Fraction of images that keep the map a denoiser.  [default: 0.33]")
@_map("--to-zero", type=NUMBER, help="Fraction of the others that jump to noise level 0.  [default: 0.4]")
@_map("--tangent-norm", type=NUMBER, help="c in the normalized error, err / (rms + c).  [default: 0.2]")
@_map("--warmup", "warmup_images", type=IMAGES, help="Images over which the derivative comes in; default: a tenth.")
@_map("--cooldown", "cooldown_images", type=IMAGES, help="Images over which the rate falls to zero; default: half.")
@_map(
    "--derivative",
    type=click.Choice(["jvp", "difference"]),
    help="Exact, at three evaluations, or by a difference, at one.  [default: difference]",
)
@_map(
    "--target-level",
    type=click.Choice(["mean", "decoder"]),
    help="Where the network is told the level to arrive at.  [default: mean]",
)
@_machine("--precision", type=PRECISION, help="Of activations; bf16 and fp16 need --derivative jvp.  [default: fp32]")
@options_of(train, TRAINED)
def distill(
    network: str, data: str, out: str, preset: str | None, dry_run: bool, measure: bool, max_seconds: float | None,
    guide: str | None, unlabelled_guide: bool, guidance: float | None, interval: tuple[float, float] | None,
    **choices: Any,
) -> None:  # fmt: skip
    """Distil NETWORK into a flow map, which draws in one to four evaluations: `edm2 generate OUT --steps 2`.

    NETWORK is a snapshot, a run or an included network (digits8), guided or not. The run folder is that of edm2 train,
    for edm2 generate, sweep, reconstruct and plot; the map also remains a denoiser.
    """
    check_guidance(guide, unlabelled_guide, None if guidance is None else [guidance], interval)
    if dry_run and data.startswith(SAMPLES):
        raise click.UsageError(f"--dry-run writes nothing, so it cannot draw {data}: give data that are there")
    if measure and not dry_run:
        raise click.UsageError("--measure needs --dry-run; a real run prints its speed after its first steps")
    from edm2.distillation.plan import kept_intervals, plan_distillation
    from edm2.distillation.teacher import teacher_of_run
    from edm2.tools.reports.description import print_lines
    from edm2.tools.reports.run_plan import describe_plan
    from edm2.tools.run import default_device, measure_run, reported_once, run_training
    from edm2.training import RunFolder
    from edm2.training.config import DTYPES
    from edm2.training.distributed.processes import joined_processes

    options = options_by_name(distill)
    with joined_processes() as processes:
        RunFolder(out).check_free()
        chosen = {name: value for name, value in choices.items() if value is not None}
        chosen.setdefault("device", default_device())
        teacher = _teacher(network, guide, unlabelled_guide, guidance, interval, processes)
        if data.startswith(SAMPLES):
            data = _samples(teacher, data, out, chosen["device"], processes)
        dataset = open_in_turn(data, processes)
        with reported_once(processes):
            try:
                if "init" in chosen:
                    chosen["init"] = parse_initial_network(chosen["init"])
                chosen = kept_intervals(begun_run(out)) | chosen
                config = plan_distillation(teacher, dataset, data, out, preset, chosen)
                config.images_per_rank(processes.count)
            except ValueError as error:
                raise click.UsageError(in_options(str(error), options)) from None
            check_folder(config, dataset, processes, options)
        denoise = teacher_of_run(config, processes.device(config.device), DTYPES[config.precision])
        assert config.distillation is not None  # planned so
        loss = config.distillation.loss(config.objective().distribution, config.sigma_data, denoise)
        if processes.is_first:
            print_lines([("teacher", _shown(teacher)), *describe_plan(config, dataset, processes.count)])
        if measure:
            measurements = measure_run(config, dataset, processes, loss)
            if processes.is_first:
                print_lines(measurements)
        if processes.is_first:
            click.echo("Dry run: nothing was written." if dry_run else "")
        if not dry_run:
            with reported_once(processes):
                run_training(config, dataset, (), processes, max_seconds, loss)


def _teacher(
    network: str,
    guide: str | None,
    unlabelled_guide: bool,
    guidance: float | None,
    interval: tuple[float, float] | None,
    processes: "Processes",
) -> "Teacher":
    """The teacher that the options describe; of a run, its average of the best EMA length that is known."""
    from edm2.distillation.teacher import Teacher
    from edm2.io.model import read_metadata
    from edm2.tools.options.networks import check_label_dropout, warn_of_scaling
    from edm2.tools.options.run_network import is_run, network_of_run

    if is_run(network):
        network = network_of_run(Path(network), None, processes)
    if guidance in (None, 1):
        return Teacher(network)
    if unlabelled_guide:
        check_label_dropout(network, read_metadata(network), processes.is_first)
    elif guide is not None and processes.is_first:
        warn_of_scaling(network, guide)
    return Teacher(network, guide, unlabelled_guide, guidance, interval)


def _samples(teacher: "Teacher", data: str, out: str, device: str, processes: "Processes") -> str:
    """Draw the samples of teacher:N into a folder beside the run's, and return its path."""
    from edm2.distillation.samples import draw_samples
    from edm2.tools.progress import progress_bar

    try:
        count = parse_image_count(data.removeprefix(SAMPLES))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--data'") from None
    folder = Path(f"{out}-data")
    with progress_bar(count, hidden=not processes.is_first) as bar:
        draw_samples(teacher, count, folder, processes.device(device), processes, bar.update)
    return str(folder)


def _shown(teacher: "Teacher") -> str:
    """The teacher in words."""
    if teacher.guidance == 1:
        return teacher.name
    where = "" if teacher.interval is None else " between noise levels {:g} and {:g}".format(*teacher.interval)
    return f"{teacher.name}, guided by {teacher.guide or 'itself without labels'}, weight {teacher.guidance:g}{where}"
