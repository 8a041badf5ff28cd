"""Published network pickles are read to the last number, and serve as snapshots do."""

import io
import itertools
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_data import arrays, max_rel, select, table
from published_lookalike import (
    NAME,
    EasyDict,
    Recorded,
    contents,
    contents_of,
    dump,
    layers,
    refused,
    rgb_encoder,
    vae_encoder,
    write,
)
from torch import Tensor, nn

import edm2
from edm2.io.model import convert_published, network_from_state, reconstructed_metadata
from edm2.io.published import PublishedSnapshot
from edm2.io.published.inert_pickle import PickleFile
from edm2.io.published.metadata import clock, images_seen_at
from edm2.io.published.objects import read_contents
from edm2.io.snapshots import is_published, open_run, open_snapshot
from edm2.planning.presets import PRESETS
from edm2.post_hoc_ema import SafetensorsSnapshot, SnapshotError, reconstruct, snapshot_name
from edm2.training import LatentCodec, PixelCodec, codec_from_json

pytestmark = pytest.mark.usefixtures("nothing_is_executed")


# ------------------------------------------------------------------------------------------------ the golden set


@pytest.fixture(scope="session")
def described(golden) -> dict[str, Any]:
    """checkpoints.json."""
    return table(golden, "checkpoints/checkpoints.json")


@pytest.fixture(scope="session")
def stored(golden) -> dict[str, Tensor]:
    """Contents of the pickles, as arrays."""
    return arrays(golden, "checkpoints/snapshots.safetensors")


@pytest.fixture(scope="session")
def networks(golden, described, stored, tmp_path_factory) -> Path:
    """Folder of the pickles that have outputs to compare with; where there are only arrays, of look-alikes."""
    source = golden / "checkpoints"
    if any(source.glob("*.pkl")):
        return source
    folder = tmp_path_factory.mktemp("networks")
    for name in outputs(golden):
        (folder / name).write_bytes(lookalike(described["snapshots"][name], select(stored, name)))
    return folder


@pytest.fixture(scope="session")
def run(golden, described, stored, tmp_path_factory) -> Path:
    """Folder of all pickles of the run; look-alikes have the tensors of which all snapshots' arrays are there."""
    source = golden / "checkpoints"
    if any(source.glob("*.pkl")):
        return source
    folder = tmp_path_factory.mktemp("run")
    common = set.intersection(*(set(select(stored, name)) for name in described["snapshots"]))
    for name, description in described["snapshots"].items():
        tensors = {key: x for key, x in select(stored, name).items() if key in common}
        (folder / name).write_bytes(lookalike(description, tensors))
    return folder


