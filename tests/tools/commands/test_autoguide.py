"""`edm2 autoguide`: from a run to a table and one network with its guide, and again without computing anything."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from command_line import TINY, complaint, edm2, succeed, torchrun
from PIL import Image

QUICK = ("--samples", 12, "--steps", 2, "--solver", "deis", "--search", 14, "--repeats", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with snapshots at 32 times, which was trained without labels now and then."""
    out = tmp_path_factory.mktemp("autoguide") / "run"
    train = ("train", "--data", "digits", "--duration", 1024, *TINY, "--snapshot", 64, "--label-dropout", 0.1)
    succeed(*train, "--lr", 0.05, "--rampup", 0, "--out", out)
    return out


def read_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "guidance.csv", newline="") as file:
        return list(csv.DictReader(file))


def better_with_guidance(net, codec, evaluator, sampling, guide, guidance, set_number, processes, report):
    """Score in place of the true one: less where there is a guide, least at weight 2."""
    from edm2.sweep.evaluator import Score

    report(sampling.count)
    return Score(abs(guidance - 2) + set_number / 100 + (1 if guide is None else 0), 0.1, None)


def test_from_a_run_to_one_network_with_its_guide_and_again(run: Path, tmp_path: Path, monkeypatch):
    out = tmp_path / "out"
    autoguide = ("autoguide", run, *QUICK, "--guides", "unlabelled,small", "--guide-duration", 256, "--out", out)
    monkeypatch.setattr("edm2.sweep.sweep.score_network", better_with_guidance)
    shown = succeed(*autoguide)
    rows = read_rows(out)
    methods = ["no guidance", "classifier-free", "classifier-free, interval", "autoguidance", "autoguidance, interval"]
    assert [row["method"] for row in rows] == methods
    assert [row["guide_evaluations"] for row in rows[:2]] == ["0", "2"]
    assert rows[3]["guidance"] == "2"
    assert int(rows[3]["guide_images"]) in (64, 128, 192, 256)
    assert json.loads((out / "guide" / "config.json").read_text())["duration"] == 256
    assert "Best: " in shown
    assert "edm2 generate" in shown
    assert Image.open(out / "guidance.png").width > 100
    assert json.loads((out / "guided.json").read_text())["about"]["method"] == "classifier-free"
    monkeypatch.setattr("edm2.sweep.sweep.score_network", None)  # whoever scores again fails
    again = succeed(*autoguide)
    assert again.splitlines()[-3:] == shown.splitlines()[-3:]
    monkeypatch.undo()

    guided = out / "guided.json"
    succeed("generate", guided, "--seeds", "0-3", "--steps", 2, "--grid", tmp_path / "guided.png")
    succeed("generate", out / "network.safetensors", "--seeds", "0-3", "--steps", 2, "--grid", tmp_path / "plain.png")
    assert (tmp_path / "guided.png").read_bytes() != (tmp_path / "plain.png").read_bytes()
    described = succeed("info", guided)
    assert "itself without classes" in described
    assert "weight 2" in described
    twice = edm2("generate", guided, "--unlabelled-guide", "--guidance", 2, "--grid", tmp_path / "twice.png")
    assert "guided already" in complaint(twice.err)


def test_samples_that_do_not_tell_guidance_from_none_name_no_winner(run: Path, tmp_path: Path, monkeypatch):
    from edm2.sweep.evaluator import Score

    def noise(net, codec, evaluator, sampling, guide, guidance, set_number, processes, report):
        return Score(1 + (0.001 if guide is None else -0.1 * (set_number % 2)), 0.1, None)

    monkeypatch.setattr("edm2.sweep.sweep.score_network", noise)
    (tmp_path / "guided.json").write_text("the winner of an earlier search")
    result = edm2("autoguide", run, *QUICK, "--guides", "dropout", "--out", tmp_path)
    assert "2 evaluations are few for a denoiser" in result.err
    shown = result.out
    assert "No winner: fresh samples do not tell itself with dropout from no guidance (0.95 " in shown
    assert not (tmp_path / "guided.json").exists()


def test_a_guide_learns_from_the_images_of_the_run_wherever_they_are_now(run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("edm2.sweep.sweep.score_network", better_with_guidance)
    moved = shutil.copytree(run, tmp_path / "moved")
    config = moved / "config.json"
    config.write_text(config.read_text().replace('"data": "digits"', '"data": "gone.zip"'))
    autoguide = ("autoguide", moved, *QUICK, "--guides", "small", "--guide-duration", 256)
    assert "gone.zip" in edm2(*autoguide, "--out", tmp_path / "out").err
    succeed(*autoguide, "--data", "digits", "--out", tmp_path / "out")
    assert read_rows(tmp_path / "out")[1]["method"] == "autoguidance"


@pytest.mark.slow
def test_two_processes_train_and_score_as_one(run: Path, tmp_path: Path):
    autoguide = ("autoguide", run, *QUICK, "--guides", "small", "--guide-duration", 256)
    succeed(*autoguide, "--out", tmp_path / "one")
    torchrun(2, *autoguide, "--out", tmp_path / "two")
    one, two = (read_rows(tmp_path / name) for name in ("one", "two"))
    assert [row["method"] for row in one] == [row["method"] for row in two]
    for a, b in zip(one, two, strict=True):  # the guides differ by rounding, and with them which candidate is best
        assert float(a["distance"]) == pytest.approx(float(b["distance"]), rel=0.05)


@pytest.mark.slow
def test_all_guides_of_a_run_with_true_scores(run: Path, tmp_path: Path):
    succeed("autoguide", run, *QUICK, "--guide-duration", 256, "--out", tmp_path)
    assert len(read_rows(tmp_path)) == 8


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--search", 5), 1, "too few: the lists alone take"),
        (("--solver", "map"), 2, "'map' is not one of 'heun'"),
        (("--guides", "big"), 2, "there are unlabelled, small, early, ema, dropout"),
        (("--guide-duration", 512), 2, "at most a fourth"),
        (("--guides", "early", "--guide-channels", 16), 2, "for a guide that is trained"),
        (("--guides", "early", "--guide-run", "gone"), 2, "leave --guide-run out"),
        (("--guide-run", "gone"), 1, "no such folder"),
        (("--guide-run", "other"), 1, "trained on other images"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_guided_is_refused_before_anything_is_drawn(run, tmp_path, monkeypatch, options, code, words):
    monkeypatch.setattr("edm2.sweep.sweep.score_network", None)
    other = tmp_path / "other"
    if options[-1] == "other":
        shutil.copytree(run, other)
        inputs = other / "inputs.json"
        inputs.write_text(inputs.read_text().replace('"contents": "', '"contents": "0'))
    given = [other if option == "other" else option for option in options]
    result = edm2("autoguide", run, *QUICK, "--steps", 16, "--out", tmp_path / "out", *given)
    assert result.code == code
    assert words in complaint(result.err)


def test_a_run_without_snapshots_is_refused(tmp_path: Path):
    assert "no snapshots" in complaint(edm2("autoguide", tmp_path, *QUICK).err)
