"""DINOv2 features: FD-DINOv2 (arXiv 2306.04675), which ranks generators more like people do than FID."""

from pathlib import Path

import torch
from torch import Tensor

from edm2.metrics.pretrained import as_rgb, check_is_file, load_torchscript, resize

REPOSITORY, MODEL = "facebookresearch/dinov2:main", "dinov2_vitl14"
"""Names of network and weights (1.2 GB) in torch.hub. The branch is named, else torch.hub would look it up online even
where it has a copy."""

SIZE = 224
"""Pixels to which images are resized."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's colours in [0, 1], by which inputs are scaled."""


class DINOv2:
    """1024 features of the class token of ViT-L/14.

    Args:
        weights: TorchScript file of the network, [N, 3, 224, 224] -> [N, 1024]; or its published weights (.pth), for
            which torch.hub must have the program. Default: both from torch.hub, which runs that program.
        device: Device to compute on.

    Raises:
        OSError: the weights are missing and cannot be fetched.
        ValueError: the file holds no weights of this network.
    """

    name = "fd_dinov2"
    title = "FD-DINOv2"

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._net = _load(weights).to(device).eval()
        self._mean, self._std = (255 * torch.tensor(x, device=device).view(3, 1, 1) for x in (MEAN, STD))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, 1024]."""
        x = resize(as_rgb(images.to(self._device)), SIZE)
        return self._net((x - self._mean) / self._std).float()


def _load(weights: str | Path | None) -> torch.nn.Module:
    if weights is None:
        return _from_hub(pretrained=True)
    path = Path(weights)
    if path.suffix != ".pth":
        return load_torchscript(path, "cpu")
    check_is_file(path)
    net = _from_hub(pretrained=False)
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a file of any other kind
        raise ValueError(f"{path}: holds no weights of {MODEL}") from error
    return net


def _from_hub(pretrained: bool) -> torch.nn.Module:
    """Load the network from torch's cache, or download it."""
    try:
        return torch.hub.load(REPOSITORY, MODEL, pretrained=pretrained, trust_repo=True, verbose=False)
    except Exception as error:  # the program behind it may fail in any way
        raise OSError(
            f"{MODEL}: cannot be fetched by torch.hub ({type(error).__name__}: {error}); give a TorchScript file of "
            "the network (--dinov2 FILE; in edm2 sweep and ablate --weights FILE), or take another detector"
        ) from error
