"""The paper's ladder of configurations (arXiv 2312.02696v2, Table 1, Appendices B.1 to B.6): one file per step.

Each file holds what its step changes in the network, and nothing else.

    config_a.py     the network of EDM: the architecture of ADM (Dhariwal and Nichol 2021), trained as in EDM
    config_b.py     minor improvements: a matter of training and of attention resolutions
    config_c.py     architectural streamlining: no biases, cosine attention, simpler group norms, Fourier features
    config_d.py     magnitude-preserving learned layers: weights normalized on use
    config_e.py     control of the effective learning rate: weights normalized for good, too
    config_f.py     no group norms: the network of config G, with plain functions

A is the base class, and B to E each derive from the configuration before. F is written out; it is config G with plain
functions. G, which all sizes of EDM2 are built from, is `edm2.networks.unet`. docs/ladder.md also says how each
configuration is trained.

    edm_weights.py  published weights of EDM's networks into config A or B
"""

from edm2.networks.ladder.config_a import BlockA, UNetA
from edm2.networks.ladder.config_b import UNetB
from edm2.networks.ladder.config_c import BlockC, UNetC
from edm2.networks.ladder.config_d import BlockD, UNetD
from edm2.networks.ladder.config_e import BlockE, UNetE
from edm2.networks.ladder.config_f import DecoderBlockF, EncoderBlockF, UNetF
from edm2.networks.ladder.edm_weights import load_edm_state_dict

__all__ = [
    "BlockA",
    "BlockC",
    "BlockD",
    "BlockE",
    "DecoderBlockF",
    "EncoderBlockF",
    "UNetA",
    "UNetB",
    "UNetC",
    "UNetD",
    "UNetE",
    "UNetF",
    "load_edm_state_dict",
]
