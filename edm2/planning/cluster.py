"""GPUs by name, with the numbers of their makers' public data sheets, and clusters of them."""

from dataclasses import dataclass

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
    """Machines (nodes) with the same number of GPUs of one kind."""

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
        return self.gpus // self.per_node

    @property
    def bandwidth(self) -> float:
        """Bytes per second that each GPU sends in a ring through all of them.

        Rings that run side by side leave a node once each, so one GPU's messages pass its network at full width.
        """
        narrowest = self.gpu.link if self.nodes == 1 else min(self.gpu.link, self.gpu.network)
        return REACHED * 1e9 * narrowest
