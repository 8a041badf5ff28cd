"""`edm2 train`: parse the choices, describe the run, train."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.planning.presets import PRESETS
from edm2.tools.options.groups import GroupedCommand, GroupedOption
from edm2.tools.options.parsing import (
    DEVICE,
    FILE,
    IMAGES,
    INITIAL_NETWORK,
    LETTER,
    NUMBER,
    PRECISION,
    SEED,
    SIGMA_RELS,
    TIME,
)
from edm2.training.loss.by_name import NOISE_DISTRIBUTIONS, SNR_CONVENTIONS, WEIGHTINGS

if TYPE_CHECKING:
    from edm2.training import Dataset, TrainingConfig
    from edm2.training.distributed.processes import Processes

EPILOG = (
    """\b
Examples:
  # Handwritten digits, on a laptop
  edm2 train --data digits --preset digits8 --out runs/digits
\b
  # Your own folder of images; one class per sub-folder
  edm2 train --data photos/ --out runs/photos --xflip
\b
  # What would this run be, and how long would it take here?
  edm2 train --data photos/ --out runs/photos --micro-batch 64 --dry-run --measure
\b
  # The paper's ImageNet-512, on latents, with a network that also serves classifier-free guidance
  edm2 train --data img512-latents.zip --preset edm2-img512-s --out runs/img512-s --micro-batch 32 --label-dropout 0.1
\b
  # Score two EMA lengths at every fourth snapshot; edm2 sweep knows these scores then
  edm2 train --data digits --out runs/watched --eval 0.05,0.10 --eval-every 4
\b
  # Another step of the paper's ladder, or another weighting of noise levels; edm2 ablate compares many
  edm2 train --data digits --config C --out runs/digits-c --diagnostics 16000
  edm2 train --data digits --weighting min-snr --gamma 5 --out runs/digits-min-snr
\b
  # On all eight GPUs of a machine (docs/operations.md: several machines, SLURM, Kubernetes)
  torchrun --nproc-per-node 8 -m edm2 train --data img512-latents.zip --preset edm2-img512-xxl --out runs/xxl --shard
\b
  # Fine-tune from a snapshot
  edm2 train --data flowers.zip --out runs/flowers --init runs/photos/snapshots/snapshot-000004194304-0.1000.safetensors

Interrupted? Run the same command again: it goes on from the last checkpoint. Ctrl-C, SIGTERM and SIGUSR1 write one.
Image counts may end in Ki, Mi or Gi (1024, 1024², 1024³). docs/settings.md says how to choose settings.

\b
Presets:
"""
    + "\n".join(f"  {name:<18} {preset.summary}" for name, preset in PRESETS.items())
    + """

\b
Weightings, of the squared error on the image (docs/weightings.md):
"""
    + "\n".join(f"  {name:<18} {weighting.summary}" for name, weighting in WEIGHTINGS.items())
    + """

