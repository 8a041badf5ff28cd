"""`edm2 train`: train a network."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.planning.presets import PRESETS
from edm2.tools.options.groups import TwoLevelCommand, option_group
from edm2.tools.options.parsing import (
    ARCHITECTURE,
    DEVICE,
    FILE,
    IMAGES,
    NAMED_NUMBER,
    NUMBER,
    PRECISION,
    SEED,
    SIGMA_RELS,
    TIME,
    parse_initial_network,
)
from edm2.training.loss.by_name import NOISE_DISTRIBUTIONS, SNR_CONVENTIONS, WEIGHTINGS

if TYPE_CHECKING:
    from edm2.training import Dataset, TrainingConfig
    from edm2.training.distributed.processes import Processes

EPILOG = """\b
Examples:
  # Handwritten digits, on a laptop
  edm2 train --data digits --preset digits8 --out runs/digits
\n\b
  # Your own folder of images; one class per sub-folder
  edm2 train --data photos/ --out runs/photos --xflip --budget 2h
\n\b
  # What would this run be, and how long would it take here?
  edm2 train --data photos/ --out runs/photos --micro-batch 64 --dry-run --measure
\n\b
  # The paper's ImageNet-512, on latents, with a network that also serves classifier-free guidance
  edm2 train --data img512-latents.zip --preset edm2-img512-s --out runs/img512-s --micro-batch 32 --label-dropout 0.1
\n\b
  # Score two EMA lengths at every fourth snapshot; edm2 sweep reuses these scores
  edm2 train --data digits --out runs/watched --eval 0.05,0.10 --eval-every 4
\n\b
  # Another step of the paper's ladder, or another weighting of noise levels; edm2 ablate compares many
  edm2 train --data digits --config C --out runs/digits-c --diagnostics 16000
  edm2 train --data digits --weighting min-snr --gamma 5 --out runs/digits-min-snr
\n\b
  # On all eight GPUs of a machine (edm2 docs operations: several machines, SLURM, Kubernetes)
  torchrun --nproc-per-node 8 -m edm2 train --data img512-latents.zip --preset edm2-img512-xxl --out runs/xxl --shard
\n\b
  # Super-resolution; and captions that are stored beside the images (edm2 docs conditions)
  edm2 train --data photos-64.zip --out runs/sr --make-condition lowres=downsample:2
  edm2 train --data photos-64.zip --out runs/told --condition caption --condition-dropout caption=0.1
\n\b
  # Fine-tune from a snapshot
  edm2 train --data flowers.zip --out runs/flowers --init runs/photos/snapshots/snapshot-000004194304-0.1000.safetensors

Interrupted? Run the same command again: it goes on from the last checkpoint. Ctrl-C, SIGTERM and SIGUSR1 write one, and
snapshots to draw from. Image counts may end in Ki, Mi or Gi (1024, 1024², 1024³). How to
choose settings: edm2 docs settings.
"""

FIRST = (
    "data", "out", "budget", "duration", "preset", "conditional", "xflip", "holdout", "init", "batch_size",
    "micro_batch", "device", "dry_run", "max_seconds",
)  # fmt: skip
"""Parameters that a first run may need."""

REFERENCE = (
    """\b
Presets:
"""
    + "\n".join(f"  {name:<18} {preset.summary}" for name, preset in PRESETS.items())
    + """

\b
Weightings, of the squared error on the image (edm2 docs weightings):
"""
    + "\n".join(f"  {name:<18} {weighting.summary}" for name, weighting in WEIGHTINGS.items())
    + """

