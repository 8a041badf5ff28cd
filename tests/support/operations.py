"""What a piece of work asks of the device, counted instead of timed: operations, memory and copies."""

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique")
"""Beginnings of the names of operations whose result the host waits for."""

UNCOUNTED = (
    "empty", "new_empty", "empty_like", "detach", "lift_fresh", "set_", "_unsafe_view", "alias", "promote_types",
    "_record_function_enter_new", "_record_function_exit",
)  # fmt: skip
"""Operations that give the device nothing to do; so do views."""


class Operations(TorchDispatchMode):
    """Notes what happens inside the context, in the backward pass too.

    Attributes:
        names: Operations in their order.
        launches: How often each was asked for, views and empty tensors left out: kernels, or a few at a time.
        reads: Those that the host waits for, and the kind of device that it waits for.
        copied: Bytes that went from one device to another, by (from, to).
        allocated: Bytes of all tensors made.
        collectives: How often several processes exchanged something, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.launches: Counter[str] = Counter()
        self.reads: list[tuple[str, str]] = []
        self.copied: Counter[tuple[str, str]] = Counter()
        self.allocated = 0
        self.collectives: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = _storages((args, kwargs))
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.names.append(name)
        if func.namespace in ("c10d", "_c10d_functional"):
            self.collectives[name] += 1
        if name.startswith(READS):
            self.reads.append((name, args[0].device.type))
        if not _is_view(func) and name not in UNCOUNTED:
            self.launches[name] += 1
        self.allocated += sum(size for key, size in _storages(result).items() if key not in given)
        self._note_copy(args, result)
        return result

    @property
    def total(self) -> int:
        """All launches."""
        return self.launches.total()

    def _note_copy(self, args: object, result: object) -> None:
        sources = {x.device.type for x in tree_leaves(args) if isinstance(x, Tensor) and x.ndim}
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.ndim and sources - {made.device.type}:
                (source,) = sources - {made.device.type}
                self.copied[source, made.device.type] += made.nbytes


def operations_of(work: Callable[[], object]) -> Operations:
    """Of one call."""
    with Operations() as operations:
        work()
    return operations


def _is_view(func: torch._ops.OpOverload) -> bool:
    aliases = [r.alias_info for r in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _storages(tree: Iterable | object) -> dict[int, int]:
    """Identity and bytes of the memory behind all tensors."""
    tensors = [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
    return {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}
