"""What the paper and the interface promise of networks of config G, besides what all configurations promise."""

import dataclasses
import math

import pytest
import torch
from golden_data import max_rel
from torch import Tensor

from edm2.networks import (
    NetworkConfig,
    Precond,
    build_network,
    force_weight_normalization_,
    higher_derivatives,
)

SMALL = NetworkConfig(
    img_resolution=16,
    img_channels=3,
    label_dim=5,
    model_channels=8,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(8,),
    channels_per_head=8,
    logvar_channels=16,
)


def a_network(seed: int = 0, **changes) -> Precond:
    """A small network with gains as after some training, so that every part of it matters."""
    torch.manual_seed(seed)
    net = build_network(dataclasses.replace(SMALL, **changes))
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            torch.nn.init.constant_(parameter, 0.7)
    return net.eval()


def an_input(net: Precond, n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Images, noise levels over the whole range, classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, net.config.img_channels, *net.config.size, generator=generator)
    sigma = torch.logspace(math.log10(0.002), math.log10(80), n)
    labels = torch.randint(max(net.config.label_dim, 1), (n,), generator=generator)
    return sigma[:, None, None, None] * x, sigma, labels


# Magnitudes


def block_magnitudes(net: Precond, x: Tensor) -> list[float]:
    """Root-mean-square of what leaves every layer of the U-Net, the output last; x has unit variance."""
    magnitudes: list[float] = []
    for part in [*net.unet.enc.children(), *net.unet.dec.children(), net.unet]:
        part.register_forward_hook(lambda module, args, y: magnitudes.append(y.square().mean().sqrt().item()))
    with torch.no_grad():
        net.unet(x, torch.randn(len(x)) / 4, torch.zeros(len(x), net.config.label_dim))
    return magnitudes


@pytest.mark.parametrize("num_blocks", [1, 4])
def test_magnitudes_are_preserved_through_the_whole_network_at_initialization(num_blocks):
    """Unit variance in, near unit variance out of every layer however deep the network, and of F once out_gain = 1.

    Exactly 1 is expected only on average over weights, for branches that are uncorrelated and images without border:
    zero padding takes up to 8 % from a convolution at 8x8 pixels, attention averages over pixels, and correlated
    activations let single parts lie 20 % off. Seen: mean 0.94 to 0.95, parts 0.81 to 1.12. With SiLU not divided by
    0.596 the mean is 0.78, with interpolation instead of MP-sum 0.56, with plain sums it grows with depth: 16 and 76.
    """
    outputs = []
    for seed in range(6):
        net = a_network(seed, model_channels=32, num_blocks=num_blocks, img_channels=8)
        torch.nn.init.ones_(net.unet.out_gain)
        magnitudes = block_magnitudes(net, torch.randn(8, 8, 16, 16))
        assert all(0.7 <= magnitude <= 1.3 for magnitude in magnitudes), magnitudes
        outputs.append(magnitudes[-1])
    assert sum(outputs) / len(outputs) == pytest.approx(1, abs=0.15)


def test_preconditioning_feeds_the_network_unit_variance():
    """c_in (y + sigma n) has unit variance at every noise level for data y of variance sd² (Eq. 7).

    24,576 Gaussians per noise level: the magnitude errs by 0.45 %. Four times."""
    net, seen = a_network(), []
    net.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    y, noise = 0.5 * torch.randn(32, 3, 16, 16), torch.randn(32, 3, 16, 16)
    for sigma in (0.002, 0.5, 80.0):
        net(y + sigma * noise, sigma)
    for x in seen:
        assert x.square().mean().sqrt().item() == pytest.approx(1, abs=0.018)


# Weights


@torch.no_grad()
def test_forced_normalization_of_the_network_has_a_fixed_point():
    """Two calls reach it to float32 rounding, a third changes nothing beyond."""
    net = a_network()
    for _ in range(2):
        force_weight_normalization_(net)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    force_weight_normalization_(net)
    for name, x in net.state_dict().items():
        assert max_rel(x, before[name]) <= 3e-7, name
        if name.endswith("weight"):
            rms = x.flatten(1).square().mean(dim=1).sqrt()
            torch.testing.assert_close(rms, torch.full_like(rms, 1 - 1e-4), rtol=0, atol=1e-6)


def test_gradients_of_the_network_are_orthogonal_to_its_weights():
    """So to first order forced normalization takes nothing away from an update. eps leaves a cosine of up to 1e-4, a
    little more for rows of few weights (test_layers.py has the exact formula)."""
    net = a_network()
    force_weight_normalization_(net)
    net.double()
    x, sigma, labels = an_input(net)
    D_x, u = net(x.double(), sigma.double(), labels, return_logvar=True)
    ((D_x - 0.3).square() + u).sum().backward()
    for name, parameter in net.named_parameters():
        if name.endswith("weight"):
            w, g = parameter.detach().flatten(1), parameter.grad.flatten(1)
            cosine = (w * g).sum(dim=1) / (w.norm(dim=1) * g.norm(dim=1))
            used = g.norm(dim=1) > 1e-12 * g.norm()
            assert cosine[used].abs().max() <= 3e-4, name


# Shapes


