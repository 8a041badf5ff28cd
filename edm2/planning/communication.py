"""What the processes of a run send each other in a step, in bytes: counted, not measured.

Collective operations pass data around a ring of n processes. A process sends (n - 1) / n of what a gather ends with, or
a reduction begins with; averaging everywhere (all-reduce) is a reduction and a gather. Whatever else they exchange is
a few numbers per step.
"""

from dataclasses import dataclass

from edm2.networks import NetworkConfig
from edm2.planning.costs import parameter_bytes


@dataclass(frozen=True)
class Traffic:
    """Bytes that each process sends in a step."""

    all_reduce: int = 0
    """To average gradients everywhere: all of them with copies (DDP), those of scalars with shares (FSDP2)."""
    all_gather: int = 0
    """To gather the weights of every block for its forward pass, and again for its backward pass, in every round."""
    reduce_scatter: int = 0
    """To average gradients, each where its row lives."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.all_reduce + self.all_gather + self.reduce_scatter


def traffic(network: NetworkConfig, processes: int, shard: bool, rounds: int) -> Traffic:
    """What a step sends. Weights and gradients travel in float32, see `edm2.training.distributed.strategies`.

    Args:
        network: What is trained.
        processes: n above.
        shard: Whether they divide the weights among them.
        rounds: Forward passes of a process per step. Gradients are exchanged after the last one only.
    """
    if processes == 1:
        return Traffic()
    others = processes - 1
    if not shard:
        return Traffic(all_reduce=2 * others * parameter_bytes(network).total // processes)
    own = parameter_bytes(network, processes)
    gathered = 2 * sum(own.blocks) + own.rest  # what is outside of blocks stays from forward to backward pass
    return Traffic(
        all_reduce=2 * others * own.scalars // processes,
        all_gather=rounds * others * gathered,
        reduce_scatter=others * (sum(own.blocks) + own.rest),
    )
