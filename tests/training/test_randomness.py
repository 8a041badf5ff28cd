"""Random events at an image's position in the run: independent of each other, and as often as the settings say."""

from itertools import combinations

import numpy as np
import pytest
import torch
from tiny_run import tiny_config

from edm2.training import ArrayDataset
from edm2.training.data.batches import BatchStream
from edm2.training.randomness import PositionRandom, Stream

IMAGES = 40


def position_random() -> PositionRandom:
    return PositionRandom(0, 64, torch.device("cpu"))


def test_streams_keep_their_numbers():
    """They go into the seeds: with others, a run that is resumed with a later version would go on differently."""
    numbers = {"SIGMA": 0, "NOISE": 1, "LABEL_DROPOUT": 2, "XFLIP": 3, "DROPOUT": 4, "MOMENTS": 5}
    assert {name: int(stream) for name, stream in Stream.__members__.items()} == numbers


def test_streams_are_independent():
    """Correlations of 4,096 numbers, within five standard deviations of 0."""
    drawn = {name: position_random().uniform(stream, 0, 4096) for name, stream in Stream.__members__.items()}
    for one, other in combinations(drawn, 2):
        assert abs(np.corrcoef(drawn[one], drawn[other])[0, 1]) < 5 / 64, (one, other)


@pytest.fixture(scope="module")
def visits(tmp_path_factory) -> tuple[torch.Tensor, torch.Tensor]:
    """Two flags per position, of 4,000: the image is mirrored, its label is dropped."""
    images = torch.zeros(IMAGES, 1, 8, 8, dtype=torch.uint8)
    images[..., 0] = 255  # white on the left
    config = tiny_config(tmp_path_factory.mktemp("run"), label_dropout=0.2, xflip=True, batch_size=400, duration=4000)
    feed = BatchStream(config, ArrayDataset(images, torch.arange(IMAGES) % 3), position_random())
    steps = feed.steps(0)
    batches = [batch for _ in range(10) for batch in next(steps)]
    mirrored = torch.cat([batch.images[:, 0, 0, -1] > batch.images[:, 0, 0, 0] for batch in batches])
    return mirrored, torch.cat([batch.labels == -1 for batch in batches])


def bound(p: float, count: int) -> float:
    """Five standard deviations of the fraction of `count` events of probability p."""
    return 5 * (p * (1 - p) / count) ** 0.5


def test_labels_are_dropped_as_often_as_the_run_says(visits):
    _, dropped = visits
    assert dropped.double().mean().item() == pytest.approx(0.2, abs=bound(0.2, 4000))


def test_every_other_image_is_mirrored(visits):
    mirrored, _ = visits
    assert mirrored.double().mean().item() == pytest.approx(0.5, abs=bound(0.5, 4000))


def test_mirrored_images_lose_their_labels_as_often_as_others(visits):
    mirrored, dropped = visits
    assert dropped[mirrored].double().mean().item() == pytest.approx(0.2, abs=bound(0.2, 1900))
