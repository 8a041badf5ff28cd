"""Codecs of the user's own, such as an autoencoder: an object with `encode` and `decode`, made by `module:callable`."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from edm2.training.data.codecs import CODECS, Codec, codec_from_json
from edm2.training.imports import import_callable


class OwnCodec:
    """Codec of the user's own, which `module:callable` makes.

    It needs `encode(data)`, from what the dataset has, uint8 or float32 [N, C, H, W] on any device, to [N, c, h, w]
    of mean 0 and standard deviation sigma_data; and `decode(x)`, back to uint8 pixels. Where it has `to_json()`, the
    callable is given those fields again when samples are decoded.

    Args:
        target: `module:callable`, its kind in JSON.
        **fields: Arguments of the callable.
    """

    def __init__(self, target: str, **fields: Any) -> None:
        self.target = target
        make = import_callable(target, "a codec")
        self.made = make(**fields) if fields else _made_once(make)
        if not all(callable(getattr(self.made, name, None)) for name in ("encode", "decode")):
            raise ValueError(f"{target}: makes a {type(self.made).__name__}, which has no encode and decode")

    @torch.no_grad()
    def encode(self, data: Tensor, noise: Tensor | None = None) -> Tensor:
        """Data as the dataset has them -> float32 [N, c, h, w]. Raises ValueError where they become something else."""
        x = torch.as_tensor(self.made.encode(data))
        if x.ndim != 4 or len(x) != len(data) or not x.is_floating_point():
            raise ValueError(
                f"{self.target}: encode made {x.dtype} {list(x.shape)} of {len(data)} images; expected floats "
                f"[{len(data)}, channels, height, width]"
            )
        return x.float()

    @torch.no_grad()
    def decode(self, x: Tensor, batch_size: int = 8) -> Tensor:
        """Output of the network [N, c, h, w] -> uint8 pixels, so many at a time. Raises ValueError as `encode`."""
        pixels = torch.cat([torch.as_tensor(self.made.decode(part)) for part in x.float().split(batch_size)])
        if pixels.ndim != 4 or len(pixels) != len(x) or pixels.dtype != torch.uint8:
            raise ValueError(
                f"{self.target}: decode made {pixels.dtype} {list(pixels.shape)} of {len(x)} samples; expected uint8 "
                f"[{len(x)}, channels, height, width]"
            )
        return pixels

    def to_display(self, pixels: Tensor) -> Tensor:
        """Return pixels unchanged: they have 256 levels."""
        return pixels

    def to_json(self) -> dict[str, Any]:
        """JSON that `codec_from_json` turns into an equal codec, once `own_codec` was called with its kind."""
        return {**getattr(self.made, "to_json", dict)(), "kind": self.target}


@lru_cache(maxsize=1)
def _made_once(make: Callable[[], Any]) -> Any:
    """Call it once, though plan, measurement of speed and training ask for it: it may read an autoencoder."""
    return make()


def own_codec(target: str, **fields: Any) -> Codec:
    """Make the codec that a user names; from here on this process also knows it by its JSON.

    A file never names what is imported: `codec_from_json` finds such a codec only after this.
    """
    CODECS[target] = partial(OwnCodec, target)
    return codec_from_json({**fields, "kind": target}) if fields else OwnCodec(target)
