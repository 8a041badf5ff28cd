"""What every letter of the ladder does alike, and what the paper says of each: scales, logits, magnitudes, slopes."""

import math

import pytest
import torch
import torch.nn.functional as F
from golden_data import max_rel
from ladder_networks import LETTERS, a_network, an_input, new_network, raw_output
from torch import Tensor

from edm2.networks import (
    Conv,
    Precond,
    attention,
    fold,
    higher_derivatives,
    is_folded,
)

every_letter = pytest.mark.parametrize("letter", LETTERS)

# Alike


@torch.no_grad()
@every_letter
def test_labels_and_noise_levels_in_any_form(letter):
    """Classes as numbers or one-hot, none as -1, zeros or nothing, alone or among others; u has no use for them."""
    net = a_network(letter)
    x, sigma, labels = an_input(net)
    D_x, u = net(x, sigma, labels, return_logvar=True)
    assert (D_x.shape, u.shape) == ((4, 3, 16, 16), (4, 1, 1, 1))
    assert torch.equal(net(x, sigma[:, None, None, None], F.one_hot(labels, 5)), D_x)
    assert not torch.equal(net(x, sigma, (labels + 1) % 5), D_x)
    same_level = net(x, torch.full((4,), 2.5), labels)
    for scalar in (2.5, torch.tensor(2.5), torch.tensor(2.5, dtype=torch.float64), torch.tensor([2.5])):
        assert torch.equal(net(x, scalar, labels), same_level)

    without, u_without = net(-3 * x, sigma, return_logvar=True)
    assert torch.equal(u_without, u)
    assert len(u.unique()) == 4
    for nothing in (torch.full((4,), -1), torch.zeros(4, 5)):
        assert torch.equal(net(-3 * x, sigma, nothing), without)
    labels[2] = -1
    mixed = net(-3 * x, sigma, labels)
    assert max_rel(mixed[2], without[2]) <= 1e-6
    assert not torch.equal(mixed[1], without[1])


@torch.no_grad()
@every_letter
def test_images_of_a_batch_do_not_see_each_other(letter):
    """To 1e-5: convolutions may sum in another order for another batch size. Group norms are per image."""
    net = a_network(letter)
    x, sigma, labels = an_input(net)
    together, u = raw_output(net, x, sigma, labels), net(x, sigma, labels, True)[1]
    for i in range(len(x)):
        assert max_rel(net(x[i : i + 1], sigma[i : i + 1], return_logvar=True)[1][0], u[i]) <= 1e-5
        assert max_rel(raw_output(net, x[i : i + 1], sigma[i : i + 1], labels[i : i + 1])[0], together[i]) <= 1e-5


@torch.no_grad()
@every_letter
def test_images_need_neither_labels_nor_be_square(letter):
    net = a_network(letter, label_dim=0, img_resolution=(16, 24), img_channels=1, attn_resolutions=(12,))
    assert net(*an_input(net)).shape == (4, 1, 16, 24)
    assert "8x12_block0" in net.unet.enc
    assert net.unet.enc["8x12_block0"].num_heads == 2, "attention goes by the larger side"


@torch.no_grad()
@every_letter
def test_the_decoder_starts_with_attention_wherever_others_have_it(letter):
    net = a_network(letter, attn_resolutions=())
    assert [name for name, part in net.unet.named_modules() if getattr(part, "num_heads", 0)] == ["dec.8x8_in0"]
    narrow = a_network(letter, channels_per_head=33)
    assert not any(getattr(part, "num_heads", 0) for part in narrow.modules())


@torch.no_grad()
@every_letter
def test_an_encoder_without_blocks_halves_and_the_decoder_takes_every_skip(letter):
    net = a_network(letter, num_blocks=0)
    assert list(net.unet.enc) == ["16x16_conv", "8x8_down"]
    assert net(*an_input(net)).isfinite().all()


@torch.no_grad()
@every_letter
def test_clipping_is_the_description_s(letter):
    bounded, free = a_network(letter, clip_act=0.25), a_network(letter, clip_act=None)
    peaks: dict[Precond, list[float]] = {bounded: [], free: []}
    for net, peak in peaks.items():
        for block in [*net.unet.enc.children(), *net.unet.dec.children()]:
            if not isinstance(block, Conv):
                block.register_forward_hook(lambda module, args, y, peak=peak: peak.append(y.abs().max().item()))
        net(*an_input(net))
    assert all(peak <= 0.25 for peak in peaks[bounded])
    assert all(peak > 0.25 for peak in peaks[free])


