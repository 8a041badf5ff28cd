"""torch.compile makes one graph of each piece of work, and no new one in the next step.

Dynamo traces, and a backend that runs on any machine counts the graphs: generating code takes a minute and a compiler.
`fullgraph` raises an error where a graph would break.
"""

import inspect

import pytest
import torch
from torch import Tensor, nn

from edm2.networks import MPConv, NetworkConfig, build_network, fold, force_weight_normalization_
from edm2.post_hoc_ema import PowerFunctionEMA
from edm2.sampling.guidance import guided, without_labels
from edm2.sampling.samplers import SAMPLERS
from edm2.training import EDM2Loss, TrainingConfig
from edm2.training.data.batches import Batch
from edm2.training.distributed.strategies import clean_, compile_block_
from edm2.training.step import TrainStep

SMALL = NetworkConfig(
    8, 1, 3, model_channels=16, channel_mult=(1,), num_blocks=1, attn_resolutions=(8,), channels_per_head=16
)


class CountingBackend:
    """Runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def backend():
    torch._dynamo.reset()
    yield CountingBackend()
    torch._dynamo.reset()


def network() -> nn.Module:
    torch.manual_seed(0)
    net = build_network(SMALL)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.ndim:
                parameter.fill_(0.7)
    return net


def step(**changes) -> TrainStep:
    config = TrainingConfig(
        data="", out="", network=SMALL, batch_size=4, duration=64, rampup_images=4, random_block=4, **changes
    )
    return TrainStep(config, network())


def batch() -> Batch:
    return Batch(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3)


def test_training_is_one_graph_with_the_same_gradients(backend):
    """Three steps of two micro-batches: forward, backward, forced normalization, Adam and averages around one graph."""
    eager, compiled = step(micro_batch=2), step(micro_batch=2)
    compiled.denoiser = torch.compile(compiled.net, fullgraph=True, backend=backend, dynamic=False)
    for _ in range(3):
        assert torch.equal(eager([batch()]).loss, compiled([batch()]).loss)
    assert backend.graphs == 1
    for a, b in zip(eager.net.parameters(), compiled.net.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_autograd_of_the_graph_gives_the_same_gradients():
    """`aot_eager` differentiates the graph as a code generator would, in place of PyTorch's own backward pass."""
    net, (images, labels, _) = network(), batch()
    gradients = []
    for called in (net, torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=False)):
        net.zero_grad()
        EDM2Loss()(called, images, labels, sigma=torch.ones(4), noise=images).sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    assert all(map(torch.equal, *gradients))
    torch._dynamo.reset()


@pytest.mark.slow
def test_forced_normalization_is_one_graph(backend):
    net, expected = network(), network()
    compiled = torch.compile(force_weight_normalization_, fullgraph=True, backend=backend, dynamic=False)
    for _ in range(2):
        compiled(net)
        force_weight_normalization_(expected)
    assert backend.graphs == 1
    assert all(map(torch.equal, net.parameters(), expected.parameters()))


@pytest.mark.slow
def test_an_update_of_averages_is_one_graph(backend):
    """Of its own in each step, as the weight of a step is a number there: `tracker.update` is called, not compiled."""
    net = network()
    tracker, expected = (PowerFunctionEMA(net, (0.05, 0.10), watch=False) for _ in range(2))
    compiled = torch.compile(tracker.update, fullgraph=True, backend=backend)
    for images_seen in (4, 8):
        compiled(images_seen)
        expected.update(images_seen)
    assert backend.graphs == 2
    for name, average in expected.average(0.10).items():
        assert torch.equal(tracker.average(0.10)[name], average)


def test_cleaning_gradients_is_one_graph_off_the_cpu(backend):
    """Where the host would have to wait for the norm, it does not ask."""
    gradients = [torch.ones(3, 2, device="meta"), torch.ones(5, device="meta")]
    compiled = torch.compile(
        lambda: clean_(gradients, torch.nn.utils.get_total_norm), fullgraph=True, backend=backend, dynamic=False
    )
    compiled()
    compiled()
    assert backend.graphs == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heun", "dpmpp_2m"])
def test_sampling_takes_one_graph_per_batch_size(backend, name):
    """Whatever the noise level; guidance inside an interval evaluates twice as many images there."""
    folded, noise, labels = fold(network()), torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    compiled = torch.compile(folded, fullgraph=True, backend=backend, dynamic=False)
    sample = SAMPLERS[name].sample
    assert torch.equal(sample(compiled, noise, labels, num_steps=5), sample(folded, noise, labels, num_steps=5))
    assert backend.graphs == 1
    sample(guided(compiled, without_labels(compiled), 1.5, interval=(0.1, 10)), noise, labels, num_steps=5)
    assert backend.graphs == 2


def test_blocks_that_are_compiled_one_by_one_are_all_compiled(backend):
    """More than the 8 shapes that Dynamo takes of one function by default (from PyTorch 2.13 on)."""
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        pytest.skip("this PyTorch compiles at most 8 shapes of one function")
    layers = [MPConv(width, width) for width in range(1, 11)]
    for layer in layers:
        compile_block_(layer, backend=backend)
        layer(torch.ones(1, len(layer.weight)))
    assert backend.graphs == len(layers)
