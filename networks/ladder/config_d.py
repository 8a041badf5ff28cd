"""Config D: magnitude-preserving learned layers (Appendix B.4, Figure 19).

Every convolution and linear layer normalizes its weights on use and draws them from N(0, 1). The parameters themselves
are free to grow.
"""

from edm2.networks.ladder.config_c import BlockC, UNetC
from edm2.networks.layers import WeightNormConv


class BlockD(BlockC):
    """Config C's block with normalized weights."""

    conv = WeightNormConv
    last_conv = WeightNormConv


class UNetD(UNetC):
    """Config D."""

    conv = WeightNormConv
    last_conv = WeightNormConv
    label_conv = WeightNormConv
    block = BlockD
