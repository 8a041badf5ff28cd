"""From letter to letter: what the paper states is different, and once it is undone by hand, nothing else is."""

import math

import pytest
import torch
import torch.nn.functional as F
from golden_data import max_rel
from ladder_networks import LETTERS, SMALL, a_network, an_input, new_network, raw_output, shapes
from torch import nn

from edm2.networks import (
    Conv,
    MPConv,
    NetworkConfig,
    Precond,
    WeightNormConv,
    force_weight_normalization_,
    mp_cat,
    normalize,
    resample,
    unet,
)
from edm2.networks.attention import cosine_attention
from edm2.networks.blocks import SILU_SCALE, ResidualBlock
from edm2.networks.ladder import BlockE, DecoderBlockF, EncoderBlockF
from edm2.networks.ladder.config_c import ScalingGroupNorm

ROUNDING = 2e-5
"""The same sums in another order, in float32, through about 20 layers."""


def assert_same(a: Precond, b: Precond, tolerance: float = 0.0) -> None:
    """The raw output and u(sigma) agree up to rounding."""
    x, sigma, labels = an_input(a)
    assert max_rel(raw_output(a, x, sigma, labels), raw_output(b, x, sigma, labels)) <= tolerance
    assert max_rel(a(x, sigma, labels, True)[1], b(x, sigma, labels, True)[1]) <= tolerance


def assert_different(a: Precond, b: Precond) -> None:
    inputs = an_input(a)
    assert max_rel(raw_output(a, *inputs), raw_output(b, *inputs)) > 100 * ROUNDING


def blocks(net: Precond) -> list[tuple[str, nn.Module]]:
    """All residual blocks by name."""
    return [(name, module) for name, module in net.unet.named_modules() if isinstance(module, ResidualBlock)]


# A to B


@torch.no_grad()
def test_b_is_the_network_of_a():
    a, b = a_network("A"), new_network("B")
    assert shapes(a) == shapes(b)
    b.load_state_dict(a.state_dict())
    assert_same(a, b)
    assert [type(x) for x in a.modules()][2:] == [type(x) for x in b.modules()][2:]


def test_attention_leaves_a_resolution_with_its_layers_and_nothing_else():
    """32x32, 16x16 and 8x8 in A, 16x16 and 8x8 in B. The decoder's first block always has it."""
    wide = {"img_resolution": 32, "channel_mult": (1, 1, 1)}
    a, b = new_network("A", attn_resolutions=(32, 16, 8), **wide), new_network("B", attn_resolutions=(16, 8), **wide)
    lost = set(shapes(a)) - set(shapes(b))
    assert set(shapes(b)) < set(shapes(a))
    assert {name.split(".")[1] for name in lost} == {"32x32_block0", "32x32_block1"}
    assert {name.split(".")[2] for name in lost} == {"norm2", "qkv", "proj"}
    assert "dec.8x8_in0.qkv.weight" in shapes(new_network("B", attn_resolutions=(), **wide))


# B to C


def test_c_has_lost_biases_norms_and_shift_and_gained_a_channel():
    b, c = shapes(new_network("B")), shapes(new_network("C"))
    buffers = {"map_noise.freqs", "map_noise.phases"}
    norms = {name for name in b if "norm" in name}
    biases = {name for name in b if name.endswith(".bias")}
    assert set(c) == set(b) - norms - biases | buffers
    for name in set(c) - buffers:
        if name == "enc.16x16_conv.weight":
            assert (b[name], c[name]) == ((16, 3, 3, 3), (16, 4, 3, 3)), name
        elif name.endswith("affine.weight"):
            assert b[name] == (2 * c[name][0], c[name][1]), name
        else:
            assert b[name] == c[name], name


@torch.no_grad()
def b_taken_to_c(c: Precond) -> Precond:
    """A network of config B to which everything is done that the paper lists, by hand."""
    b = a_network("B", seed=7)
    weights = c.state_dict()
    for name, layer in b.named_modules():
        if isinstance(layer, Conv):
            w = weights[f"{name}.weight"]
            w = torch.cat([w, torch.zeros_like(w)]) if name.endswith("affine") else w  # no shift
            layer.weight = nn.Parameter(w.clone())
            layer.bias = None
    for _, block in blocks(b):
        block.norm0, block.norm1 = (ScalingGroupNorm(len(norm.weight)) for norm in (block.norm0, block.norm1))
        block.norm2, block.attention = nn.Identity(), cosine_attention
    b.unet.out_norm = ScalingGroupNorm(len(b.unet.out_norm.weight))
    b.unet.map_noise = c.unet.map_noise
    b.unet.constant_channels = 1
    b.unet.scale_label = lambda one_hot: one_hot * math.sqrt(SMALL["label_dim"])
    b.logvar_fourier = c.logvar_fourier
    return b


