"""Detectors and metrics by name: a new one is a file of its own and a line here.

The command line, `edm2 sweep` and `edm2 ablate` take every name in these tables. Modules are imported on first use, so
that help answers at once.

| detector | features | title of its Frechet distance |
|---|---|---|
| pixels | the pixels themselves; for small images | FD-pixels |
| efficientnet-lite0 | an ImageNet classifier that comes in a pip package | FD-EfficientNet |
| fid, fid-clean | Inception, images resized as in the literature, or without aliasing | FID, FID-clean |
| fd_dinov2 | DINOv2 ViT-L/14 | FD-DINOv2 |
| module:callable | the output of a function of the user's own | FD-callable |
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class RegisteredDetector:
    """Location of a detector class, called as `target(weights, device)` (`edm2.metrics.detectors.Detector`)."""

    target: str
    """module:class."""
    weights_option: str | None = None
    """Option of `edm2 metrics` for a file of its weights; None: it has none that could be given."""


DETECTORS = {
    "pixels": RegisteredDetector("edm2.metrics.detectors:PixelDetector"),
    "efficientnet-lite0": RegisteredDetector("edm2.metrics.efficientnet:EfficientNetLite0"),
    "fid": RegisteredDetector("edm2.metrics.inception:Inception", "inception"),
    "fid-clean": RegisteredDetector("edm2.metrics.inception:CleanInception", "inception"),
    "fd_dinov2": RegisteredDetector("edm2.metrics.dinov2:DINOv2", "dinov2"),
}
"""Detectors whose features can be compared; names are the keys under which reference files keep statistics."""

CLASSIFIERS = {"is": RegisteredDetector("edm2.metrics.inception:InceptionProbabilities", "inception")}
"""Detectors of class probabilities, for metrics that take these instead of features."""

WEIGHTS_OPTIONS = {
    "inception": "Weights of Inception: inception-2015-12-05.pt.",
    "dinov2": "Weights of DINOv2 ViT-L/14: TorchScript, or as published (.pth).",
}

METRICS = {
    "kid": "edm2.metrics.kernel:KernelMetric",
    "pr": "edm2.metrics.precision_recall:PrecisionRecallMetric",
    "is": "edm2.metrics.inception_score:InceptionScoreMetric",
}
"""Metrics that are no Frechet distance (those have the names of their detectors), as module:class
(`edm2.metrics.scores.Metric`)."""

DETECTOR_NAMES = f"{', '.join(DETECTORS)}, or module:callable"
