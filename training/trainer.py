"""The training loop. The clock is images seen."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import Tensor

from edm2.networks import Precond
from edm2.post_hoc_ema import thin
from edm2.training.config import DTYPES, TrainingConfig
from edm2.training.data.batches import BatchStream
from edm2.training.data.codecs import codec_from_json
from edm2.training.data.dataset import Dataset, open_dataset
from edm2.training.diagnostics import Diagnostics
from edm2.training.diagnostics.anomaly import SHOWN, AnomalyError, finding_anomalies
from edm2.training.distributed.processes import ONE_PROCESS, Processes, failures_of_others
from edm2.training.distributed.stop_signal import StopSignal
from edm2.training.initialization import fresh_network, load_snapshot_
from edm2.training.loss.pareto import Pareto
from edm2.training.run.checkpoint import Checkpoints, adam_state, find_checkpoints, load_checkpoint
from edm2.training.run.disk import file_sizes
from edm2.training.run.failures import STEPS, Divergence, Failures, OwnTrainingError, TrainingError
from edm2.training.run.output import Output, SampleHook, peak_memory
from edm2.training.run.run_folder import RunFolder
from edm2.training.run.speed import SpeedMeasurement, Speedometer
from edm2.training.run.totals import Totals
from edm2.training.schedule import is_due
from edm2.training.step import TrainStep

__all__ = ["DTYPES", "OwnTrainingError", "SampleHook", "SnapshotHook", "SpeedHook", "Trainer", "TrainingError"]

SpeedHook = Callable[[float, int], None]
"""Hears once how many images per second are trained on, and how many images are left."""

SnapshotHook = Callable[[int], dict[str, float]]
"""Hears of images seen when the snapshots of that time are written; returns numbers for TensorBoard, by name."""


class Trainer(TrainStep):
    """Trains one network from its beginning, or from its last checkpoint, to the end of a run.

    Args:
        config: The run.
        dataset: Images to train on; by default those that `config.data` names.
        on_sample: Called with an averaged network at the intervals of `config.sample_every`.
        on_speed: Called once, when enough steps have been timed.
        on_snapshot: Called when the snapshots of a time are written.
        processes: Those that train together. Hooks are called in the first one; the others wait.

    Attributes:
        stop_requested: A positive number makes `run` save a checkpoint and return, after the current step or the next;
            in all processes, whichever it is set in, and then it is the largest of theirs.

    Raises:
        ValueError: the processes cannot share a step.
    """

    def __init__(
        self,
        config: TrainingConfig,
        dataset: Dataset | None = None,
        on_sample: SampleHook | None = None,
        on_speed: SpeedHook | None = None,
        on_snapshot: SnapshotHook | None = None,
        processes: Processes = ONE_PROCESS,
    ) -> None:
        self.dataset = dataset
        self.on_sample = on_sample
        self.on_speed = on_speed
        self.on_snapshot = on_snapshot
        self.folder = RunFolder(config.out)
        self.stop_requested = 0
        net = fresh_network(config.network, config.seed)
        if config.init is not None and not find_checkpoints(self.folder.checkpoints):
            load_snapshot_(net, config.init)
        self.sizes = file_sizes(config, net)
        self.snapshot_times: list[int] = []
        super().__init__(config, net, processes)
        self.diagnostics = Diagnostics(config, self.loss.distribution)
        self.totals = Totals(self.device)
        self.explosion = Divergence(self.device)
        self.speedometer = Speedometer(config.batch_size, wait=self.totals.loss.item)  # reading waits for the device
        self.votes = StopSignal(processes, timedelta(seconds=config.patience))
        self.checkpoints = Checkpoints(self.folder.checkpoints, config.keep_checkpoints, processes)
        self.trouble = Failures(config, self.folder, self.checkpoints, processes)

    # ------------------------------------------------------------------------------------------------- the run

    def run(self) -> None:
        """Train until `config.duration`, from the last checkpoint if the run folder has one.

        Raises:
            DatasetError, RunFolderError, CheckpointError, TrainingError: each in one line, with the remedy.
        """
        with failures_of_others():
            self._open_feed()
            if self.processes.is_first:
                self.folder.claim(self.config)
            self._resume()
            if self.images_seen < self.config.duration:
                self.trouble.require_space(
                    self.sizes.snapshots + self.sizes.checkpoint, "the next snapshots and checkpoint"
                )
            self.output = Output(self.config, self.folder, self.feed, self.parallel, self.buffers, self.images_seen)
            try:
                self._train()
            except Exception:
                self.checkpoints.abandon(self.config.patience)
                raise
            finally:
                self.output.close()

    def _train(self) -> None:
        batches = self.feed.steps(self.images_seen)
        while self.images_seen < self.config.duration and not self._is_stopped():
            before = self.images_seen
            with self._watching(), self._looking_for_anomalies():
                step = self.step(next(batches))
            self.totals.add(step)
            self.explosion.add(step.error)
            self.diagnostics.add(step)
            self.output.advance()
            self._give_up_if_hopeless()
            self._do_what_is_due(before)
            self._tell_speed()
        if self.stop_requested and self.images_seen < self.config.duration:
            self.save_checkpoint()
        self.checkpoints.wait()
        self.votes.close()
        self.processes.wait()

    def _is_stopped(self) -> bool:
        """Whether any process is to stop. Trouble with the last checkpoint shows here too."""
        self.checkpoints.check()
        reason = self.votes.cast(self.stop_requested)
        self.stop_requested = max(reason, self.stop_requested)
        return reason > 0

    def _watching(self) -> AbstractContextManager[None]:
        """Instruments are the first process's."""
        if not self.processes.is_first:
            return nullcontext()
        return self.diagnostics.watching(self.net, self.optimizer, self.images_seen)

    @contextmanager
    def _looking_for_anomalies(self) -> Iterator[None]:
        """If asked to: the first NaN or infinity ends the run, with the layer and the images where it appeared."""
        if not self.config.detect_anomaly:
            yield
            return
        try:
            with finding_anomalies(self.net):
                yield
        except AnomalyError as found:
            raise OwnTrainingError(
                f"{self.folder.path}: NaN or infinity in the step after {self.images_seen} images: {found.where}; "
                f"{self._images_at([self.place + row for row in found.rows])}; {self.trouble.last_checkpoint()}"
            ) from None

    def _images_at(self, places: list[int]) -> str:
        """Some places of the run, and the images that stand there."""
        if not places:
            return "which images, it does not tell"
        shown = places[:SHOWN]
        where, which = (", ".join(map(str, numbers)) for numbers in (shown, self.feed.indices(shown)))
        more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        return f"places {where}{more} of the run (images {which} of {self.config.data})"

    def measure(self) -> SpeedMeasurement:
        """Train for some steps, which leave nothing behind but this trainer's changed weights.

        Raises:
            DatasetError: as `run` does.
        """
        self._open_feed()
        for microbatches in self.feed.steps(start=0):
            self.totals.add(self.step(microbatches))
            if (speed := self.processes.broadcast(self.speedometer.step_done())) is not None:
                return SpeedMeasurement(speed, peak_memory(self.device))

    def _tell_speed(self) -> None:
        speed = self.speedometer.step_done()
        if speed is not None and self.on_speed is not None and self.processes.is_first:
            self.on_speed(speed, self.config.duration - self.images_seen)

    def _open_feed(self) -> None:
        dataset = open_dataset(self.config.data) if self.dataset is None else self.dataset
        self.feed = BatchStream(self.config, dataset, self.random, self.processes)

    def _give_up_if_hopeless(self) -> None:
        now, totals = self.images_seen, self.totals
        most = self.config.max_nonfinite_steps
        self.trouble.give_up_if(lambda: int(totals.nonfinite_in_a_row), most, now, self.trouble.nonfinite)
        self.trouble.give_up_if(lambda: float(self._mean(self.explosion.steps)), STEPS, now, self.trouble.exploded)

    def _do_what_is_due(self, before: int) -> None:
        """All processes come here.

        What the first one does alone may take long. The others wait for it right after, with more patience than they
        have for the exchange of tensors that comes next.
        """
        config, now = self.config, self.images_seen
        done = now >= config.duration

        def due(interval: int | None) -> bool:
            return interval is not None and (done or is_due(interval, before, now))

        measure = self.feed.holdout_set is not None and due(config.holdout_every or config.snapshot_every)
        if measure or due(config.status_every):
            self.report(measure)
            self.processes.wait()
        if due(config.snapshot_every):
            self.save_snapshots()
            self.processes.wait()
        if due(config.sample_every) and self.on_sample is not None:
            self.output.save_samples(now, self.averaged(max(config.sigma_rels)), self.on_sample)
            self.processes.wait()
        if self.diagnostics.due(before, now):
            self._diagnose()
            self.processes.wait()
        if done:
            self.output.save_raw_weights(now, self.net.state_dict())  # before the checkpoint that ends the run for good
        if due(config.checkpoint_every):
            self.save_checkpoint()

    # ------------------------------------------------------------------------------------------ what it leaves

    def report(self, measure: bool = False) -> None:
        """Report averages since the last report.

        Args:
            measure: Also measure the loss per noise level on held-out images, and on as many training images.
        """
        self.totals.average_over_ranks(self._mean)
        numbers: dict[str, Any] = {**self.totals.averages(), "lr": self.learning_rate()}
        if measure:
            net = self.averaged(self.config.sigma_rels[0])
            numbers |= self.output.measured_losses(net, self.loss.distribution, self.images_per_forward)
        self.output.report(self.images_seen, numbers)

    def _mean(self, tensor: Tensor) -> Tensor:
        """Over the processes."""
        return self.parallel.sum(tensor) / self.processes.count

    def averaged(self, sigma_rel: float) -> Precond | None:
        """For the first process, a network in evaluation mode with the weights averaged over a profile; else None."""
        return self.output.network(self.ema.average(sigma_rel))

    def _diagnose(self) -> None:
        if self.processes.is_first:
            record = self.diagnostics.measure(
                self.images_seen, self.net, self.averaged, self.loss, self.feed, self.images_per_forward
            )
            self.output.monitor.report_diagnostics(record)

    def save_snapshots(self) -> None:
        """One file per average, complete or not there; then older ones that are too many are removed."""
        now = self.images_seen
        self.trouble.require_space(self.sizes.snapshots, "the snapshots")
        with self.trouble.writing("snapshots"):
            for sigma_rel in self.config.sigma_rels:
                self.output.save_snapshot(now, sigma_rel, self.ema.average(sigma_rel))
            if self.traditional_ema is not None:
                self.output.save_traditional(now, self.traditional_ema)
        self.snapshot_times = sorted({*self.snapshot_times, now})
        self._thin_snapshots()
        if self.on_snapshot is not None and self.processes.is_first:
            self.output.monitor.tensorboard.append({"images_seen": now, **self.on_snapshot(now)})

    def _thin_snapshots(self) -> None:
        """Keep those of so many times as `config.keep_snapshots` says."""
        keep = self.config.keep_snapshots
        if keep is not None and not self.processes.broadcast(self.explosion.is_suspect()):  # the new ones may be bad
            kept = thin(self.snapshot_times, keep)
            self.output.remove_snapshots(set(self.snapshot_times) - set(kept))
            self.snapshot_times = kept

    # ------------------------------------------------------------------------------------------ stop and resume

    def _state(self) -> dict[str, Any]:
        """Every tensor that a resumed run needs; loading fills them in place."""
        return {
            "net": self.net.state_dict(),
            "optimizer": adam_state(self.net, self.optimizer),
            "totals": self.totals.state_dict(),
            **({"pareto": weighting.state_dict()} if isinstance(weighting := self.loss.weighting, Pareto) else {}),
            **{name: _tensors(ema.state_dict()) for name, ema in self._trackers().items()},
        }

    def save_checkpoint(self) -> None:
        """Write everything that a resumed run needs, while training goes on."""
        self.trouble.require_space(self.sizes.checkpoint, "a checkpoint")
        self.totals.average_over_ranks(self._mean)
        state = {
            "codec": self.feed.codec.to_json(),
            "diagnostics": self.diagnostics.state(),
            "explosion": self.explosion.state(),
            "snapshot_times": self.snapshot_times,
        }
        self.checkpoints.save(self.images_seen, self._state(), state)

    def _resume(self) -> None:
        """Take up the newest checkpoint, if there is one.

        The codec comes from it too: what the network sees of an image must not change within a run, even if the
        statistics stored with the dataset did.
        """
        newest = self.processes.broadcast([str(path) for path in find_checkpoints(self.folder.checkpoints)[-1:]])
        if not newest:
            return
        tensors = self._state()
        state = load_checkpoint(Path(newest[0]), tensors, self.processes)
        self.images_seen = state["images_seen"]
        if "codec" in state:  # checkpoints of earlier versions have none
            self.feed.codec = codec_from_json(state["codec"])
        self.diagnostics.load_state(state.get("diagnostics"))
        self.explosion.load_state(state.get("explosion"))
        self.snapshot_times = state.get("snapshot_times", self.folder.snapshot_times(self.images_seen))
        for name, ema in self._trackers().items():
            ema.load_state_dict({"images_seen": self.images_seen, **tensors[name]})


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
