from edm2.metrics.detectors import Detector as Detector, load_detector as load_detector
from edm2.metrics.frechet import (
    FeatureStatistics as FeatureStatistics,
    FeatureSums as FeatureSums,
    feature_statistics as feature_statistics,
    frechet_distance as frechet_distance,
)
from edm2.metrics.reference import (
    read_reference as read_reference,
    reference_of as reference_of,
    write_reference as write_reference,
)
