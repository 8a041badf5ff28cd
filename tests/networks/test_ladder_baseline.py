"""Config A: the published network of EDM in numbers, its formulas, and how it starts."""

import math

import pytest
import torch
import torch.nn.functional as F
from golden_data import arrays, max_rel, select, table
from ladder_networks import LETTERS, a_network, an_input, new_network, raw_output
from torch import Tensor

from edm2.networks import NetworkConfig, Precond, build_network, load_edm_state_dict
from edm2.networks.ladder import BlockA
from edm2.networks.ladder.config_a import BiasedConv, GroupNorm, PositionalEmbedding
from edm2.training import EDM2Loss
from edm2.training.loss.weighting import EDM

# Golden numbers


def golden_config(golden) -> NetworkConfig:
    """EDM has no bound on activations."""
    return NetworkConfig.from_json(table(golden, "ladder/config_a.json")["config"] | {"config": "A", "clip_act": None})


def golden_network(golden) -> tuple[Precond, dict[str, Tensor]]:
    """The golden network in evaluation mode, and its arrays."""
    if not (golden / "ladder" / "config_a.safetensors").is_file():
        pytest.skip("the weights of config A, 3 MB, are in the full golden set only")
    data = arrays(golden, "ladder/config_a.safetensors")
    net = build_network(golden_config(golden))
    load_edm_state_dict(net, select(data, "state"))
    return net.eval(), data


def test_names_and_counts_are_the_published_ones_golden(golden):
    with torch.device("meta"):
        net = build_network(golden_config(golden)).unet
    expected = table(golden, "ladder/config_a.json")
    assert [f"model.{name}" for name, _ in net.named_parameters()] == expected["parameter_names"]
    assert sum(parameter.numel() for parameter in net.parameters()) == expected["num_params"]


def test_output_loss_and_gradients_golden(golden):
    """Output also image by image, since noise levels make their magnitudes differ; EDM's objective: noise levels, loss
    map, its sum per image, and the gradient of every parameter."""
    net, data = golden_network(golden)
    with torch.no_grad():
        D_x = net(data["in/x"], data["in/sigma"], data.get("in/labels"))
    for ours, expected in [(D_x, data["eval/D_x"]), *zip(D_x, data["eval/D_x"], strict=True)]:
        assert max_rel(ours, expected) <= 1e-5
    settings = table(golden, "ladder/config_a.json")
    objective = EDM2Loss(settings["P_mean"], settings["P_std"], net.sigma_data, weighting=EDM())
    sigma, labels = data["loss/sigma"], data.get("loss/labels", data.get("in/labels"))
    sampled = (settings["P_mean"] + settings["P_std"] * data["loss/rnd_normal"]).exp()
    assert max_rel(sampled.flatten(), sigma.flatten()) <= 1e-6
    loss_map = objective(net, data["loss/images"], labels, sigma=sigma, noise=data["loss/unit_noise"])
    total = loss_map.sum() / len(loss_map)
    total.backward()
    assert max_rel(loss_map, data["loss/loss_map"]) <= 1e-5
    assert max_rel(total.reshape(data["loss/loss_total"].shape), data["loss/loss_total"]) <= 1e-5
    gradients = select(data, "loss/grad")
    assert set(gradients) == {f"model.{name}" for name, _ in net.unet.named_parameters()}
    for name, parameter in net.unet.named_parameters():
        assert max_rel(parameter.grad, gradients[f"model.{name}"]) <= 2e-4, name


# Formulas, written out in other ways than the code's


def test_block_equals_its_formula():
    """In float64: torch's own group norm, heads by einsum in channel order (head, channel, q/k/v)."""
    torch.manual_seed(0)
    block = BlockA(16, 32, 10, attention=True, channels_per_head=16).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, emb = torch.randn(2, 16, 4, 3, dtype=torch.float64), torch.randn(2, 10, dtype=torch.float64)

    def norm(layer: GroupNorm, x: Tensor) -> Tensor:
        reference = torch.nn.GroupNorm(x.shape[1] // 4, x.shape[1], eps=1e-5).double()
        reference.load_state_dict(layer.state_dict())
        return reference(x)

    def conv(layer: BiasedConv, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding="same")

    scale, shift = F.linear(emb, block.affine.weight, block.affine.bias).reshape(2, 2, 32, 1, 1).unbind(1)
    y = conv(block.conv0, F.silu(norm(block.norm0, x)))
    y = conv(block.conv1, F.silu(norm(block.norm1, y) * (1 + scale) + shift))
    y = y + conv(block.skip, x)
    q, k, v = conv(block.qkv, norm(block.norm2, y)).reshape(2, 2, 16, 3, 12).unbind(3)
    weights = torch.einsum("nhcq,nhck->nhqk", q, k / 4).softmax(dim=3)  # d = 16
    y = y + conv(block.proj, torch.einsum("nhqk,nhck->nhcq", weights, v).reshape(2, 32, 4, 3))
    torch.testing.assert_close(block(x, emb), y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["down", "up"])
def test_resampling_is_inside_the_residual_branch_before_its_convolution(mode):
    """Down: average, then convolve; the main path is only resampled. A block whose branches are silent shows it."""
    torch.manual_seed(0)
    x, emb = torch.randn(2, 16, 8, 8, dtype=torch.float64), torch.randn(2, 10, dtype=torch.float64)
    block = BlockA(16, 16, 10, resample_mode=mode).double()
    resampled = F.avg_pool2d(x, 2) if mode == "down" else x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(block(x, emb), resampled)
    seen: list[Tensor] = []
    block.conv0.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    block(x, emb)
    assert seen[0].shape == resampled.shape


def test_positional_embedding_is_cosines_then_sines():
    """Frequencies 1, 10, 100 and 1000 times below 1, since 10000^(1/4) = 10."""
    x = torch.tensor([0.3, -1.7], dtype=torch.float64)
    angles = x[:, None] / torch.tensor([1.0, 10.0, 100.0, 1000.0])
    torch.testing.assert_close(PositionalEmbedding(8)(x), torch.cat([angles.cos(), angles.sin()], dim=1))


def test_group_norms_have_32_groups_or_four_channels_in_each():
    """Four or a few more, where the channels are no multiple of 4. 32 channels in each, as the paper's text says (B.1)
    in contrast to the program that it starts from, can be asked for."""
    for channels, groups in ((4, 1), (32, 8), (96, 24), (128, 32), (1344, 32), (10, 2)):
        assert GroupNorm(channels).num_groups == groups
    net = new_network("A", model_channels=32, channels_per_group=32)
    assert net.unet.out_norm.num_groups == 1
    assert net.unet.enc["8x8_block0"].norm1.num_groups == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_channels": 132, "channels_per_head": 132}, "132 channels"),
        ({"model_channels": 2}, "2 channels"),
        ({"channels_per_group": 12}, "16 channels"),
        ({"model_channels": 5, "channels_per_group": 5}, "5 noise channels"),
    ],
)
def test_channels_that_do_not_split_are_refused_in_one_line(changes, named):
    """12 divides into 16 channels once, with a rest that a single group of 16 would hide."""
    with pytest.raises(ValueError, match=rf"^{named}[^\n]+$"):
        new_network("A", **changes)


