"""Bins of noise levels, and their gradients against gradients of one image at a time."""

import copy

import pytest
import torch
from torch import Tensor

from edm2.networks import NetworkConfig, Precond, build_network
from edm2.training import (
    DDPMCosine,
    DDPMLinear,
    LnNormal,
    LnUniform,
    bin_gradients,
    equal_bins,
    levels,
    x0_gradients,
)
from edm2.training.loss.bins import last_convolutions

DISTRIBUTIONS = [LnNormal(), LnUniform(), DDPMLinear(), DDPMCosine()]


@pytest.mark.parametrize("count", [1, 2, 8, 25])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
def test_bins_share_the_noise_levels_equally(distribution, count):
    """All 1000 levels, of which DDPM has no more; in single precision, in which they are drawn."""
    bins = equal_bins(distribution, count)
    index = bins.index(levels(distribution, 1000).float())
    assert index.dtype == torch.int64
    assert torch.equal(index, torch.arange(1000) * count // 1000)
    assert len(bins) == count


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
def test_centers_lie_in_their_bins(distribution):
    bins = equal_bins(distribution, 16)
    assert torch.equal(bins.index(bins.centers), torch.arange(16))
    assert bins.edges.shape == (15,)
    assert (bins.edges.diff() > 0).all()


def test_the_outer_bins_are_open():
    bins = equal_bins(LnNormal(), 4)
    assert bins.index(torch.tensor([[1e-9], [1e9]])).tolist() == [[0], [3]]


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="0 bins"):
        equal_bins(LnNormal(), 0)


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.fixture(scope="module")
def net() -> Precond:
    torch.manual_seed(0)
    net = build_network(NetworkConfig(8, 2, 3, model_channels=8, channel_mult=(1, 2), num_blocks=1, dropout=0.0))
    torch.nn.init.ones_(net.unet.out_gain)  # no gradient passes a gain of zero
    return net


@pytest.fixture
def batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "images": 0.5 * torch.randn(12, 2, 8, 8, generator=g),
        "labels": torch.arange(12) % 3,
        "sigma": LnNormal().sigma(torch.randn(12, generator=g)),
        "noise": torch.randn(12, 2, 8, 8, generator=g),
    }


def image_gradient(net: Precond, batch: dict[str, Tensor], i: int) -> Tensor:
    """Of the i-th image's squared error, by a backward pass through the whole network."""
    net = copy.deepcopy(net)
    one = {name: value[i : i + 1] for name, value in batch.items()}
    denoised = net(one["images"] + one["sigma"].reshape(1, 1, 1, 1) * one["noise"], one["sigma"], one["labels"])
    (denoised - one["images"]).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in last_convolutions(net)])


def test_bin_gradients_are_sums_over_the_images_of_a_bin(net, batch):
    """1e-5 of the largest: single precision, and convolutions that depend on the batch size."""
    bins = equal_bins(LnNormal(), 5)
    gradients, images = x0_gradients(net, bins, **batch)
    expected = torch.zeros_like(gradients)
    for i, t in enumerate(bins.index(batch["sigma"]).tolist()):
        expected[t] += image_gradient(net, batch, i)
    assert images.tolist() == bins.index(batch["sigma"]).bincount(minlength=5).tolist()
    assert images.count_nonzero() > 1
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_micro_batches_add_up(net, batch):
    bins = equal_bins(LnNormal(), 5)
    whole, images = x0_gradients(net, bins, **batch)
    parts = [
        x0_gradients(net, bins, **{name: x[part] for name, x in batch.items()}) for part in (slice(5), slice(5, 12))
    ]
    assert torch.equal(parts[0][1] + parts[1][1], images)
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole, rtol=0, atol=1e-5 * whole.abs().max().item())


def test_measuring_leaves_the_network_as_it_was(net, batch):
    """No gradient is left behind, and what asked for one still does, a frozen layer still does not."""
    net = copy.deepcopy(net)
    net.logvar_linear.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    with torch.no_grad():
        x0_gradients(net, equal_bins(LnNormal(), 3), **batch)
    assert before == {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    assert all(parameter.grad is None for parameter in net.parameters())


def test_bins_without_images_have_no_gradient():
    weight = torch.ones(3, requires_grad=True)
    gradients, images = bin_gradients(weight * torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]), [weight], 4)
    assert gradients.tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 4], [0, 0, 0]]
    assert images.tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("letter", "ABCDEFG")
def test_the_last_convolutions_are_found_in_every_configuration(letter):
    """The output's, with one unit per image channel, and the last one before it, at the finest level."""
    net = build_network(NetworkConfig(8, 2, 3, config=letter, model_channels=32, channel_mult=(1, 2), num_blocks=1))
    block, output = last_convolutions(net)
    assert output.shape == (2, 32, 3, 3)
    assert block.shape == (32, 32, 3, 3)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert names[id(output)] == "unet.out_conv.weight"
    assert names[id(block)] in ("unet.dec.8x8_block1.conv_res1.weight", "unet.dec.8x8_block1.conv1.weight")