@torch.no_grad()
@every_letter
def test_dropout_acts_in_training_only(letter):
    net = a_network(letter, dropout=0.5)
    inputs = an_input(net)
    assert torch.equal(net(*inputs), net(*inputs))
    net.train()
    assert not torch.equal(net(*inputs), net(*inputs))


@every_letter
def test_every_parameter_is_trained(letter):
    net = a_network(letter)
    sum(out.square().sum() for out in net(*an_input(net), True)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
@every_letter
def test_fold_computes_the_same_function(letter):
    net = a_network(letter)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    folded = fold(net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    for ours, expected in zip(folded(*an_input(net), True), net(*an_input(net), True), strict=True):
        assert max_rel(ours, expected) <= 5e-6
    assert is_folded(folded)
    assert not is_folded(net)
    assert not any(isinstance(layer, Conv) for layer in folded.modules())
    assert not any(tensor.requires_grad for tensor in [*folded.parameters(), *folded.buffers()])
    with pytest.raises(RuntimeError, match="inference only"):
        folded.train()


@torch.no_grad()
@every_letter
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 4e-2), (torch.float16, 5e-3), (torch.float64, 1e-5)], ids=str
)
def test_other_precisions_stay_close(letter, dtype, tolerance):
    """Ten roundings of half a unit in the last place, 2^-8 (bfloat16) or 2^-11 (float16), of the raw output, with the
    embedding still in float32. float64 is so throughout."""
    net, inputs = a_network(letter), an_input(a_network(letter))
    expected = raw_output(net, *inputs).double()
    embeddings: list[torch.dtype] = []
    net.unet.enc["16x16_block0"].register_forward_pre_hook(lambda module, args: embeddings.append(args[1].dtype))
    if dtype == torch.float64:
        net.double()
        inputs = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    net.compute_dtype = dtype
    for version in (net, fold(net, dtype)):
        raw = raw_output(version, *inputs)
        assert raw.dtype == dtype
        assert max_rel(raw.double(), expected) <= tolerance
    assert embeddings == [inputs[0].dtype] * 2


@pytest.mark.parametrize("letter", "ADG")
def test_a_network_compiles_as_one_graph(letter):
    """No break: `fullgraph` refuses any. Without generating code, which takes a minute, and with one letter of those
    that run the same operations."""
    net = a_network(letter)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert max_rel(compiled(*an_input(net)), net(*an_input(net))) <= 1e-6
    torch._dynamo.reset()


# Scales of weights


@torch.no_grad()
@every_letter
@pytest.mark.parametrize("scale", [0.5, 30.0])
def test_only_the_direction_of_weights_matters_from_d_on(letter, scale):
    """Each of about 20 layers moves by its eps, 1e-4, at most. Before D, scales are the function itself."""
    net = a_network(letter)
    before = raw_output(net, *an_input(net))
    for layer in net.modules():
        if isinstance(layer, Conv):
            layer.weight.mul_(scale)
    change = max_rel(raw_output(net, *an_input(net)), before)
    assert change <= 30 * 1e-4 if letter in "DEFG" else change > 0.1


def test_gradients_are_orthogonal_to_the_weights_from_d_on():
    """So to first order forced normalization takes nothing away from an update, and raw weights of D grow, and only
    grow, under small steps. eps leaves a cosine of about 1e-4 (test_layers.py has the exact formula)."""
    for letter in "CDEFG":
        net = a_network(letter)
        raw_output(net, *an_input(net)).square().sum().backward()
        block = net.unet.enc["8x8_block0"]
        w = block.conv_res1.weight if letter in "FG" else block.conv1.weight
        cosine = F.cosine_similarity(w.grad.flatten(1), w.detach().flatten(1)).abs().max()
        assert (cosine <= 3e-4) == (letter != "C"), letter


# Attention


@pytest.fixture
def attended(monkeypatch) -> list[tuple[Tensor, ...]]:
    """Queries, keys and values [N, pixels, heads, d] of every attention."""
    seen, blend = [], attention.blend
    monkeypatch.setattr(attention, "blend", lambda q, k, v, size: seen.append((q, k, v)) or blend(q, k, v, size))
    return seen


