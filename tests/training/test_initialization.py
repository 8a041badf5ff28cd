"""Fine-tuning: networks that start from a snapshot, of every letter of the ladder."""

import pytest
import torch
from ladder_networks import LETTERS, a_network, an_input, new_network

from edm2.networks import (
    ImageCondition,
    Precond,
    ScalarCondition,
    TokenCondition,
    VectorCondition,
    force_weight_normalization_,
)
from edm2.planning.presets import PRESETS
from edm2.post_hoc_ema import SnapshotError, write_snapshot
from edm2.training.initialization import LABEL_EMBEDDINGS, load_snapshot_


def snapshot_of(net: Precond, folder) -> str:
    """What a run of this network leaves."""
    path = folder / "snapshot.safetensors"
    described = {"network": net.config.to_json(), "images_seen": 1, "sigma_rel": 0.1}
    write_snapshot(path, net.state_dict(), described)
    return str(path)


@pytest.mark.parametrize("letter", LETTERS)
def test_everything_comes_from_the_snapshot(letter, tmp_path):
    source, net = a_network(letter), new_network(letter, seed=1)
    load_snapshot_(net, snapshot_of(source, tmp_path))
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize(("before", "after"), [(5, 7), (5, 0), (0, 5)])
def test_other_classes_get_fresh_vectors(letter, before, after, tmp_path):
    source, net = a_network(letter, label_dim=before), new_network(letter, seed=1, label_dim=after)
    fresh = {name: tensor.clone() for name, tensor in net.state_dict().items() if name in LABEL_EMBEDDINGS}
    assert len(fresh) == (after > 0)
    load_snapshot_(net, snapshot_of(source, tmp_path))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name in fresh else source.state_dict()[name]), name


OTHERS = [(letter, {"letter": other}, f"config {other}, not of config {letter}") for letter, other in
          ("AB", "BA", "CD", "DE", "ED", "FG", "GF", "AG")]  # fmt: skip
OTHERS += [("D", changes, "another network") for changes in ({"num_blocks": 2}, {"model_channels": 32})]


@pytest.mark.parametrize(("letter", "changes", "complaint"), OTHERS, ids=str)
def test_a_snapshot_of_another_network_is_refused(letter, changes, complaint, tmp_path):
    """By letter also where the names are the same: tensors of D are not what E would have come to. Nothing changes."""
    net = new_network(letter)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(SnapshotError, match=rf"^[^\n]*{complaint}[^\n]*$"):
        load_snapshot_(net, snapshot_of(a_network(**{"letter": letter, **changes}), tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# ------------------------------------------------------------------------------------------------ more conditions

ADDED = (
    VectorCondition("colour", 4),
    ScalarCondition("age", dropout=0.5),
    ImageCondition("lowres", 2, dropout=0.5),
    TokenCondition("caption", 6, dropout=0.5),
)


def values_for(n: int) -> dict[str, torch.Tensor]:
    caption, lowres = torch.randn(n, 3, 6), torch.randn(n, 2, 8, 8)
    return {"colour": torch.randn(n, 4), "age": torch.randn(n), "lowres": lowres, "caption": caption}


def published(preset: str) -> dict:
    """Fields of a published network's configuration, but its size."""
    return {k: v for k, v in PRESETS[preset].network.items() if k not in ("model_channels", "dropout")}


@torch.no_grad()
@pytest.mark.parametrize(
    "before",
    [
        {"label_dim": 0},
        {"label_dim": 5},
        {"label_dim": 5, "conditions": ADDED[2:3]},
        {"label_dim": 5, "conditions": ADDED[:1], "label_source": True},
        {**published("edm2-img512-xs"), "label_dim": 5, "img_channels": 4, "channel_mult": (1, 2, 3), "num_blocks": 1},
        {**published("edm2-img64-s"), "label_dim": 5, "channel_mult": (1, 2, 3), "num_blocks": 1},
    ],
    ids=["unconditional", "class", "class and image", "n-ary sum", "published 512", "published 64"],
)
def test_more_conditions_begin_as_the_same_function(before, tmp_path):
    """To 1e-5, whatever the conditions say, before and after a forced normalization; but they will have an effect."""
    source = a_network("G", **before)
    force_weight_normalization_(source)
    for gain in (p for name, p in source.named_parameters() if name.endswith("label_gain")):
        gain.fill_(0.8)
    net = new_network("G", seed=1, **before | {"conditions": ADDED})
    load_snapshot_(net, snapshot_of(source, tmp_path))
    x, sigma, labels = an_input(source)
    known = {condition.name for condition in before.get("conditions", ())}
    given = values_for(len(x))
    for _ in range(2):
        expected = source(x, sigma, labels, conditions={name: given[name] for name in known})
        torch.testing.assert_close(net(x, sigma, labels, conditions=given), expected, rtol=1e-5, atol=1e-5)
        fewer = {name: values for name, values in given.items() if name in {"colour", *known}}
        torch.testing.assert_close(net(x, sigma, labels, conditions=fewer), expected, rtol=1e-5, atol=1e-5)
        force_weight_normalization_(source)
        force_weight_normalization_(net)
    for name, parameter in net.named_parameters():
        if name.endswith(("gain", "gate")):
            parameter.fill_(1.0)
    assert (net(x, sigma, labels, conditions=given) - expected).abs().max() > 1e-2


def test_classes_can_be_added_with_conditions(tmp_path):
    """As a source of the n-ary sum whose gain is 0."""
    source = a_network("G", label_dim=0)
    net = new_network("G", seed=1, label_dim=5, conditions=ADDED[:1], label_source=True)
    load_snapshot_(net, snapshot_of(source, tmp_path))
    x, sigma, labels = an_input(net)
    D_x = net(x, sigma, labels, conditions={"colour": torch.randn(len(x), 4)})
    torch.testing.assert_close(D_x, source(x, sigma), rtol=1e-5, atol=1e-5)


def test_a_network_does_not_lose_conditions(tmp_path):
    source = a_network("G", conditions=ADDED[:2])
    with pytest.raises(SnapshotError, match="another network"):
        load_snapshot_(new_network("G", conditions=ADDED[:1]), snapshot_of(source, tmp_path))
