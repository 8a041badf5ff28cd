"""A sweep scores points in the same way wherever and however often it is run, and names the best."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edm2.io.model import load, network_from_state
from edm2.metrics import load_detector
from edm2.networks import fold
from edm2.planning.plan import plan_run
from edm2.post_hoc_ema import find_snapshots, reconstruct
from edm2.sampling.guidance import without_labels
from edm2.sampling.samplers import SAMPLERS
from edm2.sweep.averages import RAW, Averages
from edm2.sweep.evaluator import SampleSettings, evaluator_by, score_network
from edm2.sweep.guides import FixedGuide, GuideRun, UnlabelledGuide
from edm2.sweep.score_cache import ScoreCache
from edm2.sweep.sweep import Point, Range, Sweeper
from edm2.training import ArrayDataset, Dataset, RunFolder, Trainer, codec_from_json, open_dataset

LENGTHS = [0.05, 0.12, 0.15]
LAST = 256


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = open_dataset("digits")
    return ArrayDataset(whole.images(range(200)), whole.labels(range(200)), whole.class_names, whole.levels, "digits")


def train(digits: Dataset, out: Path, seed: int = 0) -> Path:
    """A few steps of a tiny network."""
    choices = {
        "model_channels": 8, "channels_per_head": 8, "batch_size": 32, "duration": LAST, "snapshot_every": 64,
        "rampup_images": 0, "sample_every": None, "holdout": 0, "label_dropout": 0.1, "ref_lr": 0.05, "seed": seed,
    }  # fmt: skip
    Trainer(plan_run(digits, "digits", str(out), "digits8", None, choices), dataset=digits).run()
    return out


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Path:
    return train(digits, tmp_path_factory.mktemp("sweep") / "run")


@pytest.fixture(scope="module")
def other_run(digits, tmp_path_factory) -> Path:
    return train(digits, tmp_path_factory.mktemp("sweep") / "other", seed=1)


@pytest.fixture
def sweeper(run, digits) -> Sweeper:
    averages = Averages(run)
    evaluator = evaluator_by(digits, load_detector("pixels"))
    return Sweeper(averages, codec_from_json(averages.metadata["codec"]), evaluator, SampleSettings(12, 2))


@pytest.fixture
def passes(monkeypatch) -> list[tuple[int, list[float]]]:
    """Times and lengths that are reconstructed together, as it happens."""
    done = []

    def counted(snapshots, sigma_rels, at):
        done.append((at, list(sigma_rels)))
        return reconstruct(snapshots, sigma_rels, at)

    monkeypatch.setattr("edm2.sweep.averages.reconstruct", counted)
    return done


# ------------------------------------------------------------------------------------------------------ one point


def test_a_point_is_what_reconstruction_and_scoring_give_by_hand(sweeper, run):
    [result] = sweeper.results([Point(LAST, 0.15)])
    snapshots = find_snapshots(run)
    [state] = reconstruct(snapshots, [0.15])
    net = fold(network_from_state(snapshots[-1].metadata, state))
    assert result.score == score_network(net, sweeper.codec, sweeper.evaluator, sweeper.sampling)
    [stored] = Averages(run).networks(128, [0.05])  # coefficients of a tracked profile are 1 and 0 up to rounding
    [state] = reconstruct(snapshots, [0.05], 128)
    for name, tensor in stored.state_dict().items():
        assert torch.allclose(tensor, state[name], rtol=1e-5, atol=1e-7), name


def test_raw_weights_are_an_average_of_length_zero(sweeper, run):
    assert sweeper.averages.has_raw_weights(LAST)
    assert not sweeper.averages.has_raw_weights(128)
    net = fold(load(RunFolder(run).raw_weights))
    [result] = sweeper.results([Point(LAST, RAW)])
    assert result.score == score_network(net, sweeper.codec, sweeper.evaluator, sweeper.sampling)


def test_the_lowest_of_several_sets_of_seeds_counts(sweeper):
    [once] = sweeper.results([Point(LAST, 0.1)])
    [thrice] = replace(sweeper, repeats=3).results([Point(LAST, 0.1)])
    assert thrice.scores[0] == once.score
    assert len({score.distance for score in thrice.scores}) == 3
    assert thrice.distance == min(score.distance for score in thrice.scores)


@pytest.mark.parametrize("kind", ["itself", "run", "file"])
def test_guides(sweeper, run, other_run, kind):
    point = Point(LAST, 0.12, guidance=2.0, guide_sigma_rel=0.05 if kind == "run" else None)
    [net] = map(fold, sweeper.averages.networks(LAST, [0.12]))
    if kind == "itself":
        sweeper.guide, guide = UnlabelledGuide(), without_labels(net)
    elif kind == "run":
        sweeper.guide = GuideRun(Averages(other_run), 128)
        [guide] = map(fold, Averages(other_run).networks(128, [0.05]))
    else:
        path = RunFolder(other_run).raw_weights
        sweeper.guide, guide = FixedGuide(path), fold(load(path))
    [result] = sweeper.results([point])
    assert result.score == score_network(net, sweeper.codec, sweeper.evaluator, sweeper.sampling, guide, 2.0)
    assert result.score != sweeper.results([Point(LAST, 0.12)])[0].score


# ----------------------------------------------------------------------------------------------------- many points


def test_lengths_of_a_time_share_passes_as_large_as_memory_allows(sweeper, run, other_run, passes):
    """Each point once: without guidance the guide's length makes no difference."""
    points = Range([128, LAST], [0.07, 0.12, 0.15]).points()
    assert [result.point for result in sweeper.results(points)] == points
    assert passes == [(128, [0.07, 0.12, 0.15]), (LAST, [0.07, 0.12, 0.15])]
    passes.clear()
    area = Range([LAST], [0.07, 0.12, 0.15], [1.0, 2.0], [0.06, 0.16])
    assert len(area.points()) == 3 * (1 + 2)
    sweeper.guide = GuideRun(Averages(other_run), LAST)
    whole = sweeper.results(area.points())
    assert len(passes) == 2
    passes.clear()
    small = Averages(run, max_bytes=2 * sweeper.averages.network_bytes + 1)
    assert small.at_once == 2
    guide = GuideRun(Averages(other_run, max_bytes=1), LAST)
    assert replace(sweeper, averages=small, guide=guide).results(area.points()) == whole
    assert max(len(lengths) for _, lengths in passes) == 2