@torch.no_grad()
@every_letter
def test_logits_are_bounded_by_sqrt_d_from_c_on(letter, attended):
    """Queries and keys 100-fold, 10,000-fold the logits of dot products. With d = 16: |q·k| / sqrt(d) <= 4."""
    net = a_network(letter)
    for name, layer in net.named_modules():
        if name.endswith("qkv"):
            layer.weight.mul_(100)
    net(*an_input(net))
    largest = [torch.einsum("nqhc,nkhc->nhqk", q, k).abs().max().item() / math.sqrt(16) for q, k, _ in attended]
    assert len(largest) == 4
    assert (max(largest) <= 4.0001) == (letter in "CDEFG")


@torch.no_grad()
@every_letter
def test_attention_is_in_float32_in_a_and_b(letter, attended):
    """Its values too have unit magnitude per head and pixel from C on."""
    net = a_network(letter)
    net.compute_dtype = torch.bfloat16
    net(*an_input(net))
    assert attended
    for part in (tensor for parts in attended for tensor in parts):
        assert part.dtype == (torch.float32 if letter in "AB" else torch.bfloat16)
        magnitudes = part.float().square().mean(dim=-1).sqrt()
        assert bool(((magnitudes - 1).abs() < 0.02).all()) == (letter not in "AB")


# Magnitudes


def magnitudes(net: Precond) -> list[float]:
    """Root-mean-square of what leaves every layer of encoder and decoder, the output last, for unit variance."""
    found: list[float] = []
    for part in [*net.unet.enc.children(), *net.unet.dec.children(), net.unet]:
        part.register_forward_hook(lambda module, args, y: found.append(y.square().mean().sqrt().item()))
    with torch.no_grad():
        net.unet(torch.randn(8, net.config.img_channels, 16, 16), torch.randn(8) / 4, torch.zeros(8, 5))
    return found


def test_plain_sums_grow_with_depth_and_balanced_ones_do_not():
    """Layers that preserve magnitude are not enough. Seven outputs at 16x16 pixels: each sum of D and E adds to the
    one before. F starts every block of the encoder afresh, but sums and concatenates plainly in the decoder. Seen:
    largest of D, E and F 2.4 to 3.4, all of G from 0.81 to 1.05."""
    for letter in "DEFG":
        *found, _ = magnitudes(new_network(letter, model_channels=32, channels_per_head=32, num_blocks=6))
        first_level = found[:7]
        assert (first_level == sorted(first_level)) == (letter in "DE"), (letter, first_level)
        assert (max(first_level) < 1.2) == (letter in "FG"), (letter, first_level)
        assert (max(found) > 2) == (letter != "G"), (letter, found)
        assert all(0.7 <= magnitude <= 1.3 for magnitude in found) == (letter == "G"), (letter, found)


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
        net = new_network("G", seed, model_channels=32, num_blocks=num_blocks, img_channels=8)
        torch.nn.init.ones_(net.unet.out_gain)
        found = magnitudes(net)
        assert all(0.7 <= magnitude <= 1.3 for magnitude in found), found
        outputs.append(found[-1])
    assert sum(outputs) / len(outputs) == pytest.approx(1, abs=0.15)


def test_preconditioning_feeds_the_network_unit_variance():
    """c_in (y + sigma n) has unit variance at every noise level for data y of variance sd² (Eq. 7).

    24,576 Gaussians per noise level: the magnitude errs by 0.45 %. Four times."""
    net, seen = a_network("G"), []
    net.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    y, noise = 0.5 * torch.randn(32, 3, 16, 16), torch.randn(32, 3, 16, 16)
    for sigma in (0.002, 0.5, 80.0):
        net(y + sigma * noise, sigma)
    for x in seen:
        assert x.square().mean().sqrt().item() == pytest.approx(1, abs=0.018)


# Derivatives


def test_the_denoiser_can_be_differentiated_by_noise_level_and_image():
    """Against central differences in float64: error of order h² = 1e-8 times a third derivative."""
    net = a_network("G").double()
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


@pytest.mark.parametrize("letter", "BDG")
def test_directional_and_second_derivatives_where_they_are_asked_for(letter):
    """dD/dt along a path through noise, forward (torch.func.jvp) and by differences; its gradient by the weights, too.

    This is what consistency models and mean flows train with.
    """
    net = a_network(letter).double()
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
