"""Training one network with the processes of a job: one alone, each with a copy (DDP), or each with a shard (FSDP2).

Every rank sees its own positions of a step. Its loss is the mean over its images, and gradients are averaged over
ranks: the gradient is that of the mean over all images, as if one process had seen them.
"""

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.utils.checkpoint import checkpoint

from edm2.networks import Precond
from edm2.networks.blocks import blocks
from edm2.training.distributed.processes import Processes

Denoiser = Callable[..., "Tensor | tuple[Tensor, Tensor]"]


class Strategy(ABC):
    """The part of training that depends on how processes share the work.

    Args:
        processes: All of them call the same methods in the same order.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes

    @abstractmethod
    def wrap(self, net: nn.Module, compile: bool) -> Denoiser:
        """Module to call in training. Parameters of `net` may be replaced: make optimizer and averages afterwards."""

    @abstractmethod
    def accumulating(self) -> AbstractContextManager[None]:
        """Context for all parts of a step but the last: gradients add up, and are exchanged with the last one's."""

    def clean_gradients_(self, net: nn.Module) -> tuple[Tensor, Tensor]:
        """Replace NaN and infinite gradients by zero (Appendix D.2), after the last part.

        Returns:
            (L2 norm of all gradients afterwards, 1 if any were replaced, else 0: int64), both on the device; the same
            in all processes.
        """
        return clean_(_gradients(net.parameters()), get_total_norm)  # averages over ranks, the same everywhere

    @abstractmethod
    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes."""

    def gathered(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors, one after another: all processes must go through them to the end."""
        yield from tensors.items()


class SingleProcess(Strategy):
    """One process."""

    def wrap(self, net: nn.Module, compile: bool) -> Denoiser:
        return compiled(net) if compile else net

    def accumulating(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


class MultiProcess(Strategy):
    """Several processes, which exchange tensors by the fastest backend for their device."""

    def __init__(self, processes: Processes, device: torch.device, timeout: timedelta) -> None:
        super().__init__(processes)
        self.device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.group = distributed.new_group(backend="nccl" if device.type == "cuda" else "gloo", timeout=timeout)

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total, group=self.group)
        return total


class DDP(MultiProcess):
    """Every process holds the whole network; gradients are averaged while they are computed (DDP)."""

    def wrap(self, net: nn.Module, compile: bool) -> Denoiser:
        with warnings.catch_warnings():  # the option that newer versions have in its place does not say "never"
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            self._ddp = DistributedDataParallel(
                net,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                process_group=self.group,
                broadcast_buffers=False,  # they never change
                gradient_as_bucket_view=True,
            )
        return compiled(self._ddp) if compile else self._ddp

    def accumulating(self) -> AbstractContextManager[None]:
        return self._ddp.no_sync()


class FSDP(MultiProcess):
    """Every rank holds a shard of each tensor, whole rows of it, and gathers a block's weights when it runs (FSDP2).

    Rows are output units, so forced weight normalization needs no other rank, and neither do Adam and averages.
    Weights are gathered in float32, because they are normalized in float32 where they are used. Gains are scalars,
    which have no rows: each rank holds all of them, and their gradients are averaged together.
    """

    def wrap(self, net: nn.Module, compile: bool) -> Denoiser:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        self._net: Any = net  # FSDP2 gives it methods
        self._scalars = [p for p in net.parameters() if p.ndim == 0]
        mesh = DeviceMesh.from_group(self.group, self.device.type)
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        units = blocks(net) if isinstance(net, Precond) else []  # gathered one by one; another net as a whole
        for module in (*units, net):
            if compile and module is not net:
                compile_block_(module)
            fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=set(self._scalars))
        return net

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        self._net.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._net.set_requires_gradient_sync(True)

    def clean_gradients_(self, net: nn.Module) -> tuple[Tensor, Tensor]:
        scalars = _gradients(self._scalars)
        self._average_(scalars)
        shards = [grad.to_local() for grad in _gradients(net.parameters()) if hasattr(grad, "to_local")]

        def norm(grads: Sequence[Tensor]) -> Tensor:
            squares = self.sum(get_total_norm(grads[: len(shards)]).double().square())
            return (squares + get_total_norm(grads[len(shards) :]).double().square()).sqrt().float()

        return clean_([*shards, *scalars], norm)

    def _average_(self, tensors: Sequence[Tensor]) -> None:
        """Average over ranks, in one exchange."""
        if tensors:
            average = self.sum(torch.stack(list(tensors))) / self.processes.count
            torch._foreach_copy_(list(tensors), list(average.unbind()))

    def gathered(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            yield name, tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def choose_strategy(processes: Processes, device: torch.device, shard: bool, timeout: timedelta) -> Strategy:
    """Strategy for these processes; one process needs no shards."""
    if processes.count == 1:
        return SingleProcess(processes)
    return (FSDP if shard else DDP)(processes, device, timeout)


def compiled(net: nn.Module) -> nn.Module:
    """Compile `net` for the shapes that it meets."""
    made: Any = torch.compile(net, dynamic=False)
    return made


def compile_block_(block: nn.Module, **options: Any) -> None:
    """Compile one of many blocks in place, for the shapes that it meets.

    Dynamo compiles a function for 8 shapes at most and then runs it as it is; networks have more blocks than that. From
    PyTorch 2.13 on, each block can count its own.
    """
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        options["isolate_recompiles"] = True
    block.compile(dynamic=False, **options)


def clean_(grads: Sequence[Tensor], norm: Callable[[Sequence[Tensor]], Tensor]) -> tuple[Tensor, Tensor]:
    """Do what `clean_gradients_` says to these gradients; `norm` includes those of other ranks."""
    before = norm(grads)
    nonfinite = ~before.isfinite()
    if before.device.type == "cpu" and not nonfinite:  # on a GPU, asking would cost more than doing
        return before, nonfinite.long()
    for grad in grads:
        torch.nan_to_num(grad, nan=0, posinf=0, neginf=0, out=grad)
    return norm(grads), nonfinite.long()


def _gradients(parameters: Iterator[nn.Parameter] | Sequence[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def recompute_blocks_(net: nn.Module) -> None:
    """Let each block of `net` keep only its inputs for the backward pass, and compute its activations again there.

    Costs about a third more time. Dropout drops the same again, and gradients are the same to the bit.
    """
    for block in blocks(net):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
