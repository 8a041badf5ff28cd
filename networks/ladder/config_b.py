"""Config B: minor improvements (Appendix B.2, Figure 17).

Most of them are in training: noise levels, Adam, batch size, learning rate, the learned uncertainty u(sigma) in the
loss, EMA with power functions. In the network, attention leaves the resolution 32x32, which is a field of the
description, `NetworkConfig(attn_resolutions=(16, 8))`.
"""

from edm2.networks.ladder.config_a import UNetA


class UNetB(UNetA):
    """The network of config A."""
