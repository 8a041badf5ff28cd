"""How good samples are.

Detectors turn images into features (`detectors.py` says which there are); what is compared are features:

    features.py            of many images, batch by batch, by several processes
    frechet.py             Frechet distance of means and covariances
    kernel.py              kernel distance
    precision_recall.py    precision and recall
    inception_score.py     Inception score
    neighbours.py          samples that repeat training images
    classifier.py          samples that show the class they were asked for
    reference.py           what real images look like, in files
    scores.py              several of these at once
"""

from edm2.metrics.classifier import ClassAccuracy
from edm2.metrics.detectors import Detector, load_detector
from edm2.metrics.frechet import FeatureStatistics, FeatureSums, feature_statistics, frechet_distance
from edm2.metrics.reference import read_reference, reference_of, write_reference

__all__ = [
    "ClassAccuracy",
    "Detector",
    "FeatureStatistics",
    "FeatureSums",
    "feature_statistics",
    "frechet_distance",
    "load_detector",
    "read_reference",
    "reference_of",
    "write_reference",
]
