"""Memory that work needs beside what was there before."""

import torch

from edm2.planning.costs import LiveTensors
from edm2.tools.bench.clock import Work


def peak_memory(work: Work, device: torch.device, compiled: bool) -> int | None:
    """Bytes at the worst moment; None for compiled work off the GPU.

    On a GPU its allocator knows; elsewhere the tensors that live during an additional run of the work are added up.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if compiled:
        return None
    with LiveTensors() as live:
        work()
    return live.peak
