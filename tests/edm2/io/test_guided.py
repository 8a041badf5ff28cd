"""guided.json is read as one network, names files beside it only, and is refused in one line if it makes no sense."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import edm2
from edm2.io.guided import GuidedFile
from edm2.io.model import digest_of
from edm2.post_hoc_ema import SnapshotError
from edm2.sweep.guides import FixedGuide


@pytest.fixture
def folder(net, make_net, tmp_path: Path) -> Path:
    out = tmp_path / "written"
    out.mkdir()
    edm2.save(net, out / "network.safetensors", {"images_seen": 64, "sigma_rel": 0.1})
    edm2.save(make_net(seed=1), out / "guide.safetensors", {"images_seen": 8, "sigma_rel": 0.2})
    return out


def written(folder: Path, **changes) -> Path:
    fields = {"network": folder / "network.safetensors", "guide": folder / "guide.safetensors", "weight": 1.7}
    path = folder / "guided.json"
    GuidedFile(**fields | changes).write(path, {"method": "autoguidance"})
    return path


def samples(net) -> torch.Tensor:
    return torch.cat([batch.samples for batch in edm2.generate(net, range(3), num_steps=4)])


@pytest.mark.parametrize(
    "changes",
    [{}, {"interval": (0.3, 10.0)}, {"guide": None}, {"guide": None, "dropout": 0.2}],
    ids=["guide", "interval", "unlabelled", "dropout"],
)
def test_load_gives_the_network_with_its_guide_wherever_the_folder_is(folder, net, tmp_path, changes):
    path = written(folder, **changes)
    loaded = edm2.load(path)
    expected = samples(loaded)
    assert not torch.equal(expected, samples(net))
    assert edm2.read_metadata(path)["images_seen"] == 64
    assert edm2.read_metadata(path)["guided"]["guidance"] == 1.7
    moved = tmp_path / "moved"
    shutil.move(folder, moved)
    assert torch.equal(samples(edm2.load(moved / "guided.json")), expected)


def test_its_files_are_part_of_what_it_is(folder, make_net):
    """For images that are drawn already, and for the scores of a sweep that it guides."""
    path = written(folder)
    before = digest_of(path), FixedGuide(path).to_json()
    edm2.save(make_net(seed=2), folder / "guide.safetensors", {"images_seen": 8, "sigma_rel": 0.2})
    assert digest_of(path) != before[0]
    assert FixedGuide(path).to_json() != before[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "other"}, "edm2 autoguide"),
        ({"guidance": "strong"}, "edm2 autoguide"),
        ({"guidance": float("nan")}, "weight nan"),
        ({"guidance": 10**400}, "edm2 autoguide"),
        ({"interval": [2.0, 0.5]}, "interval"),
        ({"interval": 3}, "edm2 autoguide"),
        ({"guide": "../guide.safetensors"}, "beside it"),
        ({"network": "/etc/passwd"}, "beside it"),
        ({"guide": ["a"]}, "beside it"),
        ({"network": "guided.json"}, "beside it"),
        ({"guide": "guided.json"}, "beside it"),
        ({"guide": "gone.safetensors"}, "copy the whole folder"),
        ({"guide": {"dropout": 2.0}}, "between 0 and 1"),
    ],
    ids=lambda value: None if isinstance(value, str) else json.dumps(value)[:40],
)
def test_what_makes_no_sense_is_refused_in_one_line(folder, changes, words):
    path = written(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(SnapshotError) as refused:
        edm2.load(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe", b"{" * 1000], ids=["empty", "list", "binary", "deep"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "guided.json"
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match=r"guided\.json: is no network with a guide"):
        edm2.load(path)


def test_a_guide_of_other_images_is_refused(folder, make_net):
    edm2.save(make_net(img_channels=1), folder / "guide.safetensors", {"images_seen": 8, "sigma_rel": 0.2})
    with pytest.raises(SnapshotError, match="cannot guide"):
        edm2.load(written(folder))
