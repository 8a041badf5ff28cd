"""Conditions keep magnitudes, are there or not image by image, and enter as described."""

import itertools
import json

import pytest
import torch

from edm2.networks import (
    ImageCondition,
    NetworkConfig,
    Precond,
    ScalarCondition,
    TokenCondition,
    VectorCondition,
    build_network,
    fold,
    mp_sum_of_sources,
)
from edm2.networks.blocks import blocks
from edm2.networks.conditions import CrossAttention
from edm2.networks.magnitude import normalize

KINDS = (
    VectorCondition("colour", 12, dropout=0.1),
    ScalarCondition("age", dropout=0.1),
    ImageCondition("lowres", 3, mean=(100, 120, 140), std=(50, 60, 70), dropout=0.1),
    TokenCondition("caption", 16, length=4, dropout=0.1),
)


def network(conditions=KINDS, classes: int = 4, **options) -> Precond:
    """A small network on whose output everything has an effect but tokens, whose gates are 0."""
    shape = {"model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (16, 8)}
    options = {"channels_per_head": 32, "label_source": bool(classes and conditions), **shape, **options}
    net = build_network(NetworkConfig(16, 3, classes, conditions=conditions, **options))
    for name, parameter in net.named_parameters():
        if name.endswith(("out_gain", "emb_gain")):
            torch.nn.init.ones_(parameter)
    return net


def some_conditions(count: int) -> dict[str, torch.Tensor]:
    lowres = 60 * torch.randn(count, 3, 8, 8) + 120
    tokens = torch.randn(count, 4, 16)
    return {"colour": torch.randn(count, 12), "age": torch.randn(count), "lowres": lowres, "caption": tokens}


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


# ---------------------------------------------------------------------------------------------------- magnitudes


def test_the_sum_of_sources_has_unit_magnitude_whatever_its_weights():
    e = torch.randn(4, 1000, 500)
    for weights in ((1, 1, 1), (0, 0.3, 2), (0, 0, 0)):
        sources = [(e[i + 1], torch.full([1000, 1], float(g))) for i, g in enumerate(weights)]
        assert rms(mp_sum_of_sources(e[0], sources)) == pytest.approx(1, abs=0.005)
    unchanged = mp_sum_of_sources(e[0], [(e[1], torch.zeros(1000, 1))])
    assert torch.equal(unchanged, e[0])


@torch.no_grad()
def test_the_embedding_has_unit_magnitude_whatever_is_present():
    """Over 128 initializations with independent inputs; the noise level's part is always there."""
    settings = {"channel_mult": (1,), "channel_mult_emb": 32, "num_blocks": 0, "attn_resolutions": ()}
    sums = dict.fromkeys(itertools.product((True, False), repeat=3), 0.0)
    rounds, images = 128, 8
    for _ in range(rounds):
        net = network(KINDS[:2], model_channels=8, channel_mult_noise=8, **settings)
        assert net.config.emb_channels == 256
        x, c_noise = torch.zeros(images, 3, 4, 4), torch.randn(images)
        given = some_conditions(images)
        labels = torch.eye(4)[torch.arange(images) % 4]
        for present in sums:
            has_colour, has_age, has_class = present
            values = {"colour": given["colour"] if has_colour else None, "age": given["age"] if has_age else None}
            prepared = {c.name: c.prepare(values[c.name], x) for c in KINDS[:2]}
            emb = net.unet.embed(c_noise, labels * has_class, prepared)
            sums[present] += emb.square().mean().item() / rounds
    for present, square in sums.items():
        assert square**0.5 == pytest.approx(1, abs=0.02), present


@torch.no_grad()
def test_blocks_are_as_close_to_unit_magnitude_as_without_conditions():
    def magnitudes(conditions, given) -> torch.Tensor:
        found = []
        for seed in range(8):
            torch.manual_seed(seed)
            net = build_network(network(conditions, model_channels=32).config)
            hooks = [b.register_forward_hook(lambda _, __, y: found.append(rms(y))) for b in blocks(net)]
            net(0.5 * torch.randn(4, 3, 16, 16), 0.5, torch.arange(4), conditions=given)
            assert len(found) == (seed + 1) * len(hooks)
        return torch.tensor(found).view(8, -1).mean(dim=0)

    without, noise = magnitudes((), {}), torch.randn(4, 3, 16, 16)
    lowres = torch.tensor([100.0, 120, 140]).view(3, 1, 1) + torch.tensor([50.0, 60, 70]).view(3, 1, 1) * noise
    for given in (some_conditions(4) | {"lowres": lowres}, {}):
        assert ((magnitudes(KINDS, given) - 1).abs() - (without - 1).abs()).max() < 0.05


@torch.no_grad()
@pytest.mark.parametrize(("tokens", "attended", "kept"), [(0, 0.98, 0.99), (4, 0.59, 0.82), (77, 0.28, 0.74)])
def test_means_over_many_tokens_are_small(tokens, attended, kept):
    """Why an open gate takes up to a quarter of the magnitude, as docs/conditions.md says."""
    found = []
    for seed in range(8):
        torch.manual_seed(seed)
        cross, x = CrossAttention(64, 16, num_heads=1), normalize(torch.randn(4, 64, 8, 8), dim=1)
        context = torch.randn(4, tokens + 1, 16), torch.ones(4, tokens + 1, dtype=torch.bool)
        torch.nn.init.ones_(cross.gate)
        out = cross(x, context)
        found.append((rms(2**0.5 * out - x), rms(out)))
    assert torch.tensor(found).mean(dim=0).tolist() == pytest.approx([attended, kept], rel=0.05)


# ------------------------------------------------------------------------------------------- presence, image by image


@torch.no_grad()
@pytest.mark.parametrize("name", [condition.name for condition in KINDS])
def test_nan_means_absent_and_so_does_a_condition_that_is_not_given(name):
    net, x, given = network(), torch.randn(2, 3, 16, 16), some_conditions(2)
    absent = given[name].clone()
    absent[1] = torch.nan
    mixed = net(x, 1.0, conditions=given | {name: absent})
    whole = net(x, 1.0, conditions=given)
    without = net(x, 1.0, conditions={other: values for other, values in given.items() if other != name})
    torch.testing.assert_close(mixed, torch.stack([whole[0], without[1]]), rtol=1e-4, atol=1e-5)
    if name != "caption":  # its gates are 0 at first
        assert (whole - without).abs().max() > 1e-2


@torch.no_grad()
def test_padding_changes_nothing():
    net, x, given = network(), torch.randn(2, 3, 16, 16), some_conditions(2)
    for block in blocks(net):
        for cross in block.attn_cross.values() if block.num_heads else ():
            cross.gate.fill_(1)
    short = given | {"caption": given["caption"][:, :2]}
    padded = given | {"caption": torch.cat([given["caption"][:, :2], torch.full([2, 2, 16], torch.nan)], dim=1)}
    D_x = net(x, 1.0, conditions=short)
    torch.testing.assert_close(D_x, net(x, 1.0, conditions=padded), rtol=1e-4, atol=1e-5)
    assert (D_x - net(x, 1.0, conditions=given)).abs().max() > 1e-2
    assert net(x, 1.0).isfinite().all()  # the unit token alone


@torch.no_grad()
@pytest.mark.parametrize("sigma", [0.01, 80.0])
def test_an_image_condition_is_standardized_and_never_multiplied_by_c_in(sigma):
    net, inputs = network(), []
    net.unet.enc["16x16_conv"].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    lowres = torch.tensor([100.0, 120, 140]).view(1, 3, 1, 1) + torch.tensor([50.0, 60, 70]).view(1, 3, 1, 1)
    net(torch.randn(2, 3, 16, 16), sigma, conditions={"lowres": lowres.expand(2, 3, 8, 8)})
    _, condition, mask, ones = inputs[0].split([3, 3, 1, 1], dim=1)
    assert torch.equal(condition, torch.ones_like(condition))
    assert torch.equal(mask, torch.ones_like(mask))
    assert torch.equal(ones, mask)
    net(torch.randn(2, 3, 16, 16), sigma)
    _, absent, mask, ones = inputs[1].split([3, 3, 1, 1], dim=1)
    assert torch.equal(absent, torch.ones_like(absent))  # of unit magnitude, too
    assert torch.equal(mask, -ones)


@torch.no_grad()
def test_noise_on_an_image_condition_is_a_condition_of_its_own():
    image = ImageCondition("lowres", 1, noise=2.0)
    with pytest.raises(ValueError, match="level is not among the conditions"):
        NetworkConfig(16, 3, 0, conditions=(image,))
    level = ScalarCondition("lowres_noise", mean=(1.0,), std=(0.6,))
    net, inputs = network((image, level), classes=0), []
    net.unet.enc["16x16_conv"].register_forward_pre_hook(lambda _, given: inputs.append(given[0][:, 3:4]))
    x, clean, levels = torch.randn(64, 3, 16, 16), torch.randn(64, 1, 16, 16), torch.linspace(0, 2, 64)
    noisy = clean + levels.view(-1, 1, 1, 1) * torch.randn(64, 1, 16, 16)
    told = net(x, 1.0, conditions={"lowres": noisy, "lowres_noise": levels})
    assert rms(inputs[0]) == pytest.approx(1, abs=0.03)
    assert (told - net(x, 1.0, conditions={"lowres": noisy})).abs().max() > 1e-2  # whoever says nothing says 0
    for wrong in ({"lowres": noisy[:, 0]}, {"lowres": noisy.expand(-1, 2, -1, -1)}, {"lowres_noise": levels[:2]}):
        with pytest.raises(ValueError, match=f"condition {next(iter(wrong))}: values are"):
            net(x, 1.0, conditions={"lowres": noisy, **wrong})


# --------------------------------------------------------------------------------------------------- descriptions


def test_a_network_without_conditions_is_described_as_always():
    assert not {"conditions", "label_source"} & NetworkConfig(16, 3, 4).to_json().keys()


def test_descriptions_go_through_json():
    config = network().config
    assert NetworkConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_folding_keeps_the_function(compute_dtype):
    net, x, given = network().eval(), torch.randn(2, 3, 16, 16), some_conditions(2)
    net.compute_dtype = compute_dtype
    tolerance = 1e-4 if compute_dtype == torch.float32 else 0.1
    torch.testing.assert_close(
        fold(net, compute_dtype)(x, 1.0, conditions=given), net(x, 1.0, conditions=given), rtol=0, atol=tolerance
    )


def test_every_parameter_learns():
    net, x = network(), torch.randn(2, 3, 16, 16)
    for name, parameter in net.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.ones_(parameter)
    net(x, 1.0, torch.tensor([0, 1]), conditions=some_conditions(2)).square().sum().backward()
    still = [n for n, p in net.named_parameters() if "logvar" not in n and (p.grad is None or not p.grad.any())]
    assert not still


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (
            {"depth": torch.zeros(2, 1)},
            r"unknown conditions depth: this network takes colour \(a vector of 12 numbers\)",
        ),
        ({"colour": torch.zeros(2, 3)}, r"condition colour: values are \[2, 3\], but must be \[2, 12\]"),
        ({"age": torch.zeros(3)}, r"condition age: values are \[3, 1\], but must be \[2, 1\]"),
        ({"lowres": torch.zeros(2, 1, 8, 8)}, r"must be \[2, 3, any, any\]"),
        ({"caption": torch.zeros(2, 5, 16)}, "5 tokens, but the network was trained with at most 4; shorten it"),
    ],
    ids=["unknown", "size", "rows", "channels", "length"],
)
def test_values_that_do_not_fit_are_refused(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        network()(torch.zeros(2, 3, 16, 16), 1.0, conditions=given)


def test_tokens_need_attention():
    with pytest.raises(ValueError, match="tokens need attention, and no block is wide enough"):
        network(KINDS[3:], model_channels=8)


def test_a_condition_that_every_image_had_is_needed():
    net = network((VectorCondition("colour", 3),))
    with pytest.raises(
        ValueError, match="colour is needed: the network was trained with it for every image; give a vec"
    ):
        net(torch.zeros(2, 3, 16, 16), 1.0)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: VectorCondition("a b", 3), "choose another name"),
        (lambda: VectorCondition("items", 3), "choose another name"),
        (lambda: VectorCondition("a", 3, mean=(1.0,), std=(1.0,)), "3 channels, 1 means"),
        (lambda: VectorCondition("a", 1, mean=(1.0,), std=(0.0,)), "std positive"),
        (lambda: VectorCondition("a", 3, dropout=1.5), "between 0 and 1"),
        (lambda: NetworkConfig(16, 3, 0, conditions=(VectorCondition("a", 3),) * 2), "described twice"),
        (lambda: NetworkConfig(16, 3, 0, conditions=({"kind": "sound", "name": "a"},)), "unknown kind"),
        (lambda: NetworkConfig(16, 3, 0, conditions=({"kind": "vector", "name": "a"},)), "missing"),
        (lambda: NetworkConfig(16, 3, 0, config="E", conditions=(VectorCondition("a", 3),)), "only in config G"),
        (lambda: NetworkConfig(16, 3, 0, label_source=True), "needs classes"),
    ],
    ids=range(10),
)
def test_descriptions_that_make_no_sense_are_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
