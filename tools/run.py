"""Training from the command line: default device and precision, bars, stopping on signals, grids of samples."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import torch
from torch.nn.functional import interpolate
from tqdm import tqdm

from edm2.io.images import save_grid
from edm2.networks import ImageCondition, Precond, fold
from edm2.planning.presets import PRESETS
from edm2.post_hoc_ema.files import first_line
from edm2.report.records import read_records
from edm2.report.summary import warnings_about
from edm2.sampling.generation import drawn_by_default, generate
from edm2.sampling.samplers.registry import HEUN, default_sampler, default_steps
from edm2.tools.process import convolve_in_float32, stop_signals_handled
from edm2.training import CheckpointError, Codec, Dataset, RunFolderError, Trainer, TrainingConfig, TrainingError
from edm2.training.callbacks import COLUMNS, Callback, SampleGrids, SpeedReport
from edm2.training.config import DTYPES
from edm2.training.data.batches import Batch
from edm2.training.distributed.processes import ONE_PROCESS, Processes, calling_after
from edm2.training.run.speed import time_text
from edm2.training.trainer import OwnTrainingError


def default_device() -> str:
    """Fastest kind of device of this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def use_device(processes: Processes, device: str | None) -> torch.device:
    """Device of this process, by default the fastest kind; from here on, float32 convolutions are that on CUDA."""
    convolve_in_float32()
    return processes.device(device or default_device())


def default_precision(preset: str, device: str) -> str:
    """Precision of activations in training: the preset's, else bf16 if the device has instructions for it."""
    return PRESETS[preset].training.get("precision") or ("bf16" if has_bf16(device) else "fp32")


def has_bf16(device: str) -> bool:
    """True if a device has instructions for bf16."""
    if device.startswith("cuda"):  # GPUs older than Ampere take longer in bf16 than in fp32
        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def run_training(
    config: TrainingConfig,
    dataset: Dataset,
    callbacks: Sequence[Callback] = (),
    processes: Processes = ONE_PROCESS,
    max_seconds: float | None = None,
    loss: Callable[..., torch.Tensor] | None = None,
) -> None:
    """Train like `train_interruptibly`, then print where the snapshots are."""
    trainer = train_interruptibly(config, dataset, callbacks, processes, max_seconds, loss)
    if processes.is_first:
        click.echo(f"Done: {trainer.images_seen:,} images, snapshots in {Path(config.out) / 'snapshots'}")
        for line in warnings_about(read_records(config.out, Path(config.out))):
            click.echo(f"Warning: {line}", err=True)


def train_interruptibly(
    config: TrainingConfig,
    dataset: Dataset,
    callbacks: Sequence[Callback] = (),
    processes: Processes = ONE_PROCESS,
    max_seconds: float | None = None,
    loss: Callable[..., torch.Tensor] | None = None,
) -> Trainer:
    """Train; on a signal, or when time is up, finish the step, write a checkpoint and leave with an exit code.

    It is 130 for SIGINT (Ctrl-C), 143 for SIGTERM, 138 for SIGUSR1, and 124 when time is up: in all processes,
    whichever the signal reached. `callbacks`, `processes` and `loss` are the trainer's.
    """
    draw = partial(draw_samples, dtype=DTYPES[config.precision])
    callbacks = [*callbacks, SampleGrids(draw), SpeedReport(report_speed)]
    convolve_in_float32()
    trainer = Trainer(config, loss=loss, dataset=dataset, callbacks=callbacks, processes=processes)
    with (
        stop_signals_handled(partial(stop_at_signal, trainer)),
        stopping_after(max_seconds, trainer),
        memory_advice(trainer),
    ):
        trainer.run()
    if trainer.images_seen < config.duration:
        if processes.is_first:
            click.echo(f"Stopped at {trainer.images_seen:,} images; run the same command again to go on.", err=True)
        raise click.exceptions.Exit(trainer.stop_requested)
    return trainer


@contextmanager
def reported_once(processes: Processes) -> Iterator[None]:
    """Let only the first process report an error that all of them meet; the others exit with its code."""
    try:
        yield
    except (click.UsageError, TrainingError, CheckpointError, RunFolderError) as error:
        if processes.is_first or isinstance(error, OwnTrainingError):
            raise
        raise click.exceptions.Exit(getattr(error, "exit_code", 1)) from None


TIME_IS_UP = 124
"""Exit code when `--max-time` has passed, like that of `timeout`; for signals it is 128 + their number."""


def stop_at_signal(trainer: Trainer, number: int) -> None:
    """Ask `trainer` to stop with the signal's exit code. A process without others leaves at once at a second Ctrl-C."""
    if trainer.stop_requested and number == signal.SIGINT and trainer.processes.count == 1:
        raise KeyboardInterrupt
    trainer.stop_requested = 128 + number
    if trainer.processes.is_first:
        again = "; press Ctrl-C again to leave at once" if number == signal.SIGINT else ""
        click.echo(f"\nFinishing this step, then writing a checkpoint{again}.", err=True)


