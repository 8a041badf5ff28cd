"""Evaluators from command-line options: which detector, and which real images, samples are compared by."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from edm2.training.distributed.processes import Processes

if TYPE_CHECKING:
    import torch

    from edm2.sweep.evaluator import Evaluator, MetricEvaluator
    from edm2.training import Codec, Dataset

SMALL = 1024
"""Values per image up to which pixels are compared by default."""


def codec_of(name: str | Path, metadata: dict[str, Any], vae: str | None, codec_from: str | None = None) -> "Codec":
    """Make the decoder of a network's samples, with another VAE or by a program of the user's own if one is given."""
    from edm2.training import LatentCodec, codec_from_json
    from edm2.training.data.own_codec import own_codec
    from edm2.training.imports import is_target

    described = metadata.get("codec") or {"kind": "pixels"}
    try:
        if codec_from is None:
            codec = codec_from_json(described)
        elif not is_target(str(described.get("kind"))):
            raise ValueError("describes its codec itself; leave out --codec")
        else:
            codec = own_codec(codec_from, **{key: value for key, value in described.items() if key != "kind"})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if vae is None:
        return codec
    if not isinstance(codec, LatentCodec):
        raise ValueError(f"{name}: draws pixels, which no --vae has to decode")
    return replace(codec, vae=vae)


def default_detector(shape: Sequence[int], are_pixels: bool) -> str:
    """Name of the default detector for images [C, H, W]: their pixels if they are small, else a network."""
    return "pixels" if are_pixels and prod(shape) <= SMALL else "efficientnet-lite0"


def load_evaluator(
    detector: str,
    weights: Path | None,
    dataset: "Dataset | None",
    ref: Path | None,
    device: "torch.device | str",
    processes: Processes,
    bar: Callable[[int], tqdm],
    kept_in: Path | None = None,
) -> "Evaluator":
    """Make an evaluator by statistics in a file, or else of a dataset, whose statistics are kept in a folder."""
    from edm2.metrics import load_detector, read_reference, reference_of
    from edm2.sweep.evaluator import Evaluator, evaluator_by
    from edm2.sweep.reference_cache import cached_reference

    if ref is not None:
        known = read_reference(ref)
        if detector not in known:
            raise ValueError(f"{ref}: holds no statistics of {detector}, only of {', '.join(known)}; choose --detector")
        found = load_detector(detector, weights, device)
        return Evaluator(found, known[detector], made_of=_digests(detector, weights))
    assert dataset is not None  # real images come from there or from `ref`
    found = load_detector(detector, weights, device)
    with bar(len(dataset)) as progress:
        if kept_in is None:
            statistics = reference_of(dataset, found, processes, progress.update)
        else:
            statistics = cached_reference(kept_in, dataset, found, weights, processes, progress.update)
        return evaluator_by(dataset, found, statistics)


def load_metric_evaluator(
    metric: str, detector: str, weights: Path | None, ref: Path | None, device: "torch.device | str"
) -> "MetricEvaluator":
    """Make an evaluator by another metric than the Frechet distance, such as kid, from features in a reference file."""
    from edm2.metrics import load_detector
    from edm2.metrics.scores import metrics_from
    from edm2.sweep.evaluator import MetricEvaluator

    assert ref is not None  # the command asks for it
    [made] = metrics_from(ref, [metric], detector)
    if not made.lower_is_better:
        raise ValueError(f"--metric {metric}: a sweep looks for the lowest number, and high ones of this are good")
    digest = hashlib.sha256(ref.read_bytes()).hexdigest()[:16]
    return MetricEvaluator(load_detector(detector, weights, device), made, metric, digest, _digests(detector, weights))


def _digests(detector: str, weights: Path | None) -> dict[str, str]:
    """Digests of the weights that are given for a detector, and of the program of one of the user's own."""
    from edm2.training.imports import is_target, source_digest
    from edm2.training.run.inputs import describe_file

    found = {} if weights is None else {"weights": describe_file(weights)}
    return found | ({"program": source_digest(detector)} if is_target(detector) else {})
