"""Work of a benchmark: a preset's network with random weights, and random images of its kind."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2.networks import Precond, fold, force_weight_normalization_
from edm2.planning.costs import TRAINING_FLOPS, count_flops, count_parameters
from edm2.planning.plan import plan_run
from edm2.planning.presets import PRESETS
from edm2.sampling.samplers.heun import Denoiser
from edm2.tools.run import default_precision
from edm2.training import ArrayDataset
from edm2.training.config import DTYPES
from edm2.training.data.batches import Batch
from edm2.training.draws import GivenDraws
from edm2.training.initialization import fresh_network
from edm2.training.step import TrainStep

SHAPES = {
    "digits8": (1, 8, 8),
    "edm2-small-32": (3, 32, 32),
    "edm2-small-64": (3, 64, 64),
    "edm2-latent-small": (4, 64, 64),
}
"""(channels, height, width) that the network sees in presets that leave it to the data. Such data has 10 classes here,
all other 1000, as ImageNet."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a benchmark; field names are keys of its JSON."""

    preset: str
    """Name in `PRESETS`."""
    batch: int
    """Images per step and per evaluation."""
    precision: str
    """Precision of our network's activations: fp32, bf16 or fp16."""
    device: str
    """cpu, cuda or mps."""
    compile: bool = False
    """Compile our network with torch.compile."""
    channels: int | None = None
    """Base width in place of the preset's."""
    sections: tuple[str, ...] = ("training", "sampling", "vae", "ema")
    against: tuple[str, ...] = ()
    against_precision: str = "fp32"
    """Precision of the others."""
    repeats: int = 9
    """Measurements of which the median counts."""
    warmup: int = 2
    """Times that all work is done before."""
    steps: int = 4
    """Steps of Heun's method."""
    matrix_size: int = 2048
    """Rows and columns of the large matrix product."""
    vae: str | None = None
    """Folder or hub id of a VAE; None: one of the usual shape with random weights."""


def settings_for(device: str, chosen: dict[str, Any], quick: bool = False) -> Settings:
    """Complete the settings `chosen` by what fits a device; `quick`: one repeat of everything, to see that it works."""
    on_gpu = device.startswith("cuda")
    small = {"repeats": 1, "warmup": 1, "steps": 2, "matrix_size": 256} if quick else {}
    settings: dict[str, Any] = {
        "preset": "edm2-img512-s" if on_gpu else "digits8",
        "steps": 32 if on_gpu else 4,
        "matrix_size": 8192 if on_gpu else 2048,
        **small,
        **chosen,
    }
    settings.setdefault("precision", default_precision(settings["preset"], device))
    large = SHAPES.get(settings["preset"], (0, 64, 64))[1:] == (64, 64)
    settings.setdefault("batch", 2 if large and not on_gpu else 64)
    settings.setdefault("against_precision", "fp16" if on_gpu and settings["precision"] != "fp32" else "fp32")
    return Settings(device=device, **settings)


class Inputs(NamedTuple):
    """Inputs of one training step or evaluation."""

    images: Tensor
    """[N, C, H, W], as the network sees them."""
    labels: Tensor | None
    """One-hot, [N, label_dim]."""
    sigma: Tensor
    """[N]."""
    noise: Tensor
    """[N, C, H, W], unit Gaussian."""


class Workload:
    """Networks and inputs of a benchmark, and their costs.

    Attributes:
        config: Training run on a dataset of random images.
        draws_latents: True if what the network draws has to be decoded by a VAE.
        evaluation_flops: Operations to evaluate a batch; a multiplication and an addition are two.
        training_flops: Operations of a training step.

    Raises:
        ValueError: an unknown preset, or settings that do not fit together.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self.dataset = synthetic_dataset(settings.preset, count=4 * settings.batch)
        choices = {name: getattr(settings, name) for name in ("precision", "device", "compile")}
        choices |= {"batch_size": settings.batch, "micro_batch": None, "workers": 0, "holdout": 0}
        if settings.channels is not None:
            choices["model_channels"] = settings.channels
        self.config = plan_run(self.dataset, "random images", "", settings.preset, None, choices)
        self.network = self.config.own_network
        self.draws_latents = self.dataset.kind == "moments"
        self.parameters = count_parameters(self.network)
        self.evaluation_flops = 2 * count_flops(self.network) * settings.batch
        self.training_flops = TRAINING_FLOPS * self.evaluation_flops

    def net(self) -> Precond:
        """Make the network, with gains of 1, as if trained: with 0 it would compute zeros."""
        net = fresh_network(self.network, seed=0)
        open_gains_(net)
        return net.to(self.device)

    def inference_form(self) -> Denoiser:
        """Make the network in the form that `edm2 generate` evaluates."""
        net = fold(self.net(), DTYPES[self.settings.precision])
        return torch.compile(net) if self.settings.compile else net

    def inputs(self) -> Inputs:
        """Draw random inputs, the same every time."""
        random = torch.Generator().manual_seed(0)
        shape = self.settings.batch, self.network.img_channels, *self.network.size
        images = self.network.sigma_data * torch.randn(shape, generator=random)
        noise = torch.randn(shape, generator=random)
        sigma = (self.config.P_mean + self.config.P_std * torch.randn(shape[0], generator=random)).exp()
        classes, labels = self.network.label_dim, None
        if classes:
            labels = F.one_hot(torch.randint(classes, shape[:1], generator=random), classes).float().to(self.device)
        return Inputs(images.to(self.device), labels, sigma.to(self.device), noise.to(self.device))


def step_loss(step: TrainStep, inputs: Inputs) -> Tensor:
    """Compute the loss of our training step, a sum over pixels and a mean over images."""
    images, labels, sigma, noise = inputs
    return step.loss(step.denoiser, images, labels, sigma=sigma, noise=noise).sum() / len(images)


def step_passes(step: TrainStep, inputs: Inputs) -> None:
    """Normalize the weights, compute the loss and its gradients."""
    step.optimizer.zero_grad(set_to_none=True)
    force_weight_normalization_(step.net)
    step_loss(step, inputs).backward()


def step_on(step: TrainStep, inputs: Inputs) -> None:
    """Train on these images, noise levels and noise; later steps have to be given theirs, too."""
    step.draws = GivenDraws(step.images_seen, inputs.sigma, inputs.noise)
    step([Batch(inputs.images, inputs.labels)])


@torch.no_grad()
def open_gains_(net: nn.Module) -> None:
    """Set all scalars of a network to 1."""
    for parameter in net.parameters():
        if parameter.ndim == 0:
            parameter.fill_(1)


def synthetic_dataset(preset: str, count: int) -> ArrayDataset:
    """Make random pixels or moments of the shape that a preset is for, with labels."""
    channels, height, width = PRESETS[preset].shape or SHAPES[preset]
    classes = 10 if preset in SHAPES else 1000
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=random)
    if channels == 4:
        mean = 4 * torch.randn(count, channels, height, width, generator=random)
        images = torch.cat([mean, torch.full_like(mean, math.exp(-4))], dim=1)
    else:
        images = torch.randint(256, (count, channels, height, width), generator=random, dtype=torch.uint8)
    return ArrayDataset(images, labels, [str(k) for k in range(classes)], name="random images")