@torch.no_grad()
@pytest.mark.parametrize(
    "kept", ["nothing", "norm0", "norm2", "attention", "map_noise", "ones", "labels", "bias", "out_norm"]
)
def test_c_is_b_after_streamlining_of_which_each_part_matters(kept):
    """With one part left undone the networks differ."""
    c = a_network("C")
    b, original = b_taken_to_c(c), a_network("B", seed=7)
    block, source = b.unet.enc["8x8_block0"], original.unet.enc["8x8_block0"]
    if kept == "nothing":
        assert_same(c, b, ROUNDING)
        return
    if kept in ("norm0", "norm2"):
        setattr(block, kept, getattr(source, kept))
    elif kept == "attention":
        del block.attention
    elif kept in ("map_noise", "out_norm"):
        setattr(b.unet, kept, getattr(original.unet, kept))
    elif kept == "ones":
        b.unet.enc["16x16_conv"].weight[:, -1] = 0
    elif kept == "labels":
        b.unet.scale_label = original.unet.scale_label
    else:
        block.conv0.bias = source.conv0.bias
    assert_different(b, c)


def test_group_norm_only_scales():
    """Per group and image to unit root-mean-square: exactly torch's group norm where the means are zero.

    eps = 1e-4 is added outside the root (Eq. 47), so a magnitude of 1e-4 becomes one half."""
    torch.manual_seed(0)
    x = torch.randn(3, 32, 4, 6, dtype=torch.float64)
    shifted = 5 + 100 * x
    y = ScalingGroupNorm(32)(shifted)
    grouped = y.reshape(3, 8, -1)
    torch.testing.assert_close(grouped.square().mean(dim=2).sqrt(), torch.ones(3, 8).double(), rtol=2e-6, atol=0)
    torch.testing.assert_close(y[1, 4:8] / shifted[1, 4:8], (y / shifted)[1, 4, 0, 0].expand(4, 4, 6))
    grouped = x.reshape(3, 8, -1)
    centred = (grouped - grouped.mean(dim=2, keepdim=True)).reshape(x.shape)
    torch.testing.assert_close(ScalingGroupNorm(32)(centred), F.group_norm(centred, 8), rtol=1.5e-4, atol=0)  # eps
    small = torch.full((1, 4, 2, 2), 1e-4, dtype=torch.float64)
    torch.testing.assert_close(ScalingGroupNorm(4)(small), torch.full_like(small, 0.5))


@pytest.mark.parametrize("letter", "CDEF")
def test_nothing_starts_at_zero_from_c_to_f(letter):
    """And weights are of one kind: uniform in C, N(0, 1) from D on; on use, unit norm per output unit."""
    net = new_network(letter, model_channels=32)
    for name, parameter in net.named_parameters():
        assert parameter.all(), name
        bound = 1 / math.sqrt(parameter[0].numel())
        assert (parameter.abs().max() <= bound) == (letter == "C"), name
    layers = [layer for layer in net.modules() if isinstance(layer, Conv)]
    assert all(isinstance(layer, WeightNormConv) == (letter != "C") for layer in layers)
    if letter != "C":
        everything = torch.cat([layer.weight.flatten() for layer in layers])  # over 200,000 numbers
        assert everything.std().item() == pytest.approx(1, abs=0.01)
        for layer in layers:
            norms = layer.effective_weight().flatten(1).norm(dim=1) / getattr(layer, "scale", 1)
            torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-3)  # eps of rows with 3 weights


# C to D


@torch.no_grad()
def test_d_is_c_of_normalized_weights():
    c, d = a_network("C", seed=1), a_network("D")
    assert shapes(c) == shapes(d)
    state = d.state_dict()
    for name, layer in d.named_modules():
        if isinstance(layer, Conv):
            w = layer.weight
            rows = w.flatten(1).double()
            norm = rows.norm(dim=1, keepdim=True)
            state[f"{name}.weight"] = (rows / (norm + 1e-4 * math.sqrt(rows.shape[1]))).reshape(w.shape)  # Eq. 47
    c.load_state_dict(state)
    assert_same(c, d, ROUNDING)
    c.load_state_dict(d.state_dict())
    assert_different(c, d)


