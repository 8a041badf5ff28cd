"""Networks with the interface of the published weights, for the lack of those: tiny, random, always the same."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

CLASSES = 1008


class Layers(nn.Module):
    """[N, 3, 299, 299] scaled to about [-1, 1] -> [N, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(192, 2048, generator=torch.Generator().manual_seed(0)) / 14)

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(x, [8, 8])
        return (pooled.flatten(1) @ self.weight).relu()


class StandIn(nn.Module):
    """What clean-fid expects of inception-2015-12-05.pt."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()
        self.output = nn.Linear(2048, 1008)

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        x = nn.functional.interpolate(img.float(), [299, 299], mode="bilinear", align_corners=False)
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        logits = features @ self.output.weight.T
        if not no_output_bias:
            logits = logits + self.output.bias
        return logits.softmax(dim=1)


class Averages(nn.Module):
    """In place of DINOv2: [N, 3, 224, 224] -> [N, 12], means of quarters."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, [2, 2]).flatten(1)


def save_script(network: nn.Module, path: Path) -> Path:
    """Write a TorchScript file."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated; published weights are scripts all the same
        torch.manual_seed(0)
        torch.jit.save(torch.jit.script(network.eval()), path)
    return path


def save_inception(path: Path) -> Path:
    """Write the stand-in for Inception."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return save_script(StandIn(), path)
