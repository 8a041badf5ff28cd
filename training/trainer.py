"""The training loop. The clock is images seen."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edm2.networks import build_network
from edm2.post_hoc_ema import thin
from edm2.training.callbacks import Callback
from edm2.training.config import DTYPES, TrainingConfig
from edm2.training.data.batches import Batch, BatchStream
from edm2.training.data.codecs import Codec, codec_from_json
from edm2.training.data.dataset import Dataset, open_dataset
from edm2.training.data.loader import deaths_of_workers
from edm2.training.data.torch_dataset import as_dataset
from edm2.training.diagnostics.anomaly import SHOWN, AnomalyError, finding_anomalies
from edm2.training.diagnostics.diagnostics import Diagnostics
from edm2.training.distributed.processes import ONE_PROCESS, Processes, StopSignal, failures_of_others
from edm2.training.initialization import fresh_network, load_snapshot_
from edm2.training.loss.objective import DenoisingLoss
from edm2.training.loss.pareto import Pareto
from edm2.training.preparation import LevelDenoiser
from edm2.training.run.checkpoint import Checkpoints, adam_state, load_checkpoint, reading
from edm2.training.run.checkpoint_folder import find_checkpoints
from edm2.training.run.disk import file_sizes
from edm2.training.run.failures import STEPS, Divergence, Failures, OwnTrainingError, TrainingError
from edm2.training.run.output import Output, peak_memory
from edm2.training.run.run_folder import RunFolder
from edm2.training.run.speed import SpeedMeasurement, Speedometer
from edm2.training.run.totals import StepResult, Totals
from edm2.training.schedule import is_due
from edm2.training.step import TrainStep

__all__ = ["OwnTrainingError", "Trainer", "TrainingError"]


CHECKPOINT = 1 << 16
"""Number added to the reason to stop, which is an exit code, by the process that wants a checkpoint."""


class Trainer:
    """Trains one network from its beginning, or from its last checkpoint, to the end of a run.

    Args:
        config: The run.
        net: A denoiser of the user's in the place of `config.network`, which is None then: any module called as
            net(noisy, sigma, labels) -> D_x, with sigma [N]. Snapshots hold its averaged tensors; to resume the run, or
            to use them, hand in the same network again.
        loss: A loss of the user's in the place of the config's, as `TrainStep` takes it. What it passes to
            `context.report` is logged if its attribute `reports`, a tuple of names, says so.
        dataset: Images to train on, ours or any map-style dataset of PyTorch; default: those that `config.data` names.
        callbacks: Called in the course of the run; see `Callback`.
        processes: Processes that train together.

    Attributes:
        step: The network with its loss, optimizer and averages.
        stream: The batches, once `run` has begun.
        output: Reports and snapshots, likewise.
        checkpoints: The checkpoints.
        stop_requested: A positive number makes `run` save a checkpoint and return, after the current step or the next;
            in all processes, whichever it is set in, and then it is the largest of theirs.

    Raises:
        ValueError: the batch cannot be split among the processes, or the settings do not fit the network or the loss.
    """

    def __init__(
        self,
        config: TrainingConfig,
        net: nn.Module | None = None,
        loss: Callable[..., Tensor] | None = None,
        dataset: Dataset | Any | None = None,
        callbacks: Sequence[Callback] = (),
        processes: Processes = ONE_PROCESS,
    ) -> None:
        self.config = config
        self.processes = processes
        self.dataset = None if dataset is None else as_dataset(dataset)
        self.callbacks = tuple(callbacks)
        self.folder = RunFolder(config.out)
        self.stop_requested = 0
        self.snapshot_times: list[int] = []
        _check_parts(config, net, loss)
        self._template = None if net is None else copy.deepcopy(net).cpu()
        net = fresh_network(config.own_network, config.seed) if net is None else net
        if config.init is not None and not find_checkpoints(self.folder.checkpoints):
            load_snapshot_(net, config.init)
        self.sizes = file_sizes(config, net)
        self.step = TrainStep(config, net, loss, processes)
        self.distribution = self.step.draws.distribution
        self.totals = Totals(self.step.device, getattr(self.step.loss, "reports", ()))
        self.divergence = Divergence(self.step.device)
        self.diagnostics = Diagnostics(config, self.distribution)
        self.stop_signal = StopSignal(processes, timedelta(seconds=config.patience))
        self.checkpoints = Checkpoints(self.folder.checkpoints, config.keep_checkpoints, processes)
        self.failures = Failures(config, self.folder, self.checkpoints, processes)
        self._before = 0
        self._checkpoint_due = math.inf
        self._checkpoint_agreed = False
        self._interim: set[int] = set()

    @property
    def images_seen(self) -> int:
        """Images seen so far, the clock."""
        return self.step.images_seen

    @property
    def net(self) -> Any:
        """The network as the optimizer sees it: an `nn.Module`, ours or another."""
        return self.step.net

    @property
    def codec(self) -> Codec:
        """Codec between stored pixels and what the network sees."""
        return self.stream.codec

    # ------------------------------------------------------------------------------------------------- the run

    def run(self) -> None:
        """Train until `config.duration`, from the last checkpoint if the run folder has one.

        Raises:
            DatasetError, RunFolderError, CheckpointError, TrainingError: each in one line, with the remedy.
        """
        if self.processes.is_first:
            self.folder.check(self.config)
        with failures_of_others(), deaths_of_workers(self.config.data), ExitStack() as stack:
            self.stream = self._open_stream()
            if self.processes.is_first:
                stack.enter_context(self.folder.locked())
                self.folder.claim(self.config, self.stream.dataset)
            self._resume()
            self._run()

    def _run(self) -> None:
        if self.images_seen < self.config.duration:
            self.failures.require_space(
                self.sizes.snapshots + self.sizes.checkpoint, "the next snapshots and checkpoint"
            )
        about = self.config, self.folder, self.stream, self.step.strategy, self._blank, self.step.buffers
        self.output = Output(*about, self.images_seen)
        if self.images_seen:  # later files are of a future that was given up with the checkpoints of that time
            self.output.remove_snapshots(self.folder.snapshot_times(after=self.images_seen))
        if self.images_seen < self.config.duration:
            self.output.remove_raw_weights()
        try:
            self._train()
        except Exception:
            self.checkpoints.abandon(self.config.patience)
            raise
        finally:
            self.output.close()

    def _train(self) -> None:
        batches = self.stream.steps(self.images_seen)
        self._checkpoint_due = time.monotonic() + self.config.checkpoint_seconds
        while self.images_seen < self.config.duration and not self._must_stop():
            self._before = self.images_seen
            result = self.train_step(next(batches))
            self.totals.add(result)
            self.diagnostics.add(result)
            if result.error is not None:
                self.divergence.add(
                    result.error if result.error_of_zero is None else result.error / result.error_of_zero
                )
            self.output.advance()
            if self.output.is_silent():
                self.output.show(self.images_seen, {**self.totals.averages(), "lr": self.step.learning_rate()})
            self._end_if_failing()
            self._write_what_is_due()
            self._call("on_step", result)
            if self._checkpoint_agreed or self.is_due(self.config.checkpoint_every):
                self.save_checkpoint()
        if self.stop_requested and self.images_seen < self.config.duration:
            self.save_checkpoint()
            self.save_interim_snapshots()
        self.checkpoints.wait()
        self.stop_signal.close()
        self._call("on_end")
        self.processes.wait()

    def train_step(self, batches: Sequence[Batch]) -> StepResult:
        """One step, watched by the instruments that were asked for."""
        with self._watching_update(), self._looking_for_anomalies():
            return self.step(batches)

    def is_due(self, interval: int | None) -> bool:
        """True if the last step crossed a multiple of `interval` images, or ended the run; None is never due."""
        done = self.images_seen >= self.config.duration
        return interval is not None and (done or is_due(interval, self._before, self.images_seen))

    def crossed(self, images: int) -> bool:
        """True if the last step reached this number of images."""
        return self._before < images <= self.images_seen

    def measure(self) -> SpeedMeasurement:
        """Train for some steps, which leave nothing behind but this trainer's changed weights.

        Raises:
            DatasetError: as `run` does.
        """
        self.stream, speedometer, speed = self._open_stream(), self.speedometer(), None
        with deaths_of_workers(self.config.data):
            batches = self.stream.steps(start=0)
            while speed is None:
                self.totals.add(self.step(next(batches)))
                speed = self.processes.broadcast(speedometer.step_done())
        return SpeedMeasurement(speed, peak_memory(self.step.device))

    def speedometer(self) -> Speedometer:
        """A measurement of speed that begins now."""
        return Speedometer(self.config.batch_size, wait=self.totals.loss.item)  # reading waits for the device

    def _open_stream(self) -> BatchStream:
        dataset = open_dataset(self.config.data) if self.dataset is None else self.dataset
        return BatchStream(self.config, dataset, self.step.random, processes=self.processes)

    def _call(self, event: str, *arguments: Any) -> list[Any]:
        return [getattr(callback, event)(self, *arguments) for callback in self.callbacks]

    # ------------------------------------------------------------------------------------------------ watching

    def _must_stop(self) -> bool:
        """True if any process is to stop. Raises CheckpointError if the last checkpoint could not be written.

        The first process's clock also decides here that a checkpoint is due by time.
        """
        self.checkpoints.check()
        wish = self.stop_requested
        if self.processes.is_first and time.monotonic() > self._checkpoint_due:
            wish += CHECKPOINT
            self._checkpoint_due = math.inf  # asked once; `save_checkpoint` sets it anew
        agreed = self.stop_signal.exchange(wish)
        self._checkpoint_agreed, reason = agreed >= CHECKPOINT, agreed % CHECKPOINT
        self.stop_requested = max(reason, self.stop_requested)
        return reason > 0

    def _watching_update(self) -> AbstractContextManager[None]:
        """Context of a step, whose update the first process measures if that is due."""
        if not self.processes.is_first:
            return nullcontext()
        return self.diagnostics.watching(self.net, self.step.optimizer, self.images_seen)

    @contextmanager
    def _looking_for_anomalies(self) -> Iterator[None]:
        """If asked to, end the run at the first NaN or infinity, with the layer and the images where it appeared."""
        if not self.config.detect_anomaly:
            yield
            return
        try:
            with finding_anomalies(self.net):
                yield
        except AnomalyError as found:
            raise OwnTrainingError(
                f"{self.folder.path}: NaN or infinity in the step after {self.images_seen} images: {found.where}; "
                f"{self._images_at([self.step.position + row for row in found.rows])}; "
                f"{self.failures.last_checkpoint()}"
            ) from None

    def _images_at(self, positions: list[int]) -> str:
        """Phrase that names some positions of the run, and the images there."""
        if not positions:
            return "which images is unknown"
        shown = positions[:SHOWN]
        where, which = (", ".join(map(str, numbers)) for numbers in (shown, self.stream.indices(shown)))
        more = f" and {len(positions) - SHOWN} more" if len(positions) > SHOWN else ""
        return f"positions {where}{more} of the run (images {which} of {self.config.data})"

    def _end_if_failing(self) -> None:
        now, totals, failures = self.images_seen, self.totals, self.failures
        most = self.config.max_nonfinite_steps
        failures.give_up_if(lambda: int(totals.nonfinite_in_a_row), most, now, failures.nonfinite)
        failures.give_up_if(lambda: float(self._mean_over_ranks(self.divergence.steps)), STEPS, now, failures.diverged)

    def _mean_over_ranks(self, tensor: Tensor) -> Tensor:
        return self.step.strategy.sum(tensor) / self.processes.count

    # ------------------------------------------------------------------------------------------ reports, snapshots

    def _write_what_is_due(self) -> None:
        """Reports, snapshots and diagnostics.

        All processes come here. What the first one does alone may take long, so the others wait for it right after:
        the timeout there is longer than that of the exchange of tensors that comes next.
        """
        config, now = self.config, self.images_seen
        measure = self.stream.holdout_set is not None and self.is_due(config.holdout_every or config.snapshot_every)
        if measure or self.is_due(config.status_every):
            self.report(measure)
            self.processes.wait()
        if self.is_due(config.snapshot_every):
            self.save_snapshots()
            self.processes.wait()
        if self.diagnostics.due(self._before, now):
            self._diagnose()
            self.processes.wait()
        if now >= config.duration:
            with self.failures.writing("the raw weights"):  # before the checkpoint that ends the run for good
                self.output.save_raw_weights(now, self.net.state_dict())

    def report(self, measure: bool = False) -> None:
        """Report averages since the last report.

        Args:
            measure: Also measure the loss per noise level on held-out images, and on as many training images.
        """
        self.totals.average_over_ranks(self._mean_over_ranks)
        numbers: dict[str, Any] = {**self.totals.averages(), "lr": self.step.learning_rate()}
        if measure:
            net = self.averaged(self.config.sigma_rels[0])
            if self._template is not None and net is not None:
                net = LevelDenoiser(net, self.config.sigma_data)
            numbers |= self.output.measured_losses(net, self.distribution, self.step.images_per_forward)
        self.totals.restart()
        with self.failures.writing("the report"):
            record = self.output.report(self.images_seen, numbers)
        if self.processes.is_first:
            self._call("on_report", record)

    def averaged(self, sigma_rel: float) -> Any:
        """Network in evaluation mode, for the first process, with the weights averaged over a profile; else None."""
        return self.output.network(self.step.ema.average(sigma_rel))

    def _blank(self) -> nn.Module:
        """A network for weights to be loaded into."""
        if self._template is not None:
            return copy.deepcopy(self._template).to(self.step.device)
        with torch.device("meta"):
            net = build_network(self.config.own_network)
        net.compute_dtype = DTYPES[self.config.precision]
        return net

    def _diagnose(self) -> None:
        if self.processes.is_first:
            step = self.step
            record = self.diagnostics.measure(
                self.images_seen, self.net, self.averaged, step.loss, self.stream, step.images_per_forward
            )
            if self.output.monitor is not None:
                with self.failures.writing("the diagnostics"):
                    self.output.monitor.report_diagnostics(record)

    def save_snapshots(self) -> None:
        """Write a snapshot of each average, then remove older ones that are too many."""
        now = self.images_seen
        self.failures.require_space(self.sizes.snapshots, "the snapshots")
        with self.failures.writing("snapshots"):
            for sigma_rel in self.config.sigma_rels:
                self.output.save_snapshot(now, sigma_rel, self.step.ema.average(sigma_rel))
            if self.step.traditional_ema is not None:
                self.output.save_traditional(now, self.step.traditional_ema)
        self.snapshot_times = sorted({*self.snapshot_times, now})
        self.output.remove_snapshots(self._interim - set(self.snapshot_times))
        self.output.remove_snapshots(self.folder.snapshot_times(after=now))
        self._interim = set()
        self._thin_snapshots()
        if self.output.monitor is not None:  # of the first process
            for numbers in self._call("on_snapshot"):
                self.output.monitor.tensorboard.append({"images_seen": now, **(numbers or {})})

    def save_interim_snapshots(self) -> None:
        """Write snapshots of a run that stops before the next ones are due, if there is room: something to draw from.

        They go with the next regular snapshots, so that a run that goes on ends like one that never stopped.
        """
        now = self.images_seen
        if not now or now in self.snapshot_times or not self.failures.has_space(self.sizes.snapshots):
            return
        self.output.remove_snapshots(self._interim - set(self.snapshot_times))
        with self.failures.writing("snapshots"):
            for sigma_rel in self.config.sigma_rels:
                self.output.save_snapshot(now, sigma_rel, self.step.ema.average(sigma_rel), interim=True)

    def _thin_snapshots(self) -> None:
        """Keep snapshots of as many times as `config.keep_snapshots` says."""
        keep = self.config.keep_snapshots
        if keep is not None and not self.processes.broadcast(self.divergence.is_suspect()):  # the new ones may be bad
            kept = thin(self.snapshot_times, keep)
            self.output.remove_snapshots(set(self.snapshot_times) - set(kept))
            self.snapshot_times = kept

    # ------------------------------------------------------------------------------------------ stop and resume

    def tensors(self) -> dict[str, Any]:
        """Tensors that a resumed run needs; loading fills them in place."""
        step = self.step
        weighting = getattr(step.loss, "weighting", None)
        own: dict[str, Any] = getattr(step.loss, "state_dict", dict)()
        return {
            "net": step.net.state_dict(),
            "optimizer": adam_state(step.net, step.optimizer),
            "totals": self.totals.state_dict(),
            **({"loss": own} if own else {}),
            **({"pareto": weighting.state_dict()} if isinstance(weighting, Pareto) else {}),
            **{name: _tensors(average.state_dict()) for name, average in step.averages().items()},
        }

    def save_checkpoint(self) -> None:
        """Write everything that a resumed run needs, while training goes on."""
        self._checkpoint_due = time.monotonic() + self.config.checkpoint_seconds
        self.failures.require_space(self.sizes.checkpoint, "a checkpoint")
        self.totals.average_over_ranks(self._mean_over_ranks)
        state = {
            "codec": self.codec.to_json(),
            "diagnostics": self.diagnostics.state(),
            "explosion": self.divergence.state(),
            "snapshot_times": self.snapshot_times,
            "snapshot": self.output.metadata(self.images_seen),
        }
        self.checkpoints.save(self.images_seen, self.tensors(), state)

    def _resume(self) -> None:
        """Take up the newest checkpoint, if there is one.

        The codec comes from it too: what the network sees of an image must not change within a run, even if the
        statistics stored with the dataset did.
        """
        newest = self.processes.broadcast([str(path) for path in find_checkpoints(self.folder.checkpoints)[-1:]])
        if not newest:
            return
        path, tensors = Path(newest[0]), self.tensors()
        state = load_checkpoint(path, tensors, self.processes)
        self.step.images_seen = state["images_seen"]
        with reading(path):
            if "codec" in state:  # checkpoints of earlier versions have none
                self.stream.codec = codec_from_json(state["codec"])
            self.diagnostics.load_state(state.get("diagnostics"))
            self.divergence.load_state(state.get("explosion"))
        self.snapshot_times = state.get("snapshot_times", self.folder.snapshot_times(self.images_seen))
        interim = self.folder.interim_times() if self.processes.is_first else set()
        self._interim = self.processes.broadcast(interim)  # the first may be the first to remove files, too
        if "loss" in tensors:
            self.step.loss.load_state_dict(tensors["loss"])
        for name, average in self.step.averages().items():
            average.load_state_dict({"images_seen": self.images_seen, **tensors[name]})


def _check_parts(config: TrainingConfig, net: nn.Module | None, loss: Any) -> None:
    """Raise ValueError unless it is clear what to train, and how to measure it."""
    if net is not None and config.network is not None:
        raise ValueError("a network of your own takes the place of config.network: set network=None")
    if net is None and config.network is None:
        raise ValueError("config.network is None, so the trainer needs the network itself: Trainer(config, net=...)")
    if loss is not None and not isinstance(loss, DenoisingLoss) and config.diagnostics_every is not None:
        raise ValueError("diagnostics take the losses of edm2 apart, not others; leave out diagnostics_every")


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
