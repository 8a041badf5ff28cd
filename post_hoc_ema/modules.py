"""A module as trackers see it: parameters and state under plain names, whatever wraps it; what cannot be averaged."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from edm2.post_hoc_ema.tensor_files import average_dtype

Keep: TypeAlias = Callable[[str, Tensor], bool]
"""Choice of parameters by name and tensor, such as lambda name, p: p.requires_grad."""

WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Names under which wrappers of torch hold a module: torch.compile, activation checkpointing, FSDP1."""


class TrackedModule:
    """The parameters of a module that are averaged, and its state dict.

    Names are plain: those that the module has without `torch.compile`, DDP and the like.

    Args:
        module: Any module, or parameters, whose names are 0, 1, ... then.
        keep: Parameters to average; default: all of floating point.

    Attributes:
        module: The module inside of all wrappers.
        given: The module as it was given.
        names: Names of the averaged parameters, tied ones once.

    Raises:
        ValueError: There is nothing to average, or a parameter that cannot be averaged; the message names it.
    """

    def __init__(self, module: nn.Module | Iterable[Tensor], keep: Keep | None = None) -> None:
        self._keep = keep
        self.names: tuple[str, ...] = ()
        self.attach(module)
        if not self.names:
            which = "" if keep is None else " that `keep` selects"
            raise ValueError(f"{type(self.module).__name__} has no floating-point parameters{which} to average")

    def attach(self, module: nn.Module | Iterable[Tensor]) -> None:
        """Follow this module, of the same parameters, from now on."""
        module = module if isinstance(module, nn.Module) else nn.ParameterList(module)
        fsdp1 = [m for m in module.modules() if "FullyShardedDataParallel" in (c.__name__ for c in type(m).__mro__)]
        for name, _ in module.named_parameters() if fsdp1 else ():
            raise ValueError(
                f"parameter {name} is in flat shards of FSDP1 and cannot be averaged; shard the module by FSDP2 "
                "instead: torch.distributed.fsdp.fully_shard(module)"
            )
        self.given, self.module = module, _unwrapped(module)
        self._look()

    def parameters(self) -> list[Tensor]:
        """The parameters as they are now, tied ones once, in the order of `names`; tensors may have been replaced.

        Raises:
            ValueError: Parameters were added, removed or renamed since.
        """
        parameters = dict(self.module.named_parameters())
        if parameters.keys() != self._seen.keys():
            self._look()
        return [parameters[live] for live in self._live]

    def state_dict(self) -> dict[str, Any]:
        """The module's state dict under plain names, without the parameters that are not averaged."""
        self.parameters()
        return {name: value for name, value in self._state().items() if name not in self._left_out}

    def aliases(self) -> dict[str, str]:
        """Every name of an averaged parameter, with the name by which it is averaged: another one where it is tied."""
        first = {parameter: name for name, parameter in zip(self.names, self.parameters(), strict=True)}
        every = self.module.named_parameters(remove_duplicate=False)
        return {self.plain(live): first[parameter] for live, parameter in every if parameter in first}

    def _look(self) -> None:
        """Find the parameters anew; `names` never change once there are any."""
        self._wrapped = {
            f"{path}.{child}".lstrip(".") for path, m in self.module.named_modules() if (child := _wrapped_child(m))
        }
        seen = dict(self.module.named_parameters())
        floating = {live: (self.plain(live), p) for live, p in seen.items() if average_dtype(p.dtype)}
        kept = {name: live for live, (name, p) in floating.items() if self._keep is None or self._keep(name, p)}
        for name in sorted(self.names and kept.keys() ^ {*self.names}):
            change = "added to the module" if name in kept else "removed from the module"
            raise ValueError(
                f"parameter {name} was {change} since it is tracked; change the module first and make the tracker "
                "then, or choose parameters by keep"
            )
        state = self._state()
        for name, live in kept.items():
            if reason := _refusal(seen[live], state.get(name)):
                raise ValueError(f"parameter {name} {reason}")
        self.names = self.names or tuple(kept)
        self._live = [kept[name] for name in self.names]
        tracked = {seen[live] for live in self._live}
        every = self.module.named_parameters(remove_duplicate=False)
        self._left_out = {self.plain(live) for live, p in every if average_dtype(p.dtype) and p not in tracked}
        self._seen = seen  # a module that is refused is looked at again

    def _state(self) -> dict[str, Any]:
        return {self.plain(name): value for name, value in self.module.state_dict().items()}

    def plain(self, name: str) -> str:
        """A name without the components that wrappers put in."""
        if not self._wrapped:
            return name
        parts = name.split(".")
        return ".".join(part for i, part in enumerate(parts) if ".".join(parts[: i + 1]) not in self._wrapped)


def _refusal(parameter: Tensor, in_state: Any) -> str | None:
    """Phrase that says why a parameter cannot be averaged, and what to do; None if it can."""
    otherwise = "or leave it out by keep=lambda name, p: ..."
    if nn.parameter.is_lazy(parameter):
        return "has no shape yet; run the module once before it is tracked"
    if parameter.layout is not torch.strided:
        return f"is sparse ({parameter.layout}) and cannot be averaged; make it dense, {otherwise}"
    if not parameter.numel():
        return f"is empty, as ZeRO-3 leaves it between steps; shard by FSDP2 (fully_shard) instead, {otherwise}"
    if not isinstance(in_state, Tensor) or in_state.shape != parameter.shape:
        there = "is not" if in_state is None else f"has another shape, {tuple(getattr(in_state, 'shape', ()))},"
        return f"{there} in the module's state_dict(), as a hook changes it; track the module inside, {otherwise}"
    return None


def _unwrapped(module: nn.Module) -> nn.Module:
    """The innermost module of torch.compile, DDP and the like."""
    while child := _wrapped_child(module):
        module = module.get_submodule(child)
    return module


def _wrapped_child(module: nn.Module) -> str | None:
    """Name under which a wrapper holds its module; None if this is none."""
    of_module = isinstance(module, DistributedDataParallel | DataParallel) or type(module).__name__ == "DeepSpeedEngine"
    names = (*WRAPPED, *(("module",) if of_module else ()))
    return next((name for name in names if name in module._modules), None)


def is_first_process() -> bool:
    """True in the process that writes files: the first of a job, or the only one."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank())


def wait_for_others(tensors: Iterable[Tensor]) -> None:
    """Wait for the other processes if there are any that share these tensors; they all come here then."""
    distributed = torch.distributed
    if any(hasattr(x, "full_tensor") for x in tensors) and distributed.is_initialized():
        distributed.barrier()


def whole(tensors: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Names and whole tensors on the CPU, one by one; shards are gathered, so all processes must go through them.

    State that is no tensor is left out.
    """
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            yield name, (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu()


def sharded_like(value: Tensor, tensor: Any) -> Tensor:
    """A whole tensor, sharded as another one if that is sharded."""
    if hasattr(tensor, "device_mesh") and not hasattr(value, "to_local"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    return value
