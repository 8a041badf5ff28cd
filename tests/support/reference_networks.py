"""Networks of config G with weights as after some training, and batches for them."""

import torch
import torch.nn.functional as F

from edm2.networks import NetworkConfig, build_network

CONFIGS = {
    "classes": NetworkConfig(8, 3, 5, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,)),
    "no classes": NetworkConfig((8, 16), 1, 0, model_channels=16, channel_mult=(1, 2), num_blocks=2),
    "filter, balances and clipping": NetworkConfig(
        16, 2, 3, model_channels=8, channel_mult=(1, 2, 2), num_blocks=1, attn_resolutions=(8, 4), channels_per_head=8,
        resample_filter=(1, 3, 3, 1), label_balance=0.4, concat_balance=0.6, res_balance=0.2, attn_balance=0.35,
        clip_act=2.0, channel_mult_noise=2, channel_mult_emb=3,
    ),
}  # fmt: skip
ROUNDING = 2e-5
"""Relative: a hundred operations in float32, of 6e-8 each, in another order."""


def network(config: NetworkConfig):
    """Random weights of any magnitude, and gains that let everything through."""
    torch.manual_seed(0)
    net = build_network(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5) if parameter.ndim else parameter.fill_(0.7)
    return net


def batch(config: NetworkConfig, count: int = 4):
    """Images, one-hot labels, noise levels and noise."""
    torch.manual_seed(1)
    shape = count, config.img_channels, *config.size
    labels = F.one_hot(torch.arange(count) % config.label_dim, config.label_dim).float() if config.label_dim else None
    return 0.5 * torch.randn(shape), labels, torch.randn(count).exp(), torch.randn(shape)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, rel: float = ROUNDING) -> None:
    """Up to rounding, in relation to the largest element."""
    assert (actual - expected).abs().max() <= rel * expected.abs().max()
