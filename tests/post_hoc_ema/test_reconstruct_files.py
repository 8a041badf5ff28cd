"""Reconstruction into files: the same numbers as in memory, in bounded memory, and all files or none."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from edm2.post_hoc_ema import (
    SnapshotError,
    find_snapshots,
    missing_snapshots,
    read_metadata,
    reconstruct,
    reconstruct_files,
    reconstruct_tensors,
    snapshot_name,
    write_snapshot,
)
from edm2.post_hoc_ema.streaming import Resources
from edm2.post_hoc_ema.tensor_files import SafetensorsWriter

ROOT = Path(__file__).resolve().parents[2]
TARGETS = [0.03, 0.07, 0.13, 0.2]


def tensors(generator):
    def randn(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "big": randn(301, 77),
        "conv": randn(8, 4, 3, 3).to(torch.float64),
        "gain": randn(),
        "empty": torch.zeros(0, 3),
        "freqs": randn(5),
        "count": torch.tensor([7, 8]),
        "flag": torch.tensor(True),
        "phase": randn(4).to(torch.complex64),
        **{f"bias{i}": randn(i + 1) for i in range(20)},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four times two snapshots, stored in float16 but for float64, a buffer, integers and complex numbers."""
    folder, generator = tmp_path_factory.mktemp("run"), torch.Generator().manual_seed(0)
    for t in (1000, 2000, 3000, 4000):
        for s in (0.05, 0.1):
            state = tensors(generator)
            state = {name: x.half() if x.dtype == torch.float32 and name != "freqs" else x for name, x in state.items()}
            metadata = {"images_seen": t, "sigma_rel": s, "buffers": ["freqs"]}
            write_snapshot(folder / snapshot_name(t, s), state, metadata)
    return folder


def reconstruct_into(folder, run, targets=TARGETS, **options):
    paths = [folder / f"{s}.safetensors" for s in targets]
    reconstruct_files(
        find_snapshots(run), targets, paths, [{"reconstructed_from": [], "s": s} for s in targets], **options
    )
    return paths


def read_all(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("memory", [1 << 18, 1 << 30])
def test_files_hold_what_memory_would(run, tmp_path, memory, threads):
    """To the bit, whatever the memory and the threads: places in a part do not change rounding. Progress counts every
    number once."""
    seen = []
    options = {"memory": memory, "threads": threads, "progress": lambda done, total: seen.append((done, total))}
    paths = reconstruct_into(tmp_path, run, **options)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    averaged = [x for name, x in tensors(torch.Generator()).items() if name not in ("freqs", "count", "flag")]
    assert seen[-1][0] == seen[-1][1] == sum(x.numel() for x in averaged)
    assert len(seen) > 1 or memory > 1 << 18
    for sigma_rel, path, state in zip(TARGETS, paths, reconstruct(find_snapshots(run), TARGETS), strict=True):
        found = read_all(path)
        assert found.keys() == state.keys()
        for name, x in state.items():
            assert found[name].dtype == x.dtype
            assert torch.equal(found[name], x), name
        assert read_metadata(path)["s"] == sigma_rel


def test_blocks_hold_what_the_plain_sum_does(run):
    """Both are in float32 at least, in another order: rounding, times the inputs, times the sum of coefficients."""
    found = find_snapshots(run)
    plain, states = dict(reconstruct_tensors(found, TARGETS)), reconstruct(found, TARGETS)
    for i, state in enumerate(states):
        assert list(state) == list(plain)
        for name, x in state.items():
            assert x.dtype == plain[name][i].dtype
            epsilon = torch.finfo(x.dtype).eps if name not in ("freqs", "count", "flag") else 0
            torch.testing.assert_close(x, plain[name][i], rtol=0, atol=epsilon * len(found) * 14 * 5, msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_storage_type(run, tmp_path, dtype):
    """For averages; buffers, integers and complex numbers keep theirs."""
    [path] = reconstruct_into(tmp_path, run, [0.07], dtype=dtype)
    [state] = reconstruct(find_snapshots(run), [0.07])
    for name, x in read_all(path).items():
        expected = state[name] if name in ("freqs", "count", "flag", "phase") else state[name].to(dtype)
        assert x.dtype == expected.dtype, name
        assert torch.equal(x, expected), name


def test_groups_have_lengths_of_their_own(run, tmp_path):
    """The first pattern that fits counts; `!` stands for all that does not fit."""
    groups = {"bias1*": 0.2, "bias*": 0.05, "!big": 0.1}
    [path] = reconstruct_into(tmp_path, run, [0.03], groups=groups)
    state, found = read_all(path), find_snapshots(run)
    alone = {s: reconstruct(found, [s])[0] for s in (0.03, 0.05, 0.1, 0.2)}
    for name, x in state.items():
        s = 0.2 if name.startswith("bias1") else 0.05 if name.startswith("bias") else 0.03 if name == "big" else 0.1
        torch.testing.assert_close(x, alone[s][name], rtol=0, atol=1e-6, msg=name)  # other columns, other kernels
    with pytest.raises(ValueError, match=r"no tensor is left for the pattern 'bais\*'"):
        reconstruct(found, [0.1], groups={"bais*": 0.1})
    with pytest.raises(ValueError, match=r"sigma_rel=0\.3"):
        reconstruct(found, [0.1], groups={"bias*": 0.3})


def test_memory_or_a_disk_too_small_is_refused_before_anything_is_written(run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"memory=1000 bytes is too little for 8 snapshots and 4 targets"):
        reconstruct_into(tmp_path, run, memory=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=9))
    with pytest.raises(OSError, match="fewer at a time"):
        reconstruct_into(tmp_path, run)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("inputs", "targets"), [(2, 1), (16, 31), (1024, 25)])
