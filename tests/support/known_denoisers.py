"""Denoisers of known data, whose ODE has a known solution, golden networks, and two that keep their arguments."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from golden_data import arrays, select, table
from torch import Tensor

from edm2.networks import NetworkConfig, Precond, build_network
from edm2.sampling.samplers.heun import Denoiser

MEAN, STD = 0.3, 0.5
"""Gaussian data."""


def gaussian_denoiser(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
    """D(x; sigma) of data N(MEAN, STD²)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def gaussian_solution(x: Tensor, sigma: Tensor | float) -> Tensor:
    """Solution at noise level 0 of dx/dt = t (x - MEAN) / (STD² + t²) through `x` at noise level `sigma`."""
    return MEAN + (x - MEAN) * STD / (STD**2 + sigma**2) ** 0.5


@dataclass
class Recorder:
    """Passes on to a denoiser and notes every evaluation."""

    denoise: Denoiser
    x: list[Tensor] = field(default_factory=list)
    sigma: list[Tensor] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    D: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Any = None) -> Tensor:
        D = self.denoise(x, sigma, labels)
        for kept, value in ((self.x, x), (self.sigma, sigma), (self.labels, labels), (self.D, D)):
            kept.append(value)
        return D

    @property
    def sizes(self) -> list[int]:
        """Images of each evaluation."""
        return [len(x) for x in self.x]


@dataclass
class Stepped:
    """Another denoiser within each step, and none outside of one; keeps the levels of the steps."""

    asked: list[float] = field(default_factory=list)

    def at_step(self, sigma: Tensor) -> Denoiser:
        self.asked.append(float(sigma))
        return gaussian_denoiser

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        raise AssertionError("a sampler must use the step's denoiser")


def mixture(parameters: dict[str, Tensor]) -> Denoiser:
    """Closed-form denoiser of a mixture of isotropic Gaussians with label-dependent weights (golden README)."""

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        mu, s, logw = (parameters[name].to(x.dtype) for name in ("mu", "s", "logw"))
        v = s**2 + sigma**2
        distance = (x[:, None] - mu).square().sum(dim=(2, 3, 4))
        log_r = labels.to(x.dtype) @ logw - distance / (2 * v) - x[0].numel() / 2 * v.log()
        r = log_r.softmax(dim=1)
        means = (s**2)[:, None, None, None] * x[:, None] + sigma**2 * mu
        return (r[:, :, None, None, None] * means / v[:, None, None, None]).sum(dim=1)

    return denoise


def golden_network(golden: Path, name: str) -> Precond:
    """A tiny network of the golden sampler runs: `net`, or its guide `gnet`."""
    net = build_network(NetworkConfig.from_json(table(golden, "sampler/sampler.json")[f"{name}_config"]))
    net.load_state_dict(select(arrays(golden, "sampler/sampler.safetensors"), f"{name}/state"))
    return net.eval().requires_grad_(False)


def golden_mixtures(golden: Path) -> tuple[Denoiser, Denoiser]:
    """Closed-form denoisers of the golden sampler runs, one to guide the other."""
    numbers = arrays(golden, "sampler/sampler.safetensors")
    return mixture(select(numbers, "gmm/main")), mixture(select(numbers, "gmm/guide"))
