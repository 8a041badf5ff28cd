"""A real autoencoder of diffusers that is quick to build."""

from pathlib import Path

import torch


def save_tiny_vae(folder: Path) -> Path:
    """An untrained AutoencoderKL of four latent channels that halves the resolution, as diffusers saves it."""
    from diffusers import AutoencoderKL  # takes seconds

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[8, 8],
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
        )
    vae.save_pretrained(folder)
    return folder
