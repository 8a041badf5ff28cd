"""`edm2 train`: parse the choices, describe the run, train."""

import click

from edm2.presets import PRESETS
from edm2.tools.parsing import DEVICE, IMAGES, NUMBER, PRECISION, SEED, SIGMA_RELS

EPILOG = """\b
Examples:
  # Handwritten digits, on a laptop
  edm2 train --data digits --preset digits8 --out runs/digits
\b
  # Your own folder of images; one class per sub-folder
  edm2 train --data photos/ --out runs/photos --xflip --holdout 200
\b
  # What would this run be?
  edm2 train --data imagenet64.zip --preset edm2-img64-s --out runs/img64-s --dry-run
\b
  # Fine-tune from a snapshot
  edm2 train --data flowers.zip --out runs/flowers --init runs/photos/snapshots/snapshot-000004194304-0.1000.safetensors

Interrupted? Run the same command again: it goes on from the last checkpoint.
Image counts may end in Ki, Mi or Gi (1024, 1024², 1024³).

\b
Presets (digits8 is the default for the digits, small for everything else):
""" + "\n".join(f"  {name:<17} {preset.summary}" for name, preset in PRESETS.items())


def _choice(name: str, field: str, help: str, type=NUMBER, **options):
    """An option that overrides a field of the preset."""
    return click.option(name, field, type=type, default=None, help=help, **options)


@click.command(epilog=EPILOG)
@click.option("--data", required=True, help='"digits", a ZIP file or a folder of images.')
@click.option("--out", required=True, help="Run folder; made if missing, resumed if it holds this run.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    metavar="NAME",
    help="Where settings that are not given come from (see below).",
)
@click.option("--cond/--uncond", "conditional", default=None, help="Train with labels; default: if there are any.")
@_choice("--duration", "duration", "Images to train on.", IMAGES)
@_choice("--batch", "batch_size", "Images per step.", IMAGES)
@_choice("--micro-batch", "micro_batch", "Images per forward pass; lower it if memory runs out.", IMAGES)
@_choice("--channels", "model_channels", "Base width of the network.", int)
@_choice("--dropout", "dropout", "Dropout probability.")
@_choice("--lr", "ref_lr", "Learning rate between ramp-up and decay.")
@_choice("--decay", "ref_batches", "Steps after which the learning rate decays; 0 for never.")
@_choice("--rampup", "rampup_images", "Images over which the learning rate rises.", IMAGES)
@_choice("--p-mean", "P_mean", "Mean of ln sigma in training.")
@_choice("--p-std", "P_std", "Standard deviation of ln sigma in training.")
@_choice("--ema", "sigma_rels", "EMA lengths to store.  [default: 0.05,0.10]", SIGMA_RELS)
@_choice("--label-dropout", "label_dropout", "Share of images trained without their label.")
@_choice("--xflip/--no-xflip", "xflip", "Mirror half of the images.", None)
@_choice("--standardize/--no-standardize", "standardize", "Scale pixels to the standard deviation sigma_data.", None)
@_choice("--holdout", "holdout", "Images to measure the loss on instead of training on them.", int)
@_choice("--init", "init", "Snapshot to start from; the number of classes may differ.", click.Path(exists=True))
@_choice("--precision", "precision", "Precision of activations.", PRECISION)
@_choice("--snapshot-precision", "snapshot_precision", "Precision of snapshots.", PRECISION)
@_choice("--status", "status_every", "Images between status lines.", IMAGES)
@_choice("--snapshot", "snapshot_every", "Images between EMA snapshots.", IMAGES)
@_choice("--checkpoint", "checkpoint_every", "Images between checkpoints.", IMAGES)
@_choice("--sample", "sample_every", "Images between sample grids.", IMAGES)
@_choice("--workers", "workers", "Processes that read data; 0: none beside the training process.", int)
@_choice("--device", "device", "cpu, cuda or mps; default: the fastest here.", DEVICE)
@_choice("--compile/--no-compile", "compile", "Compile the network: faster, after a minute or more.", None)
@_choice("--seed", "seed", "Seed of everything random.", SEED)
@click.option("-n", "--dry-run", is_flag=True, help="Describe the run and stop.")
def train(data: str, out: str, preset: str | None, conditional: bool | None, dry_run: bool, **choices: object) -> None:
    """Train a network on your images.

    Writes snapshots of two EMA lengths on the way, from which `edm2 reconstruct` and `edm2 sweep` make any other, and
    everything needed to resume. The run folder holds config.json, stats.jsonl, TensorBoard events, snapshots/,
    checkpoints/ and samples/.
    """
    from edm2.planning import describe_run, plan_run
    from edm2.tools.run import default_device, run_training
    from edm2.training import open_dataset

    dataset = open_dataset(data)
    preset = preset or ("digits8" if data == "digits" else "small")
    chosen = {name: value for name, value in choices.items() if value is not None}
    chosen.setdefault("device", default_device())
    chosen.setdefault("precision", "bf16" if chosen["device"].startswith("cuda") else "fp32")
    try:
        config = plan_run(dataset, data, out, preset, conditional, chosen)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    for subject, phrase in describe_run(config, dataset):
        click.echo(f"{subject + ':':<15}{phrase}")
    if dry_run:
        click.echo("Dry run: nothing was written.")
        return
    click.echo()
    run_training(config, dataset)
