"""Bins of noise levels, and their gradients against gradients of one image at a time."""

import copy

import pytest
import torch
from torch import Tensor

from edm2.networks import NetworkConfig, Precond, build_network
from edm2.training import DDPMCosine, DDPMLinear, LnNormal, LnUniform, equal_bins, levels, x0_gradients
from edm2.training.loss.bins import last_convolutions


@pytest.mark.parametrize("count", [1, 2, 8, 25])
@pytest.mark.parametrize("distribution", [LnNormal(), LnUniform(), DDPMLinear(), DDPMCosine()], ids=str)
def test_bins_divide_the_noise_levels_equally(distribution, count):
    """All 1000 levels, of which DDPM has no more; in single precision, in which they are drawn."""
    bins = equal_bins(distribution, count)
    index = bins.index(levels(distribution, 1000).float())
    assert index.dtype == torch.int64
    assert torch.equal(index, torch.arange(1000) * count // 1000)
    assert torch.equal(bins.index(levels(distribution, count)), torch.arange(count))  # medians lie in their bins
    assert len(bins) == count
    assert bins.index(torch.tensor([[1e-9], [1e9]])).tolist() == [[0], [count - 1]]  # the outer ones are open


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
    """Gradient of the i-th image's squared error, by a backward pass through the whole network."""
    net = copy.deepcopy(net)
    one = {name: value[i : i + 1] for name, value in batch.items()}
    denoised = net(one["images"] + one["sigma"].reshape(1, 1, 1, 1) * one["noise"], one["sigma"], one["labels"])
    (denoised - one["images"]).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in last_convolutions(net)])


@pytest.mark.parametrize("count", [5, 200])
def test_bin_gradients_are_sums_over_the_images_of_a_bin(net, batch, count):
    """Most of 200 bins have no image. 1e-5 of the largest: single precision, and convolutions that depend on the
    batch size."""
    bins = equal_bins(LnNormal(), count)
    gradients, images = x0_gradients(net, bins, **batch)
    expected = torch.zeros_like(gradients)
    for i, t in enumerate(bins.index(batch["sigma"]).tolist()):
        expected[t] += image_gradient(net, batch, i)
    assert images.tolist() == bins.index(batch["sigma"]).bincount(minlength=count).tolist()
    assert images.count_nonzero() > 1
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_micro_batches_add_up_and_measuring_leaves_the_network_as_it_was(net, batch):
    """No gradient is left behind, and the same parameters require one as before."""
    net = copy.deepcopy(net)
    net.logvar_linear.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    bins = equal_bins(LnNormal(), 5)
    whole, images = x0_gradients(net, bins, **batch)
    parts = [
        x0_gradients(net, bins, **{name: x[part] for name, x in batch.items()}) for part in (slice(5), slice(5, 12))
    ]
    assert torch.equal(parts[0][1] + parts[1][1], images)
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole, rtol=0, atol=1e-5 * whole.abs().max().item())
    assert before == {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("config", "ABCDEFG")
def test_the_last_convolutions_are_found_in_every_configuration(config):
    """The output's, with one unit per image channel, and the last one before it, at the finest level."""
    net = build_network(NetworkConfig(8, 2, 3, config=config, model_channels=32, channel_mult=(1, 2), num_blocks=1))
    block, output = last_convolutions(net)
    assert output.shape == (2, 32, 3, 3)
    assert block.shape == (32, 32, 3, 3)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert names[id(output)] == "unet.out_conv.weight"
    assert names[id(block)] in ("unet.dec.8x8_block1.conv_res1.weight", "unet.dec.8x8_block1.conv1.weight")
