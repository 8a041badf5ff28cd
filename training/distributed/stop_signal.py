"""Stopping before the end, agreed among the processes of a job."""

from datetime import timedelta

import torch
from torch import Tensor, distributed

from edm2.training.distributed.processes import Processes


class StopSignal:
    """Tells all processes in the same step that one of them wants to stop.

    The maximum over processes is taken in the background, on the CPU, while a step is made: the answer comes one step
    later, and neither the device nor the exchange of gradients waits for it.

    Args:
        processes: Processes that stop together.
        timeout: Time to wait for another process: as long as a step may last.
    """

    def __init__(self, processes: Processes, timeout: timedelta) -> None:
        self._distributed = processes.count > 1
        self._group = distributed.new_group(backend="gloo", timeout=timeout) if self._distributed else None
        self._pending: tuple[distributed.Work, Tensor] | None = None

    def exchange(self, reason: int) -> int:
        """Send this process's wish, and return the largest of those sent a step ago; all call this once per step.

        Args:
            reason: 0 to go on, else the reason to stop: a positive number.
        """
        if not self._distributed:
            return reason
        largest = self.close()
        value = torch.tensor(int(reason))
        work = distributed.all_reduce(value, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = work, value
        return largest

    def close(self) -> int:
        """Wait for the exchange under way, if there is one; its largest number."""
        if self._pending is None:
            return 0
        work, value = self._pending
        work.wait()
        self._pending = None
        return int(value)
