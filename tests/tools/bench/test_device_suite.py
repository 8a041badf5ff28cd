"""The device suite: sections with limits, files written at once, failures that say why; all of it at a tiny scale."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from edm2.networks import NetworkConfig
from edm2.tools.bench.device.findings import failed, findings_of, row, section_markdown
from edm2.tools.bench.device.machine import measured_ceilings
from edm2.tools.bench.device.parity import within
from edm2.tools.bench.device.real_run import split
from edm2.tools.bench.device.roofline import counted, passes
from edm2.tools.bench.device.setup import FULL, TINY, Ceilings, Setup, count_launches
from edm2.tools.bench.device_suite import SECTIONS, Results, Section, main, run_suite

ROOT = Path(__file__).parents[3]
SAYS_ITS_LIMIT = 'import json; print(json.dumps({"part": "limit", "values": {"s": %f}}))'
HANGS = 'import json, time; print(json.dumps({"part": "before", "values": {"x": 1}}), flush=True); time.sleep(60)'
DIES = """import os; print('{"part": "cut o', end="", flush=True); os._exit(3)"""


@pytest.fixture
def setup(tmp_path) -> Setup:
    return Setup(TINY, "cpu", seconds=60, out=str(tmp_path), data=None)


def programs(**by_section: str):
    """A command that runs a program of a section's own."""

    def command(name: str, setup: Setup) -> list[str]:
        program = by_section[name]
        return [sys.executable, "-c", program % setup.seconds if "%f" in program else program]

    return command


def sections(**weights: float) -> dict[str, Section]:
    return {name: Section(SECTIONS[name].title, weight) for name, weight in weights.items()}


@pytest.mark.slow
def test_a_section_that_hangs_or_dies_says_so_and_the_next_one_runs(setup, capsys):
    """What it found before is kept, in files that were written at once."""
    command = programs(machine=HANGS, parity=DIES, run=SAYS_ITS_LIMIT)
    run_suite(setup, ["machine", "parity", "run"], sections(machine=1, parity=7, run=7), command)
    found = json.loads((Path(setup.out) / "results.json").read_text())
    assert found["machine"][0] == {"part": "before", "values": {"x": 1}}
    assert found["machine"][1]["failed"] == "stopped after 4 s"
    assert found["parity"] == [{"part": "parity", "failed": "its process ended with code 3; see log.txt"}]
    assert found["run"][0]["part"] == "limit"
    markdown = (Path(setup.out) / "results.md").read_text()
    assert "| before | 1 |" in markdown
    assert "- machine failed: stopped after 4 s" in markdown


def test_time_that_a_section_leaves_goes_to_the_later_ones(setup):
    command = programs(machine=SAYS_ITS_LIMIT, run=SAYS_ITS_LIMIT)
    results = run_suite(setup, ["machine", "run"], sections(machine=1, run=3), command)
    first, last = (results.findings[name][0]["values"]["s"] for name in ("machine", "run"))
    assert first == pytest.approx(15, rel=0.1)
    assert 45 < last < 60


def test_every_finding_is_written_at_once(tmp_path):
    results = Results(tmp_path, {})
    for k in range(3):
        results.add("machine", row("part", number=k))
        assert len(json.loads((tmp_path / "results.json").read_text())["machine"]) == k + 1
        assert f"| part | {k} |" in (tmp_path / "results.md").read_text()


def test_a_part_that_fails_says_why_and_the_next_one_runs():
    def fails():
        yield row("before", x=1)
        raise ValueError("this device is too small\nsecond line")

    found = list(findings_of({"one": fails, "two": lambda: iter([row("after", x=2)])}))
    assert found == [row("before", x=1), failed("one", "ValueError: this device is too small"), row("after", x=2)]


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_that_is_no_number_is_the_largest(place):
    errors = {"good": 1e-9, "bad": math.nan}
    found = within("part", dict([*errors.items()][:: -1 if place else 1]), tolerance=1e-6)["values"]
    assert (found["of"], found["within"]) == ("bad", False)


def test_markdown_has_a_table_for_each_set_of_columns():
    lines = section_markdown("Title", [row("a", x=1.0), row("b", x=12345.678), failed("c", "why"), row("d", y=None)])
    assert lines == [
        "### Title", "",
        "|  | x |", "|---|---:|", "| a | 1 |", "| b | 12,346 |", "",
        "|  | y |", "|---|---:|", "| d |  |", "",
        "- c failed: why", "",
    ]  # fmt: skip


def test_a_setup_travels_as_json(setup):
    setup = Setup(FULL, "cuda", 12.5, "out", "data.zip", Ceilings(4e12, 8e14))
    assert Setup.from_json(json.loads(json.dumps(setup.to_json()))) == setup


