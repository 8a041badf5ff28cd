"""Latents of a variational autoencoder (VAE), as data to train on and as samples to decode.

A latent dataset stores the moments that the VAE's encoder gives for each image: means of all channels, then standard
deviations. Every visit draws a new latent from them. Dimensions: N images, C latent channels, H rows, W columns.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edm2.training.data.codecs import per_channel

SD_VAE = "stabilityai/sd-vae-ft-mse"
"""Hub id of the VAE that the paper uses (Appendix B.1)."""


class VAEError(OSError):
    """A VAE cannot be loaded; the message is one line that names it and the remedy."""


@dataclass(frozen=True)
class LatentCodec:
    """Latents, shifted and scaled to mean 0 and standard deviation sigma_data (Appendices B.1 and D.3).

        encode: (z - mean) sigma_data / std,    z = moment mean + moment std · noise
        decode: pixels of the VAE's decoder at z = x std / sigma_data + mean

    The defaults are the paper's, measured on ImageNet-512 with pixels from 0 to 1 at the VAE's input.
    """

    vae: str = SD_VAE
    """Hub id or local folder of a diffusers AutoencoderKL."""

    mean: tuple[float, ...] = (5.81, 3.25, 0.12, -2.15)
    """Mean of the VAE's latents, per channel."""

    std: tuple[float, ...] = (4.17, 4.62, 3.71, 3.28)
    """Standard deviation of the VAE's latents, per channel."""

    sigma_data: float = 0.5
    """Standard deviation that the network sees."""

    pixel_range: tuple[float, float] = (0.0, 1.0)
    """Values of black and white at the VAE's ends."""

    def __post_init__(self) -> None:
        for field in ("mean", "std", "pixel_range"):
            object.__setattr__(self, field, tuple(map(float, getattr(self, field))))  # JSON has no tuples
        if not isinstance(self.vae, str) or not self.vae:
            raise ValueError(f"vae={self.vae!r} must be the name of one: a hub id or a folder")
        finite = all(map(math.isfinite, self.mean + self.std))
        if len(self.mean) != len(self.std) or not self.mean or not finite or min(self.std) <= 0:
            raise ValueError(f"mean={self.mean} and std={self.std} must hold one number per channel, std positive")
        check_pixel_range(self.pixel_range)

    def encode(self, data: Tensor, noise: Tensor | None = None) -> Tensor:
        """Moments [N, 2 C, H, W] -> float32 [N, C, H, W].

        Args:
            data: Means, then standard deviations.
            noise: Unit Gaussians [N, C, H, W] to draw the latents with; None for the means themselves.
        """
        self.network_channels(data.shape[-3])
        mean, std = data.to(torch.float32).chunk(2, dim=-3)
        z = mean if noise is None else mean + noise * std
        scale, bias = self._scale_and_bias(data.device)
        return z * scale + bias

    def to_vae(self, x: Tensor) -> Tensor:
        """Output of the network [N, C, H, W] -> latents as the VAE's decoder expects them, float32."""
        scale, bias = self._scale_and_bias(x.device)
        return (x.to(torch.float32) - bias) / scale

    def to_pixels(self, decoded: Tensor) -> Tensor:
        """Output of the VAE's decoder [N, 3, H', W'] -> uint8, truncated as the published pipeline does."""
        black, white = self.pixel_range
        brightness = (decoded.to(torch.float32) - black) / (white - black)
        return (brightness.clamp(0, 1).nan_to_num(nan=0) * 255).to(torch.uint8)

    def decode(self, x: Tensor, batch_size: int = 8) -> Tensor:
        """Output of the network [N, C, H, W] -> uint8 pixels [N, 3, H', W'].

        Raises:
            VAEError: The VAE is not there and cannot be fetched.
        """
        vae = load_vae(self.vae, x.device)
        with torch.no_grad():
            return torch.cat([self.to_pixels(vae.decode(z).sample) for z in self.to_vae(x).split(batch_size)])

    def to_display(self, pixels: Tensor) -> Tensor:
        """Return pixels unchanged: they have 256 levels."""
        return pixels

    def network_channels(self, data_channels: int) -> int:
        """Half the number of the moments' channels. Raises ValueError if the codec was made for another number."""
        if data_channels != 2 * len(self.mean):
            raise ValueError(
                f"latents of {len(self.mean)} channels have {2 * len(self.mean)} moments (mean and standard deviation "
                f"of each), but the data have {data_channels} channels"
            )
        return len(self.mean)

    def to_json(self) -> dict[str, Any]:
        """JSON that `codec_from_json` turns into an equal codec."""
        return {"kind": "latents", **asdict(self)}

    def _scale_and_bias(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Scale and bias of x = z scale + bias, each float32 [C, 1, 1]."""
        scale = self.sigma_data / per_channel(self.std, device)
        return scale, -per_channel(self.mean, device) * scale


def check_pixel_range(pixel_range: tuple[float, ...]) -> None:
    """Raises ValueError if these are not the values of black and of white, the darker first."""
    finite = all(map(math.isfinite, pixel_range))
    if len(pixel_range) != 2 or not finite or not pixel_range[0] < pixel_range[1]:
        raise ValueError(f"pixel_range={pixel_range} must be (value of black, value of white)")


def latent_codec_of(description: Mapping[str, Any] | None, channels: int, sigma_data: float) -> LatentCodec:
    """Make the codec of a latent dataset.

    Args:
        description: Entry "latents" of dataset.json (vae, mean, std, pixel_range, and sigma_data, the spread of raw
            latents, which is not used here), or None: the paper's.
        channels: Channels of the stored moments.
        sigma_data: Standard deviation that the network expects.
    """
    try:
        codec = LatentCodec(**{**(description or {}), "sigma_data": sigma_data})
    except TypeError as error:
        raise ValueError(f"the description of the latents is malformed: {error}") from None
    codec.network_channels(channels)
    return codec


@lru_cache(maxsize=2)
def load_vae(name: str, device: torch.device) -> Any:
    """Load a diffusers AutoencoderKL in evaluation mode, float32; cached for the next call.

    Args:
        name: Local folder, of a VAE or of a pipeline with one in vae/; or hub id. A VAE that was fetched before is
            taken from the cache without asking the hub.
    """
    if Path(name).is_file():
        raise VAEError(f"VAE {name}: is a file; give the folder of an AutoencoderKL, with its config.json and weights")
    import diffusers  # noqa: F401  here: it takes seconds, and sets its level of logging when imported

    with _quiet_libraries():
        vae = _read_folder(name) if Path(name).is_dir() else _fetch_vae(name)
    return vae.to(device).eval().requires_grad_(False)


def _read_folder(name: str) -> nn.Module:
    """Load from a folder: of a VAE or of a pipeline, with weights in full or half precision."""
    folder = Path(name)
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    stored = (folder / f"diffusion_pytorch_model{variant}.safetensors" for variant in ("", ".fp16"))
    whole, half = (path.is_file() for path in stored)
    return _read_vae(str(folder), variant="fp16" if half and not whole else None)


def _fetch_vae(name: str) -> nn.Module:
    """Load from the cache if possible: asking the hub takes half a minute where there is no network."""
    try:
        return _read_vae(name, local_files_only=True)
    except VAEError:
        return _read_vae(name)


def _read_vae(name: str, local_files_only: bool = False, variant: str | None = None) -> nn.Module:
    from diffusers import AutoencoderKL

    try:
        vae, loaded = AutoencoderKL.from_pretrained(
            name,
            local_files_only=local_files_only,
            variant=variant,
            low_cpu_mem_usage=False,
            use_safetensors=True,  # the other form is a pickle
            output_loading_info=True,
        )
    except Exception as error:  # the hub has many ways to fail
        raise VAEError(f"VAE {name}: {_reason(name, error)}") from error
    if missing := loaded["missing_keys"]:  # diffusers would leave them random
        raise VAEError(
            f"VAE {name}: the weights lack {len(missing)} tensors, such as {missing[0]}; "
            "give those of a whole AutoencoderKL"
        )
    return vae


def _reason(name: str, error: Exception) -> str:
    remedy = "a folder that diffusers saved an AutoencoderKL in (config.json and weights as .safetensors)"
    if Path(name).is_dir():
        return f"cannot be read: {str(error).strip().splitlines()[0].rstrip('.')}; give {remedy}"
    return f"no such folder, and nothing of this name can be fetched from the hub; go online, or give {remedy}"


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silence logs and warnings of diffusers and its hub: the error says it in one line."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
