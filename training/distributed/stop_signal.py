"""When to stop before the end, agreed among the processes of a job."""

from datetime import timedelta

import torch
from torch import Tensor, distributed

from edm2.training.distributed.processes import Processes


class StopSignal:
    """Whether any of the processes wants to stop. All of them hear the same answer in the same step.

    With several processes a vote is taken in the background, on the CPU, while a step is made: the answer comes one
    step later, and neither the device nor the exchange of gradients waits for it.

    Args:
        processes: Who votes.
        patience: How long to wait for the vote of another process: as long as a step may last.
    """

    def __init__(self, processes: Processes, patience: timedelta) -> None:
        self.several = processes.count > 1
        self._group = distributed.new_group(backend="gloo", timeout=patience) if self.several else None
        self._ballot: tuple[distributed.Work, Tensor] | None = None

    def cast(self, wish: int) -> int:
        """Vote; to be called by all processes once per step.

        Args:
            wish: 0 to go on, else the reason to stop: a positive number.

        Returns:
            The largest number of the last vote.
        """
        if not self.several:
            return wish
        answer = self.close()
        vote = torch.tensor(int(wish))
        work = distributed.all_reduce(vote, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._ballot = work, vote
        return answer

    def close(self) -> int:
        """Wait for the vote under way, if there is one; its largest number."""
        if self._ballot is None:
            return 0
        work, vote = self._ballot
        work.wait()
        self._ballot = None
        return int(vote)
