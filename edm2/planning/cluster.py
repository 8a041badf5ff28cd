"""GPUs by name (numbers of their makers' public data sheets), clusters of them, and what they send each other.

Collective operations pass data around a ring of n processes. A process sends (n - 1) / n of the result of a gather, or
of the input of a reduction; averaging everywhere (all-reduce) is a reduction and a gather. Whatever else processes
exchange is a few numbers per step.
"""

from dataclasses import dataclass

from edm2.networks import NetworkConfig
from edm2.planning.costs import parameter_bytes

REACHED = 0.8
"""Fraction of a link's bandwidth that collective operations reach. Assumed: NCCL reaches 0.7 to 0.9 on most links."""


@dataclass(frozen=True)
class GPU:
    """One kind of GPU. Units are those of data sheets: GB are 10⁹ bytes, T are 10¹²."""

    name: str
    memory: float
    """GB. As sold; some have up to 7 % more, which is left as a reserve."""
    peak: float
    """TFLOP/s of dense matrix products in bf16, sums in float32; a multiplication with its addition counts as two."""
    bandwidth: float | None
    """GB/s between memory and processor; None where not known."""
    link: float
    """GB/s that one GPU sends to others of its node: half of the data sheet's number, which counts both directions."""
    network: float
    """GB/s that a node sends to other nodes: the usual network (see `GPUS`)."""
    source: str
    """Data sheet."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("a100-40", 40, 312, 1555, 300, 200, "NVIDIA A100 Tensor Core GPU data sheet (SXM)"),
        GPU("a100-80", 80, 312, 2039, 300, 200, "NVIDIA A100 Tensor Core GPU data sheet (SXM)"),
        GPU("h100", 80, 989, 3350, 450, 400, "NVIDIA H100 Tensor Core GPU data sheet (SXM)"),
        GPU("h200", 141, 989, 4800, 450, 400, "NVIDIA H200 Tensor Core GPU data sheet (SXM)"),
        GPU("b200", 180, 2250, 7700, 900, 400, "NVIDIA HGX B200 data sheet"),
        GPU("l40s", 48, 362, 864, 32, 25, "NVIDIA L40S data sheet (PCIe 4.0 x16)"),
        GPU("a10", 24, 125, 600, 32, 12.5, "NVIDIA A10 data sheet (PCIe 4.0 x16)"),
        GPU("rtx3090", 24, 71, 936, 32, 1.25, "NVIDIA GA102 architecture white paper (PCIe 4.0 x16)"),
        GPU("rtx4090", 24, 165, 1008, 32, 1.25, "NVIDIA Ada architecture white paper (PCIe 4.0 x16)"),
        GPU("rtx5090", 32, 209, 1792, 64, 1.25, "NVIDIA RTX Blackwell architecture white paper (PCIe 5.0 x16)"),
    )
}  # fmt: skip
"""Networks are those of the usual machines with eight of them: a port of 200 Gbit/s per A100 and of 400 Gbit/s per
H100 and later (NVIDIA DGX data sheets); 200 Gbit/s per machine of L40S, 100 of A10, and 10 of consumer cards."""

UNKNOWN = GPU("GPU", 0, 0, None, 32, 25, "your numbers")
"""A GPU that the user describes by numbers: links as those of PCIe 4.0 x16, a network of 200 Gbit/s."""


@dataclass(frozen=True)
class Cluster:
    """Machines (nodes) with the same number of GPUs of one kind.

    Raises:
        ValueError: GPUs do not fill the nodes.
    """

    gpu: GPU
    gpus: int
    """GPUs of all nodes together."""
    per_node: int
    """GPUs of one node."""

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.per_node < 1:
            raise ValueError(f"{self.gpus} GPUs, {self.per_node} per node: there must be at least one")
        if self.gpus % self.per_node:
            fitting = max(count for count in range(1, self.per_node) if self.gpus % count == 0)
            raise ValueError(
                f"{self.gpus} GPUs do not fill nodes of {self.per_node}; "
                f"give --per-node {fitting}, or another number that divides {self.gpus}"
            )

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.gpus // self.per_node

    @property
    def bandwidth(self) -> float:
        """Bytes per second that each GPU sends in a ring through all of them.

        Rings that run side by side leave a node once each, so one GPU's messages pass its network at full width.
        """
        narrowest = self.gpu.link if self.nodes == 1 else min(self.gpu.link, self.gpu.network)
        return REACHED * 1e9 * narrowest


@dataclass(frozen=True)
class Traffic:
    """Bytes that each process sends in a step."""

    all_reduce: int = 0
    """To average gradients everywhere: all of them under DDP, those of scalars under FSDP2."""
    all_gather: int = 0
    """To gather the weights of every block for its forward pass, and again for its backward pass, in every round."""
    reduce_scatter: int = 0
    """To average gradients, each on the process that holds its row."""

    @property
    def total(self) -> int:
        """Sum of the three."""
        return self.all_reduce + self.all_gather + self.reduce_scatter


def traffic(network: NetworkConfig, processes: int, shard: bool, rounds: int) -> Traffic:
    """Count the bytes of a step. Weights and gradients travel in float32, see `edm2.training.distributed.strategies`.

    Args:
        network: Network that is trained.
        processes: Number n of processes in the ring.
        shard: True if they divide the weights among them (FSDP2).
        rounds: Forward passes of a process per step. Gradients are exchanged after the last one only.
    """
    if processes == 1:
        return Traffic()
    others = processes - 1
    if not shard:
        return Traffic(all_reduce=2 * others * parameter_bytes(network).total // processes)
    own = parameter_bytes(network, processes)  # a shard is 1/n of the whole: (n - 1) shards are (n - 1)/n of it
    gathered = 2 * sum(own.blocks) + own.rest  # weights outside of blocks stay from forward to backward pass
    return Traffic(
        all_reduce=2 * others * own.scalars // processes,
        all_gather=rounds * others * gathered,
        reduce_scatter=others * (sum(own.blocks) + own.rest),
    )
