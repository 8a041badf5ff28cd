"""Which layers the instruments look at, in which buckets, and how they listen to them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

SIDES = {"unet.enc": "Enc", "unet.dec": "Dec"}


@dataclass(frozen=True)
class WeightLayer:
    """A layer with trainable weights: a convolution or a linear layer, of any configuration."""

    name: str
    """In the network, such as "unet.enc.8x8_block0.conv_res0"."""
    module: nn.Module
    bucket: str | None
    """Side and resolution of the block that it is in, such as "Enc 8x8"; None outside of the blocks."""

    @property
    def weight(self) -> Tensor:
        """Shaped [out, in] or [out, in, k, k]; outside of autograd."""
        return self.module.weight.detach()


def weight_layers(net: nn.Module) -> list[WeightLayer]:
    """Every layer of `net` with a weight of two dimensions or more, which scales of group norms have not."""
    layers = []
    for name, module in net.named_modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is not None and weight.ndim >= 2:
            layers.append(WeightLayer(name, module, _bucket(name)))
    return layers


def block_layers(net: nn.Module) -> list[WeightLayer]:
    """Those inside the blocks of encoder and decoder, attention included: what the paper's Figures 3 and 15 show."""
    return [layer for layer in weight_layers(net) if layer.bucket is not None]


def _bucket(name: str) -> str | None:
    """ "unet.enc.8x8_block0.conv_res0" -> "Enc 8x8"."""
    side, _, rest = name.removeprefix("unet.").partition(".")
    block, dot, _ = rest.partition(".")
    prefix = SIDES.get(f"unet.{side}")
    return f"{prefix} {block.partition('_')[0]}" if prefix and dot else None


@contextmanager
def listening(modules: Iterable[nn.Module], hear: Callable[[nn.Module, object], None]) -> Iterator[None]:
    """Within the context, hear(module, output) follows every call of these modules."""
    handles = [module.register_forward_hook(lambda m, inputs, output: hear(m, output)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
