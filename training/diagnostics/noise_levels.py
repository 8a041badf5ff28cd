"""One forward and backward pass per bin of noise levels, for all instruments that need one.

It leaves the gradients and random numbers of training alone.
"""

import math
from collections.abc import Mapping
from typing import Any

from edm2.networks import Precond
from edm2.networks.skeleton import blocks
from edm2.training.diagnostics.batches import Batch
from edm2.training.diagnostics.clipping import ClippedShare
from edm2.training.diagnostics.gradients import BinGradient
from edm2.training.diagnostics.layers import listening
from edm2.training.diagnostics.losses import DenoiserError
from edm2.training.diagnostics.magnitudes import number
from edm2.training.objective import DenoisingLoss


def measure_noise_levels(
    net: Precond, loss: DenoisingLoss, bins: Mapping[float, Batch], images_per_forward: int
) -> dict[str, Any]:
    """Gradient norm, loss, u(sigma) and shares of what was clipped or not finite.

    Args:
        net: The network as the optimizer sees it; measured without dropout.
        loss: The training objective.
        bins: Images at the noise levels of each bin, by its median.
        images_per_forward: At most so many at once.

    Returns:
        "noise_levels": for each bin the "gradient_norm" of the mean training loss per image, the "loss", the mean of
        lambda (D - y)² per element, and "u" = ln mean e^u(sigma), which approaches the logarithm of the loss (left out
        where the objective does without); "clipped_activations": the share in all blocks with a bound; "nonfinite":
        the share of "entries" of all gradients.
    """
    training = net.training
    net.eval()
    clipped = ClippedShare()
    try:
        with listening(blocks(net), clipped.hear):
            results = {f"{s:.4g}": _measure_bin(net, loss, batch, images_per_forward) for s, batch in bins.items()}
    finally:
        net.train(training)
    nonfinite = [result.pop("nonfinite") for result in results.values()]
    quantities = ("gradient_norm", "loss", "u") if loss.weighting.uses_uncertainty else ("gradient_norm", "loss")
    levels: dict[str, Any] = {name: {s: number(result[name]) for s, result in results.items()} for name in quantities}
    return {
        "noise_levels": levels | {"images": len(next(iter(bins.values())).images)},
        "clipped_activations": clipped.share,
        "nonfinite": {"entries": number(sum(nonfinite) / len(nonfinite))},
    }


def _measure_bin(net: Precond, loss: DenoisingLoss, batch: Batch, images_per_forward: int) -> dict[str, float]:
    gradient, errors = BinGradient(net, len(batch.images)), DenoiserError(net)
    for part in batch.split(images_per_forward):
        gradient.add(errors.listen(loss, part))
    norm, nonfinite = gradient.norm_and_nonfinite()
    error, expected = errors.sums.tolist()
    u = math.log(expected / len(batch.images)) if expected > 0 else math.nan
    return {"gradient_norm": float(norm), "loss": error / len(batch.images), "u": u, "nonfinite": nonfinite}
