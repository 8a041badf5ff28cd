"""Failures that end a run, each in one line: why, what to do, and the checkpoint to go on from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from edm2.training.distributed.processes import Processes
from edm2.training.run.checkpoint import Checkpoints
from edm2.training.run.checkpoint_folder import find_checkpoints, last_good_checkpoint
from edm2.training.run.disk import free_space
from edm2.training.run.run_folder import RunFolder
from edm2.training.run.speed import with_unit
from edm2.training.settings import ScheduleConfig


class TrainingError(RuntimeError):
    """A run cannot go on; the message is one line that says why and what to do."""


class OwnTrainingError(TrainingError):
    """A failure that only one process knows of, which therefore has to report it itself."""


class Failures:
    """Ends a run that cannot go on.

    Args:
        checkpoints: Its checkpoints; one under way is waited for, so that it can be named.
    """

    def __init__(
        self, config: ScheduleConfig, folder: RunFolder, checkpoints: Checkpoints, processes: Processes
    ) -> None:
        self.config = config
        self.folder = folder
        self.checkpoints = checkpoints
        self.processes = processes

    def last_checkpoint(self) -> str:
        """Sentence that names the checkpoint to go on from."""
        self.checkpoints.wait()
        checkpoints = find_checkpoints(self.folder.checkpoints)
        return f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"

    def give_up_if(self, bad_steps: Callable[[], float], most: int, images_seen: int, end: Callable[..., None]) -> None:
        """End the run if too many steps in a row were bad; at its end, if all of them were.

        Args:
            bad_steps: Number in a row up to now. It waits for the device, so it is asked once in `most` steps only.
            end: Raises the error: `nonfinite` or `diverged`.
        """
        steps = images_seen // self.config.batch_size
        if images_seen >= self.config.duration:
            most = min(most, steps)
        elif steps % most:
            return
        if bad_steps() >= most:
            end(most, images_seen)

    def nonfinite(self, steps: int, images_seen: int) -> None:
        """Raise TrainingError: no gradients any more."""
        raise TrainingError(
            f"{self.folder.path}: {steps} steps up to image {images_seen} had non-finite gradients; "
            f"look for NaN in the data or lower the learning rate ({self.config.ref_lr:g}); "
            f"--detect-anomaly finds the layer; {self.last_checkpoint()}"
        )

    def diverged(self, steps: int, images_seen: int) -> None:
        """Raise TrainingError: the loss is far above its level at the start."""
        self.checkpoints.wait()
        good = last_good_checkpoint(self.folder.checkpoints)
        remains = f"the last good checkpoint is {good}" if good else "there is no good checkpoint"
        raise TrainingError(
            f"{self.folder.path}: the loss has exploded: in {steps} steps up to image {images_seen} the error was more "
            f"than {EXPLODED:g} times that of the start; lower the learning rate ({self.config.ref_lr:g}) in a new "
            f"run, which may --init from a snapshot of before; {remains}"
        )

    def has_space(self, needed: int) -> bool:
        """True if the first process finds room for so many bytes; the same in all processes."""
        free = free_space(self.folder.path) if self.processes.is_first else None
        return self.processes.broadcast(free is None or free >= needed)

    def require_space(self, needed: int, what: str) -> None:
        """End the run before a file is begun that the disk has no room for. The first process looks, others follow."""
        free = free_space(self.folder.path)
        if self.processes.is_first and free is not None and free < needed:
            raise TrainingError(
                f"{self.folder.path}: {what} need {with_unit(needed, 'B')}, and {with_unit(free, 'B')} are free; "
                f"make room and run the same command again; {self.last_checkpoint()}"
            )

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Report in one line an error of writing, such as a quota that is used up."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TrainingError(
                f"{self.folder.path}: cannot write {what} ({reason}); "
                f"make room and run the same command again; {self.last_checkpoint()}"
            ) from error


EXPLODED = 10.0
"""A step counts as exploded beyond this multiple of the error at the start (1 at least)."""

SUSPECT = 2.0
"""Multiple beyond which what is saved may be bad already, so nothing good should be removed for it."""

STEPS = 256
"""Exploded steps in a row after which the run ends."""


class Divergence:
    """Counts steps whose relative error has exploded, on the device: no step waits for it.

    Attributes:
        steps: Exploded steps in a row.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = torch.zeros((), device=device)
        self._usual = torch.zeros((), device=device)
        self._last = torch.zeros((), device=device)

    def add(self, error: Tensor) -> None:
        """Take the relative error of a step into account."""
        first = torch.where(error.isfinite(), error, 1).clamp(min=1)
        self._usual.copy_(torch.where(self._usual > 0, self._usual, first))
        self._last.copy_(error / self._usual)
        self.steps.add_(1).mul_(~(self._last <= EXPLODED))  # NaN counts

    def is_suspect(self) -> bool:
        """True if the last step was bad. Waits for the device."""
        return not float(self._last) <= SUSPECT

    def state(self) -> dict[str, Any]:
        """State that a resumed run needs, and `good`: true if all is well."""
        return {"steps": float(self.steps), "usual": float(self._usual), "good": not self.is_suspect()}

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Go on from `state`; with None, from the start."""
        if state is not None:
            self.steps.fill_(state["steps"])
            self._usual.fill_(state["usual"])
