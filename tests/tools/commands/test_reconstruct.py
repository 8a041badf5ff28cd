"""`edm2 reconstruct`: plans, forecasts, memory, groups, and folders in which something is wrong."""

import shutil
from pathlib import Path

import pytest
import torch
from command_line import complaint, edm2, half_written, succeed
from safetensors.torch import load_file

from edm2.io.model import read_metadata
from edm2.post_hoc_ema import find_snapshots, reconstruct, sigma_rel_to_half_life, write_snapshot


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def test_any_memory_and_threads_give_the_same_files(tiny_run: Path, tmp_path: Path):
    lengths = ("--std", "0.06,0.07,...,0.12")
    succeed("reconstruct", tiny_run, *lengths, "--out", tmp_path / "a")
    succeed("reconstruct", tiny_run, *lengths, "--out", tmp_path / "b", "--memory", "256K", "--threads", 2)
    succeed("reconstruct", tiny_run, *lengths, "--out", tmp_path / "half", "--dtype", "fp16")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 7
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert torch.float16 in {tensor.dtype for tensor in load_file(tmp_path / "half" / name).values()}


def test_plan_of_a_run_writes_nothing(tiny_run: Path, tmp_path: Path):
    command = ("reconstruct", tiny_run, "--std", "0.07", "--out", tmp_path / "out")
    planned = succeed(*command, "--plan")
    assert not (tmp_path / "out").exists()
    assert planned == succeed(*command)
    assert "From 8 snapshots" in succeed(*command, "--plan", "--memory", "1K"), "too little to do it"


def test_plan_for_a_run_that_is_to_come():
    shown = succeed(
        *("reconstruct", "--plan", "--std", "0.03,0.2", "--interval", "32Mi", "--duration", "2Gi"),
        *("--parameters", "280M"),
    )
    assert "64 snapshots of each" in shown
    assert " 0.02%" in shown  # 2.7e-5 / 0.125 at 0.03 from 64 snapshots: known from elsewhere
    assert "71.7 GB in fp16" in shown  # 64 x 2 x 280 million x 2 bytes
    assert " 8 of each length" in shown
    result = edm2("reconstruct", "--plan", "--std", "0.1", "--interval", "4Gi", "--duration", "2Gi")
    assert result.code == 2
    assert "longer than the run" in complaint(result.err)


def test_groups_of_parameters(tiny_run: Path, tmp_path: Path):
    succeed("reconstruct", tiny_run, "--std", "0.08", "--std-for", "*.emb_*=0.12", "--out", tmp_path)
    path = tmp_path / "ema-000000000512-0.0800.safetensors"
    assert read_metadata(path)["sigma_rel_of"] == {"*.emb_*": 0.12}
    half_life = sigma_rel_to_half_life(0.08, 512)
    assert (
        f"0.08, 0.12 for *.emb_*; as wide as a traditional EMA with a half-life of {half_life:.0f} images"
        in succeed("info", path)
    )
    short, long = reconstruct(find_snapshots(tiny_run), [0.08, 0.12])
    other = [name for name in short if ".emb_" in name and not torch.equal(short[name], long[name])]
    assert other
    for name, tensor in load_file(path).items():
        expected = long[name] if ".emb_" in name and "freqs" not in name else short[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6, msg=name)


def fails(run: Path, *options: object) -> str:
    """The complaint, and nothing is left."""
    out = run.parent / "out"
    result = edm2("reconstruct", run, "--std", "0.08", "--out", out, *options)
    assert result.code != 0
    assert not half_written(run.parent)
    assert not out.exists() or not list(out.iterdir())
    return complaint(result.err)


def test_snapshots_that_do_not_belong_together_are_named(run: Path):
    """Of another seed, of another network, twice the same, or truncated."""
    first, second, *_ = sorted((run / "snapshots").iterdir())
    state, metadata = load_file(first), read_metadata(first)
    write_snapshot(first, state, metadata | {"training": metadata["training"] | {"seed": 7}})
    assert "different runs: training.seed is 0 in one and 7 in the other" in fails(run)
    name = max(state, key=lambda name: state[name].numel())
    write_snapshot(first, state | {name: state[name][:1].clone()}, metadata)
    message = fails(run)
    assert "different networks" in message
    assert first.name in message
    write_snapshot(first, state | {"more": torch.zeros(2)}, metadata)
    assert "has more" in fails(run)
    write_snapshot(first, state, metadata)
    copy = Path(shutil.copy(first, first.with_name("copy.safetensors")))
    message = fails(run)
    assert "two averages of 128 images" in message
    assert copy.name in message
    copy.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    assert second.name in fails(run)


def test_a_snapshot_missing_in_the_middle_is_told_and_allowed_for(run: Path, tmp_path: Path):
    sorted((run / "snapshots").iterdir())[2].unlink()
    result = edm2("reconstruct", run, "--std", "0.08", "--out", tmp_path / "out")
    assert result.code == 0
    assert "no snapshot of 256 images at length 0.05" in result.err
    assert "From 7 snapshots" in result.out
    whole = succeed("reconstruct", run, "--std", "0.08", "--at", 128, "--plan")
    assert "Warning" not in whole
