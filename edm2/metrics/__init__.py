"""Metrics of samples: how close their features are to those of real images.

    registry.py            detectors and metrics by name: the one place where a new one is registered
    detectors.py           images to features: the interface, pixels, a function of the user's own
    inception.py           Inception features (FID) and class probabilities (Inception score)
    dinov2.py              DINOv2 features (FD-DINOv2)
    efficientnet.py        EfficientNet features, offline
    pretrained.py          weights and image sizes, which the networks above share
    features.py            features of many images, batch by batch, by several processes
    frechet.py             Frechet distance of means and covariances
    kernel.py              kernel distance
    precision_recall.py    precision and recall
    inception_score.py     Inception score
    distances.py           Euclidean distances and nearest neighbours, in blocks
    neighbours.py          training images closest to samples
    image_source.py        images in a folder, a dataset or an NPZ file
    reference.py           statistics of real images, in files
    scores.py              the interface of a metric, and several of them in one pass over the images

Public names are loaded on first use: the command line reads the registry without torch.
"""

from edm2 import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
