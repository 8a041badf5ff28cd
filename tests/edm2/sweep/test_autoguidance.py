"""Guidance is found by successive halving, scored by fresh seeds, and named best only if seeds tell it from none."""

from collections import Counter
from dataclasses import replace

import pytest

import edm2
from edm2.metrics import load_detector
from edm2.planning.plan import plan_run
from edm2.sampling.samplers import HEUN, SAMPLERS
from edm2.sweep.autoguidance import (
    Comparison,
    GuidanceSearch,
    Row,
    evaluations_per_image,
    told_apart,
    write_guided,
)
from edm2.sweep.averages import KeptAverages
from edm2.sweep.evaluator import SampleSettings, Score, evaluator_by, score_network
from edm2.sweep.guidance_methods import Candidate, Choices, check_guide_run
from edm2.sweep.guides import DropoutGuide, GuideRun
from edm2.sweep.sweep import Point, Sweeper
from edm2.training import ArrayDataset, Trainer, codec_from_json, open_dataset

GUIDES = ("unlabelled", "early", "ema", "dropout")
CHOICES = Choices(sigma_rels=(0.05, 0.1), weights=(1.5, 2.0), guide_sigma_rels=(0.05, 0.1))


def train(out, **changes):
    whole = open_dataset("digits")
    digits = ArrayDataset(whole.images(range(200)), whole.labels(range(200)), whole.class_names, whole.levels, "digits")
    choices = {
        "model_channels": 8, "channels_per_head": 8, "batch_size": 32, "duration": 512, "snapshot_every": 32,
        "rampup_images": 0, "sample_every": None, "holdout": 0, "label_dropout": 0.1, "ref_lr": 0.05,
    }  # fmt: skip
    Trainer(plan_run(digits, "digits", str(out), "digits8", None, choices | changes), dataset=digits).run()
    return KeptAverages(out)


@pytest.fixture(scope="module")
def averages(tmp_path_factory):
    return train(tmp_path_factory.mktemp("autoguidance") / "run")


@pytest.fixture
def scored(monkeypatch) -> Counter:
    """Number of scored candidates by images per score and set of seeds; the score itself is made up."""
    seen: Counter = Counter()

    def score(net, codec, evaluator, sampling, guide, guidance, set_number, processes, report):
        seen[sampling.count, set_number] += 1
        low, _ = sampling.interval
        return Score(abs(guidance - 1.8) + (0.5 if guide is None else 0) - min(low, 0.3) + set_number / 1e3, 0.1, None)

    monkeypatch.setattr("edm2.sweep.sweep.score_network", score)
    for module in ("sweep", "guides"):
        monkeypatch.setattr(f"edm2.sweep.{module}.ready_to_sample", lambda net, dtype: net)
    return seen


@pytest.fixture
def search(averages) -> GuidanceSearch:
    dataset = open_dataset("digits")
    evaluator = evaluator_by(dataset, load_detector("pixels"))
    sampling = SampleSettings(40, 8)
    sweeper = Sweeper(averages, codec_from_json(averages.metadata["codec"]), evaluator, sampling, repeats=3)
    return GuidanceSearch(sweeper, 12, CHOICES)


def test_few_samples_for_many_candidates_and_fresh_seeds_for_the_best(search, scored):
    row = search.row(CHOICES.method("early", search.sweeper.averages))
    assert row.tried == 12
    assert scored == {(10, 0): 12, (20, 0): 3, (40, 0): 2, (40, 1): 1, (40, 2): 1, (40, 3): 1}
    assert row.candidate.point.guidance == pytest.approx(1.8, abs=0.1)
    assert [score.distance for score in row.scores] == pytest.approx([row.distance + d for d in (-1e-3, 0, 1e-3)])


def test_every_guide_has_its_row_and_two_have_one_with_an_interval(search, scored, averages):
    found = []
    search.found = found.append
    comparison = search.compare(GUIDES)
    assert [row.name for row in comparison.rows] == [
        "no guidance", "classifier-free", "classifier-free, interval", "early snapshot of itself",
        "another EMA length of itself", "itself with dropout",
    ]  # fmt: skip
    assert list(comparison.rows) == found
    assert comparison.winner is comparison.best is comparison.rows[2], "a low end above 0 scores best here"
    alone, best = comparison.fresh
    assert [row.name for row in (alone, best)] == ["no guidance", "classifier-free, interval"]
    assert scored[40, 4] == scored[40, 5] == scored[40, 6] == 2, "two rows by seeds that chose neither"
    assert [score.distance for score in best.scores] == pytest.approx(
        [comparison.best.distance + d / 1e3 for d in (2, 3, 4)]
    )
    assert sum(n * count for (count, _), n in scored.items()) <= search.images(GUIDES)


