"""What the page says of a run and plots of it, from records alone."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from report_pages import pretend_sweep
from tiny_run import tiny_config

from edm2.distillation.plan import plan_distillation
from edm2.distillation.presets import PRESETS
from edm2.distillation.teacher import Teacher
from edm2.planning.plan import plan_run
from edm2.report.charts import MOST_POINTS, WIDE, charts_of, curve_over_slider
from edm2.report.grids import LENGTHS, MOST_LENGTHS, lengths_of, times_of
from edm2.report.records import RunRecords, read_records
from edm2.report.scores import best_by_setting, scores_in_cache
from edm2.report.summary import differing_settings, facts, preset_of, warnings_about
from edm2.sweep.evaluator import Score
from edm2.sweep.sweep import Point, ScoredPoint, Sweep
from edm2.tools.reports.tables import read_sweep
from edm2.training import RunFolder, RunFolderError, open_dataset


def records(stats=(), diagnostics=(), **changes) -> RunRecords:
    config = tiny_config("there", **changes)
    return RunRecords("tiny", RunFolder("there"), config, list(stats), list(diagnostics), damaged=0)


def reports(**series) -> list[dict]:
    rows = zip(*series.values(), strict=True)
    return [{"images_seen": 8 * i, **dict(zip(series, row, strict=True))} for i, row in enumerate(rows, start=1)]


def gradients(*norms) -> list[dict]:
    levels = {"0.1": norms[0], "1": norms[1]}
    return [{"images_seen": 8, "noise_levels": {"gradient_norm": levels, "loss": levels, "u": {"0.1": 0.0}}}]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (records(reports(holdout_error=[0.9, 0.5, 0.4, 0.399])), None),
        (records(reports(holdout_error=[0.9, 0.4, 0.5, 0.6])), "rising since 16 images (50% so far)"),
        (records(reports(holdout_error=[0.9, 0.4, 0.6, 0.401])), None),  # one bad measurement is no trend
        (records(reports(nonfinite_steps=[0, 2, 1])), "3 steps had gradients"),
        (records(P_mean=3.0), "below 1.13 are rarely trained on"),
        (records(P_mean=-4.0), "above 0.326 are rarely trained on"),
        (records(diagnostics=gradients(1, 50)), None),
        (records(diagnostics=gradients(1, 500)), "500 times the weakest"),
        (dataclasses.replace(records(), damaged=2), "2 damaged lines"),
    ],
    ids=lambda value: value if isinstance(value, str) else None if value is None else "run",
)
def test_warnings_say_what_looks_wrong(run: RunRecords, said: str | None):
    found = warnings_about(run)
    assert found == [] if said is None else said in " ".join(found)


def test_facts_tell_progress_speed_and_time_left():
    run = records(reports(error=[0.9, 0.5], seconds=[1.0, 1.0], images_per_second=[8.0, 8.0], holdout_error=[1.0, 0.6]))
    told = dict(facts(run, None))
    assert told["Progress"] == "16 of 96 images (17 %)"
    assert told["Error"].startswith("0.5000 in training, 0.6000 on held-out images")
    assert (told["Speed"], told["Time left"]) == ("8 images/s; 2 seconds so far", "10 seconds")


def test_settings_that_differ_from_the_preset_are_named_and_no_others():
    dataset = open_dataset("digits")
    config = plan_run(dataset, "digits", "there", "digits8", None, {"ref_lr": 0.02, "channel_mult": (1, 3)})
    run = dataclasses.replace(records(), config=config)
    assert differing_settings(run, len(dataset)) == [("channel_mult", "1, 3", "1, 2"), ("ref_lr", "0.02", "0.012")]


def test_a_distillation_is_compared_with_the_preset_of_distillations():
    dataset = open_dataset("digits")
    config = plan_distillation(Teacher("digits8"), dataset, "digits", "there", choices={"duration": 640, "anchor": 0.5})
    run = dataclasses.replace(records(), config=config)
    assert differing_settings(run, len(dataset)) == [("anchor", "0.5", "0.33"), ("duration", "640", "208,000")]
    assert dict(facts(run, None))["Distilled from"] == "digits8"
    unknown = dataclasses.replace(config, preset="of another version")
    assert (preset_of(config), preset_of(unknown)) == (PRESETS["digits"], None)


def test_a_damaged_line_is_counted_and_an_unfinished_one_is_none(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(tmp_path).to_json()))
    lines = ['{"images_seen": 8, "loss": 1}', "{half a li", "[1, 2]", '{"images_seen": 16, "loss": NaN}', '{"images_s']
    (tmp_path / "stats.jsonl").write_text("\n".join(lines))
    run = read_records("tiny", tmp_path)
    assert [record["images_seen"] for record in run.stats] == [8, 16]
    assert run.damaged == 2
    with pytest.raises(RunFolderError, match=r"holds no run \(config.json is missing\)"):
        read_records("none", tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------------------- plots


def rows_of(chart) -> list[dict]:
    return chart.spec["data"]["values"]


def test_plots_hold_finite_numbers_few_points_and_one_colour_per_run():
    loss = [math.nan, math.inf, *(1000 / i for i in range(1, 3 * MOST_POINTS))]
    run = records(reports(loss=loss, lr=loss, error=loss))
    one = {chart.title: chart for chart in charts_of([run])}
    assert set(one) == {"Error", "Training objective", "Learning rate"}  # what was not recorded has no plot
    points = rows_of(one["Training objective"])
    assert len(points) <= MOST_POINTS
    assert all(math.isfinite(point["y"]) for point in points)
    assert points[-1]["x"] == run.stats[-1]["images_seen"]  # the last is there
    assert max(loss[2:]) > WIDE * min(loss[2:])
    assert one["Training objective"].spec["encoding"]["y"]["scale"] == {"type": "log"}
    other = dataclasses.replace(run, name="other")
    several = charts_of([run, other])
    assert all(chart.spec["encoding"]["color"]["field"] == "run" for chart in several)
    json.dumps([chart.spec for chart in several], allow_nan=False)


def test_the_loss_meets_e_to_the_u():
    chart = next(chart for chart in charts_of([records(diagnostics=gradients(1, 2))]) if "u(σ)" in chart.title)
    assert {(row["curve"], row["y"]) for row in rows_of(chart)} == {("loss", 1), ("loss", 2), ("e^u(σ)", 1)}


def test_records_of_other_shapes_leave_a_plot_out():
    assert charts_of([records([{"images_seen": 8, "loss": "high"}], [{"images_seen": 8, "activations": 3}])]) == []


def test_the_curve_has_a_column_for_every_position_of_the_slider():
    spec = curve_over_slider(
        [{"position": 1, "y": 2.0, "run": "a", "time": 0, "guidance": 0}], ["raw", "0.1"], (0, 1, 0)
    )
    assert spec["encoding"]["x"]["scale"]["domain"] == [-0.5, 1.5]
    assert [parameter["value"] for parameter in spec["params"]] == [0, 1, 0]


# ------------------------------------------------------------------------------------------------------------ scores


def scored(lengths, best, at=8) -> Sweep:
    return Sweep([ScoredPoint(Point(at, s), (Score(abs(s - best), None, None),)) for s in lengths])


@pytest.mark.parametrize("best", [0.01, 0.06, 0.2])
def test_the_slider_has_few_lengths_and_the_best_of_the_sweep(best: float):
    lengths = lengths_of(scored([i / 100 for i in range(1, 21)], best))
    assert len(lengths) <= MOST_LENGTHS
    assert best in lengths
    assert lengths == sorted(set(lengths))
    assert lengths_of(None) == list(LENGTHS)
    assert lengths_of(scored([0.06, 0.12], 0.06)) == sorted({*LENGTHS, 0.06, 0.12})
    averages = SimpleNamespace(last=96, snapshots=[SimpleNamespace(images_seen=t) for t in range(8, 97, 8)])
    assert times_of(averages, 96) == [8, 24, 48, 96]
    assert times_of(averages, 96, scored([best], best, at=64)) == [8, 24, 48, 64, 96]
    assert times_of(averages, 96, scored([best], best, at=65)) == [8, 24, 48, 96]  # no longer stored


def test_scores_come_from_a_table_or_from_known_scores_of_one_detector(tmp_path: Path):
    pretend_sweep(tmp_path, times=(256, 512))
    best = best_by_setting(read_sweep(tmp_path / "sweep.csv"))
    assert min(best, key=best.__getitem__) == Point(512, 0.1)
    line = {"images_seen": 8, "sigma_rel": 0.1, "guidance": 1.0, "guide_sigma_rel": None, "deviation": None}
    rows = [
        line | {"detector": "pixels", "distance": 2.0},
        line | {"detector": "pixels", "distance": 1.5},
        line | {"detector": "pixels", "distance": 0.2, "metric": "kid"},
        line | {"detector": "other:a", "distance": 0.1},
    ]
    cache = tmp_path / "sweep.jsonl"
    cache.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"real_images": 500}\n{"half')
    known = scores_in_cache(cache)
    assert known.title == "FD-pixels"  # as of a sweep
    assert best_by_setting(known) == {Point(8, 0.1): 1.5}
    line |= {"detector": "pixels"}
    of_steps = [line | {"distance": 3.0 - s, "steps": steps} for steps in (1, 2) for s in range(steps)]
    cache.write_text("".join(json.dumps(row) + "\n" for row in of_steps))
    assert [result.distance for result in scores_in_cache(cache).results] == [3.0, 2.0], "of two steps alone"
    assert scores_in_cache(tmp_path / "nothing.jsonl") is None
