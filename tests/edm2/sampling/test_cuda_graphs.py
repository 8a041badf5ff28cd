"""Captured evaluations: a stand-in for CUDA repeats work on the same memory, as a graph would."""

import pytest
import torch
from torch import Tensor, nn

from edm2.sampling.cuda_graphs import CapturedForward, capture_
from edm2.sampling.guidance import guided, without_labels
from edm2.sampling.samplers import SAMPLERS


class Graphs:
    """Captures work by calling it; a replay calls it again and writes what it returns into the same tensors."""

    def __init__(self) -> None:
        self.captures = 0

    def __call__(self, work):
        self.captures += 1
        output = work()

        def replay() -> None:
            for old, new in zip(_tensors(output), _tensors(work()), strict=True):
                old.copy_(new)

        return replay, output


def _tensors(output) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
    """A denoiser that depends on everything."""
    shift = 0 if labels is None else 0.1 * labels.view(-1, 1, 1, 1)
    return x / (1 + sigma**2) + shift


def test_captured_once_per_shape_and_right_for_every_value():
    graphs = Graphs()
    captured = CapturedForward(denoise, graphs)
    for count in (2, 3, 2):
        for seed in range(2):
            x = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
            sigma, labels = torch.tensor(0.5 + seed), torch.arange(count)
            assert torch.equal(captured(x, sigma, labels), denoise(x, sigma, labels))
            assert torch.equal(captured(x, sigma), denoise(x, sigma))
    assert graphs.captures == 4  # two sizes, with labels and without


def test_what_was_returned_stays_when_the_memory_is_written_again():
    captured = CapturedForward(lambda x: (x + 1, 2 * x), Graphs())
    first = captured(torch.zeros(3))
    captured(torch.ones(3))
    assert [tensor.tolist() for tensor in first] == [[1, 1, 1], [0, 0, 0]]


def test_what_is_given_is_not_written_to():
    captured, x = CapturedForward(lambda x: x.add_(1), Graphs()), torch.zeros(3)
    captured(x)
    assert x.tolist() == [0, 0, 0]


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=lambda sampler: sampler.name)
def test_samplers_draw_the_same_from_captured_evaluations(sampler):
    """Some keep what earlier evaluations returned; guidance evaluates one network in two sizes."""
    noise, labels = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    captured = CapturedForward(denoise, Graphs())
    images = [
        sampler.sample(guided(d, without_labels(d), 1.5, interval=(0.1, 10)), noise, labels, num_steps=6)
        for d in (denoise, captured)
    ]
    assert torch.equal(*images)


def test_a_network_is_captured_in_place():
    net = nn.Linear(2, 2)
    capture_(net)
    assert isinstance(net.forward, CapturedForward)
