"""Samples are compared by what they show: how far from real images, and whether they are of the class asked for."""

import numpy as np
import pytest
import torch

from edm2.metrics import feature_statistics, frechet_distance, load_detector
from edm2.metrics.features import displayed
from edm2.networks import fold
from edm2.sampling.generation import SamplingError
from edm2.sampling.samplers import SAMPLERS
from edm2.sweep.evaluator import ClassAccuracy, Evaluator, SampleSettings, Score, evaluator_by, score_network
from edm2.sweep.score_cache import ScoreCache
from edm2.training import ArrayDataset, PixelCodec, open_dataset

CODEC = PixelCodec.standardized([4.9], [6.0], levels=17)
SETTINGS = SampleSettings(count=30, num_steps=2)


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits")


@pytest.fixture(scope="module")
def evaluator(digits) -> Evaluator:
    return evaluator_by(digits, load_detector("pixels"))


def features_of(evaluator: Evaluator, dataset, indices) -> torch.Tensor:
    return evaluator.detector(displayed(dataset, indices))


def test_the_classifier_knows_digits_it_has_not_seen(digits, evaluator):
    """Trained on every other digit, asked about the others."""
    indices = range(len(digits))
    features, labels = features_of(evaluator, digits, indices).numpy(), digits.labels(indices).numpy()
    assert features.min() == 0
    assert features.max() == 1
    accuracy = ClassAccuracy(features[::2], labels[::2])
    assert accuracy(features[1::2], labels[1::2]) >= 0.97
    assert accuracy(features[1::2], (labels[1::2] + 1) % 10) <= 0.03


def test_real_images_score_perfectly(digits, evaluator):
    indices = range(len(digits))
    score = evaluator.score(features_of(evaluator, digits, indices), digits.labels(indices).tolist())
    assert score.distance == pytest.approx(0, abs=1e-6)
    assert score.accuracy >= 0.99
    assert evaluator.score(features_of(evaluator, digits, range(100))).accuracy is None


def test_the_floor_falls_with_the_number_of_samples_and_noise_is_far_above(digits, evaluator):
    floors = [evaluator.real_data_fd(digits, count) for count in (100, 400, 1600)]
    assert floors == sorted(floors, reverse=True)
    assert floors == [evaluator.real_data_fd(digits, count) for count in (100, 400, 1600)]
    assert floors[-1] > 0
    noise = torch.randint(0, 256, (400, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    score = evaluator.score(evaluator.detector(noise), (torch.arange(400) % 10).tolist())
    assert score.distance > 10 * floors[1]
    assert score.accuracy < 0.3


def test_a_score_is_what_its_images_say(evaluator, make_net):
    net = fold(make_net(img_channels=1))
    score = score_network(net, CODEC, evaluator, SETTINGS)
    assert score == score_network(net, CODEC, evaluator, SETTINGS)
    images = torch.cat(list(SETTINGS.images(net, CODEC, None, 1.0, [range(30)])))
    features = evaluator.detector(images)
    assert score.distance == frechet_distance(feature_statistics(features), evaluator.reference)
    assert score.accuracy == evaluator.accuracy(features, np.arange(30) % 10)
    assert 0 < score.deviation < score.distance


@torch.no_grad()
def test_what_is_no_image_gets_no_score(evaluator, make_net):
    net = make_net(img_channels=1)
    net.unet.out_gain.fill_(torch.nan)
    with pytest.raises(SamplingError, match="not finite"):
        score_network(fold(net), CODEC, evaluator, SETTINGS)


def test_sets_of_seeds_have_nothing_in_common(evaluator, make_net):
    net = fold(make_net(img_channels=1))
    assert not set(SETTINGS.seeds(0)) & set(SETTINGS.seeds(1))
    assert score_network(net, CODEC, evaluator, SETTINGS) != score_network(
        net, CODEC, evaluator, SETTINGS, set_number=1
    )


def test_guidance_changes_the_score_where_the_interval_allows(evaluator, make_net):
    net, guide = fold(make_net(img_channels=1)), fold(make_net(seed=3, img_channels=1))
    plain = score_network(net, CODEC, evaluator, SETTINGS)
    assert score_network(net, CODEC, evaluator, SETTINGS, guide, 2.0) != plain
    never = SampleSettings(30, 2, interval=(100, 200))
    assert score_network(net, CODEC, evaluator, never, guide, 2.0) == plain


def test_as_many_samples_of_each_class_are_drawn(net, make_net, unconditional):
    assert SETTINGS.classes(net, range(25)) == [*range(10), *range(10), *range(5)]
    assert SETTINGS.classes(unconditional, range(25)) is None
    with_gaps = make_net()
    with_gaps.empty_classes = (0, *range(4, 10))
    assert SETTINGS.classes(with_gaps, range(5)) == [1, 2, 3, 1, 2]


def test_a_drawing_by_heun_has_the_key_that_it_had_before_there_were_others():
    """So that scores in existing sweep.jsonl files stay known."""
    before = {"count": 500, "steps": 32, "interval": [0, None], "dtype": "torch.float32"}
    assert SampleSettings().to_json() == before
    assert SampleSettings(sampler=SAMPLERS["deis"]).to_json() == before | {"solver": "deis"}


def test_networks_and_data_without_classes_have_no_accuracy(digits, evaluator, make_net):
    assert score_network(fold(make_net(img_channels=1, label_dim=0)), CODEC, evaluator, SETTINGS).accuracy is None
    unlabelled = ArrayDataset(digits.images(range(50)), levels=17)
    assert evaluator_by(unlabelled, load_detector("pixels")).accuracy is None


def test_latents_are_not_pixels():
    with pytest.raises(ValueError, match="moments"):
        evaluator_by(ArrayDataset(torch.zeros(4, 8, 4, 4)), load_detector("pixels"))


# ------------------------------------------------------------------------------------------------------- the cache


def test_scores_survive_to_the_last_bit(tmp_path):
    score = Score(1 / 3, 2e-7, None)
    ScoreCache(tmp_path / "new" / "sweep.jsonl").add({"a": 1, "b": 2}, {"sigma_rel": 0.1}, score)
    again = ScoreCache(tmp_path / "new" / "sweep.jsonl")
    assert again.get({"b": 2, "a": 1}) == score
    assert again.get({"a": 1, "b": 3}) is None


def test_half_a_line_is_ignored_and_harms_nothing_after_it(tmp_path):
    path = tmp_path / "sweep.jsonl"
    cache = ScoreCache(path)
    for number in range(2):
        cache.add({"n": number}, {}, Score(number, None, None))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    cut = ScoreCache(path)
    assert cut.get({"n": 0}) is not None
    assert cut.get({"n": 1}) is None
    cut.add({"n": 1}, {}, Score(1, None, None))
    mended = ScoreCache(path)
    assert [mended.get({"n": n}).distance for n in range(2)] == [0, 1]