# How it starts


@torch.no_grad()
@pytest.mark.parametrize("letter", LETTERS)
def test_a_new_network_outputs_c_skip_x_but_from_c_to_f(letter):
    """D(x; sigma) = sd² / (sigma² + sd²) x: the output convolution starts at zero, weights and bias; in G, its gain."""
    net = new_network(letter)
    x, sigma, labels = an_input(net)
    c_skip = (0.25 / (sigma**2 + 0.25))[:, None, None, None]
    assert torch.allclose(net(x, sigma, labels), c_skip * x) == (letter in "ABG")
    assert bool(raw_output(net, x, sigma, labels).any()) == (letter in "CDEF")


def test_branches_start_at_zero():
    net = new_network("A")
    zero = {name for name, parameter in net.named_parameters() if not parameter.any()}
    last = {"conv1", "proj", "out_conv"}
    norms = {"norm0", "norm1", "norm2", "out_norm"}
    assert zero == {
        name
        for name, _ in net.named_parameters()
        if name.split(".")[-2] in last or (name.split(".")[-2] in norms and name.endswith("bias"))
    }


def test_weights_and_biases_start_uniform_and_class_vectors_gaussian():
    """In ±1 / sqrt(fan_in), filling it: 50,000 numbers reach 99.9 % of the bound, and their variance is a third of its
    square, up to a sampling error of 0.4 %. Biases of a layer with 32 outputs only stay inside. 1,280 Gaussians of unit
    variance: 6 % is three times the sampling error."""
    torch.manual_seed(0)
    for kernel, inputs in (((3, 3), 16 * 9), ((), 16)):
        layer = BiasedConv(16, 512 if kernel else 4096, kernel)
        bound = 1 / math.sqrt(inputs)
        for parameter in (layer.weight, layer.bias):
            assert parameter.abs().max() <= bound
        assert layer.weight.abs().max() >= 0.999 * bound
        assert layer.weight.square().mean().item() == pytest.approx(bound**2 / 3, rel=0.02)
        assert layer.bias.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)  # 512 numbers at least
    vectors = new_network("A", label_dim=40).unet.map_label.weight
    assert vectors.shape == (32, 40)
    assert vectors.std().item() == pytest.approx(1, abs=0.06)
    assert vectors.abs().max() > 2, "uniform numbers of this variance end at 1.7"


# Published weights


def published(net: Precond) -> dict[str, Tensor]:
    """The U-Net's tensors as EDM's snapshots call them, with a filter that these have in up and down blocks."""
    state = {f"model.{name}": tensor.clone() for name, tensor in net.unet.state_dict().items()}
    return state | {"model.enc.8x8_down.conv0.resample_filter": torch.ones(1, 1, 2, 2) / 4}


@torch.no_grad()
@pytest.mark.parametrize("letter", "AB")
def test_published_weights_load_by_name(letter):
    source, net = a_network("A"), new_network(letter, seed=1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items() if name.startswith("logvar")}
    load_edm_state_dict(net, published(source))
    assert torch.equal(net(*an_input(net)), source(*an_input(net)))
    assert before
    for name, tensor in before.items():
        assert torch.equal(net.state_dict()[name], tensor), "EDM has no u(sigma)"


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda state: state.pop("model.enc.8x8_block0.qkv.bias"), "enc.8x8_block0.qkv.bias is not in the state"),
        (lambda state: state.update({"model.map_augment.weight": torch.zeros(2)}), "map_augment.weight is not in the"),
        (lambda state: state.update({"model.map_label.weight": torch.zeros(32, 7)}), r"map_label.weight is \(32, 7\)"),
        (lambda state: state.update({"unet.map_layer0.bias": state.pop("model.map_layer0.bias")}), "map_layer0.bias"),
    ],
)
def test_weights_of_another_network_are_refused_and_change_nothing(spoil, named):
    net, state = new_network("A"), published(a_network("A", seed=1))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    spoil(state)
    with pytest.raises(ValueError, match=rf"^[^\n]*{named}[^\n]*$"):
        load_edm_state_dict(net, state)
    with pytest.raises(ValueError, match=r"^[^\n]*A or B, not for config C[^\n]*$"):
        load_edm_state_dict(new_network("C"), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