def test_a_budget_below_the_lists_is_refused_before_anything_is_drawn(search, scored):
    with pytest.raises(ValueError, match="too few: the lists alone take"):
        GuidanceSearch(search.sweeper, 4, CHOICES).compare(("unlabelled",))
    assert not scored


def test_the_evaluations_of_a_row_are_those_that_sampling_makes():
    guide = DropoutGuide(0.1)
    point = Point(1, 0.1, 2.0)
    assert evaluations_per_image(HEUN, 18, Candidate(Point(1, 0.1))) == (35, 0)
    assert evaluations_per_image(HEUN, 18, Candidate(point, guide)) == (35, 35)
    assert evaluations_per_image(SAMPLERS["deis"], 12, Candidate(point, guide)) == (12, 12)
    levels = edm2.sigma_steps(18)
    inside = Candidate(point, guide, (levels[12].item(), levels[9].item()))
    assert evaluations_per_image(HEUN, 18, inside) == (35, 6), "three steps of two evaluations"


# ---------------------------------------------------------------------------------------------------- telling apart


def row(*distances: float, deviation: float = 0.1) -> Row:
    scores = tuple(Score(distance, deviation, None) for distance in distances)
    return Row("", Candidate(Point(1, 0.1)), scores, 1, (1, 0))


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [
        (row(1.0, 1.2, 1.4), row(0.9, 1.1, 1.3), True),  # seeds move both alike: the difference is known well
        (row(1.0, 1.2, 1.4), row(1.1, 1.0, 1.3), False),
        (row(1.0), row(0.6), True),
        (row(1.0), row(0.8), False),
        (row(1.0, deviation=None), row(0.1), False),  # nothing is known of their spread
    ],
)
def test_rows_are_told_apart_by_their_differences_on_the_same_seeds(a, b, apart):
    assert told_apart(a, b) is told_apart(b, a) is apart


def test_no_winner_is_named_that_fresh_seeds_do_not_tell_from_no_guidance():
    alone, guided, clear = row(1.0, 1.1, 1.2), row(0.9, 1.1, 1.1), row(0.5, 0.61, 0.69)
    assert Comparison((alone, guided), fresh=(alone, guided)).winner is None
    assert Comparison((alone, clear), fresh=(alone, guided)).winner is None, "the best of many by luck"
    assert Comparison((alone, clear), fresh=(clear, alone)).winner is None, "told apart, but worse"
    assert Comparison((alone, guided, clear), fresh=(alone, clear)).winner is clear
    assert Comparison((alone, guided)).rivals == [alone]
    assert Comparison((guided, clear)).rivals == []
    assert Comparison((clear, alone)).winner is clear, "without guidance, where that is best"


# ---------------------------------------------------------------------------------------------------------- results


def test_the_file_scores_as_the_row_that_it_was_written_for(search, averages, tmp_path):
    guide = GuideRun(averages, 256)
    candidate = Candidate(Point(averages.last, 0.07, 1.5, 0.12), guide, (0.2, 8.0))
    [scores] = search._scores([candidate], 24)
    path = write_guided(tmp_path, Row("early", candidate, scores, 1, (15, 6)), averages)
    sweeper = replace(search.sweeper, sampling=SampleSettings(24, 8))
    again = score_network(sweeper.ready(edm2.load(path)), sweeper.codec, sweeper.evaluator, sweeper.sampling)
    assert again.distance == pytest.approx(scores[0].distance, rel=1e-4)


def test_guides_of_other_images_or_classes_are_refused(averages, tmp_path):
    other = train(tmp_path / "other", duration=64, model_channels=16)
    check_guide_run(averages, other)
    inputs = tmp_path / "other" / "inputs.json"
    inputs.write_text(inputs.read_text().replace('"images": 200', '"images": 150'))
    with pytest.raises(ValueError, match=r"cannot guide .* other images \(200 images then, 150 now\)"):
        check_guide_run(averages, other)


def test_a_run_that_saw_every_label_does_not_offer_itself_without(averages, tmp_path):
    assert CHOICES.available(averages) == ("unlabelled", "small", "early", "ema", "dropout")
    labelled = train(tmp_path / "labelled", label_dropout=0.0, duration=64)
    assert CHOICES.available(labelled) == ("small", "early", "ema", "dropout")
    assert Choices().available(labelled) == ("small", "ema", "dropout"), "too few snapshots for lengths up to 20 %"
    with pytest.raises(ValueError, match="saw the class of every image"):
        CHOICES.available(labelled, ["unlabelled"])