def lookalike(description: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """A pickle of what checkpoints.json says."""
    encoder, loss = description["encoder"], description["loss_fn"]
    values = encoder["attributes"]
    latents = encoder["class_name"] == "StabilityVAEEncoder"
    return dump(
        contents(
            tensors,
            description["ema"]["init_kwargs"],
            encoder=vae_encoder(values["vae_name"], values["scale"], values["bias"]) if latents else rgb_encoder(),
            dataset_kwargs=EasyDict(description["dataset_kwargs"]),
            loss_fn=Recorded(loss["class_name"], loss["attributes"] | {"_init_args": (), "_init_kwargs": {}}),
        )
    )


def outputs(golden: Path) -> list[str]:
    """Pickles of which forward.safetensors holds outputs."""
    names = {key.partition("/")[0] for key in arrays(golden, "checkpoints/forward.safetensors") if "/" in key}
    assert names
    return sorted(names)


def test_every_number_is_read(run, stored, described):
    for name in described["snapshots"]:
        expected = select(stored, name)
        snapshot = PublishedSnapshot(run / name)
        assert set(snapshot.names) <= set(expected)
        for key in snapshot.names:
            tensor = snapshot.read(key)
            assert tensor.dtype == expected[key].dtype
            assert torch.equal(tensor, expected[key]), (name, key)


def test_metadata(run, described):
    inputs = {entry["file"]: entry for entry in described["reconstruction"]["input_list"]}
    for name, expected in described["snapshots"].items():
        metadata = PublishedSnapshot(run / name).metadata
        json.dumps(metadata)  # as it is stored
        arguments = {key: value for key, value in expected["ema"]["init_kwargs"].items() if key != "use_fp16"}
        network = json.loads(json.dumps(metadata["network"]))
        assert {key: network[key] for key in arguments} == arguments
        assert metadata["published"]["dataset_kwargs"] == expected["dataset_kwargs"]
        loss = {key: metadata["published"]["loss_fn"][key] for key in expected["loss_fn"]["attributes"]}
        assert loss == expected["loss_fn"]["attributes"]
        assert (metadata["images_seen"], metadata["sigma_rel"]) == (inputs[name]["nimg"], inputs[name]["std"])
        assert "non-commercial" in metadata["license"]


def test_the_codec_does_what_the_encoder_did(run, described):
    """Latents times scale plus bias in float32, to the bit."""
    for name, expected in described["snapshots"].items():
        codec = codec_from_json(PublishedSnapshot(run / name).metadata["codec"])
        encoder = expected["encoder"]
        if encoder["class_name"] == "StandardRGBEncoder":
            assert codec == PixelCodec()
            continue
        scale, bias = (torch.tensor(encoder["attributes"][key])[:, None, None] for key in ("scale", "bias"))
        assert codec.vae == encoder["attributes"]["vae_name"]
        moments = torch.randn(2, 2 * len(scale), 8, 8)
        assert torch.equal(codec.encode(moments), moments.chunk(2, 1)[0] * scale + bias)


@pytest.mark.parametrize("storage", ["float32_storage", "half_storage"])
def test_names_and_outputs(golden, networks, stored, storage):
    """Converted to float32 when loaded, or kept in float16 and computed with in float32.

    Tolerance: that of whole networks in float32 (`net`).
    """
    expected = arrays(golden, "checkpoints/forward.safetensors")
    x, sigma, labels = (expected[key] for key in ("x", "sigma", "labels"))
    for name in outputs(golden):
        net, snapshot = edm2.load(networks / name), PublishedSnapshot(networks / name)
        assert set(snapshot.names) == set(net.state_dict()) == set(select(stored, name))
        assert set(snapshot.buffers) == {key for key, _ in net.named_buffers()}
        if storage == "half_storage":
            net = network_from_state(snapshot.metadata, {key: snapshot.read(key) for key in snapshot.names})
        D_x, logvar = net(x, sigma, labels, return_logvar=True)
        assert max_rel(D_x, expected[f"{name}/D_x_{storage}"]) <= 5e-6
        assert max_rel(logvar.float(), expected[f"{name}/logvar_{storage}"]) <= 5e-6


def half_ulps(a: Tensor, b: Tensor) -> int:
    """The most float16 numbers between two of the tensors' elements."""
    ordered = [x.view(torch.int16).int() for x in (a.half(), b)]
    ordered = [torch.where(x < 0, -32768 - x, x) for x in ordered]
    return int((ordered[0] - ordered[1]).abs().max())


def test_reconstructions(golden, run, described):
    """Accumulated in float32 as there, then rounded to float16: one unit in the last place."""
    expected = arrays(golden, "checkpoints/phema_reconstructions.safetensors")
    targets = {name: target for name, target in described["reconstruction"].items() if name != "input_list"}
    snapshots = open_run(run)
    assert [s.path.name for s in snapshots] == [entry["file"] for entry in described["reconstruction"]["input_list"]]
    for name, target in targets.items():
        [state] = reconstruct(snapshots, [target["out_std"]], at=target["out_nimg"], method="density")
        tensors = select(expected, name)
        compared = set(tensors) & set(state)
        assert compared
        for key in compared:
            assert half_ulps(state[key], tensors[key]) <= 1, (name, key)
        metadata = reconstructed_metadata(snapshots, target["out_nimg"], target["out_std"], "density")
        used = [[nimg, std] for nimg, std in ((s.images_seen, s.sigma_rel) for s in snapshots) if nimg > 0]
        assert metadata["reconstructed_from"] == [pair for pair in used if pair[0] <= target["out_nimg"]]
        assert "non-commercial" in metadata["license"]


def pickles_of(golden: Path) -> Path:
    if not any((golden / "checkpoints").glob("*.pkl")):
        pytest.skip("the compact set holds no pickles")
    return golden / "checkpoints"


def test_reconstructions_of_the_published_program(golden, described):
    """They load like snapshots, say what they are, and are never taken for inputs."""
    folder = pickles_of(golden)
    expected = arrays(golden, "checkpoints/phema_reconstructions.safetensors")
    for name in described["phema_pickles_kept"]:
        snapshot = PublishedSnapshot(folder / name)
        target = described["reconstruction"][name]
        assert (snapshot.images_seen, snapshot.sigma_rel) == (target["out_nimg"], target["out_std"])
        assert "reconstructed_from" in snapshot.metadata
        for key, tensor in select(expected, name).items():
            assert torch.equal(snapshot.read(key), tensor)
        edm2.load(folder / name)
        assert name not in [s.path.name for s in open_run(folder)]


def test_hostile_pickles_of_the_golden_set(golden, described):
    folder = pickles_of(golden)
    for name in described["hostile_files_create_PWNED_when_loaded_naively"]:
        if "source" in name:  # its payload is the text of the program, which is text here
            edm2.load(folder / name)
        else:
            refused(folder / name)
    assert "training state" in refused(folder / described["training_state"]["file"])


# ------------------------------------------------------------------------------------------------ look-alikes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_was_written_is_read(net, tmp_path, dtype):
    path = write(tmp_path, contents_of(net, dtype))
    snapshot = PublishedSnapshot(path)
    loaded = edm2.load(path)
    assert list(snapshot.names) == list(net.state_dict())
    assert loaded.config == net.config
    for name, tensor in net.state_dict().items():
        assert snapshot.read(name).dtype == dtype
        assert torch.equal(snapshot.read(name), tensor.to(dtype))
        assert torch.equal(loaded.state_dict()[name], tensor.to(dtype).float())


def test_conversion_loses_nothing(net, tmp_path):
    path, out = write(tmp_path, contents_of(net)), tmp_path / "net.safetensors"
    convert_published(path, out)
    published, ours = PublishedSnapshot(path), SafetensorsSnapshot(out)
    assert sorted(ours.names) == sorted(published.names)
    for name in ours.names:
        assert ours.read(name).dtype == torch.float16
        assert torch.equal(ours.read(name), published.read(name))
    expected = json.loads(json.dumps(published.metadata))
    assert ours.metadata.pop("edm2_version")
    assert ours.metadata == expected
    assert (ours.images_seen, ours.sigma_rel) == (published.images_seen, published.sigma_rel)
    a, b = edm2.load(path).state_dict(), edm2.load(out).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(SnapshotError, match="needs no conversion"):
        convert_published(out, tmp_path / "again.safetensors")


def test_encoders(net, tmp_path):
    paper = LatentCodec()
    scale = paper.sigma_data / np.float32(paper.std)
    entries = {"encoder": vae_encoder("some/vae", scale, -np.float32(paper.mean) * scale)}
    codec = codec_from_json(PublishedSnapshot(write(tmp_path, contents_of(net, **entries))).metadata["codec"])
    assert codec == LatentCodec("some/vae")  # 5.81, not 5.809999942779541
    assert codec_from_json(PublishedSnapshot(write(tmp_path, contents_of(net))).metadata["codec"]) == PixelCodec()


def test_other_versions_of_numpy_and_torch_do_not_matter(net, tmp_path):
    """Older numpy names its functions otherwise; torch's modules gain and lose attributes."""
    value = contents_of(net, encoder=vae_encoder("some/vae", [0.5], [0.0]))
    value["ema"].state["_new_hooks"] = OrderedDict()
    del value["ema"].state["_is_full_backward_hook"]
    data = dump(value)
    new, old = b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"
    assert (new in data) != (old in data)
    metadata = [PublishedSnapshot(write(tmp_path, data.replace(a, b))).metadata for a, b in [(new, old), (old, new)]]
    assert metadata[0] == metadata[1]
    assert edm2.load(write(tmp_path, data)).config == net.config


def test_tensors_need_not_be_contiguous(net, tmp_path):
    """Channels-last weights, and two tensors in one storage."""
    value = contents_of(net)
    weights = [layer.state["_parameters"] for layer in layers(value["ema"])]
    conv = next(w for w in weights if w["weight"].ndim == 4)
    conv["weight"] = nn.Parameter(conv["weight"].data.to(memory_format=torch.channels_last), False)
    linears = [w for w in weights if w["weight"].ndim == 2][:2]
    both = torch.cat([w["weight"].data.flatten() for w in linears])
    for w, part in zip(linears, both.split([w["weight"].numel() for w in linears]), strict=True):
        w["weight"] = nn.Parameter(part.view(w["weight"].shape), False)
    loaded = edm2.load(write(tmp_path, value)).state_dict()
    assert all(torch.equal(loaded[name], tensor.half().float()) for name, tensor in net.state_dict().items())


def test_metadata_costs_no_weights():
    """A few percent of a network whose weights outweigh its structure."""

    class Counting(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.count += len(data)
            return data

    file = Counting(dump(contents({"big.weight": torch.zeros(1 << 20, dtype=torch.float16)}, {})))
    read_contents(PickleFile(file))
    assert file.count < 0.01 * len(file.getvalue())


@pytest.mark.parametrize("preset", [name for name, preset in PRESETS.items() if preset.shape])
def test_the_papers_networks_are_recognized(tmp_path, preset):
    channels, side, _ = PRESETS[preset].shape
    arguments = {"img_resolution": side, "img_channels": channels, "label_dim": 1000, **PRESETS[preset].network}
    weight = {"unet.out_conv.weight": torch.zeros(1)}
    for changes, recognized in (({}, preset), ({"res_balance": 0.4}, None)):
        snapshot = PublishedSnapshot(write(tmp_path, contents(weight, arguments | changes)))
        assert snapshot.metadata.get("preset") == recognized


# ------------------------------------------------------------------------------------------------ names and folders


def test_published_names(golden):
    parsing = table(golden, "tables/parsing.json")
    for kimg, images_seen in parsing["kimg_to_nimg"].items():
        assert images_seen_at(int(kimg)) == images_seen
    for images_seen, names in parsing["snapshot_names"].items():
        for name in names:
            assert clock(name) == {"images_seen": int(images_seen), "sigma_rel": float(name[-9:-4])}
    for preset in table(golden, "tables/generation_presets.json").values():
        expected = {"images_seen": images_seen_at(preset["net_kimg"]), "sigma_rel": preset["net_ema_std"]}
        assert clock(preset["net"]) == expected
    for name in ("net.pkl", "net-0000001-0.05.pkl", "net-001-0.050.pkl", "net-0000001-0.050.pt"):
        assert clock(name) == {}


def test_contents_decide_what_a_file_is(net, tmp_path):
    """A download may have lost its suffix, or its name, and with it the time."""
    pickled, renamed = (write(tmp_path, contents_of(net), name) for name in ("pickled", "renamed.pkl"))
    ours = tmp_path / "ours"
    edm2.save(net, ours, {"images_seen": 1, "sigma_rel": 0.1})
    assert is_published(pickled)
    assert not is_published(ours)
    assert isinstance(open_snapshot(ours), SafetensorsSnapshot)
    assert edm2.load(pickled).config == edm2.load(renamed).config == edm2.load(ours).config
    assert "images_seen" not in edm2.read_metadata(renamed)
    with pytest.raises(SnapshotError, match=r"renamed\.pkl: the name does not tell"):
        open_run(tmp_path)


def test_a_folder_of_downloads_is_a_run(net, make_net, tmp_path):
    """Between equal weights there is nothing to average but the same weights."""
    for kimg, std in itertools.product((8388, 16777), (0.05, 0.1)):
        write(tmp_path, contents_of(net, torch.float32), f"edm2-img64-s-{kimg:07}-{std:.3f}.pkl")
    write(tmp_path, contents_of(make_net(seed=5)), "phema-0016777-0.150.pkl")
    snapshots = open_run(tmp_path)
    times = [8388608, 8388608, 16777216, 16777216]
    assert [(s.images_seen, s.sigma_rel) for s in snapshots] == list(zip(times, (0.05, 0.1) * 2, strict=True))
    [state] = reconstruct(snapshots, [0.15])
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6)  # float32 sums of coefficients near 10


def test_whose_snapshots_a_folder_holds(net, tmp_path):
    """A stray download does not hide a run of ours, nor a stray safetensors file one of theirs."""
    write(tmp_path, contents_of(net), "edm2-img64-s-0008388-0.050.pkl")
    edm2.save(net, tmp_path / snapshot_name(1024, 0.05), {"images_seen": 1024, "sigma_rel": 0.05})
    assert [type(s) for s in open_run(tmp_path)] == [SafetensorsSnapshot]
    write(tmp_path, contents_of(net))
    assert [s.path.name for s in open_run(tmp_path)] == [NAME]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no snapshots"):
        open_run(tmp_path / "empty")
