"""Malicious and damaged files of strangers: one line that names them, and nothing else happens.

Each of these was a traceback, a hang, or worse, before it was refused; `tests/fuzz.py` looks for more of them.
"""

import json
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import complaint, edm2, succeed, write_images
from dataset_files import npy
from hostile_mutations import DEEP, dumped, objects_npy

TESTS = Path(__file__).resolve().parents[1]


def refused(*words: object) -> str:
    """The one line of a command that must fail."""
    result = edm2(*words)
    line = complaint(result.err)
    assert result.code == 1, line
    assert line.isprintable()
    assert len(line) < 2500
    return line


# ------------------------------------------------------------------------------------------------ networks


def with_metadata(network: Path, path: Path, change: Callable[[dict], Any]) -> Path:
    """The network with other metadata: what `change` returns, as JSON."""
    data = network.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["edm2"] = dumped(change(json.loads(header["__metadata__"]["edm2"]))).decode()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


def entry(**entries: Any) -> Callable[[dict], dict]:
    """Metadata with these entries."""
    return lambda metadata: metadata | entries


METADATA = {
    "a text": lambda metadata: "x",
    "nested too deep": entry(codec=DEEP),
    "no time": entry(images_seen=None),
    "an infinite time": entry(images_seen=float("inf")),
    "a time beyond numbers": entry(images_seen=10**400),
    "no length": entry(sigma_rel=float("nan")),
    "a negative length": entry(sigma_rel=-1),
    "buffers that are lists": entry(buffers=[["a"]]),
    "buffers that are a number": entry(buffers=1),
    "training that is a text": entry(training="long"),
    "training without a batch": entry(training={"seed": 1}),
    "groups that are a list": entry(sigma_rel_of=[1]),
    "a half-life that is a text": entry(half_life="long"),
    "snapshots that are a number": entry(reconstructed_from=3),
    "a guide that is a text": entry(guide="x"),
    "names of classes that are a number": entry(data={"class_names": 5}),
    "names of classes that are numbers": entry(data={"class_names": [1, 2]}),
}


CODECS = [3, {"kind": []}, {"kind": "pixels", "mean": ""}, {"kind": "pixels", "mean": 3}, {"kind": "pixels", "x": 1},
          {"kind": "pixels", "std": [10**400]}, {"kind": "pixels", "levels": "many"}]  # fmt: skip


@pytest.mark.parametrize("name", METADATA)
def test_nonsense_in_metadata_is_refused(name: str, network: Path, tmp_path: Path):
    path = with_metadata(network, tmp_path / "network.safetensors", METADATA[name])
    assert "network.safetensors" in refused("info", path)


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_nonsense_in_a_codec_is_refused_by_name(codec: Any, network: Path, tmp_path: Path):
    path = with_metadata(network, tmp_path / "network.safetensors", entry(codec=codec))
    line = refused("generate", path, "--seeds", "0", "--steps", "1", "--device", "cpu", "--grid", tmp_path / "x.png")
    assert "network.safetensors" in line


def test_what_a_terminal_would_obey_is_not_shown(network: Path, tmp_path: Path):
    path = with_metadata(network, tmp_path / "network.safetensors", entry(license="\x1b[2J\x1b]0;title\x07\u202e"))
    pipeline = tmp_path / "pipeline"
    for words in (("info", path), ("convert", path, pipeline, "--to", "diffusers"), ("info", pipeline)):
        assert "\\x1b[2J" in (shown := succeed(*words))
        assert all(line.isprintable() for line in shown.splitlines())


def test_a_begun_folder_with_a_damaged_image_is_refused_by_name(network: Path, tmp_path: Path):
    words = ("generate", network, "--seeds", "0-1", "--steps", "1", "--device", "cpu", "--out", tmp_path / "drawn")
    succeed(*words)
    image = tmp_path / "drawn" / "000001.png"
    image.write_bytes(image.read_bytes()[:40])
    assert "000001.png: cannot be read" in (line := refused(*words, "--grid", tmp_path / "grid.png"))
    assert "remove it and run the same again" in line


# ------------------------------------------------------------------------------------------------ statistics


def npz(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def huge_npy(shape: str = "(1000000, 1000000)", dtype: str = "<f8") -> bytes:
    """A header that announces more than any memory."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(64)


STATISTICS = {"mu": npy(np.zeros(64)), "sigma": npy(np.eye(64)), "num_images": npy(np.int64(9))}


def reference(folder: Path, members: dict[str, bytes | None] | None = None) -> Path:
    """A reference file in which some members are others, or None."""
    content = {f"pixels/{name}": data for name, data in (STATISTICS | (members or {})).items() if data is not None}
    return npz(folder / "ref.npz", content)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", (8, 8), count=4)


@pytest.mark.parametrize(
    "members",
    [
        {"sigma": huge_npy()},
        {"mu": huge_npy("(4611686018427387904,)")},
        {"mu": b"no array"},
        {"mu": b"\x93NUMPY\1\0\x05\0" + b"[" * 5},
        {"sigma": objects_npy()},
        {"num_images": npy(np.array("many"))},
        {"mu": npy(np.full(64, np.nan))},
        {"sigma": npy(np.eye(63))},
        {"sigma": None},
        {"mu": npy(np.zeros(64))[:-8]},
        {"mu": npy(np.zeros(64)) + bytes(8)},
        {"features": huge_npy("(4, 4)", "<i4")},
        {"features": npy(np.full((4, 64), np.nan))},
        {"features": objects_npy()},
        {"features": b"x"},
    ],
)
def test_statistics_and_features_that_are_none_are_refused(members: dict, images: Path, tmp_path: Path):
    options = ("--metrics", "kid" if "features" in members else "pixels", "--device", "cpu")
    line = refused("metrics", "calc", images, "--ref", reference(tmp_path, members), *options)
    assert "ref.npz" in line


@pytest.mark.parametrize(
    "array", [huge_npy("(1000000000, 8, 8, 1)", "|u1"), huge_npy("(64, 0, 1, 1)", "|u1"), objects_npy(), b""]
)
def test_samples_that_are_none_are_refused(array: bytes, tmp_path: Path):
    samples = npz(tmp_path / "samples.npz", {"arr_0": array})
    line = refused("metrics", "calc", samples, "--ref", reference(tmp_path), "--device", "cpu")
    assert "samples.npz: holds no images" in line


def test_a_reference_does_not_name_programs_to_be_run(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Detectors may be functions of the user's own, `module:callable`; but it is the user who says which."""
    monkeypatch.chdir(tmp_path)
    Path("evil_detector.py").write_text("open('PWNED', 'w').close()\n")
    content = {f"evil_detector:features/{name}": data for name, data in STATISTICS.items()}
    line = refused("metrics", "calc", images, "--ref", npz(tmp_path / "ref.npz", content), "--device", "cpu")
    assert "evil_detector:features" in line
    assert "if you trust it, name it (--metrics)" in line
    assert not Path("PWNED").exists()


# ------------------------------------------------------------------------------------------------ all kinds


@pytest.mark.slow
def test_five_hundred_hostile_files(tmp_path: Path):
    """The files are the same on every machine. For more of them: python tests/fuzz.py --help"""
    pytest.importorskip("resource", reason="limits of memory are those of Unix")
    command = [sys.executable, str(TESTS / "fuzz.py"), "--count", "500", "--seed", "1", "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    inputs, succeeded, were_refused = map(int, re.findall(r"\d+", done.stdout.splitlines()[-1]))
    assert inputs == 500
    assert min(succeeded, were_refused) > 100  # both happen, or nothing was tried