@contextmanager
def stopping_after(seconds: float | None, trainer: Trainer) -> Iterator[None]:
    """Ask `trainer` to stop after some time; None: never."""

    def stop() -> None:
        trainer.stop_requested = trainer.stop_requested or TIME_IS_UP

    if seconds is None:
        yield
        return
    with calling_after(seconds, stop):
        yield


def report_speed(images_per_second: float, images_left: int) -> None:
    """Print the speed in the middle of a run, above the bar if there is one."""
    left = time_text(images_left / images_per_second)
    tqdm.write(f"speed: {images_per_second:,.3g} images/s; the remaining {images_left:,} images will take about {left}")


def measure_speed(config: TrainingConfig, dataset: Dataset, processes: Processes = ONE_PROCESS) -> float:
    """Images per second of a run, measured on some steps that are thrown away."""
    if processes.is_first:
        click.echo("Measuring speed for --budget ...")
    convolve_in_float32()
    trainer = Trainer(config, dataset=dataset, processes=processes)
    with memory_advice(trainer):
        return trainer.measure().images_per_second


def measure_run(
    config: TrainingConfig,
    dataset: Dataset,
    processes: Processes = ONE_PROCESS,
    loss: Callable[..., torch.Tensor] | None = None,
) -> list[tuple[str, str]]:
    """Measure speed, time and memory of a run in some of its steps; nothing is written. Memory is one process's."""
    convolve_in_float32()
    trainer = Trainer(config, loss=loss, dataset=dataset, processes=processes)
    with memory_advice(trainer):
        speed, peak_memory = trainer.measure()
    return [
        ("speed", f"{speed:,.3g} images/s"),
        ("time", f"about {time_text(config.duration / speed)} for {config.duration:,} images, pauses not counted"),
        ("peak memory", f"{peak_memory / 1e9:.3g} GB"),
    ]


@contextmanager
def memory_advice(trainer: Trainer) -> Iterator[None]:
    """Turn an out-of-memory error into one line with the remedy."""
    try:
        yield
    except torch.OutOfMemoryError:
        step = trainer.step
        raise click.ClickException(
            f"{step.device} has too little memory for {step.images_per_forward} images per forward pass; "
            "lower --micro-batch, or try --recompute"
        ) from None


def draw_samples(
    net: Precond,
    codec: Codec,
    path: Path,
    dtype: torch.dtype = torch.float32,
    rows: int = 4,
    num_steps: int | None = None,
    shown: Batch | None = None,
) -> None:
    """Write a PNG grid of samples with one class per column (at most ten); the same seeds every time.

    Of a network with conditions, a column has an image that it was `shown`, its image conditions, and samples for them.
    """
    if shown is None:
        classes = drawn_by_default(net)[:COLUMNS]
        columns, conditions = len(classes) or COLUMNS, None
    else:
        columns, rows = len(shown.images), rows - 1
        classes = [] if shown.labels is None else shown.labels.clamp(min=0).tolist()
        conditions = {name: torch.cat([v] * rows) for name, v in (shown.conditions or {}).items()}
    count, sampler = rows * columns, default_sampler(net.abilities)
    batches = generate(
        fold(net, dtype),
        range(count),
        classes * rows or None,
        conditions=conditions,
        batch_size=count,
        sampler=sampler.sample,
        num_steps=num_steps or (18 if sampler == HEUN else default_steps(sampler, net.abilities)),
    )
    try:
        samples = codec.to_display(codec.decode(torch.cat([batch.samples for batch in batches])))
        if shown is not None:
            samples = torch.cat([*_rows_of_conditions(net, codec, shown, samples), samples])
        save_grid(samples, path, columns)
    except (OSError, RuntimeError) as error:  # a run that lasts days must not end over a picture
        click.echo(f"No samples drawn: {first_line(error)}", err=True)


def _rows_of_conditions(net: Precond, codec: Codec, shown: Batch, samples: torch.Tensor) -> list[torch.Tensor]:
    """Rows of a grid: the images that conditions belong to, then each image condition, all of the samples' form."""
    found = [codec.to_display(codec.decode(shown.images))]
    for condition in net.config.conditions:
        if isinstance(condition, ImageCondition):
            values = (shown.conditions or {})[condition.name].float()
            if values.min() < 0 or values.max() > 255 or values.max() <= 1:  # no pixels
                values = (values - values.mean()) / values.std() * 64 + 127.5
            values = values[:, :1] if values.shape[1] != 3 else values
            values = values.expand(-1, samples.shape[1], -1, -1) if values.shape[1] == 1 else values
            pixels = values.clip(0, 255).round().to(torch.uint8)
            found.append(interpolate(pixels.float(), samples.shape[2:], mode="nearest").to(torch.uint8))
    return [row.to(samples.device) for row in found if row.shape[1:] == samples.shape[1:]]
