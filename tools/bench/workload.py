"""What a benchmark works on: a network of a preset with random weights, and random images of its kind."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edm2.networks import NetworkConfig, Precond
from edm2.planning.costs import TRAINING_FLOPS, count_flops, count_parameters
from edm2.planning.plan import plan_run
from edm2.planning.presets import PRESETS
from edm2.tools.run import default_precision
from edm2.training import ArrayDataset, TrainingConfig
from edm2.training.initialization import fresh_network
from edm2.training.step import TrainStep

SHAPES = {
    "digits8": (1, 8, 8),
    "edm2-small-32": (3, 32, 32),
    "edm2-small-64": (3, 64, 64),
    "edm2-latent-small": (4, 64, 64),
}
"""(channels, height, width) of what the network sees, of presets that leave it to the data."""

CLASSES = {"digits8": 10, "edm2-small-32": 10, "edm2-small-64": 10, "edm2-latent-small": 10}
"""Classes of presets that leave them to the data; ImageNet has 1000."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is to be measured, and how carefully."""

    preset: str
    """Name in `PRESETS`."""
    batch: int
    """Images per step and per evaluation."""
    precision: str
    """Of our network's activations: fp32, bf16 or fp16."""
    device: str
    """cpu, cuda or mps."""
    compile: bool = False
    """Compile our network with torch.compile."""
    channels: int | None = None
    """Base width in place of the preset's."""
    sections: tuple[str, ...] = ("training", "sampling", "vae", "ema")
    """What to measure."""
    against: tuple[str, ...] = ()
    """Whom to compare with."""
    against_precision: str = "fp32"
    """Precision of the others."""
    repeats: int = 9
    """Measurements of which the median counts."""
    warmup: int = 2
    """Times that everything is done before."""
    steps: int = 4
    """Steps of Heun's method."""
    matrix_size: int = 2048
    """Rows and columns of the large matrix product."""
    vae: str | None = None
    """Folder or hub id of a VAE; None: one of the usual shape with random weights."""


def settings_for(device: str, chosen: Mapping[str, Any], quick: bool = False) -> Settings:
    """Settings that fit a device.

    Args:
        device: cpu, cuda or mps.
        chosen: Those that are decided.
        quick: One repeat of everything, to see that it works.
    """
    on_gpu = device.startswith("cuda")
    proposed: dict[str, Any] = {
        "preset": "edm2-img512-s" if on_gpu else "digits8",
        "steps": 32 if on_gpu else 4,
        "matrix_size": 8192 if on_gpu else 2048,
    }
    if quick:
        proposed |= {"repeats": 1, "warmup": 1, "steps": 2, "matrix_size": 256}
    settings = {**proposed, **chosen}
    settings.setdefault("precision", default_precision(settings["preset"], device))
    large = SHAPES.get(settings["preset"], (0, 64, 64))[1:] == (64, 64)
    settings.setdefault("batch", 2 if large and not on_gpu else 64)
    published = "fp16" if on_gpu and settings["precision"] != "fp32" else "fp32"
    settings.setdefault("against_precision", published)
    return Settings(device=device, **settings)


class Inputs(NamedTuple):
    """Of one step."""

    images: Tensor
    """As the network sees them, [N, C, H, W]."""
    labels: Tensor | None
    """One-hot, [N, label_dim]."""
    sigma: Tensor
    """[N]."""
    noise: Tensor
    """Unit Gaussian, like the images."""


class Workload:
    """Networks, images and what they cost.

    Args:
        settings: What for.

    Attributes:
        config: The training run that is measured.
        dataset: Its images.
        device: Where.

    Raises:
        ValueError: an unknown preset, or settings that do not fit together.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.preset not in PRESETS:
            raise ValueError(f"preset {settings.preset!r} is unknown; there are {', '.join(PRESETS)}")
        self.settings = settings
        self.device = torch.device(settings.device)
        self.dataset = synthetic_dataset(settings.preset, count=4 * settings.batch)
        self.config = self._plan()

    def _plan(self) -> TrainingConfig:
        chosen = self.settings
        choices: dict[str, Any] = {
            "batch_size": chosen.batch,
            "micro_batch": None,
            "precision": chosen.precision,
            "device": chosen.device,
            "compile": chosen.compile,
            "workers": 0,
            "holdout": 0,
        }
        if chosen.channels is not None:
            choices["model_channels"] = chosen.channels
        return plan_run(self.dataset, "random images", "", chosen.preset, None, choices)

    @property
    def network(self) -> NetworkConfig:
        """Description of the network."""
        return self.config.own_network

    @property
    def draws_latents(self) -> bool:
        """Whether what the network draws has to be decoded by a VAE."""
        return self.dataset.kind == "moments"

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return count_parameters(self.network)

    @property
    def evaluation_flops(self) -> float:
        """Operations to evaluate a batch, a multiplication and an addition being two."""
        return 2 * count_flops(self.network) * self.settings.batch

    @property
    def training_flops(self) -> float:
        """The same, of a training step."""
        return TRAINING_FLOPS * self.evaluation_flops

    def net(self) -> Precond:
        """A new network; its gains are 1, as if trained, for with 0 it would compute zeros."""
        net = fresh_network(self.network, seed=0)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.ndim == 0:
                    parameter.fill_(1)
        return net.to(self.device)

    def train_step(self) -> TrainStep:
        """Such a network with its optimizer and averages."""
        return TrainStep(self.config, self.net())

    def inputs(self) -> Inputs:
        """Random, the same every time."""
        random = torch.Generator().manual_seed(0)
        shape = self.settings.batch, self.network.img_channels, *self.network.size
        images = self.network.sigma_data * torch.randn(shape, generator=random)
        noise = torch.randn(shape, generator=random)
        sigma = (self.config.P_mean + self.config.P_std * torch.randn(shape[0], generator=random)).exp()
        classes, labels = self.network.label_dim, None
        if classes:
            labels = F.one_hot(torch.randint(classes, shape[:1], generator=random), classes).float().to(self.device)
        return Inputs(images.to(self.device), labels, sigma.to(self.device), noise.to(self.device))


def synthetic_dataset(preset: str, count: int) -> ArrayDataset:
    """Random pixels or moments of the shape that a preset is for, with labels."""
    channels, height, width = PRESETS[preset].shape or SHAPES[preset]
    random = torch.Generator().manual_seed(0)
    classes = CLASSES.get(preset, 1000)
    labels = torch.randint(classes, (count,), generator=random)
    if channels == 4:
        mean = 4 * torch.randn(count, channels, height, width, generator=random)
        images = torch.cat([mean, torch.full_like(mean, math.exp(-4))], dim=1)
    else:
        images = torch.randint(256, (count, channels, height, width), generator=random, dtype=torch.uint8)
    return ArrayDataset(images, labels, [str(k) for k in range(classes)], name="random images")
