"""Pixels to moments: mean and standard deviation of latents, by the encoder of a variational autoencoder (VAE).

    x = black + pixels / 255 (white - black),   q(z | x) = N(mean, std²),   moments = mean of all channels, then std

Dimensions: N images, C latent channels, H rows, W columns of latents, each of `factor` pixels.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2.training.config import DTYPES
from edm2.training.data.vae import SD_VAE, check_pixel_range, load_vae

STORED = ("fp32", "fp16")
"""Types in which moments can be stored."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class MomentEncoder:
    """Encoder of a VAE on one device."""

    vae: str = SD_VAE
    """Hub id or local folder of a diffusers AutoencoderKL."""

    pixel_range: tuple[float, float] = (0.0, 1.0)
    """Values of black and white at the VAE's input. The paper's pipeline has 0 and 1, though the VAE knows -1 and 1."""

    dtype: str = "fp32"
    """Type in which moments are stored: fp32, or fp16, which takes half the space."""

    precision: str = "fp32"
    """Type in which the VAE computes: fp32 (convolutions as PyTorch does them by default), or on CUDA bf16 or fp16."""

    device: torch.device = CPU
    """Device on which the VAE computes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixel_range", tuple(map(float, self.pixel_range)))
        check_pixel_range(self.pixel_range)
        if self.dtype not in STORED:
            raise ValueError(f"dtype={self.dtype!r} is unknown: moments are stored in {' or '.join(STORED)}")
        if self.precision not in DTYPES:
            raise ValueError(f"precision={self.precision!r} is unknown: choose {', '.join(DTYPES)}")
        if self.precision != "fp32" and self.device.type != "cuda":
            raise ValueError(f"precision={self.precision} needs a CUDA device, not {self.device}; choose fp32")

    @property
    def name(self) -> str:
        """Name of the VAE in the dataset: the hub id, or the folder's full path."""
        return str(Path(self.vae).resolve()) if Path(self.vae).is_dir() else self.vae

    def load(self) -> Any:
        """Load the VAE, or take it from the cache. Raises VAEError if it cannot be loaded."""
        return load_vae(self.vae, self.device)

    def check(self, height: int, width: int) -> None:
        """Raises ValueError if the VAE does not take color images of `height` x `width` pixels."""
        config = self.load().config
        if config.in_channels != 3:
            raise ValueError(f"VAE {self.vae}: takes images of {config.in_channels} channels, but colors have 3")
        factor = 2 ** (len(config.block_out_channels) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"VAE {self.vae}: takes blocks of {factor}x{factor} pixels, and images of {height}x{width} cannot be "
                "divided into such; convert them to another resolution first"
            )

    def identity(self) -> list[Any]:
        """JSON that decides which moments an image gets: settings, versions, and a digest of the VAE."""
        vae = self.load()
        weights = hashlib.sha256(json.dumps(dict(vae.config), sort_keys=True, default=str).encode())
        for name, tensor in sorted(vae.state_dict().items()):
            weights.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            weights.update(tensor.cpu().contiguous().numpy().data)
        settings = [self.pixel_range, self.dtype, self.precision, self.device.type, torch.__version__]
        return [*settings, weights.hexdigest()]

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [N, 3, factor H, factor W] -> float32 [N, 2 C, H, W] on the device, not yet in the type of storage.

        On CUDA this returns at once, before the GPU is done.
        """
        black, white = self.pixel_range
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()  # else the copy would wait for the batch before
        x = pixels.to(self.device, non_blocking=True).to(torch.float32) / 255 * (white - black) + black
        dtype = DTYPES[self.precision]
        try:
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                latents = self.load().encode(x).latent_dist
        except torch.OutOfMemoryError as error:
            size = f"{len(pixels)} images of {pixels.shape[2]}x{pixels.shape[3]}"
            raise RuntimeError(
                f"{self.device}: not enough memory for {size} at once; give a smaller --batch"
            ) from error
        return torch.cat([latents.mean, latents.std], dim=1).to(torch.float32)

    def to_storage(self, moments: Tensor) -> Tensor:
        """Convert moments to the type of storage; beyond the range of fp16 they become infinite."""
        return moments.to(DTYPES[self.dtype])
