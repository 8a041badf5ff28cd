"""Fine-tuning: networks that start from a snapshot, of every letter of the ladder."""

import pytest
import torch
from ladder_networks import LETTERS, a_network, new_network

from edm2.networks import Precond
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
