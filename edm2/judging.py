"""Judging samples of small images against real ones: Frechet distance of pixels, and accuracy of the class."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edm2.generation import generate
from edm2.images import as_features
from edm2.metrics import ClassAccuracy, feature_statistics, frechet_distance
from edm2.networks import Precond, fold
from edm2.training import Codec, Dataset

MAX_PIXELS = 1024
"""Largest number of values per image: the covariance of pixels must be estimable and its roots cheap."""


@dataclass(frozen=True)
class Score:
    """How good a set of samples is."""

    frechet: float
    """Frechet distance to all real images, on pixels scaled to [0, 1]; lower is better."""
    accuracy: float | None
    """Share of samples recognized as the class they were asked for; None without classes."""


class PixelJudge:
    """Compares samples with the images of a dataset, pixel by pixel.

    Args:
        dataset: Real images; at most `MAX_PIXELS` values each.

    Raises:
        ValueError: the images are too large for pixels to be features, or the data are not pixels.
    """

    def __init__(self, dataset: Dataset) -> None:
        if dataset.kind != "pixels":
            raise ValueError(f"{dataset.name}: holds {dataset.kind}, not pixels that samples could be compared with")
        if (size := int(np.prod(dataset.shape))) > MAX_PIXELS:
            raise ValueError(
                f"{dataset.name}: {size} values per image are too many to compare pixel by pixel (at most {MAX_PIXELS})"
            )
        indices = range(len(dataset))
        labels = dataset.labels(indices).numpy()
        self.levels = dataset.levels
        self.features = as_features(dataset.images(indices), dataset.levels)
        self.statistics = feature_statistics(self.features)
        self.accuracy = ClassAccuracy(self.features, labels) if dataset.num_classes > 1 else None

    def score(self, pixels: Tensor, classes: Tensor | None) -> Score:
        """Score samples, uint8 [N, C, H, W], that were asked for `classes` [N]."""
        features = as_features(pixels, self.levels)
        accuracy = None if self.accuracy is None or classes is None else self.accuracy(features, classes)
        return Score(frechet_distance(feature_statistics(features), self.statistics), accuracy)

    def floor(self, count: int) -> float:
        """Frechet distance of `count` real images drawn with replacement: what perfect samples would score."""
        drawn = np.random.Generator(np.random.PCG64(0)).integers(len(self.features), size=count)
        return frechet_distance(feature_statistics(self.features[drawn]), self.statistics)

    def judge(self, net: Precond, codec: Codec, count: int, num_steps: int, batch_size: int = 128) -> Score:
        """Score `count` samples of a network: seeds 0, 1, ..., as many of each class."""
        label_dim = net.config.label_dim
        classes = [i % label_dim for i in range(count)] if label_dim else None
        batches = generate(fold(net), range(count), classes, batch_size=batch_size, num_steps=num_steps)
        pixels = torch.cat([codec.decode(batch.samples) for batch in batches])
        return self.score(pixels, None if classes is None else torch.tensor(classes))