\b
Distributions of noise levels:
"""
    + "\n".join(f"  {name:<18} {distribution.summary}" for name, distribution in NOISE_DISTRIBUTIONS.items())
)


_what = option_group("The run")
_eval = option_group("Scores during training")
_data = option_group("Data")
_conditions = option_group("Conditions besides the class")
_network = option_group("Network")
_schedule = option_group("Schedule")
_noise = option_group("Noise levels")
_loss = option_group("Weighting of noise levels")
_output = option_group("What is written, and when")
_machine = option_group("Machine")


@click.command(cls=TwoLevelCommand, first=FIRST, epilog=EPILOG, reference=REFERENCE)
@_what(
    "--data",
    required=True,
    help='"digits", a ZIP file or a folder of images or latents, or MODULE:CALLABLE that makes a dataset of your own.',
)
@_what("--out", required=True, help="Run folder; made if missing, resumed if it holds this run.")
@_what(
    "--preset",
    type=click.Choice(list(PRESETS)),
    metavar="NAME",
    help="Source of the settings that are not given (--help-all lists them); default: chosen by the data.",
)
@_what("-n", "--dry-run", is_flag=True, help="Describe the run and stop.")
@_what("--measure", is_flag=True, help="With --dry-run: train a few steps and print speed, time and memory.")
@_data("--codec", metavar="MODULE:CALLABLE", help="Codec of your own (encode, decode), such as an autoencoder.")
@_data("--cond/--uncond", "conditional", default=None, help="Train with labels; default: if the data have any.")
@_data("--label-dropout", type=NUMBER, help="Fraction of images trained without their label, for guidance.")
@_data("--xflip/--no-xflip", default=None, help="Mirror half of the images.")
@_data(
    "--standardize/--no-standardize",
    default=None,
    help="Scale pixels to the standard deviation that the network expects, or only onto [-1, 1].",
)
@_data("--skip-broken", type=int, help="Without effect, and gone in the next version: see edm2 dataset check.")
@_data("--holdout", type=int, help="Images to keep out of training, to measure the loss on.")
@_conditions(
    "--condition",
    "asked_conditions",
    multiple=True,
    metavar="NAME[=KIND]",
    help="Train with conditions/NAME of the data; KIND is vector, scalar, image or tokens; default: by shape.",
)
@_conditions(
    "--make-condition",
    "make_conditions",
    multiple=True,
    metavar="NAME=MAKER",
    help="Train with a condition made of the images: lowres=downsample:2.",
)
@_conditions(
    "--condition-dropout",
    "condition_dropouts",
    type=NAMED_NUMBER,
    multiple=True,
    metavar="NAME=FRACTION",
    help="Fraction of images trained without a condition, for guidance and for sampling without: caption=0.1.",
)
@_conditions(
    "--condition-noise",
    "condition_noises",
    type=NAMED_NUMBER,
    multiple=True,
    metavar="NAME=LEVEL",
    help="Add noise up to this level, in standard deviations, to an image condition (cascades).",
)
@_network(
    "--config",
    "architecture",
    type=ARCHITECTURE,
    metavar="LETTER",
    help="Step of the paper's ladder, A to G, with its training settings; default: G.",
)
@_network("--channels", "model_channels", type=int, help="Base width of the network.")
@_network("--dropout", type=NUMBER, help="Dropout probability; against overfitting.")
@_network(
    "--init",
    metavar="SNAPSHOT",
    help="Snapshot or included network (digits8) to start from; the number of classes may differ.",
)
@_schedule("--duration", type=IMAGES, help="Images to train on.")
@_schedule("--budget", type=TIME, help="Time to train (15m, 2h, 3d); speed is measured, and the schedule made for it.")
@_schedule("--batch", "batch_size", type=IMAGES, help="Images per step.")
@_schedule("--lr", "ref_lr", type=NUMBER, help="Learning rate between ramp-up and decay.")
@_schedule("--decay", "ref_batches", type=NUMBER, help="Steps after which the learning rate decays; 0 for never.")
@_schedule("--rampup", "rampup_images", type=IMAGES, help="Images over which the learning rate rises.")
@_schedule("--seed", type=SEED, help="Seed of all random numbers.")
@_noise(
    "--noise",
    type=click.Choice(list(NOISE_DISTRIBUTIONS)),
    metavar="NAME",
    help="Distribution in training (see below); default: ln-normal.",
)
@_noise("--p-mean", "P_mean", type=NUMBER, help="Mean of ln sigma in training.")
@_noise("--p-std", "P_std", type=NUMBER, help="Standard deviation of ln sigma in training.")
@_noise(
    "--stratified-noise/--no-stratified-noise",
    "stratified_sigma",
    default=None,
    help="Spread the noise levels of every step evenly over their distribution; for small batches.",
)
@_loss(
    "--weighting",
    type=click.Choice(list(WEIGHTINGS)),
    metavar="NAME",
    help="Name (see below); default: uncertainty; for config A edm.",
)
@_loss("--gamma", "weighting_gamma", type=NUMBER, help="Parameter of max-snr, min-snr, soft-min-snr and p2.")
@_loss("--k", "weighting_k", type=NUMBER, help="Parameter of p2.")
@_loss("--snr-convention", type=click.Choice(SNR_CONVENTIONS), help="SNR as (sigma_data/sigma)² or 1/sigma².")
@_loss(
    "--normalize-weighting/--no-normalize-weighting", default=None, help="Scale the weighting to mean 1; on by default."
)
@_loss(
    "--relative-weighting",
    is_flag=True,
    default=None,
    help="Multiply the weighting onto the loss that learned uncertainty evens out, instead of replacing it.",
)
@_output("--ema", "sigma_rels", type=SIGMA_RELS, help="EMA lengths to store.  [default: 0.05,0.10]")
@_output("--snapshot", "snapshot_every", type=IMAGES, help="Images between EMA snapshots.")
@_output("--snapshot-precision", type=PRECISION, help="Precision of snapshots.")
@_output(
    "--keep-snapshots",
    type=click.IntRange(2),
    help="Keep snapshots of this many times, spread over the run; the others are deleted on the way. With 32, errors "
    "of reconstruction stay below 0.2 %.  [default: all]",
)
@_output("--status", "status_every", type=IMAGES, help="Images between status lines.")
@_output("--sample", "sample_every", type=IMAGES, help="Images between sample grids.")
@_output(
    "--diagnostics", "diagnostics_every", type=IMAGES, help="Images between the measurements that edm2 plot draws."
)
@_output("--checkpoint", "checkpoint_every", type=IMAGES, help="Images between checkpoints.")
@_eval("--eval", "lengths", type=SIGMA_RELS, help="EMA lengths to score during training: 0.05,0.10.")
@_eval("--eval-every", "eval_every", type=click.IntRange(1), help="Score every so many snapshots; default: each.")
@_eval("--eval-samples", "eval_samples", type=click.IntRange(2), help="Images per score; default: 500.")
@_eval("--eval-detector", "eval_detector", help="Detector, as in edm2 sweep --detector.")
@_eval(
    "--eval-data", "eval_data", help="Images to compare with; default: those of the run, unless it trains on latents."
)
@_eval("--eval-ref", "eval_ref", type=FILE, help="Statistics of real images, in place of --eval-data.")
@_machine("--device", type=DEVICE, help="cpu, cuda or mps; default: the fastest here.")
@_machine("--micro-batch", type=IMAGES, help="Images per forward pass; lower it if memory runs out.")
@_machine("--precision", type=PRECISION, help="Precision of activations; default: bf16 if supported, else fp32.")
@_machine("--compile/--no-compile", default=None, help="Compile the network: faster, after a minute or more.")
@_machine("--workers", type=int, help="Processes that read data; 0: the training process reads them.")
@_machine("--shard/--no-shard", default=None, help="Divide weights among the processes (FSDP2) to save memory.")
@_machine("--patience", type=TIME, help="Time after which a process that does not answer ends the run; default: 30m.")
@_machine("--recompute/--no-recompute", default=None, help="Save memory by computing activations twice.")
@_machine(
    "--detect-anomaly", is_flag=True, default=None, help="Stop at the first NaN or infinity and name the layer; slow."
)
@_machine(
    "--max-time", "max_seconds", type=TIME, help="Save and stop after this time (90s, 30m, 11.5h), with exit code 124."
)
def train(
    data: str,
    out: str,
    preset: str | None,
    architecture: str | None,
    conditional: bool | None,
    dry_run: bool,
    measure: bool,
    lengths: list[float] | None,
    eval_every: int | None,
    eval_samples: int | None,
    eval_detector: str | None,
    eval_data: str | None,
    eval_ref: Path | None,
    max_seconds: float | None,
    **choices: object,
) -> None:
    """Train a network on your images or latents.

    Writes snapshots of two EMA lengths on the way, from which `edm2 reconstruct` and `edm2 sweep` make any other
    length, and checkpoints to resume from. The run folder holds config.json, stats.jsonl, TensorBoard events,
    snapshots/, checkpoints/ and samples/.
    """
    if measure and not dry_run:
        raise click.UsageError("--measure needs --dry-run; a real run prints its speed after its first steps")
    if lengths is None and (eval_every or eval_samples or eval_detector or eval_data or eval_ref):
        raise click.UsageError("which EMA lengths are to be scored? Give --eval, such as 0.05,0.10")
    from edm2.tools.reports.description import print_lines
    from edm2.tools.reports.run_plan import describe_plan
    from edm2.tools.run import measure_run, measure_speed, reported_once, run_training
    from edm2.training import RunFolder
    from edm2.training.distributed.processes import joined_processes

    with joined_processes() as processes:
        if choices["skip_broken"] is not None and processes.is_first:
            click.echo(
                f"--skip-broken does nothing: a run stops at a broken image; edm2 dataset check {data} finds them all"
            )
        dataset = open_in_turn(data, processes)
        with reported_once(processes):
            RunFolder(out).check_free()
            measured = partial(measure_speed, dataset=dataset, processes=processes)
            config = configure_run(
                dataset, data, out, preset, architecture, conditional, choices, processes.count, measured
            )
            check_folder(config, dataset, processes, options_by_name(train))
        if processes.is_first:
            print_lines(describe_plan(config, dataset, processes.count))
        if measure:
            measurements = measure_run(config, dataset, processes)
            if processes.is_first:
                print_lines(measurements)
        if processes.is_first:
            click.echo("Dry run: nothing was written." if dry_run else "")
        if dry_run:
            return
        with reported_once(processes):
            callbacks = []
            if lengths is not None and processes.is_first:
                from edm2.tools.evaluation import Evaluation

                about = eval_every or 1, eval_samples or 500, eval_detector, eval_data, eval_ref
                callbacks = [Evaluation(config, lengths, *about, dataset)]
            processes.wait()  # statistics of many real images may take longer than the timeout of a step
            run_training(config, dataset, callbacks, processes, max_seconds)


def open_in_turn(data: str, processes: "Processes") -> "Dataset":
    """Open the data in the first process, which writes an index where there is none, then in the others."""
    from edm2.training import open_dataset

    if not processes.is_first:
        processes.wait()
    dataset = open_dataset(data)
    if processes.is_first:
        processes.wait()
    return dataset


def check_folder(
    config: "TrainingConfig", dataset: "Dataset", processes: "Processes", options: Mapping[str, str]
) -> None:
    """Refuse a run folder that holds another run, before anything is computed; say where a run goes on."""
    from edm2.training import RunFolder
    from edm2.training.run.inputs import describe_inputs

    folder = RunFolder(config.out)
    names = {**options} | {f"network.{name}": option for name, option in options.items()}
    folder.check(config, names, describe_inputs(dataset, config) if processes.is_first else None)
    if processes.is_first and 0 < (seen := folder.images_seen()) < config.duration:
        click.echo(f"Resuming {config.out} at {seen:,} of {config.duration:,} images.")


def configure_run(
    dataset: "Dataset",
    data: str,
    out: str,
    preset: str | None,
    architecture: str | None,
    conditional: bool | None,
    choices: Mapping[str, Any],
    processes: int = 1,
    measure: "Callable[[TrainingConfig], float] | None" = None,
) -> "TrainingConfig":
    """Configure the run that parameters of `edm2 train` describe; data and machine decide the rest.

    A preset that the data choose is made for the duration or budget; what follows from them is decided once, when the
    run begins, and a later --duration or --budget moves the end only.

    Args:
        dataset, data, out, preset, architecture, conditional, choices: The command's parameters.
        processes: Number of processes.
        measure: Measures images per second of a run.
    """
    from edm2.planning.plan import default_preset, plan_run
    from edm2.planning.relative import FOLLOWING, duration_within
    from edm2.tools.run import default_device, default_precision
    from edm2.training.config import REMOVED

    chosen = {name: value for name, value in choices.items() if value not in (None, ()) and name not in REMOVED}
    chosen.setdefault("device", default_device())
    if "init" in chosen:
        chosen["init"] = _initial_network(chosen["init"], out)
    begun = begun_run(out)
    proposed = default_preset(dataset, data, chosen["device"], chosen.get("codec"))
    fitted = preset is None and proposed != "digits8"
    preset = preset or proposed
    chosen.setdefault("precision", default_precision(preset, chosen["device"]))
    relative = fitted and "duration" in chosen
    try:
        _add_conditions(chosen, dataset, begun)
        if "budget" in chosen:
            if "duration" in chosen or measure is None:
                raise click.UsageError("--budget decides the duration of one run: leave out --duration; not for ablate")
            if begun is not None and begun.budget == chosen["budget"]:
                chosen["duration"] = begun.duration
            else:
                config = plan_run(dataset, data, out, preset, conditional, chosen, architecture or "G", relative=True)
                chosen["duration"] = duration_within(chosen["budget"], measure(config), config.batch_size)
            relative = True
        if relative and begun is not None and begun.preset == preset:
            chosen = {name: getattr(begun, name) for name in FOLLOWING} | chosen
        config = plan_run(dataset, data, out, preset, conditional, chosen, architecture or "G", relative)
        config.images_per_rank(processes)
    except ValueError as error:
        raise click.UsageError(in_options(str(error), options_by_name(train))) from None
    return config


def _add_conditions(chosen: dict[str, Any], dataset: "Dataset", begun: "TrainingConfig | None") -> None:
    """Describe the conditions that are asked for; a run that goes on keeps how the class enters its network."""
    from edm2.planning.conditions import plan_conditions

    asked, makers = chosen.pop("asked_conditions", ()), chosen.get("make_conditions", ())
    dropouts, noises = dict(chosen.pop("condition_dropouts", ())), dict(chosen.pop("condition_noises", ()))
    if asked or makers or dropouts or noises:
        chosen["conditions"] = plan_conditions(dataset, asked, makers, dropouts, noises)
        if begun is not None and begun.network is not None:
            chosen["label_source"] = begun.network.label_source


def begun_run(out: str) -> "TrainingConfig | None":
    """Configuration of the run that goes on in a folder; None if none has begun there."""
    from edm2.training import RunFolder, read_run_config

    return read_run_config(out) if RunFolder(out).has_begun() else None


def _initial_network(text: str, out: str) -> str:
    """Path of the network to start from; as it was given for a run that goes on, which does not read it any more."""
    from edm2.training import RunFolder

    try:
        return parse_initial_network(text)
    except ValueError as error:
        if RunFolder(out).images_seen():
            return text
        raise click.BadParameter(str(error), param_hint="'--init'") from None


def options_by_name(command: click.Command) -> dict[str, str]:
    """Name of each parameter's option: "batch_size" is chosen by "--batch"."""
    return {parameter.name: parameter.opts[0] for parameter in command.params if parameter.name}


def in_options(message: str, options: Mapping[str, str]) -> str:
    """Replace settings in a message by options: "--batch 48" for "batch_size=48"."""
    return re.sub(r"\b(\w+)=", lambda found: f"{options[found[1]]} " if found[1] in options else found[0], message)