\b
Distributions of noise levels:
"""
    + "\n".join(f"  {name:<18} {distribution.summary}" for name, distribution in NOISE_DISTRIBUTIONS.items())
)


def _choices(group: str) -> Callable[..., Callable]:
    """Options under one heading; those without a type are numbers, and None stands for what the preset says."""

    def option(name: str, field: str, help: str, type: Any = NUMBER, **attributes: Any) -> Callable:
        return click.option(
            name, field, type=type, default=None, help=help, cls=GroupedOption, group=group, **attributes
        )

    return option


_what = partial(click.option, cls=GroupedOption, group="The run")
_eval = partial(click.option, cls=GroupedOption, group="Scores during training")
_data = _choices("Data")
_network = _choices("Network")
_schedule = _choices("Schedule")
_noise = _choices("Noise levels")
_loss = _choices("Weighting of noise levels")
_output = _choices("What is written, and when")
_machine = _choices("Machine")


@click.command(cls=GroupedCommand, epilog=EPILOG)
@_what("--data", required=True, help='"digits", a ZIP file or a folder of images or latents.')
@_what("--out", required=True, help="Run folder; made if missing, resumed if it holds this run.")
@_what(
    "--preset",
    type=click.Choice(list(PRESETS)),
    metavar="NAME",
    help="Where settings that are not given come from (see below); default: what fits the data.",
)
@_what("-n", "--dry-run", is_flag=True, help="Describe the run and stop.")
@_what("--measure", is_flag=True, help="With --dry-run: make some steps and tell speed, time and memory.")
@_data("--cond/--uncond", "conditional", "Train with labels; default: if there are any.", None)
@_data("--label-dropout", "label_dropout", "Share of images trained without their label, for guidance.")
@_data("--xflip/--no-xflip", "xflip", "Mirror half of the images.", None)
@_data(
    "--standardize/--no-standardize",
    "standardize",
    "Scale pixels to the standard deviation that the network expects, or only onto [-1, 1].",
    None,
)
@_data("--skip-broken", "skip_broken", "Without effect, and gone in the next version: see edm2 dataset check.", int)
@_data("--holdout", "holdout", "Images to measure the loss on instead of training on them.", int)
@_network(
    "--config",
    "letter",
    "Step of the paper's ladder, A to G, with its training settings; default: G.",
    LETTER,
    metavar="LETTER",
)
@_network("--channels", "model_channels", "Base width of the network.", int)
@_network("--dropout", "dropout", "Dropout probability; against overfitting.")
@_network(
    "--init",
    "init",
    "Snapshot or included network (digits8) to start from; the number of classes may differ.",
    INITIAL_NETWORK,
)
@_schedule("--duration", "duration", "Images to train on.", IMAGES)
@_schedule("--batch", "batch_size", "Images per step.", IMAGES)
@_schedule("--lr", "ref_lr", "Learning rate between ramp-up and decay.")
@_schedule("--decay", "ref_batches", "Steps after which the learning rate decays; 0 for never.")
@_schedule("--rampup", "rampup_images", "Images over which the learning rate rises.", IMAGES)
@_schedule("--seed", "seed", "Seed of everything random.", SEED)
@_noise(
    "--noise", "noise", "Their distribution in training; default: ln-normal.", click.Choice(list(NOISE_DISTRIBUTIONS))
)
@_noise("--p-mean", "P_mean", "Mean of ln sigma in training.")
@_noise("--p-std", "P_std", "Standard deviation of ln sigma in training.")
@_noise(
    "--stratified-noise/--no-stratified-noise",
    "stratified_sigma",
    "Spread the noise levels of every step evenly over their distribution; for small batches.",
    None,
)
@_loss(
    "--weighting",
    "weighting",
    "Name (see below); default: uncertainty, and edm for config A.",
    click.Choice(list(WEIGHTINGS)),
    metavar="NAME",
)
@_loss("--gamma", "weighting_gamma", "Parameter of max-snr, min-snr, soft-min-snr and p2.")
@_loss("--k", "weighting_k", "Parameter of p2.")
@_loss("--snr-convention", "snr_convention", "SNR is (sigma_data/sigma)², or 1/sigma².", click.Choice(SNR_CONVENTIONS))
@_loss(
    "--normalize-weighting/--no-normalize-weighting",
    "normalize_weighting",
    "Scale the weighting to mean 1; on by default.",
    None,
)
@_loss(
    "--relative-weighting",
    "relative_weighting",
    "Multiply it onto the loss that learned uncertainty has evened out, instead of replacing that.",
    None,
    is_flag=True,
)
@_output("--ema", "sigma_rels", "EMA lengths to store.  [default: 0.05,0.10]", SIGMA_RELS)
@_output("--snapshot", "snapshot_every", "Images between EMA snapshots.", IMAGES)
@_output("--snapshot-precision", "snapshot_precision", "Precision of snapshots.", PRECISION)
@_output(
    "--keep-snapshots",
    "keep_snapshots",
    "Times to keep snapshots of: beyond, the one goes whose neighbours in time are closest, seen from both ends of the "
    "run. 64 leave errors below 2 %.  [default: all]",
    click.IntRange(2),
)
@_output("--status", "status_every", "Images between status lines.", IMAGES)
@_output("--sample", "sample_every", "Images between sample grids.", IMAGES)
@_output("--diagnostics", "diagnostics_every", "Images between measurements for edm2 plot.", IMAGES)
@_output("--checkpoint", "checkpoint_every", "Images between checkpoints.", IMAGES)
@_eval("--eval", "lengths", type=SIGMA_RELS, help="EMA lengths to score with the snapshots: 0.05,0.10.")
@_eval("--eval-every", "eval_every", type=click.IntRange(1), default=1, help="Score at every so many-th snapshot.")
@_eval("--eval-samples", "eval_samples", type=click.IntRange(2), default=500, help="Images per score; default: 500.")
@_eval("--eval-detector", "eval_detector", help="As --detector of edm2 sweep.")
@_eval("--eval-data", "eval_data", help="Images to compare with, for runs on latents; default: those of the run.")
@_eval("--eval-ref", "eval_ref", type=FILE, help="Statistics of real images in their place.")
@_machine("--device", "device", "cpu, cuda or mps; default: the fastest here.", DEVICE)
@_machine("--micro-batch", "micro_batch", "Images per forward pass; lower it if memory runs out.", IMAGES)
@_machine("--precision", "precision", "Of activations; default: bf16 if the device has it, else fp32.", PRECISION)
@_machine("--compile/--no-compile", "compile", "Compile the network: faster, after a minute or more.", None)
@_machine("--workers", "workers", "Processes that read data; 0: none beside the training process.", int)
@_machine("--shard/--no-shard", "shard", "Several processes: divide weights among them (FSDP2) to save memory.", None)
@_machine(
    "--patience", "patience", "Several processes: end all if one gives no answer for this time; default: 30m.", TIME
)
@_machine("--recompute/--no-recompute", "recompute", "Save memory by computing activations twice.", None)
@_machine(
    "--detect-anomaly",
    "detect_anomaly",
    "Slow: stop at the first NaN or infinity, and name the layer.",
    None,
    is_flag=True,
)
@_machine("--max-time", "max_seconds", "Save and leave after this time (90s, 30m, 11.5h), with exit code 124.", TIME)
def train(
    data: str,
    out: str,
    preset: str | None,
    letter: str | None,
    conditional: bool | None,
    dry_run: bool,
    measure: bool,
    lengths: list[float] | None,
    eval_every: int,
    eval_samples: int,
    eval_detector: str | None,
    eval_data: str | None,
    eval_ref: Path | None,
    max_seconds: float | None,
    **choices: object,
) -> None:
    """Train a network on your images or latents.

    Writes snapshots of two EMA lengths on the way, from which `edm2 reconstruct` and `edm2 sweep` make any other, and
    everything needed to resume. The run folder holds config.json, stats.jsonl, TensorBoard events, snapshots/,
    checkpoints/ and samples/.
    """
    if measure and not dry_run:
        raise click.UsageError("--measure needs --dry-run; a real run tells its speed after its first steps")
    if lengths is None and (eval_detector or eval_data or eval_ref):
        raise click.UsageError("which EMA lengths are to be scored? Give --eval, such as 0.05,0.10")
    from edm2.planning.plan import describe_run
    from edm2.tools.run import measure_run, run_training, told_once
    from edm2.training.distributed.processes import joined_processes

    with joined_processes() as processes:
        if choices["skip_broken"] is not None and processes.is_first:
            click.echo(
                f"--skip-broken does nothing: a run stops at a broken image; edm2 dataset check {data} finds them all"
            )
        dataset = _open_in_turn(data, processes)
        with told_once(processes):
            config = described(dataset, data, out, preset, letter, conditional, choices)
            _check_share(config, processes)
            _check_folder(config, processes)
        speed = [("speed", "told after the first steps, with the time left")]
        if measure:
            speed = measure_run(config, dataset, processes)
        if processes.is_first:
            _print([*describe_run(config, dataset, processes.count), *speed])
            click.echo("Dry run: nothing was written." if dry_run else "")
        if dry_run:
            return
        with told_once(processes):
            on_snapshot = None
            if lengths is not None and processes.is_first:
                from edm2.tools.evaluation import Evaluation

                about = eval_every, eval_samples, eval_detector, eval_data, eval_ref
                on_snapshot = Evaluation(config, lengths, *about, dataset)
            processes.wait()  # statistics of many real images take longer than a step has patience for
            run_training(config, dataset, on_snapshot, processes, max_seconds)


def _open_in_turn(data: str, processes: "Processes") -> "Dataset":
    """The first process indexes the data, if nobody has; the others find the index."""
    from edm2.training import open_dataset

    if not processes.is_first:
        processes.wait()
    dataset = open_dataset(data)
    if processes.is_first:
        processes.wait()
    return dataset


def _check_folder(config: "TrainingConfig", processes: "Processes") -> None:
    """Before anything is described or computed: whether this run can live there, and how far it is."""
    from edm2.training import RunFolder

    folder = RunFolder(config.out)
    options = _options()
    folder.check(config, options | {f"network.{name}": option for name, option in options.items()})
    if processes.is_first and 0 < (seen := folder.images_seen()) < config.duration:
        click.echo(f"Resuming {config.out} at {seen:,} of {config.duration:,} images.")


def _check_share(config: "TrainingConfig", processes: "Processes") -> None:
    try:
        config.share(processes.count)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def described(
    dataset: "Dataset",
    data: str,
    out: str,
    preset: str | None,
    letter: str | None,
    conditional: bool | None,
    choices: Mapping[str, Any],
) -> "TrainingConfig":
    """The run that parameters of `edm2 train` describe; what they leave open is decided by data and machine.

    Raises:
        click.UsageError: they do not fit together, or not the data.
    """
    from edm2.planning.plan import default_preset, plan_run
    from edm2.tools.run import default_device, default_precision

    chosen = {name: value for name, value in choices.items() if value is not None}
    chosen.setdefault("device", default_device())
    preset = preset or default_preset(dataset, data)
    chosen.setdefault("precision", default_precision(preset, chosen["device"]))
    try:
        return plan_run(dataset, data, out, preset, conditional, chosen, letter or "G")
    except ValueError as error:
        raise click.UsageError(_in_options(str(error))) from None


def _options() -> dict[str, str]:
    """Names of the options by the settings that they choose."""
    return {parameter.name: parameter.opts[0] for parameter in train.params}


def _in_options(message: str) -> str:
    """Settings as people give them: "--batch 48" for "batch_size=48"."""
    options = _options()
    return re.sub(r"\b(\w+)=", lambda found: f"{options[found[1]]} " if found[1] in options else found[0], message)


def _print(lines: list[tuple[str, str]]) -> None:
    for subject, phrase in lines:
        click.echo(f"{subject + ':':<15}{phrase}")
