"""Copies of data to the device, beside the work that is queued there."""

import torch
from torch import Tensor


class Transfer:
    """Copies tensors to a device without waiting; to a CUDA device on a stream of its own.

    A copy then runs while the step before is still at work; what uses the tensor later waits for it on the device.

    Args:
        device: Device to copy to.
        own_stream: False: copy on the stream of all other work, behind it.
    """

    def __init__(self, device: torch.device, own_stream: bool = True) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" and own_stream else None

    def __call__(self, tensor: Tensor) -> Tensor:
        """Copy; only tensors in pinned memory leave the host free meanwhile."""
        if self.stream is None:
            return tensor.to(self.device, non_blocking=True)
        user = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            copied = tensor.to(self.device, non_blocking=True)
        user.wait_stream(self.stream)
        copied.record_stream(user)  # its memory belongs to the other stream, and is used by this one
        return copied
