"""Callbacks of a run: what users hang into the training loop, such as a logger or an evaluation of their own."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edm2.training.run.speed import Speedometer
from edm2.training.run.totals import StepResult

if TYPE_CHECKING:
    from edm2.training.trainer import Trainer


COLUMNS = 10
"""Images side by side in a grid of samples."""


class Callback:
    """Methods that a trainer calls, each of which does nothing unless a subclass says otherwise.

    `trainer` knows `config`, `images_seen`, `net`, `processes`, `folder`, `codec`, `averaged(sigma_rel)` and
    `is_due(interval)`; setting its `stop_requested` to a positive number ends the run after a checkpoint.
    """

    def on_step(self, trainer: "Trainer", result: StepResult) -> None:
        """Called after every step, in all processes. To read a number of `result` is to wait for the device."""

    def on_report(self, trainer: "Trainer", record: Mapping[str, Any]) -> None:
        """Called with every record of stats.jsonl, in the first process; the others wait."""

    def on_snapshot(self, trainer: "Trainer") -> Mapping[str, float] | None:
        """Called when the snapshots of a time are written, in the first process; the others wait.

        Returns:
            Numbers for TensorBoard by name, if there are any.
        """

    def on_end(self, trainer: "Trainer") -> None:
        """Called after the last step of `run`, also if it stops before the end, in all processes."""


class SampleGrids(Callback):
    """Draws samples of an averaged network, at the intervals of `config.sample_every` and early in the run.

    The first grid comes after 1/64 of the run, and then one at each doubling.

    Args:
        draw: Called as draw(net, codec, path), in the first process; writes samples of `net` to a file. Of a network
            with conditions also with shown=Batch: held-out images whose conditions to draw samples for.
    """

    def __init__(self, draw: Callable[..., None]) -> None:
        self.draw = draw

    def on_step(self, trainer: "Trainer", result: StepResult) -> None:
        config = trainer.config
        early = any(trainer.crossed(config.duration >> k) for k in range(1, 7))
        if config.sample_every is None or not (early or trainer.is_due(config.sample_every)):
            return
        net = trainer.averaged(max(trainer.config.sigma_rels))  # all ranks gather its weights
        if net is not None:
            trainer.folder.samples.mkdir(exist_ok=True)
            path = trainer.folder.samples / f"samples-{trainer.images_seen:012d}.png"
            shown = {"shown": trainer.stream.shown(COLUMNS)} if trainer.stream.conditions else {}
            self.draw(net, trainer.codec, path, **shown)
        trainer.processes.wait()


class SpeedReport(Callback):
    """Reports the speed of a run once, when enough steps have been timed.

    Args:
        report: Called as report(images_per_second, images_left), in the first process.
    """

    def __init__(self, report: Callable[[float, int], None]) -> None:
        self.report = report
        self._speedometer: Speedometer | None = None

    def on_step(self, trainer: "Trainer", result: StepResult) -> None:
        if self._speedometer is None:
            self._speedometer = trainer.speedometer()
        speed = self._speedometer.step_done()
        if speed is not None and trainer.processes.is_first:
            self.report(speed, trainer.config.duration - trainer.images_seen)
