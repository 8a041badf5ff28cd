"""`edm2 plot` draws what runs have recorded, compares them, and says what they lack."""

import dataclasses
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from command_line import complaint, edm2, succeed
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from edm2.tools.commands import plot as plot_command
from edm2.tools.figures import FIGURES, style as plots
from edm2.training import Trainer, read_run_config
from edm2.training.run.logging import read_stats

MEASURED = {"activations", "weights", "updates", "gradients", "uncertainty", "shares"}
REPORTED = {"error", "loss", "lr", "speed"}


def observed_run(like: Path, out: Path, architecture: str, **changes) -> Path:
    """A run with everything there is to draw."""
    config = read_run_config(like)
    network = dataclasses.replace(config.network, config=architecture)
    settings = {"duration": 192, "diagnostics_every": 64, "holdout": 97, "holdout_every": 64} | changes
    Trainer(dataclasses.replace(config, out=str(out), network=network, **settings)).run()
    return out


@pytest.fixture(scope="module")
def run_g(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return observed_run(tiny_run, tmp_path_factory.mktemp("g") / "magnitude-preserving", "G")


@pytest.fixture(scope="module")
def run_b(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration without bound on its activations, under an objective without u(sigma)."""
    return observed_run(tiny_run, tmp_path_factory.mktemp("b") / "baseline", "B", weighting="edm")


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
    """The figures that a command draws, by name."""
    figures: dict[str, Figure] = {}

    def keep(figure: Figure, path: Path) -> None:
        figures[path.stem] = figure
        plt.close(figure)

    monkeypatch.setattr(plots, "save_figure", keep)
    return figures


def legend(figure: Figure) -> set[str]:
    return {text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()}


def test_a_run_is_drawn_into_its_folder(run_g, tmp_path):
    assert list(plot_command.NAMES) == list(FIGURES), "help knows every figure"
    assert all(f"\n  {name} " in plot_command.EPILOG for name in FIGURES)
    copy = shutil.copytree(run_g, tmp_path / "copy")
    out = succeed("plot", copy)
    pictures = {path.stem: path for path in (copy / "plots").iterdir()}
    assert set(pictures) == set(FIGURES)
    assert str(copy / "plots") in out
    for path in pictures.values():
        with Image.open(path) as image:
            assert image.width > 500
            assert len(image.getcolors(1 << 20)) > 10  # not empty


def test_every_number_of_a_run_is_on_a_curve(run_g, drawn):
    succeed("plot", run_g)
    records = read_stats(run_g / "diagnostics.jsonl")
    left, right = drawn["activations"].axes
    assert {line.get_label() for line in left.lines} == set(records[0]["activations"]["max"])
    for panel, statistic in ((left, "max"), (right, "mean")):
        for line in panel.lines:
            expected = [record["activations"][statistic][line.get_label()] for record in records]
            assert list(line.get_ydata()) == expected
            assert list(line.get_xdata()) == [record["images_seen"] / 1000 for record in records]
    [panel] = drawn["gradients"].axes
    assert list(panel.lines[-1].get_ydata()) == list(records[-1]["noise_levels"]["gradient_norm"].values())
    [panel] = drawn["uncertainty"].axes
    assert len(panel.lines) == 2 * len(records)  # the loss, and e^u over it


def test_several_runs_are_compared_in_one_colour_each(run_g, run_b, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "in plots" in succeed("plot", run_b, f"config G={run_g}")
    assert set(drawn) == set(FIGURES)
    for name, figure in drawn.items():
        assert {"baseline", "config G"} <= legend(figure), name
        for axes in figure.axes:
            assert {to_hex(line.get_color()) for line in axes.lines} <= set(plots.PALETTE[:2]), name
    strong = [line for line in drawn["activations"].axes[0].lines if line.get_label() == "baseline"]
    largest = [max(r["activations"]["max"].values()) for r in read_stats(run_b / "diagnostics.jsonl")]
    assert list(strong[0].get_ydata()) == largest
    for count in (1, 7, 8, 20):
        assert len({to_hex(color) for color in plots.colors(count)}) == count


def test_what_a_run_lacks_is_left_out_with_the_option_that_records_it(tiny_run, run_g, drawn):
    result = edm2("plot", tiny_run)
    assert result.code == 0
    assert set(drawn) == REPORTED
    for word in ("holdout", "--diagnostics", "--holdout", *MEASURED):
        assert word in result.err
    drawn.clear()
    result = edm2("plot", tiny_run, run_g, "--only", "activations")
    assert result.code == 0
    assert set(drawn) == {"activations"}
    assert "run (no diagnostics" in result.err


def test_a_run_in_progress_is_drawn_up_to_where_it_is(run_g, tmp_path, drawn):
    copy = shutil.copytree(run_g, tmp_path / "copy")
    for name in ("stats.jsonl", "diagnostics.jsonl"):
        lines = (copy / name).read_text().splitlines(keepends=True)
        (copy / name).write_text(lines[0] + lines[1][:50])  # being written just now
    succeed("plot", copy)
    assert set(drawn) == set(FIGURES)
    assert all(len(line.get_xdata()) == 1 for line in drawn["activations"].axes[0].lines)


@pytest.mark.parametrize(
    ("words", "mention"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["name=nowhere"], "nowhere: no such folder"),
        (["elsewhere"], "elsewhere: holds no run"),
        (["good", "--only", "colours"], "there is no figure 'colours'"),
        (["good", "elsewhere/good"], "NAME="),
        (["good", "--only", ""], "there is no figure ''"),
        (["damaged"], "damaged/stats.jsonl: line 1 is damaged"),
        (["young"], "nothing reported yet"),
        (["plain", "--only", "activations,shares"], "activations, shares"),
        (["plain", "--only", "activations,shares"], "--diagnostics"),
    ],
)
def test_mistakes_are_one_line(words, mention, run_g, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("good", "elsewhere/good", "damaged"):
        shutil.copytree(run_g, tmp_path / folder)
    shutil.copytree(tiny_run, tmp_path / "plain")
    (tmp_path / "young").mkdir()
    shutil.copy(run_g / "config.json", tmp_path / "young")
    (tmp_path / "damaged" / "stats.jsonl").write_text("{}\n")
    result = edm2("plot", *words)
    assert result.code in (1, 2)
    assert mention in complaint(result.err)
    assert not (tmp_path / "plots").exists()
