"""How good samples are: `frechet.py` compares two sets of features, `classifier.py` asks for the right class."""

from edm2.metrics.classifier import ClassAccuracy
from edm2.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance

__all__ = ["ClassAccuracy", "FeatureStatistics", "feature_statistics", "frechet_distance"]
