"""Self-attention over the pixels, without its weights: from queries, keys and values to their blend.

Shapes: N images, C channels in heads of d, H by W pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edm2.networks.magnitude import normalize, takes_higher_derivatives


def dot_product_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """softmax(q·k / sqrt(d)) v, computed in at least float32: the logits may be of any size (Section B.1).

    [N, 3 C, H, W] -> [N, C, H, W] in the dtype of `qkv`. The channels in are ordered (head, channel, q/k/v).
    """
    wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    q, k, v = _by_pixel(sorted_by_kind(wide, num_heads)).unflatten(2, (3, num_heads, -1)).unbind(2)
    return _as_image(blend(q, k, v), qkv).to(qkv.dtype)


def cosine_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """The same of queries, keys and values of unit magnitude per head and pixel (Section 2.1, Eq. 27).

    The logits q·k / sqrt(d) = sqrt(d) cos(q, k) cannot exceed sqrt(d), whatever the weights do, so any dtype will do.

    [N, 3 C, H, W] -> [N, C, H, W] in the dtype of `qkv`. The channels in are ordered (head, channel, q/k/v).
    """
    return sorted_cosine_attention(sorted_by_kind(qkv, num_heads), num_heads)


def sorted_cosine_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """`cosine_attention` for channels ordered (q/k/v, head, channel): what is normalized lies in one piece."""
    q, k, v = normalize(_by_pixel(qkv).unflatten(2, (3, num_heads, -1)), dim=4).unbind(2)
    return _as_image(blend(q, k, v), qkv)


def sorted_by_kind(qkv: Tensor, num_heads: int, dim: int = 1) -> Tensor:
    """Channels (head, channel, q/k/v), along `dim`, in the order (q/k/v, head, channel)."""
    return qkv.unflatten(dim, (num_heads, -1, 3)).movedim(dim + 2, dim).flatten(dim, dim + 2)


def blend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Values in proportion to the softmax over the keys: softmax(q·k / sqrt(d)) v. All [N, pixels, heads, d]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.device.type != "cpu" and not takes_higher_derivatives():  # the fused kernel has one, backward
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    logits = q @ (k * (1 / math.sqrt(q.shape[-1]))).mT  # plain products: on CPUs torch's fused kernel is slower
    wide = torch.promote_types(logits.dtype, torch.float32)  # faster there than a softmax in bfloat16
    return (logits.softmax(dim=-1, dtype=wide).to(v.dtype) @ v).transpose(1, 2)


def _by_pixel(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, pixels, C]; a view where channels lie together in memory."""
    return x.flatten(2).mT


def _as_image(y: Tensor, like: Tensor) -> Tensor:
    """[N, pixels, heads, d] -> [N, C, H, W] with the pixels of `like`."""
    return y.flatten(2).mT.unflatten(2, like.shape[2:])