def test_the_best_has_the_lowest_distance(sweeper, run, digits):
    """Beside it stand raw weights and real images; midway and with snapshots alone there are no raw weights."""
    sweep = sweeper.sweep(Range([LAST], LENGTHS), digits)
    assert [result.point.sigma_rel for result in sweep.averages] == LENGTHS
    assert sweep.best.distance == min(result.distance for result in sweep.averages)
    assert sweep.raw is not None
    assert sweep.raw not in sweep.averages
    assert sweep.real_data_fd == sweeper.evaluator.real_data_fd(digits, 12)
    assert sweeper.sweep(Range([128], [0.05])).raw is None
    assert replace(sweeper, averages=Averages(run / "snapshots")).sweep(Range([LAST], [0.05])).raw is None


def test_a_search_keeps_to_its_budget_and_is_no_worse_than_its_lists(sweeper):
    area = Range([128, LAST], [0.05, 0.12, 0.2])
    found = sweeper.search(area, budget=6)
    coarse = sweeper.results(area.points())
    for time in area.times:
        of_time = [result for result in found if result.point.images_seen == time]
        assert 3 < len(of_time) <= 6
        lists = [result for result in coarse if result.point.images_seen == time]
        assert all(result in of_time for result in lists)


# ------------------------------------------------------------------------------------------------------- the cache


def test_what_is_known_is_not_computed_again(sweeper, tmp_path, monkeypatch):
    """Progress counts every image once, drawn or known."""
    path, seen = tmp_path / "sweep.jsonl", []
    points = Range([LAST], [0.1, 0.12]).points()
    sweeper = replace(sweeper, repeats=2, report=seen.append)
    replace(sweeper, known=ScoreCache(path)).results(points[:1])
    first = replace(sweeper, known=ScoreCache(path)).results(points)
    assert sum(seen) == 12 * 2 * (1 + 2)
    monkeypatch.setattr("edm2.sweep.sweep.score_network", None)
    assert replace(sweeper, known=ScoreCache(path)).results(points) == first


def test_whatever_decides_a_score_is_part_of_its_key(sweeper, run, other_run, tmp_path, digits):
    path, point = tmp_path / "sweep.jsonl", Point(LAST, 0.1)
    replace(sweeper, known=ScoreCache(path)).results([point])
    part = ArrayDataset(digits.images(range(100)), levels=17)
    others = {
        "run": {"averages": Averages(other_run)},
        "count": {"sampling": SampleSettings(14, 2)},
        "steps": {"sampling": SampleSettings(12, 3)},
        "dtype": {"sampling": SampleSettings(12, 2, dtype=torch.bfloat16)},
        "solver": {"sampling": SampleSettings(12, 2, sampler=SAMPLERS["euler"])},
        "reference": {"evaluator": evaluator_by(part, load_detector("pixels"))},
    }
    for name, changed in others.items():
        other = replace(sweeper, known=ScoreCache(path), **changed)
        assert other._known(point) == [], name
    assert len(replace(sweeper, known=ScoreCache(path))._known(point)) == 1
    copied = Averages(run / "snapshots")  # the same snapshots, seen from elsewhere
    assert len(replace(sweeper, known=ScoreCache(path), averages=copied)._known(point)) == 1
    shorter = Averages(run)  # a snapshot that comes later changes nothing that was scored before
    shorter.snapshots = [snapshot for snapshot in shorter.snapshots if snapshot.images_seen <= 128]
    assert shorter.fingerprint(128) == sweeper.averages.fingerprint(128) != sweeper.averages.fingerprint(LAST)


# -------------------------------------------------------------------------------------------------------- mistakes


def test_mistakes_are_told_before_the_work(sweeper, run, tmp_path, monkeypatch):
    monkeypatch.setattr("edm2.sweep.sweep.score_network", None)
    with pytest.raises(ValueError, match=r"run: .*100 images"):
        sweeper.results([Point(LAST, 0.1), Point(100, 0.1)])
    with pytest.raises(ValueError, match="give a guide"):
        sweeper.results([Point(LAST, 0.1, guidance=2.0)])
    with pytest.raises(ValueError, match="less than"):
        sweeper.results([Point(LAST, 0.3)])
    with pytest.raises(FileNotFoundError, match="no snapshots"):
        Averages(tmp_path)
