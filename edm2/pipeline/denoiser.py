"""Network as diffusers stores it: fields of `NetworkConfig` in config.json, weights under their published names."""

import inspect
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin  # diffusers looks for ModelMixin in this module when it loads a folder
from torch import Tensor

from edm2.networks import NetworkConfig, Precond, build_network
from edm2.post_hoc_ema import SnapshotError


class EDM2Denoiser(Precond, ModelMixin, ConfigMixin):
    """D(x; sigma), called as `Precond`: denoiser(x, sigma, class_labels).

    `.to(torch.float16)`, `.half()` and `from_pretrained(..., torch_dtype=...)` convert the convolutions, and with them
    what the U-Net computes in. Everything else, which is small, keeps float32: the embedding, Fourier features, gains.

    Args:
        args, fields: Arguments of `NetworkConfig`; `config` holds them, as diffusers expects.

    Raises:
        ValueError: as `NetworkConfig`.
    """

    config = ConfigMixin.config

    def __init__(self, *args: Any, **fields: Any) -> None:
        description = NetworkConfig(*args, **fields)
        net = build_network(description)
        super().__init__(net.unet, net.sigma_data, net.logvar_fourier, net.logvar_linear)
        register: Any = self.register_to_config
        register(**description.to_json())

    # diffusers writes these to config.json
    __init__.__signature__ = inspect.signature(NetworkConfig.__init__)  # type: ignore[attr-defined]  # as functools.wraps

    @classmethod
    def from_network(cls, net: Precond) -> "EDM2Denoiser":
        """Wrap a network, sharing its tensors; for inference."""
        with torch.device("meta"):
            denoiser = cls(**net.config.to_json())
        denoiser.load_state_dict(net.state_dict(), assign=True)
        denoiser.compute_dtype = net.compute_dtype
        return denoiser.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **options: Any) -> Any:
        """Load as `ModelMixin` does, but only from .safetensors, and only if exactly the network's tensors are there.

        Raises:
            SnapshotError: the tensors do not fit the network in config.json.
            OSError: a file is missing.
        """
        dtypes = options.pop("dtype", None), options.pop("torch_dtype", None)
        wants_info = options.pop("output_loading_info", False)
        options["use_safetensors"] = True  # the alternative is a pickle
        try:
            net, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **options)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[1:2] or [str(error)]
            raise SnapshotError(f"{pretrained_model_name_or_path}: tensors do not fit ({reason[0].strip()})") from None
        for kind in ("missing_keys", "unexpected_keys"):  # diffusers would go on with random weights
            if info[kind]:
                raise SnapshotError(
                    f"{pretrained_model_name_or_path}: tensors do not fit the network in config.json, "
                    f"{len(info[kind])} {kind.replace('_', ' ')} such as {info[kind][0]}; write the folder again"
                )
        torch.nn.Module.to(net, dtypes[0] or dtypes[1] or torch.float32)  # ModelMixin.to would warn for no reason
        return (net, info) if wants_info else net

    @property
    def description(self) -> NetworkConfig:
        """Configuration of the network; `config` is the same as a dict."""
        return self.unet.config

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the convolutions."""
        return next(tensor.dtype for tensor in chain(self.parameters(), self.buffers()) if tensor.ndim > 2)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EDM2Denoiser":
        """Apply the conversion of `.to`, `.half`, `.cuda` etc.; only convolutions change their dtype."""

        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            if tensor.ndim > 2 or tensor.is_meta:
                return converted
            return tensor.to(converted.device, torch.promote_types(tensor.dtype, torch.float32))

        super()._apply(convert, recurse)
        self.compute_dtype = self.dtype
        return self
