"""Config E: control of the effective learning rate (Appendix B.5, Algorithm 1, Figure 20).

The function is config D's. Its layers are of the kind whose parameters `force_weight_normalization_` overwrites by
their normalized selves before every training step. (The other half of this step, a learning rate that decays, is in
training.)
"""

from edm2.networks.ladder.config_d import BlockD, UNetD
from edm2.networks.layers import MPConv


class BlockE(BlockD):
    """Config D's block with weights that can be forced."""

    conv = MPConv
    last_conv = MPConv


class UNetE(UNetD):
    """Config E."""

    conv = MPConv
    last_conv = MPConv
    label_conv = MPConv
    block = BlockE