def test_ceilings_are_those_of_the_copy_and_the_bfloat16_product():
    found = [row("copy", per_second=4e12), row("bfloat16", per_second=8e14), row("float16", per_second=7e14)]
    assert measured_ceilings(found) == Ceilings(4e12, 8e14)
    assert measured_ceilings([failed("ceilings", "why")]) is None


def test_works_are_timed_beside_the_first_and_one_that_fails_drops_out(setup):
    def fails() -> None:
        raise torch.OutOfMemoryError("out of memory")

    found = list(setup.by_turns({"a": lambda: None, "b": fails, "c": lambda: None}, images=3, flops=7, bytes=5))
    assert found[0] == failed("b", torch.OutOfMemoryError("out of memory"))
    assert [finding["part"] for finding in found[1:]] == ["a", "c"]
    for finding in found[1:]:
        seconds = finding["values"]["ms"] / 1e3
        assert finding["values"]["images/s"] == pytest.approx(3 / seconds)
        assert finding["values"]["% of the copy ceiling"] == pytest.approx(100 * 5 / seconds / 4.8e12)


def test_reading_a_number_counts_as_waiting(setup):
    x = torch.ones(3)
    waits = [
        count_launches("work", work, setup)["values"]["waits"] for work in (lambda: x.sum(), lambda: x.sum().item())
    ]
    assert waits == [0, 1]


def test_a_large_file_is_split_into_parts_that_join_to_it(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 10)
    names = split(tmp_path / "file", tmp_path, size=1000)
    assert len(names) == 3
    assert b"".join((tmp_path / name).read_bytes() for name in names) == (tmp_path / "file").read_bytes()


def test_the_roofline_counts_operations_and_bytes():
    """A product of [8, 4] and [4, 2] in float32; a view is free; what is bound by memory takes its bytes' time."""
    a, b = torch.empty(8, 4, device="meta"), torch.empty(4, 2, device="meta")
    found = counted(lambda: (a @ b).t() + 1, Ceilings(bytes_per_second=1.0, flops_per_second=1.0))
    assert (found.flops, found.launches) == (2 * 8 * 4 * 2, 2)
    assert found.bytes == 4 * (32 + 8 + 16) + 4 * (16 + 16)
    assert found.product_seconds == max(4 * 56, 128)
    assert found.seconds == found.product_seconds + 4 * 32


def test_ours_is_expected_to_move_less_than_the_plain_form():
    network = NetworkConfig(8, 4, 10, model_channels=64, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))
    found = dict(passes(network, 4, Ceilings(1e12, 1e15)))
    for name in ("step", "evaluation"):
        plain, ours = found[f"{name}, plain"], found[f"{name}, ours"]
        assert ours.bytes < 0.7 * plain.bytes
        assert ours.flops == pytest.approx(plain.flops, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--only", "nothing"], "--only nothing is unknown"), (["--minutes", "0"], "Invalid value for '--minutes'")],
    ids=["section", "minutes"],
)
def test_slips_are_refused(tmp_path, arguments, complaint):
    result = CliRunner().invoke(main, ["--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert complaint in result.output
    assert not (tmp_path / "out").exists()


def test_a_dry_call_says_what_would_run_and_writes_nothing(tmp_path):
    result = CliRunner().invoke(main, ["--out", str(tmp_path / "out"), "--dry", "--scale", "tiny"])
    assert result.exit_code == 0, result.output
    assert all(f"{name}: {section.title}" in result.output for name, section in SECTIONS.items())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_all_of_it_runs_at_a_tiny_scale_on_a_cpu(tmp_path, monkeypatch):
    """From the root of a checkout, in as much time as a busy machine takes; what comes back is few and small files."""
    monkeypatch.chdir(ROOT)
    arguments = ["--out", str(tmp_path), "--scale", "tiny", "--device", "cpu", "--minutes", "100"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found) == list(SECTIONS)
    assert [f for section in found.values() for f in section if "failed" in f] == []
    within = [f["values"]["within"] for f in found["parity"] if "within" in f["values"]]
    assert within.count(True) > 10
    assert False not in within
    assert [f["values"]["differing when resumed"] for f in found["parity"] if "tensors" in f["values"]] == [0] * 4
    files = list(tmp_path.iterdir())
    assert len(files) <= 8
    assert all(file.stat().st_size <= 16 << 20 for file in files)
    assert {"results.json", "results.md", "log.txt", "grid.png", "network.safetensors.0"} <= {f.name for f in files}
