"""How good samples are.

frechet.py       Frechet distance between two sets of features
classifier.py    whether samples show the class they were asked for
"""

from edm2.metrics.classifier import ClassAccuracy
from edm2.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance

__all__ = ["ClassAccuracy", "FeatureStatistics", "feature_statistics", "frechet_distance"]
