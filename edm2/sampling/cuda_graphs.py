"""Evaluations captured as CUDA graphs: the host asks once per evaluation in place of once per operation."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

CAPTURE = False
"""True: `--compile` captures evaluations on CUDA, too. Nobody has measured yet whether it pays: `python -m
edm2.tools.bench.device_suite --only sampling` does."""

WARM_UP = 3
"""Calls before a capture, in which memory is allocated, kernels are chosen and code is compiled."""


class Replay(Protocol):
    """Captured work: a call does it again, on the same memory."""

    def __call__(self) -> None:
        """Do the work."""


Capture = Callable[[Callable[[], Any]], "tuple[Replay, Any]"]


@torch.no_grad()
def capture(work: Callable[[], Any]) -> tuple[Replay, Any]:
    """Capture work on the current CUDA device; return what repeats it, and the tensors that it writes to."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()
    return graph.replay, output


class CapturedForward:
    """A function of tensors without gradients that is captured once for each shape of its arguments, then replayed.

    Tensors among the arguments are copied to where the graph reads them; what is returned is a copy of what it wrote,
    which the next call does not overwrite.

    Args:
        function: Called with tensors, numbers and nested containers of them; it may change no state.
        capture: Captures work; see `capture`.
    """

    def __init__(self, function: Callable[..., Any], capture: Capture = capture) -> None:
        self.function = function
        self.capture = capture
        self._captured: dict[Any, tuple[Replay, list[Any], Any]] = {}

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function, or replay what it did for arguments of these shapes."""
        values, structure = tree_flatten((args, options))
        key = (structure, *(_kind(value) for value in values))
        if key not in self._captured:
            inputs = [value.clone() if isinstance(value, Tensor) else value for value in values]
            own_args, own_options = tree_unflatten(inputs, structure)
            replay, output = self.capture(lambda: self.function(*own_args, **own_options))
            self._captured[key] = replay, inputs, output
        replay, inputs, output = self._captured[key]
        for own, given in zip(inputs, values, strict=True):
            if isinstance(own, Tensor):
                own.copy_(given)
        replay()
        outputs, structure = tree_flatten(output)
        return tree_unflatten([value.clone() for value in outputs], structure)


def capture_(net: nn.Module, compiled: bool = False) -> None:
    """Let evaluations of a network on CUDA be captured, compiled or not; it is for inference from then on."""
    net.forward = CapturedForward(torch.compile(net.forward, dynamic=False) if compiled else net.forward)


def _kind(value: Any) -> Any:
    """Key of what a graph depends on: shape, dtype and device of a tensor, and any other value itself."""
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value