@pytest.mark.parametrize("memory", [64 << 20, 512 << 20, 4 << 30])
def test_resources_stay_within_what_is_allowed(memory, inputs, targets):
    resources = Resources.within(memory, 8, inputs, targets)
    assert resources.threads * resources.workspace <= memory
    assert 1 <= resources.threads <= 8
    assert resources.block % 64 == 0


@pytest.mark.parametrize("trouble", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_trouble_in_the_middle_leaves_nothing(run, tmp_path, monkeypatch, trouble):
    write, calls = SafetensorsWriter.write, []

    def fail(self, name, start, numbers):
        calls.append(name)
        if len(calls) == 40:
            raise trouble
        write(self, name, start, numbers)

    monkeypatch.setattr(SafetensorsWriter, "write", fail)
    with pytest.raises(type(trouble)):
        reconstruct_into(tmp_path, run, memory=1 << 18)
    assert not list(tmp_path.iterdir())


def test_a_snapshot_truncated_meanwhile_is_named(run, tmp_path):
    copies = find_snapshots(shutil.copytree(run, tmp_path / "run"))
    copies[2].path.write_bytes(copies[2].path.read_bytes()[:-2000])
    with pytest.raises(SnapshotError, match=rf"{copies[2].path} cannot be read: truncated"):
        reconstruct_files(copies, [0.1], [tmp_path / "out" / "a.safetensors"], [{}])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("shape", "time", "message"),
    [
        (3, 2, r"different networks: w is \(3,\) and \(2,\).*b\.safetensors and .*a\.saf"),
        (2, 1, r"two averages of 1 images at sigma_rel=0\.1 \(.*\.safetensors and .*\.saf"),
    ],
    ids=["shapes", "duplicates"],
)
def test_snapshots_are_compared_before_anything_is_written_and_named_by_their_files(tmp_path, shape, time, message):
    write_snapshot(tmp_path / "run/a.safetensors", {"w": torch.zeros(2)}, {"images_seen": 1, "sigma_rel": 0.1})
    write_snapshot(tmp_path / "run/b.safetensors", {"w": torch.zeros(shape)}, {"images_seen": time, "sigma_rel": 0.1})
    with pytest.raises(ValueError, match=message):
        reconstruct_into(tmp_path / "out", tmp_path / "run")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_in_the_middle_is_found(run):
    found = find_snapshots(run)
    assert missing_snapshots(found) == []
    longer = [*found, *(SimpleNamespace(images_seen=t, sigma_rel=s) for t in (5000, 5500) for s in (0.05, 0.1))]
    assert missing_snapshots(longer) == []  # the end of a run comes early
    without = [s for s in longer if s.images_seen != 3000][1:]
    assert missing_snapshots(without) == [(1000, 0.05), (3000, 0.05), (3000, 0.1)]


PROGRAM = """
import sys
from pathlib import Path
import torch
from edm2.post_hoc_ema import find_snapshots, reconstruct_files

def most_memory():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) / 1e3

torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # loads the library's kernels
before, targets = most_memory(), [0.03 + 0.007 * i for i in range(31)]
out = [Path(sys.argv[2]) / f"{i}.safetensors" for i in range(31)]
reconstruct_files(find_snapshots(sys.argv[1]), targets, out, [{}] * 31, memory=32 << 20, threads=2)
print(most_memory() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its account of memory")
def test_memory_does_not_grow_with_the_network(tmp_path):
    """31 targets of 16 MB, one tensor: 500 MB of results through 32 MB, and as much again for threads and libraries."""
    for t in (1, 2):
        for s in (0.05, 0.1):
            metadata = {"images_seen": t, "sigma_rel": s}
            write_snapshot(tmp_path / "run" / snapshot_name(t, s), {"w": torch.randn(2000, 2000)}, metadata)
    command = [sys.executable, "-c", PROGRAM, tmp_path / "run", tmp_path / "out"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 64