@pytest.mark.parametrize("size", [(16, 8), (8, 24)])
def test_images_need_not_be_square(size):
    net = a_network(img_resolution=size)
    D_x, u = net(*an_input(net), return_logvar=True)
    assert D_x.shape == (4, 3, *size)
    assert u.shape == (4, 1, 1, 1)
    height, width = size
    assert next(iter(net.unet.enc)) == f"{height}x{width}_conv"
    assert set(net.unet.enc) == {
        f"{height}x{width}_conv", f"{height}x{width}_block0",
        f"{height // 2}x{width // 2}_down", f"{height // 2}x{width // 2}_block0",
    }  # fmt: skip


@pytest.mark.parametrize(("attn_resolutions", "has"), [((8,), True), ((4,), False)])
def test_attention_goes_by_the_larger_side(attn_resolutions, has):
    """Levels 16x8 and 8x4."""
    net = a_network(img_resolution=(16, 8), attn_resolutions=attn_resolutions)
    assert ("unet.enc.8x4_block0.attn_qkv.weight" in dict(net.named_parameters())) == has
    assert "unet.dec.8x4_in0.attn_qkv.weight" in dict(net.named_parameters())  # always asks for attention


@pytest.mark.parametrize("channels", range(1, 9))
def test_any_number_of_channels(channels):
    net = a_network(img_channels=channels)
    assert net(*an_input(net)).shape == (4, channels, 16, 16)


# Labels and batches


@torch.no_grad()
def test_no_class_is_minus_one_or_zeros_or_none():
    net = a_network()
    x, sigma, labels = an_input(net)
    without = net(x, sigma)
    assert torch.equal(net(x, sigma, torch.full((4,), -1)), without)
    assert torch.equal(net(x, sigma, torch.zeros(4, 5)), without)
    labels[2] = -1
    mixed = net(x, sigma, labels)
    assert max_rel(mixed[2], without[2]) <= 1e-6
    assert not torch.equal(mixed[1], without[1])


@torch.no_grad()
def test_sigma_in_any_accepted_form():
    net = a_network()
    x, sigma, labels = an_input(net)
    assert torch.equal(net(x, sigma[:, None, None, None], labels), net(x, sigma, labels))
    expected = net(x, torch.full((4,), 2.5), labels)
    for scalar in (2.5, torch.tensor(2.5), torch.tensor(2.5, dtype=torch.float64), torch.tensor([2.5])):
        assert torch.equal(net(x, scalar, labels), expected)


@torch.no_grad()
def test_uncertainty_depends_on_the_noise_level_alone():
    net = a_network()
    x, sigma, labels = an_input(net)
    _, u = net(x, sigma, labels, return_logvar=True)
    _, other = net(-3 * x, sigma, None, return_logvar=True)
    assert torch.equal(u, other)
    assert len(u.unique()) == len(sigma)


# Derivatives and descriptions


def test_the_denoiser_can_be_differentiated_by_noise_level_and_image():
    """Against central differences in float64: error of order h² = 1e-8 times a third derivative."""
    net = a_network().double()
    x, _, labels = an_input(net)
    x = (x / x.std()).double()
    direction = torch.randn_like(x)

    def value(sigma: Tensor, step: Tensor) -> Tensor:
        return net(x + step * direction, sigma, labels).square().sum()

    at = [torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)]
    gradients = torch.autograd.grad(value(*(a.requires_grad_() for a in at)), at)
    h = 1e-4
    with torch.no_grad():
        by_sigma = (value(at[0] + h, at[1]) - value(at[0] - h, at[1])) / (2 * h)
        by_image = (value(at[0], at[1] + h) - value(at[0], at[1] - h)) / (2 * h)
    assert gradients[0].item() == pytest.approx(by_sigma.item(), rel=1e-5)
    assert gradients[1].item() == pytest.approx(by_image.item(), rel=1e-5)


@pytest.mark.parametrize("config", ["B", "D", "G"])
def test_directional_and_second_derivatives_where_they_are_asked_for(config):
    """dD/dt along a path through noise, forward (torch.func.jvp) and by differences; its gradient by the weights, too.

    This is what consistency models and mean flows train with.
    """
    net = a_network(config=config).double()
    x, sigma, labels = an_input(net)
    x, sigma, h = x.double(), sigma.double(), 1e-6
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)

    def denoised(t: Tensor) -> Tensor:
        return net(x + t * sigma[:, None, None, None] * direction, sigma * (1 + t), labels)

    zero, one = torch.zeros((), dtype=x.dtype), torch.ones((), dtype=x.dtype)
    with higher_derivatives():
        output, slope = torch.func.jvp(denoised, (zero,), (one,))
        assert max_rel(output, denoised(zero)) < 1e-13
        assert max_rel(slope, (denoised(zero + h) - denoised(zero - h)) / (2 * h)) < 1e-6
        slope.square().sum().backward()
    gradients = [parameter.grad for parameter in net.unet.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.norm() > 0 for gradient in gradients)  # those before a convolution of zeros have none


@pytest.mark.parametrize("config", "ABCDEFG")
def test_an_encoder_without_blocks_halves_and_the_decoder_takes_every_skip(config):
    net = build_network(
        NetworkConfig(
            8, 1, 3, config=config, model_channels=16, channel_mult=(1, 2), num_blocks=0, attn_resolutions=(4,),
            channels_per_head=16,
        )
    )  # fmt: skip
    assert list(net.unet.enc) == ["8x8_conv", "4x4_down"]
    assert net(torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])).isfinite().all()
