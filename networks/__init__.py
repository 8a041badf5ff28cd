"""Magnitude-preserving networks (Karras et al. 2024, arXiv 2312.02696v2, "the paper").

A layer preserves magnitude when inputs of unit root-mean-square per element give outputs of unit root-mean-square,
on expectation and by construction: no learned parameter, no activation and no sum may drift.

    reference.py   config G line by line from the paper, nothing optimized: read this first
    magnitude.py   the functions: normalize, mp_silu, mp_sum, mp_cat, and resample
    layers.py      the layers with weights: MPConv, MPFourier; forced weight normalization (Algorithm 1)
    attention.py   cosine attention, also across to tokens, and dot-product attention
    conditions.py  conditions beside the class: their kinds, their layers, the sum of several
    blocks.py      encoder and decoder blocks of config G (Figure 22)
    unet.py        the U-Net of config G
    precond.py     the denoiser D(x; sigma) around it, and the uncertainty u(sigma)
    ladder/        the configurations that led there, A to F, step by step
    config.py      NetworkConfig, the description of a network
    build.py       build_network, from the description to the network
    fold.py        an inference-only copy whose weights are normalized once and for all
"""

from edm2.networks.attention import higher_derivatives
from edm2.networks.blocks import DecoderBlock, EncoderBlock
from edm2.networks.build import build_network
from edm2.networks.conditions import (
    Condition,
    ImageCondition,
    ScalarCondition,
    TokenCondition,
    VectorCondition,
    mp_sum_of_sources,
)
from edm2.networks.config import NetworkConfig
from edm2.networks.fold import fold, is_folded
from edm2.networks.ladder import load_edm_state_dict
from edm2.networks.layers import Conv, Fourier, MPConv, MPFourier, WeightNormConv, force_weight_normalization_
from edm2.networks.magnitude import mp_cat, mp_silu, mp_sum, normalize, resample
from edm2.networks.precond import Precond
from edm2.networks.unet import UNet

__all__ = [
    "Condition",
    "Conv",
    "DecoderBlock",
    "EncoderBlock",
    "Fourier",
    "ImageCondition",
    "MPConv",
    "MPFourier",
    "NetworkConfig",
    "Precond",
    "ScalarCondition",
    "TokenCondition",
    "UNet",
    "VectorCondition",
    "WeightNormConv",
    "build_network",
    "fold",
    "force_weight_normalization_",
    "higher_derivatives",
    "is_folded",
    "load_edm_state_dict",
    "mp_cat",
    "mp_silu",
    "mp_sum",
    "mp_sum_of_sources",
    "normalize",
    "resample",
]
