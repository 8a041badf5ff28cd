"""The denoiser D(x; sigma) around a U-Net, and the uncertainty u(sigma) (Section 1.1, Eqs. 4-8 and 21)."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edm2.networks.conditions import prepare
from edm2.networks.config import NetworkConfig

LEAST_TARGET = 0.002
"""Noise level that stands for 0 where a logarithm is taken of the level to arrive at."""


ABILITIES = ("denoise", "map", "consistency")
"""Ways to sample a network: as a denoiser, from level to level, or from any level to 0 alone."""

MAP_LEVELS: dict[int, tuple[float, ...]] = {1: (80, 0), 2: (80, 0.3, 0), 4: (80, 1, 0.3, 0.08, 0)}
"""Noise levels that a flow map jumps between in some numbers of evaluations, found on 8x8 digits."""


def levels_of(
    abilities: Collection[str], known: Mapping[int, tuple[float, ...]] = MAP_LEVELS
) -> dict[int, tuple[float, ...]]:
    """Noise levels, of those `known`, that suit a network's abilities: a consistency model jumps once, to 0."""
    return {steps: levels for steps, levels in known.items() if "map" in abilities or steps == 1}


class Precond(nn.Module):
    """Preconditioned denoiser (Eqs. 4-8).

        D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)
        c_skip = sd² / (sigma² + sd²)        c_out = sigma sd / sqrt(sigma² + sd²)
        c_in = 1 / sqrt(sigma² + sd²)        c_noise = ln(sigma) / 4

    Preconditioning and embedding are computed in float32 (float64 for float64 images), the U-Net in `compute_dtype`.

    Args:
        unet: F, called as unet(x, c_noise, one_hot_labels), and with the prepared conditions where it has any.
        sigma_data: sd above.
        logvar_fourier, logvar_linear: Layers of u(sigma), which map c_noise to one number per image (Eq. 21).

    Attributes:
        compute_dtype: dtype of the U-Net's activations; parameters keep their own.
        empty_classes: Classes without an image in training, which sampling leaves out unless asked for.
        abilities: Ways to sample the network, of `ABILITIES`.
        map_levels: Noise levels by number of evaluations, for a flow map.
    """

    unet: Any  # a U-Net with a `config` and a `memory_format`

    def __init__(self, unet: Any, sigma_data: float, logvar_fourier: nn.Module, logvar_linear: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.sigma_data = sigma_data
        self.logvar_fourier = logvar_fourier
        self.logvar_linear = logvar_linear
        self.compute_dtype = torch.float32
        self.empty_classes: tuple[int, ...] = ()
        self.abilities: tuple[str, ...] = ("denoise",) if unet.config.target_level is None else ("denoise", "map")
        self.map_levels = MAP_LEVELS

    @property
    def config(self) -> NetworkConfig:
        """The `NetworkConfig` that the network was built from."""
        return self.unet.config

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        return_logvar: bool = False,
        *,
        target_sigma: Tensor | float | None = None,
        conditions: Mapping[str, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Denoise.

        Args:
            x: Noisy images [N, C, H, W].
            sigma: Noise level, a number or [N] (or [N, 1, 1, 1]).
            class_labels: int64 [N] (-1, as any number that is no class: none), one-hot [N, label_dim], or None: no
                class for any image.
            return_logvar: Also return u(sigma).
            target_sigma: Noise level s <= sigma of a flow map, in any form of `sigma`: D(x; sigma, s) is the point at
                which a straight line from x aims to arrive at level s. None, as well as s = sigma, is the denoiser.
            conditions: Conditions by name, besides the class: those of `config.conditions`, in the dataset's units. NaN
                means absent.

        Returns:
            D_x [N, C, H, W], or (D_x, u) with u [N, 1, 1, 1]; float32, or float64 for float64 images.

        Raises:
            ValueError: conditions that the network does not know, or of another shape; one that it needs is missing; or
                `target_sigma` for a network without `target_level`.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        x = x.to(dtype)
        sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device).reshape(-1, 1, 1, 1).expand(x.shape[0], 1, 1, 1)
        sd = self.sigma_data
        c_skip = sd**2 / (sigma**2 + sd**2)
        c_out = sigma * sd / (sigma**2 + sd**2).sqrt()
        c_in = 1 / (sigma**2 + sd**2).sqrt()
        c_noise = sigma.flatten().log() / 4

        x_in = (c_in * x).to(self.compute_dtype if dtype == torch.float32 else dtype)
        known = self.unet.config.conditions
        given: tuple[Any, ...] = (prepare(known, conditions or {}, x),) if conditions or known else ()
        if target_sigma is not None:
            given = (given[0] if given else None, self.target_noise(target_sigma, x))
        F_x = self.unet(x_in, c_noise, self.one_hot(class_labels, x), *given)
        D_x = c_skip * x + c_out * F_x.to(dtype)
        if return_logvar:
            return D_x, self.log_variance(c_noise)
        return D_x

    def target_noise(self, target_sigma: Tensor | float, x: Tensor) -> Tensor:
        """c_noise [N] of the level to arrive at, by the operations of that of the level to start from."""
        if self.unet.config.target_level is None:
            raise ValueError(
                "this network is a denoiser and knows no level to arrive at (target_sigma); distil a flow map from it"
            )
        level = torch.as_tensor(target_sigma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
        return level.clamp(min=LEAST_TARGET).expand(x.shape[0], 1, 1, 1).flatten().log() / 4

    def log_variance(self, c_noise: Tensor) -> Tensor:
        """u(sigma) for c_noise [N] -> [N, 1, 1, 1]."""
        return self.logvar_linear(self.logvar_fourier(c_noise)).reshape(-1, 1, 1, 1)

    def one_hot(self, class_labels: Tensor | None, x: Tensor) -> Tensor | None:
        """Labels in any accepted form -> [N, label_dim] in the dtype of `x`; None for an unconditional network."""
        label_dim = self.unet.config.label_dim
        if label_dim == 0:
            return None
        if class_labels is None:
            return x.new_zeros(x.shape[0], label_dim)
        if class_labels.ndim == 1:  # -1 matches no class and becomes a row of zeros
            class_labels = class_labels[:, None] == torch.arange(label_dim, device=x.device)
        return class_labels.to(x.dtype)
