"""`edm2 convert`, and published pickles as input of the other commands."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from command_line import complaint, edm2, half_written, succeed
from published_lookalike import Calling, contents_of, vae_encoder, write

from edm2.io.model import load, read_metadata
from edm2.io.published import PublishedSnapshot
from edm2.networks import NetworkConfig, Precond, build_network
from edm2.post_hoc_ema import SafetensorsSnapshot
from edm2.tools.reports.description import describe_published_run

CONFIG = NetworkConfig(
    8, 4, 3, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), channels_per_head=8
)
FAILURE, USAGE = 1, 2


def network(seed: int) -> Precond:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(CONFIG)


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """Folder of two times and two EMA lengths, as a run of the published program leaves it."""
    folder = tmp_path_factory.mktemp("published")
    encoder = vae_encoder("some/vae", [0.125] * 4, [0.0] * 4)
    names = [f"network-snapshot-{kimg:07}-{std:.3f}.pkl" for kimg in (1, 2) for std in (0.05, 0.1)]
    for seed, name in enumerate(names):
        write(folder, contents_of(network(seed), encoder=encoder), name)
    return folder


@pytest.fixture
def pickle(published) -> Path:
    """The last of them."""
    return published / "network-snapshot-0000002-0.100.pkl"


class Server(SimpleHTTPRequestHandler):
    """Files of a folder, silently; /broken/... ends in the middle."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/broken/"):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"\x80\x04")
            return
        super().do_GET()


@pytest.fixture
def url(published) -> Iterator[str]:
    """URL of a web server that offers the folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=published)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_pickle_becomes_a_snapshot(pickle, tmp_path):
    out = tmp_path / "new" / "net.safetensors"
    text = succeed("convert", pickle, out)
    assert "non-commercial" in text
    assert str(out) in text
    ours, theirs = SafetensorsSnapshot(out), PublishedSnapshot(pickle)
    assert sorted(ours.names) == sorted(theirs.names)
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in theirs.names)
    assert (ours.images_seen, ours.sigma_rel) == (2048, 0.1)
    assert "non-commercial" in ours.metadata["license"]
    assert half_written(tmp_path) == []


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_url_is_fetched(pickle, url, tmp_path, scheme):
    """The file name in it says the time; nothing but the result stays."""
    source = f"{url}/{pickle.name}?download=1" if scheme == "http" else pickle.as_uri()
    out = tmp_path / "net.safetensors"
    succeed("convert", source, out)
    assert read_metadata(out)["images_seen"] == 2048
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    "path",
    ["nothing-0000001-0.050.pkl", "broken/net-0000001-0.050.pkl", "", "..", "%00.pkl", "http://127.0.0.1:9/net.pkl"],
    ids=lambda p: p or "empty",
)
def test_downloads_that_fail(url, tmp_path, path):
    source = path if ":" in path else f"{url}/{path}"
    result = edm2("convert", source, tmp_path / "net.safetensors")
    assert result.code == FAILURE
    assert source in complaint(result.err)
    assert list(tmp_path.iterdir()) == []


def test_a_hostile_pickle_is_refused(published, tmp_path, monkeypatch):
    """Nothing is left and nothing was executed, whether it comes from disk or from a URL."""
    value = contents_of(network(0))
    value["extra"] = Calling(open, "PWNED", "w")
    hostile = write(tmp_path, value)
    monkeypatch.chdir(tmp_path)
    for arguments in (["convert", hostile, "out/net.safetensors"], ["convert", hostile.as_uri(), "net.safetensors"],
                      ["generate", hostile, "--grid", "grid.png"], ["info", hostile],
                      ["reconstruct", tmp_path, "--std", "0.1"]):  # fmt: skip
        result = edm2(*arguments)
        assert result.code == FAILURE
        assert "global io.open" in complaint(result.err)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [hostile]


def test_impossible_results(pickle, tmp_path):
    for out in (tmp_path / "net.pkl", tmp_path):
        result = edm2("convert", pickle, out)
        assert result.code == USAGE
        assert "*.safetensors" in complaint(result.err)
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file"):
        result = edm2("convert", pickle, out, "--to", "diffusers")
        assert result.code == FAILURE
        assert "there already" in complaint(result.err)
    assert edm2("convert", tmp_path / "nothing.pkl", tmp_path / "net.safetensors").code == FAILURE
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_reconstruction_from_pickles(published, tmp_path):
    """Equal to that from the same snapshots converted."""
    converted = tmp_path / "converted"
    for path in published.glob("*.pkl"):
        succeed("convert", path, converted / path.with_suffix(".safetensors").name)
    for source, out in ((published, "a"), (converted, "b")):
        text = succeed("reconstruct", source, "--std", "0.07,0.12", "--at", "2Ki", "--out", tmp_path / out)
        assert "From 4 snapshots" in text
    names = [path.name for path in sorted((tmp_path / "a").iterdir())]
    assert names == ["ema-000000002048-0.0700.safetensors", "ema-000000002048-0.1200.safetensors"]
    for name in names:
        a, b = load(tmp_path / "a" / name).state_dict(), load(tmp_path / "b" / name).state_dict()
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert "non-commercial" in read_metadata(tmp_path / "a" / name)["license"]


def test_other_commands_take_pickles(pickle, tmp_path):
    text = succeed("info", pickle)
    assert "2,048" in text
    assert "some/vae" in text
    assert "non-commercial" in text
    lines = dict(describe_published_run(pickle.parent))
    assert lines["snapshots"] == "4 at 2 times, EMA lengths (0.05, 0.1)"
    renamed = tmp_path / "renamed.pkl"
    renamed.write_bytes(pickle.read_bytes())
    assert "the name does not tell" in complaint(edm2("info", renamed).err)
