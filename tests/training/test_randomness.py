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


def test_streams_keep_their_numbers():
    """They go into the seeds: with others, a run that is resumed with a later version would go on differently."""
    numbers = {"SIGMA": 0, "NOISE": 1, "LABEL_DROPOUT": 2, "XFLIP": 3, "DROPOUT": 4, "MOMENTS": 5}
    assert {name: int(stream) for name, stream in Stream.__members__.items()} == numbers


def test_streams_are_independent():
    """Correlations of 4,096 numbers, within five standard deviations of 0."""
    random = PositionRandom(0, 64, torch.device("cpu"))
    drawn = {name: random.uniform(stream, 0, 4096) for name, stream in Stream.__members__.items()}
    for one, other in combinations(drawn, 2):
        assert abs(np.corrcoef(drawn[one], drawn[other])[0, 1]) < 5 / 64, (one, other)


def test_labels_are_dropped_and_images_mirrored_as_often_as_the_run_says_independently(tmp_path):
    """In 4,000 visits, to five standard deviations."""
    images = torch.zeros(IMAGES, 1, 8, 8, dtype=torch.uint8)
    images[..., 0] = 255  # white on the left
    config = tiny_config(tmp_path, label_dropout=0.2, xflip=True, batch_size=400, duration=4000)
    dataset = ArrayDataset(images, torch.arange(IMAGES) % 3)
    steps = BatchStream(config, dataset, PositionRandom(0, 64, torch.device("cpu"))).steps(0)
    batches = [batch for _ in range(10) for batch in next(steps)]
    mirrored = torch.cat([batch.images[:, 0, 0, -1] > batch.images[:, 0, 0, 0] for batch in batches])
    dropped = torch.cat([batch.labels == -1 for batch in batches])
    for events, p in ((mirrored, 0.5), (dropped, 0.2), (dropped[mirrored], 0.2)):
        assert events.double().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / len(events)) ** 0.5)