# D to E


def test_e_is_d_in_values_and_gradients():
    d, e = a_network("D"), new_network("E")
    e.load_state_dict(d.state_dict())
    assert_same(d, e)
    for net in (d, e):
        sum(out.square().sum() for out in net(*an_input(net), True)).backward()
    for (name, a), b in zip(d.named_parameters(), e.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


@torch.no_grad()
@pytest.mark.parametrize("letter", LETTERS)
def test_forced_normalization_keeps_weights_and_function_from_e_on_and_touches_nothing_before(letter):
    """Weights of 30 times the magnitude come back to 1; the function only loses the eps of each layer, 1e-4."""
    net = a_network(letter)
    layers = [layer for layer in net.modules() if isinstance(layer, Conv)]
    before = raw_output(net, *an_input(net))
    for layer in layers:
        layer.weight.mul_(30)
    scaled = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    force_weight_normalization_(net)
    if letter in "ABCD":
        assert all(torch.equal(tensor, scaled[name]) for name, tensor in net.state_dict().items())
        return
    assert all(isinstance(layer, MPConv) for layer in layers)
    for layer in layers:
        rms = layer.weight.flatten(1).square().mean(dim=1).sqrt()
        torch.testing.assert_close(rms, torch.ones_like(rms), rtol=0, atol=1e-4)
    assert max_rel(raw_output(net, *an_input(net)), before) <= 30 * 1e-4


# E to F

RENAMED = {
    "emb_noise": "map_layer0", "emb_label": "map_label", "conv_res0": "conv0", "emb_linear": "affine",
    "conv_res1": "conv1", "conv_skip": "skip", "attn_qkv": "qkv", "attn_proj": "proj", "emb_fourier": "map_noise",
}  # fmt: skip
"""F and G have the names of the published EDM2 networks, A to E those of EDM's."""


def test_f_has_lost_a_linear_layer_and_moved_a_convolution_and_g_has_gained_gains():
    """The second linear layer of the embedding is gone. Where the encoder changes the number of channels, it does so
    before the residual branch, whose first convolution then has as many inputs as outputs. Group norms have nothing to
    store in E."""
    e, f, g = (shapes(new_network(letter)) for letter in "EFG")
    renamed = {".".join(RENAMED.get(part, part) for part in name.split(".")): shape for name, shape in f.items()}
    assert set(e) - set(renamed) == {"map_layer1.weight"}
    assert set(renamed) <= set(e)
    changed = {name: (e[name], shape) for name, shape in renamed.items() if e[name] != shape}
    assert changed == {"enc.8x8_block0.conv0.weight": ((32, 16, 3, 3), (32, 32, 3, 3))}
    gains = {f"{name}.emb_gain" for name, _ in blocks(new_network("G"))} | {"out_gain"}
    assert g == f | dict.fromkeys(gains, ())


def without_norms(block: BlockE, source: ResidualBlock) -> BlockE:
    """With the weights of a block of F or G under their names in E; loading is strict."""
    block.norm0 = block.norm1 = nn.Identity()
    state = {name.split(".")[0]: tensor for name, tensor in source.state_dict().items()}
    block.load_state_dict({f"{RENAMED[layer]}.weight": tensor for layer, tensor in state.items()})
    return block


OPTIONS = {"channels_per_head": 16, "clip_act": None}


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"resample_mode": "up"}, {"attention": True}])
@pytest.mark.parametrize("channels", [24, 32])
def test_decoder_of_f_is_that_of_e_without_norms(options, channels):
    """Doubling pixels before or after SiLU is the same."""
    torch.manual_seed(0)
    f = DecoderBlockF(channels, 32, 10, **OPTIONS, **options)
    e = without_norms(BlockE(channels, 32, 10, **OPTIONS, **options), f)
    x, emb = torch.randn(2, channels, 8, 8), torch.randn(2, 10)
    torch.testing.assert_close(f(x, emb), e(x, emb), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["keep", "down"])
