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
    """Trained on every other digit, asked about the others. Data without classes have no accuracy."""
    indices = range(len(digits))
    features, labels = features_of(evaluator, digits, indices).numpy(), digits.labels(indices).numpy()
    assert features.min() == 0
    assert features.max() == 1
    accuracy = ClassAccuracy(features[::2], labels[::2])
    assert accuracy(features[1::2], labels[1::2]) >= 0.97
    assert accuracy(features[1::2], (labels[1::2] + 1) % 10) <= 0.03
    assert evaluator_by(ArrayDataset(digits.images(range(50)), levels=17), evaluator.detector).accuracy is None


def test_the_floor_falls_with_the_number_of_samples_and_noise_is_far_above(digits, evaluator):
    indices = range(len(digits))
    perfect = evaluator.score(features_of(evaluator, digits, indices), digits.labels(indices).tolist())
    assert perfect.distance == pytest.approx(0, abs=1e-6)
    assert perfect.accuracy >= 0.99
    floors = [evaluator.real_data_fd(digits, count) for count in (100, 400, 1600)]
    assert floors == sorted(floors, reverse=True)
    assert floors == [evaluator.real_data_fd(digits, count) for count in (100, 400, 1600)]
    assert floors[-1] > 0
    noise = torch.randint(0, 256, (400, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    score = evaluator.score(evaluator.detector(noise), (torch.arange(400) % 10).tolist())
    assert score.distance > 10 * floors[1]
    assert score.accuracy < 0.3


def test_a_score_is_what_its_images_say(evaluator, make_net):
    """As many samples of each class are drawn; another set of seeds has none in common, and another score."""
    net = fold(make_net(img_channels=1))
    score = score_network(net, CODEC, evaluator, SETTINGS)
    assert score == score_network(net, CODEC, evaluator, SETTINGS)
    images = torch.cat(list(SETTINGS.images(net, CODEC, None, 1.0, [range(30)])))
    features = evaluator.detector(images)
    assert score.distance == frechet_distance(feature_statistics(features), evaluator.reference)
    assert score.accuracy == evaluator.accuracy(features, np.arange(30) % 10)
    assert evaluator.score(features).accuracy is None
    assert 0 < score.deviation < score.distance
    assert not set(SETTINGS.seeds(0)) & set(SETTINGS.seeds(1))
    assert score_network(net, CODEC, evaluator, SETTINGS, set_number=1) != score
    unconditional = fold(make_net(img_channels=1, label_dim=0))
    assert score_network(unconditional, CODEC, evaluator, SETTINGS).accuracy is None


@torch.no_grad()
def test_what_is_no_image_gets_no_score(evaluator, make_net):
    net = make_net(img_channels=1)
    net.unet.out_gain.fill_(torch.nan)
    with pytest.raises(SamplingError, match="not finite"):
        score_network(fold(net), CODEC, evaluator, SETTINGS)
    with pytest.raises(ValueError, match="moments"):
        evaluator_by(ArrayDataset(torch.zeros(4, 8, 4, 4)), load_detector("pixels"))


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


# ------------------------------------------------------------------------------------------------------- the cache


def test_scores_survive_to_the_last_bit_and_half_a_line_is_ignored(tmp_path):
    """What was cut off harms nothing that comes after it."""
    path, scores = tmp_path / "new" / "sweep.jsonl", [Score(1 / 3, 2e-7, None), Score(2 / 3, None, 0.5)]
    cache = ScoreCache(path)
    for number, score in enumerate(scores):
        cache.add({"n": number, "b": 2}, {"sigma_rel": 0.1}, score)
    again = ScoreCache(path)
    assert [again.get({"b": 2, "n": n}) for n in range(3)] == [*scores, None]
    path.write_bytes(path.read_bytes()[:-20])
    cut = ScoreCache(path)
    assert [cut.get({"n": n, "b": 2}) for n in range(2)] == [scores[0], None]
    cut.add({"n": 1, "b": 2}, {}, scores[1])
    mended = ScoreCache(path)
    assert [mended.get({"n": n, "b": 2}) for n in range(2)] == scores
