"""`edm2 report`: what the page holds, what is drawn once, what its commands draw, and what it says of broken runs."""

import base64
import builtins
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import complaint, edm2, half_written, succeed
from PIL import Image
from report_pages import pretend_sweep

from edm2.post_hoc_ema import SafetensorsSnapshot
from edm2.post_hoc_ema.snapshot import write_snapshot

FEW = ("--std", "0.05,0.1", "--at", "512", "--images", 10, "--steps", 2)


@pytest.fixture(autouse=True)
def no_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of the plots takes seconds to bundle; test_report_in_browser.py runs it."""
    monkeypatch.setattr("edm2.report.page.vega_bundle", lambda folder: "")


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the shared run, to be broken."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def contents(page: Path) -> dict:
    """The data of a page, as its program reads them."""
    html = page.read_text(encoding="utf-8")
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(data)


def pixels(source: str) -> np.ndarray:
    """Gray levels of a picture in a page."""
    assert source.startswith("data:image/webp;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("L"))


def test_a_page_holds_everything_and_its_second_build_draws_nothing(tiny_run: Path, tmp_path: Path, evaluations):
    pretend_sweep(tmp_path, times=(256, 512))
    out, command = tmp_path / "page.html", ("report", tiny_run, "--cache", tmp_path / "cache", "--images", 10)
    told = succeed(*command, "--sweep", tmp_path, "--steps", 2, "--out", out)
    assert "run: 13 grids of 10 images" in told  # four lengths at three times, and the raw weights at the end
    assert "page.html: 0." in told
    explorer = contents(out)["explorer"]
    assert explorer["lengths"] == ["raw", "0.05", "0.1", "0.15", "0.2"]
    assert explorer["start"] == [2, 2, 0]  # the best: EMA length 0.1 at the end
    assert len(explorer["runs"][0]["settings"]) == 13
    assert len(explorer["curve"]["data"]["values"]) == 8
    html = out.read_text()
    assert not re.search(r'(src|href)="(?!data:)', html)  # nothing is fetched
    assert html.count("<img") == len(re.findall(r'<img [^>]*alt="[^"]+"', html)) >= 4  # dataset, frames, neighbours
    assert "Nearest training images" in html
    drawn = len(evaluations)
    assert drawn
    succeed(*command, "--sweep", tmp_path, "--steps", 2, "--out", out)
    assert len(evaluations) == drawn
    assert not half_written(tmp_path)


def test_the_shown_commands_draw_the_shown_grid(tiny_run: Path, tmp_path: Path, monkeypatch):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    succeed("report", "run", *FEW, "--no-neighbours")
    settings = contents(run / "report.html")["explorer"]["runs"][0]["settings"]
    assert set(settings) == {"0,0,0", "0,1,0", "0,2,0"}
    for setting in settings.values():
        for line in setting["commands"].splitlines():
            program, *words = shlex.split(line)
            assert program == "edm2"
            succeed(*words)
        drawn = np.asarray(Image.open("grid.png").convert("L"))
        ours = pixels(setting["src"])  # of 4x4 pixels each, where the file has 8x8
        assert np.array_equal(drawn[:64:8, :64:8], ours[:32:4, :32:4])
        Path("grid.png").unlink()


def test_several_runs_share_plots_and_sliders_and_guidance_has_one(run: Path, tiny_run: Path, tmp_path: Path):
    relabel(run, training={"label_dropout": 0.1})
    out = tmp_path / "page.html"
    options = ("--unlabelled-guide", "--guidance", "1,2", "--no-neighbours", "--cache", tmp_path / "cache")
    succeed("report", f"a={run}", f"b={run}", *FEW, *options, "--out", out)
    data = contents(out)
    assert [shown["name"] for shown in data["explorer"]["runs"]] == ["a", "b"]
    assert data["explorer"]["guidances"] == ["1", "2"]
    guided = data["explorer"]["runs"][0]["settings"]["0,1,1"]
    assert guided["commands"].endswith("--unlabelled-guide --guidance 2")
    assert all({row["run"] for row in chart["data"]["values"]} == {"a", "b"} for chart in data["charts"])


def test_a_run_without_snapshots_stands_beside_one_with_them(run: Path, tiny_run: Path, tmp_path: Path):
    without_snapshots(run)
    out = tmp_path / "page.html"
    succeed("report", f"bare={run}", f"whole={tiny_run}", *FEW, "--no-neighbours", "--cache", tmp_path, "--out", out)
    data = contents(out)
    assert [shown["name"] for shown in data["explorer"]["runs"]] == ["whole"]
    assert {row["run"] for row in data["charts"][0]["data"]["values"]} == {"bare", "whole"}


def test_scores_of_a_quick_pass_stay_on_later_pages(run: Path, monkeypatch):
    """Until a sweep has better ones."""
    monkeypatch.setattr("edm2.tools.commands.report.SCORED", 20)
    monkeypatch.setattr("edm2.tools.commands.report.SCORING_STEPS", 1)
    page, command = run / "report.html", ("report", run, *FEW, "--no-neighbours")
    succeed(*command, "--score")
    scored = contents(page)["explorer"]["curve"]["data"]
    succeed(*command)
    assert contents(page)["explorer"]["curve"]["data"] == scored
    pretend_sweep(run, times=(512,))
    succeed(*command)
    assert contents(page)["explorer"]["curve"]["data"] != scored


def test_scores_by_different_metrics_make_no_curve_together(run: Path, tmp_path: Path):
    other = shutil.copytree(run, tmp_path / "other")
    pretend_sweep(run)
    pretend_sweep(other, title="FD-DINOv2")
    out = tmp_path / "page.html"
    succeed("report", f"a={run}", f"b={other}", *FEW, "--no-neighbours", "--out", out)
    explorer = contents(out)["explorer"]
    assert explorer["metric"] == "FD-pixels"
    assert {row["run"] for row in explorer["curve"]["data"]["values"]} == {"a"}
    assert explorer["runs"][1]["settings"]["0,2,0"]["caption"].endswith("; FD-DINOv2 1")
    assert "No scores over the slider: they are FD-DINOv2, and others here FD-pixels." in out.read_text()


def relabel(run: Path, **changes: dict) -> None:
    """Change entries of the metadata of all snapshots of a run."""
    for path in [*(run / "snapshots").glob("*.safetensors"), run / "raw-weights.safetensors"]:
        snapshot = SafetensorsSnapshot(path)
        metadata = {**snapshot.metadata, **{k: {**snapshot.metadata[k], **v} for k, v in changes.items()}}
        write_snapshot(path, {name: snapshot.read(name) for name in snapshot.names}, metadata)


# ------------------------------------------------------------------------------------------------------ broken runs


def without_snapshots(run: Path) -> None:
    shutil.rmtree(run / "snapshots")
    shutil.rmtree(run / "checkpoints")
    (run / "raw-weights.safetensors").unlink()


def with_one_snapshot(run: Path) -> None:
    for path in (run / "snapshots").iterdir():
        if "0512-0.1000" not in path.name:
            path.unlink()


def with_an_unknown_vae(run: Path) -> None:
    latents = {"kind": "latents", "vae": "/nowhere/vae", "mean": [0.0], "std": [1.0]}
    for path in [*(run / "snapshots").glob("*.safetensors"), run / "raw-weights.safetensors"]:
        snapshot = SafetensorsSnapshot(path)
        tensors = {name: snapshot.read(name) for name in snapshot.names}
        write_snapshot(path, tensors, snapshot.metadata | {"codec": latents})


def with_a_damaged_line(run: Path) -> None:
    with open(run / "stats.jsonl", "ab") as file:
        file.write(b"half a line\n")


def with_a_damaged_snapshot(run: Path) -> None:
    next((run / "snapshots").glob("*.safetensors")).write_bytes(b"\xff" * 64)


def without_its_data(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"data": "gone.zip"}))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (without_snapshots, "No EMA slider: "),
        pytest.param(with_an_unknown_vae, "No grids of samples: ", marks=pytest.mark.slow),  # imports diffusers
        (with_a_damaged_line, "1 damaged lines in stats.jsonl or diagnostics.jsonl were passed over"),
        (with_a_damaged_snapshot, "No EMA slider: "),
        (without_its_data, "No pictures of the dataset: "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_page_says_what_it_lacks_and_shows_the_rest(run: Path, break_it, said: str):
    break_it(run)
    result = edm2("report", run, *FEW)
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    html = (run / "report.html").read_text()
    assert said in html
    assert contents(run / "report.html")["charts"]


def test_a_single_snapshot_gives_its_own_length_and_raw_weights(run: Path):
    with_one_snapshot(run)
    succeed("report", run, *FEW, "--no-neighbours")
    settings = contents(run / "report.html")["explorer"]["runs"][0]["settings"]
    assert {"0,0,0", "0,2,0"} <= set(settings)


@pytest.mark.parametrize(
    ("words", "code", "mentions"),
    [
        ("@nowhere", 1, ("nowhere", "no such folder")),
        ("@empty", 1, ("empty", "holds no run")),
        ("@run/config.json", 1, ("config.json: no such folder",)),
        ("@run @run", 2, ("same name", "NAME=RUN")),
        ("@run --guidance 2", 2, ("--unlabelled-guide",)),
        ("@run --std 0.5", 2, ("--std",)),
        ("@run --images 0", 2, ("--images",)),
        ("@run --guide @run", 2, ("a guide needs weights", "--guidance")),
        ("@run --guide @run --unlabelled-guide", 2, ("two guides",)),
        ("@run --at 5", 1, ("no snapshot was stored at 5", "nearest")),
        ("@run --at 5 --score", 1, ("no snapshot was stored at 5", "nearest")),
        ("@run --guide @run --score", 2, ("a guide needs weights", "--guidance")),
        ("@run --sweep @empty", 1, ("empty: holds no scores of a sweep",)),
        ("@run --out @run/config.json/page.html", 1, ("config.json",)),
        ("@run other=@run --sweep @empty", 2, ("--sweep is of one run",)),
        ("", 2, ("RUN",)),
    ],
)
def test_slips_are_one_line_before_anything_is_drawn(
    run: Path, tmp_path: Path, words: str, code: int, mentions: tuple[str, ...], evaluations
):
    (tmp_path / "empty").mkdir()
    result = edm2("report", *words.replace("@", f"{tmp_path}/").split())
    line = complaint(result.err)
    assert result.code == code
    assert all(mention in line for mention in mentions), line
    assert not (run / "report.html").exists()
    assert not evaluations


def test_without_the_extra_it_says_how_to_get_it(run: Path, monkeypatch):
    known = builtins.__import__

    def refuse(name, *rest, **named):
        if name == "vl_convert":
            raise ImportError(name)
        return known(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    result = edm2("report", run, *FEW)
    assert result.code == 1
    assert "pip install 'edm2[report]'" in complaint(result.err)
