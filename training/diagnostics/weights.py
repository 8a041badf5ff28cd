"""Weight magnitudes per block and resolution (Appendix A.6, Figures 3 and 15)."""

from torch import nn

from edm2.training.diagnostics.layers import block_layers
from edm2.training.diagnostics.magnitudes import Buckets, largest_and_mean, magnitude_per_unit


def measure_weights(net: nn.Module) -> dict[str, Buckets]:
    """M[w_i] = sqrt(mean_j w_ij²) per output unit of the stored weights in the blocks, biases and gains left out.

    Weights that are normalized where they are used are measured as they are stored: forced weight normalization keeps
    them at 1, and without it (config D) they grow. Their average over a profile is shorter, the more they turn.

    Returns:
        {"max": ..., "mean": ...} over the output units of each bucket.
    """
    return largest_and_mean((layer.bucket, magnitude_per_unit(layer.weight)) for layer in block_layers(net))