@pytest.mark.parametrize(("channels", "attention"), [(32, False), (32, True), (24, True)])
def test_encoder_of_f_is_that_of_e_without_norms_after_an_entry(mode, channels, attention):
    """[Down] -> [1x1 convolution] -> pixel normalization; both branches start there."""
    torch.manual_seed(0)
    f = EncoderBlockF(channels, 32, 10, resample_mode=mode, attention=attention, **OPTIONS)
    skip, f_skip = f.conv_skip, f.conv_skip is not None
    x, emb = torch.randn(2, channels, 8, 8), torch.randn(2, 10)
    entered = resample(x, mode)
    entered = normalize(skip(entered) if f_skip else entered, dim=1)
    expected = f(x, emb)
    f.conv_skip = None
    e = without_norms(BlockE(32, 32, 10, attention=attention, **OPTIONS), f)
    torch.testing.assert_close(expected, e(entered, emb), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_embedding_and_output_of_f_have_one_layer_less():
    f = a_network("F")
    c_noise, one_hot = torch.tensor([-0.3, 0.8]), torch.eye(5)[:2]
    unet_f = f.unet
    label = one_hot @ normalize(unet_f.emb_label.weight).T  # times the root of 5 classes, over the root of 5 inputs
    expected = F.silu(unet_f.emb_noise(unet_f.emb_fourier(c_noise)) + label)
    torch.testing.assert_close(unet_f.embed(c_noise, one_hot), expected)
    last: list[torch.Tensor] = []
    unet_f.dec["16x16_block1"].register_forward_hook(lambda block, inputs, x: last.append(x))
    assert torch.equal(raw_output(f, *an_input(f)), unet_f.out_conv(*last))


# F to G


@torch.no_grad()
def g_taken_to_f(f: Precond) -> Precond:
    """A network of config G with the weights of `f`, all gains at one and the constants of its functions undone."""
    g = new_network("G")
    g.load_state_dict(f.state_dict(), strict=False)
    for name, parameter in g.named_parameters():
        if name.endswith("gain"):
            nn.init.ones_(parameter)
    for layer in g.modules():
        if isinstance(layer, MPConv):
            layer.scale = 1.0
    for _, block in blocks(g):
        block.x_weight = block.attn_x_weight = 1.0
    g.unet.emb_label.scale = math.sqrt(SMALL["label_dim"])
    g.unet.emb_fourier.amplitude = g.logvar_fourier.amplitude = 1
    return g


@pytest.fixture
def plain_functions(monkeypatch):
    """Functions of config G that are no layers, without their constants."""
    monkeypatch.setattr(unet, "mp_cat", lambda a, b, t: torch.cat([a, b], dim=1))
    monkeypatch.setattr(unet, "SILU_SCALE", 1.0)
    return monkeypatch


@torch.no_grad()
@pytest.mark.parametrize(
    "function",
    ["nothing", "mp_silu", "mp_silu of the embedding", "mp_sum", "mp_cat", "amplitude", "emb_gain", "out_gain"],
)
def test_f_is_g_with_plain_functions_of_which_each_matters(function, plain_functions):
    """With one function as in G the networks differ."""
    f = a_network("F")
    g, block = g_taken_to_f(f), new_network("G").unet.enc["8x8_block0"]
    if function == "nothing":
        assert_same(f, g, ROUNDING)
        return
    if function == "mp_silu":
        g.unet.enc["8x8_block0"].conv_res0.scale = block.conv_res0.scale
    elif function == "mp_silu of the embedding":
        plain_functions.setattr(unet, "SILU_SCALE", SILU_SCALE)
    elif function == "mp_sum":
        g.unet.enc["8x8_block0"].x_weight = block.x_weight
    elif function == "mp_cat":
        plain_functions.setattr(unet, "mp_cat", mp_cat)
    elif function == "amplitude":
        del g.unet.emb_fourier.amplitude
    elif function == "emb_gain":
        nn.init.constant_(g.unet.enc["8x8_block0"].emb_gain, 0.5)
    else:
        nn.init.constant_(g.unet.out_gain, 0.5)
    assert_different(f, g)


# Fields


def test_a_letter_refuses_fields_that_it_does_not_use():
    for field in ("label_balance", "concat_balance", "res_balance", "attn_balance"):
        assert NetworkConfig(**SMALL | {field: 0.4}).to_json()[field] == 0.4
        for letter in "ABCDEF":
            with pytest.raises(ValueError, match=rf"^{field}=0.4 would change nothing in config {letter}[^\n]+$"):
                NetworkConfig(**SMALL | {"config": letter, field: 0.4})
    for letter in "FG":
        with pytest.raises(ValueError, match=r"^channels_per_group=8 would change nothing[^\n]+A to E[^\n]+$"):
            NetworkConfig(**SMALL | {"config": letter, "channels_per_group": 8})
