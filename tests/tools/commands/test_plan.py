"""`edm2 plan` forecasts a run before a cluster is rented, and refuses contradictory options in one line."""

import json
import re
from pathlib import Path

import pytest
from command_line import ROOT, succeed, write_images

from edm2.planning.speed import WHOLE_STEP
from edm2.tools.bench.report import Measurement

SMALL = ("plan", "--preset", "edm2-small-32", "--shape", "3x32x32", "--channels", 32, "--gpus", 4, "--gpu", "h100")


def rows(shown: str) -> dict[str, list[str]]:
    """Cells of the table by the words before them."""
    found = {}
    for line in shown.splitlines():
        if len(line) > 40 and line[40] == " " and not line[:40].rstrip().endswith(":"):
            found.setdefault(line[:40].strip(), line[40:].split())
    return found


@pytest.mark.slow
def test_the_table_adds_up():
    table = rows(succeed(*SMALL))
    assert table["edm2 train --shard"] == ["no", "no", "yes", "yes"]
    assert table["edm2 train --recompute"] == ["no", "yes", "no", "yes"]
    parts = [list(map(float, cells)) for words, cells in table.items() if words.startswith("GB per GPU: ")]
    assert len(parts) == 7
    for total, *column in zip(map(float, table["GB per GPU"]), *parts, strict=True):
        assert sum(column) == pytest.approx(total, abs=0.04)  # each is rounded to 0.01
    alone = succeed(*SMALL, "--gpus", 1)
    assert rows(alone)["edm2 train --shard"] == ["no", "no"]
    assert "links:" not in alone
    small = rows(succeed(*SMALL, "--memory", 0.3))
    assert small["largest --micro-batch that fits"] == ["none"] * 4
    assert small["fits"] == ["no"] * 4


@pytest.mark.slow
def test_the_documentation_shows_what_is_printed():
    shown = succeed("plan", "--preset", "edm2-img512-xxl", "--gpus", 32, "--gpu", "h100")
    page = re.sub("^ +", "", (ROOT / "docs/plan.md").read_text(), flags=re.MULTILINE)
    assert re.sub("^ +", "", shown.rstrip(), flags=re.MULTILINE) in page


def test_the_json_says_the_same(tmp_path):
    shown = succeed(*SMALL, "--efficiency", 0.3, "--json", tmp_path / "plan.json")
    table, written = rows(shown), json.loads((tmp_path / "plan.json").read_text())
    assert [f"{v['memory']['total'] / 1e9:.2f}" for v in written["variants"]] == table["GB per GPU"]
    speeds = written["variants"][0]["speeds"]
    assert list(speeds) == [line[:-1] for line in shown.splitlines() if re.match(r"(published|measured),.*:$", line)]
    assert len(speeds) == 3
    said = re.findall(r"^  (\w+): ", shown.partition("How sure")[2], re.MULTILINE)
    assert said == list(written["how_sure"]) == ["memory", "sent", "speed", "days", "disk"]
    assert table["images/s"][0] == f"{next(iter(speeds.values()))['images_per_second']:,.0f}"
    for speed in speeds.values():
        assert speed["gpu_hours"] == pytest.approx(4 * 24 * speed["days"])
        assert speed["days"] == pytest.approx(written["config"]["duration"] / speed["images_per_second"] / 86_400)

    def disk(*options: object) -> int:
        succeed(*SMALL, *options, "--json", tmp_path / "plan.json")
        return json.loads((tmp_path / "plan.json").read_text())["disk"]["final"]

    assert disk("--keep-snapshots", 8) < written["disk"]["final"] < disk("--snapshot-precision", "fp32")
    section, part = WHOLE_STEP
    assert {"section", "part"} <= set(Measurement.__dataclass_fields__)
    step = {"section": section, "part": part, "flops_per_second": 0.4 * 989e12}
    (tmp_path / "bench.json").write_text(json.dumps({"measurements": [step]}))
    assert "measured, 40.0% of the peak:" in succeed(*SMALL, "--efficiency", tmp_path / "bench.json")


@pytest.mark.slow
def test_the_run_is_the_one_that_train_would_make():
    shown = succeed(*SMALL, "--batch", 64, "--duration", 6400, "--classes", 7, "--micro-batch", 8, "--images", 100)
    assert "6,400 images in 100 steps of 64, 16 per GPU" in shown
    assert "images of 3x32x32, 7 classes" in shown
    assert "each visited 64 times" in shown
    assert rows(shown)["micro-batch x rounds per step"] == ["8", "x", "2"] * 4


def test_a_dataset_says_its_size_itself(tmp_path: Path):
    data = write_images(tmp_path / "photos", (32, 32, 3), count=20, classes=2)
    shown = succeed("plan", "--preset", "edm2-small-32", "--data", data, "--channels", 32, "--gpus", 1, "--gpu", "a10")
    assert "images of 3x32x32, 2 classes" in shown
    assert "20 images, 61.4 kB" in shown


def test_gpus_that_are_not_listed_are_described_by_numbers():
    options = ("--memory", 96, "--peak", 800, "--link", 100, "--network", 400, "--per-node", 2)
    shown = succeed(*SMALL[:-2], *options)
    assert "4 x GPU (96 GB, 800 TFLOP/s in bf16), 2 per machine" in shown
    assert "100 GB/s within a machine, 400 Gbit/s between machines" in shown
    assert "memory bandwidth" not in shown
    assert "4 x h100 (94 GB, 989 TFLOP/s" in succeed(*SMALL, "--memory", 94)
