"""The tensors in a recorded network, by the names they have in its state dict."""

from collections.abc import Iterator
from typing import Any

from edm2.published.arrays import StoredTensor
from edm2.published.inert_pickle import Budget, PickleRefused, shown
from edm2.published.objects import ModuleDict, Recorded

MAX_NAME = 200
"""Characters in a name: a stranger's network could contain itself."""


def collect_tensors(net: Any, file_size: int, budget: Budget) -> tuple[dict[str, StoredTensor], list[str]]:
    """All parameters and buffers by name, in the order of a state dict, and the names of the buffers."""
    tensors: dict[str, StoredTensor] = {}
    buffers: list[str] = []
    for prefix, state in _walk(net, budget):
        parameters, kept = _present(state, "_parameters", budget), _present(state, "_buffers", budget)
        if isinstance(lost := state.get("_non_persistent_buffers_set"), set):
            kept = {name: tensor for name, tensor in kept.items() if name not in lost}
        buffers += [prefix + name for name in kept]
        for name, tensor in (*parameters.items(), *kept.items()):
            if prefix + name in tensors or not isinstance(tensor, StoredTensor):
                raise PickleRefused(f"is damaged: {shown(prefix + name)} is there twice, or is no tensor")
            tensors[prefix + name] = tensor
    if sum(tensor.nbytes for tensor in tensors.values()) > file_size:
        raise PickleRefused("is damaged: its tensors would be larger than the file")
    return tensors, buffers


def _walk(net: Any, budget: Budget) -> Iterator[tuple[str, dict[str, Any]]]:
    """Prefix and attributes of every module, each before the modules in it."""
    pending = [("", net)]
    while pending:
        prefix, module = pending.pop()
        if not isinstance(module, Recorded | ModuleDict) or len(prefix) > MAX_NAME:
            raise PickleRefused(f"is damaged: {shown(prefix)} is no module, or is inside too many others")
        yield prefix, module.state
        children = _present(module.state, "_modules", budget)
        pending += [(f"{prefix}{name}.", child) for name, child in reversed(children.items())]


def _present(state: dict[str, Any], key: str, budget: Budget) -> dict[str, Any]:
    """The entries of a module's dict that are there; None stands for a layer that the network does without."""
    entries = state.get(key)
    if not isinstance(entries, dict):
        raise PickleRefused(f"is damaged: a module without {key}")
    budget.spend(instructions=1 + len(entries))
    if not all(name.isprintable() and len(name) <= MAX_NAME for name in entries):
        raise PickleRefused(f"is damaged: a module whose {key} have impossible names")
    return {name: entry for name, entry in entries.items() if entry is not None}
