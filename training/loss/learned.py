"""Learned uncertainty (arXiv 2312.02696v2, Eq. 21) for any trainer and any network; a LoRA, for instance."""

import torch
from torch import Tensor, nn

from edm2.networks import MPFourier


class LearnedWeighting(nn.Module):
    """Weights a loss by what is to be expected at its noise level, which it learns along the way.

        loss' = loss / e^u + u,    u = w · MPFourier(x) + b,    x = (level - center) / scale

    At its optimum u(level) = ln E[loss | level], so that all levels weigh the same: the model gets the gradient of
    ln E[loss]. Any fixed weighting of the levels cancels. w and b are zero at first, so training begins with the plain
    loss. u belongs to training alone: it is no part of the model, and may be thrown away.

        weighting = LearnedWeighting.of_timesteps(1000)
        optimizer = torch.optim.AdamW([{"params": model_parameters}, weighting.parameter_group()])
        ...
        loss = (prediction - target).square().mean(dim=(1, 2, 3))                # one per image
        weighting(loss, timesteps).mean().backward()

    Args:
        center: Level in the middle of those that training draws.
        scale: Half of the range that they span, about.
        channels: Fourier features; 128 in the paper's networks.
    """

    def __init__(self, center: float = 0.0, scale: float = 1.0, channels: int = 128) -> None:
        super().__init__()
        self.center, self.scale = center, scale
        self.fourier = MPFourier(channels)
        self.linear = nn.Linear(channels, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def of_timesteps(cls, count: float = 1000) -> "LearnedWeighting":
        """Weighting over timesteps from 0 to `count`: 1000 of a DDPM schedule, or 1 for the times of a flow."""
        return cls(center=count / 2, scale=count / 2)

    @classmethod
    def of_log_snr(cls) -> "LearnedWeighting":
        """Weighting over ln SNR, from about -8 to 8; of EDM's sigma it is 2 ln(sigma_data / sigma)."""
        return cls(scale=8.0)

    def parameter_group(self, lr: float = 1e-2) -> dict[str, object]:
        """Group for the optimizer: a learning rate of its own, far above that of a fine-tuning, and no weight decay."""
        return {"params": list(self.parameters()), "lr": lr, "weight_decay": 0.0}

    def u(self, level: Tensor) -> Tensor:
        """Uncertainty u [N] at noise levels [N], in float32 or float64, also under autocast."""
        with torch.autocast(level.device.type, enabled=False):
            x = (level.to(self.linear.weight.dtype) - self.center) / self.scale
            return self.linear(self.fourier(x)).squeeze(1)

    def forward(self, loss: Tensor, level: Tensor) -> Tensor:
        """Weight losses.

        Args:
            loss: [N, ...], one per image or one per element; not yet averaged over images.
            level: [N] timesteps, ln SNR, or whatever `center` and `scale` are of.

        Returns:
            Shaped like `loss`; to be averaged.
        """
        u = self.u(level).reshape(-1, *[1] * (loss.ndim - 1))
        return loss / u.exp() + u
