"""The picture shows every point, and a second panel where two things vary together."""

import matplotlib.pyplot as plt
import pytest

from edm2.sweep.evaluator import Score
from edm2.sweep.sweep import Point, Range, ScoredPoint, Sweep
from edm2.tools.figures import sweep as sweep_plot
from edm2.tools.figures.sweep import plot_sweep


def scored(points: list[Point], deviation: float | None = 0.1) -> list[ScoredPoint]:
    return [
        ScoredPoint(p, (Score(2 + (p.sigma_rel - 0.1) ** 2 + (p.guidance - 1.5) ** 2, deviation, None),))
        for p in points
    ]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The panels of a picture."""

    def draw(
        results: list[ScoredPoint], others: dict[str, list[ScoredPoint]] | None = None, **options
    ) -> list[plt.Axes]:
        figures = []
        monkeypatch.setattr(sweep_plot, "save_figure", lambda figure, path: figures.append(figure))
        plot_sweep(tmp_path / "sweep.png", Sweep(results, **options), others)
        [figure] = figures
        plt.close(figure)
        return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]

    return draw


def curves(axes: plt.Axes) -> dict[str, int]:
    """Points of each named curve."""
    return {line.get_label(): len(line.get_xdata()) for line in axes.lines if not line.get_label().startswith("_")}


LENGTHS = [0.05, 0.1, 0.2]


def test_one_curve_with_its_minimum_raw_weights_and_real_images(drawn):
    results = [*scored(Range([512], LENGTHS).points()), *scored([Point(512, 0.0)])]
    [panel] = drawn(results, real_data_fd=1.0, title="FID")
    assert curves(panel)["reconstructed EMA"] == 3
    assert any("raw weights" in name for name in curves(panel))
    assert any("real images" in name for name in curves(panel))
    assert [text.get_text() for text in panel.texts] == ["2.25 at EMA 10%"]
    assert panel.get_ylabel() == "FID"
    assert len(panel.collections) == 1  # the band


def test_lines_far_away_do_not_squash_the_curve(drawn):
    """They stay outside, and the legend says where."""
    results = scored(Range([512], LENGTHS).points(), deviation=None)
    distances = [result.distance for result in results]
    [panel] = drawn(results, real_data_fd=min(distances) - 100)
    assert not panel.collections, "no band where deviations are unknown"
    low, high = panel.get_ylim()
    assert high - low < 2 * (max(distances) - min(distances))
    assert any("below" in name for name in curves(panel))
    [panel] = drawn(results, real_data_fd=min(distances) - 0.005)
    assert panel.get_ylim()[0] < min(distances) - 0.005


def test_one_curve_per_time_and_the_best_length_against_time(drawn):
    left, right = drawn(scored(Range([1000, 2000, 4000], LENGTHS).points()))
    assert curves(left) == {"1k images": 3, "2k images": 3, "4k images": 3}
    assert list(right.lines[0].get_ydata()) == [10, 10, 10]


def test_two_lists_make_a_map(drawn):
    """Scattered points of a search are all on it; weights alone are the axis of a curve."""
    left, right = drawn(scored(Range([512], LENGTHS, [1.0, 1.5, 2.0]).points()))
    assert curves(left) == {"guidance 1": 3, "guidance 1.5": 3, "guidance 2": 3}
    assert right.collections[0].get_array().size == 9
    _, right = drawn(scored([*Range([512], LENGTHS, [1.5]).points(), Point(512, 0.1, 2.0), Point(512, 0.15, 1.25)]))
    assert len(right.collections[0].get_offsets()) == 5
    [panel] = drawn(scored(Range([512], [0.1], [1.0, 2.0, 3.0]).points()))
    assert panel.get_xlabel() == "guidance weight"


@pytest.mark.parametrize(
    ("other", "names", "unnamed"),
    [
        (Range([512], LENGTHS), ["B"], 0),
        (Range([1000, 2000], LENGTHS), ["B, 1k images", "B, 2k images"], 0),
        (Range([512], LENGTHS, [1.0, 1.5]), ["B, guidance 1", "B, guidance 1.5"], 0),
        (Range([1000 * k for k in range(1, 13)], LENGTHS), ["B, 12k images"], 11),
    ],
    ids=["one", "times", "weights", "many times"],
)
def test_another_sweep_has_a_curve_for_each_time_and_weight(drawn, other, names, unnamed):
    """Not one that joins them all. Of many the last is named."""
    panel, *_ = drawn(scored(Range([512], LENGTHS).points()), {"B": scored(other.points())})
    assert curves(panel) == {"reconstructed EMA": 3} | dict.fromkeys(names, 3)
    assert sum(len(line.get_xdata()) == 3 for line in panel.lines) == 1 + len(names) + unnamed


@pytest.mark.parametrize("best", [0.02, 0.04, 0.12, 0.22, 0.24])
def test_the_value_of_the_minimum_stays_in_the_picture(best):
    """Wherever it is, even at the first length or the last."""
    points = Range([512], [0.02 * k for k in range(1, 13)]).points()
    results = [ScoredPoint(p, (Score(abs(p.sigma_rel - best), 0.001, None),)) for p in points]
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    sweep_plot._draw_curves(axes, Sweep(results), sweep_plot.SIGMA_REL, [], {})
    figure.canvas.draw()
    [text] = axes.texts
    inside, box = axes.get_window_extent(), text.get_window_extent()
    plt.close(figure)
    assert (inside.x0 < box.x0, box.x1 < inside.x1, inside.y0 < box.y0, box.y1 < inside.y1) == (True,) * 4


def test_a_long_legend_stays_in_the_picture():
    """Below the curves, in as many columns as there is room for."""
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    others = {"photos-without-dropout": scored(Range([1000 * k for k in range(1, 8)], LENGTHS).points())}
    sweep_plot._draw_curves(axes, Sweep(scored(Range([512], LENGTHS).points())), sweep_plot.SIGMA_REL, [], others)
    figure.canvas.draw()
    [legend] = figure.legends
    plt.close(figure)
    assert legend.get_window_extent().x1 <= figure.bbox.x1
