"""What the paper and the interface promise of whole networks, whatever the numbers."""

import dataclasses
import json
import math

import pytest
import torch
from golden_data import max_rel
from torch import Tensor

from edm2.networks import (
    MPConv,
    NetworkConfig,
    Precond,
    build_network,
    fold,
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


def test_a_new_network_outputs_c_skip_x():
    """out_gain starts at zero: D(x; sigma) = sd² / (sigma² + sd²) x, the best linear guess for white data."""
    torch.manual_seed(0)
    net = build_network(SMALL)
    x, sigma, labels = an_input(net)
    c_skip = (0.25 / (sigma**2 + 0.25))[:, None, None, None]
    torch.testing.assert_close(net(x, sigma, labels), c_skip * x)


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
@pytest.mark.parametrize("scale", [0.5, 30.0])
def test_rescaling_every_weight_changes_nothing(scale):
    """Weights count by their direction (Eq. 47). Each of about 20 layers in a row moves by eps at most."""
    net = a_network()
    x, sigma, labels = an_input(net)
    before = net(x, sigma, labels)
    for layer in net.modules():
        if isinstance(layer, MPConv):
            layer.weight.mul_(scale)
    assert max_rel(net(x, sigma, labels), before) <= 20 * 1e-4


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


# Folding


@torch.no_grad()
@pytest.mark.parametrize("label_dim", [0, 5])
def test_fold_computes_the_same_function(label_dim):
    """In float32; the gain multiplies after the convolution instead of before, hence another rounding."""
    net = a_network(label_dim=label_dim)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    x, sigma, labels = an_input(net)
    folded = fold(net)
    for ours, expected in zip(folded(x, sigma, labels, True), net(x, sigma, labels, True), strict=True):
        assert max_rel(ours, expected) <= 5e-6
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert not any(isinstance(layer, MPConv) for layer in folded.modules())


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2.5e-2), (torch.float16, 3e-3)])
def test_fold_to_half_precision_stays_close(dtype, tolerance):
    """Some six roundings of half a unit in the last place, 2^-8 (bfloat16) or 2^-11 (float16), of the raw output F."""
    net = a_network()
    raw: list[Tensor] = []
    for version in (fold(net, dtype), net):
        version.unet.register_forward_hook(lambda module, args, y: raw.append(y))
        D_x = version(*an_input(net))
        assert D_x.dtype == torch.float32
    assert raw[0].dtype == dtype
    assert max_rel(raw[0], raw[1]) <= tolerance


def test_fold_is_refused_for_training():
    folded = fold(a_network())
    assert not folded.training
    assert folded.eval() is folded
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    with pytest.raises(RuntimeError, match="inference only"):
        folded.train()


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


def test_a_square_may_be_given_as_a_pair():
    assert list(a_network(img_resolution=(16, 16)).state_dict()) == list(a_network().state_dict())


@pytest.mark.parametrize("channels", range(1, 9))
def test_any_number_of_channels(channels):
    net = a_network(img_channels=channels)
    assert net(*an_input(net)).shape == (4, channels, 16, 16)


@pytest.mark.parametrize(("size", "levels"), [(18, 3), ((16, 6), 3), (2, 3), (15, 2)])
def test_a_resolution_that_the_levels_do_not_divide_is_refused_in_one_line(size, levels):
    with pytest.raises(ValueError, match=r"resolution .* cannot be halved") as refused:
        dataclasses.replace(SMALL, img_resolution=size, channel_mult=(1,) * levels)
    assert "\n" not in str(refused.value)


# Labels and batches


@torch.no_grad()
def test_class_numbers_equal_one_hot_vectors():
    net = a_network()
    x, sigma, labels = an_input(net)
    one_hot = torch.nn.functional.one_hot(labels, 5)
    assert torch.equal(net(x, sigma, labels), net(x, sigma, one_hot.float()))
    assert torch.equal(net(x, sigma, labels), net(x, sigma, one_hot))
    assert not torch.equal(net(x, sigma, labels), net(x, sigma, (labels + 1) % 5))


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
def test_an_unconditional_network_needs_no_labels():
    net = a_network(label_dim=0)
    x, sigma, _ = an_input(net)
    assert net(x, sigma).shape == x.shape
    assert "unet.emb_label.weight" not in net.state_dict()


@torch.no_grad()
def test_sigma_in_any_accepted_form():
    net = a_network()
    x, sigma, labels = an_input(net)
    assert torch.equal(net(x, sigma[:, None, None, None], labels), net(x, sigma, labels))
    expected = net(x, torch.full((4,), 2.5), labels)
    for scalar in (2.5, torch.tensor(2.5), torch.tensor(2.5, dtype=torch.float64), torch.tensor([2.5])):
        assert torch.equal(net(x, scalar, labels), expected)


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other():
    """To 1e-5: convolutions may sum in another order for another batch size."""
    net = a_network()
    x, sigma, labels = an_input(net)
    together, u = net(x, sigma, labels, return_logvar=True)
    for i in range(len(x)):
        alone, u_alone = net(x[i : i + 1], sigma[i : i + 1], labels[i : i + 1], return_logvar=True)
        assert max_rel(alone[0], together[i]) <= 1e-5
        assert max_rel(u_alone[0], u[i]) <= 1e-5


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


@torch.no_grad()
def test_the_same_seed_builds_the_same_network():
    assert all(torch.equal(a, b) for a, b in zip(a_network(3).parameters(), a_network(3).parameters(), strict=True))


@pytest.mark.parametrize("size", [16, (16, 8)])
def test_a_description_survives_json(size):
    config = dataclasses.replace(SMALL, img_resolution=size, resample_filter=(1, 3, 3, 1), clip_act=None)
    again = NetworkConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"img_channels": 0}, "img_channels"),
        ({"label_dim": -1}, "label_dim"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"dropout": 1.5}, "dropout"),
        ({"sigma_data": 0.0}, "sigma_data"),
        ({"config": "Z"}, "config"),
    ],
)
def test_impossible_descriptions_are_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=named) as refused:
        dataclasses.replace(SMALL, **changes)
    assert "\n" not in str(refused.value)


def test_unknown_fields_of_a_description_are_refused_by_name():
    with pytest.raises(ValueError, match="channel_multiplier"):
        NetworkConfig.from_json(SMALL.to_json() | {"channel_multiplier": 2})
