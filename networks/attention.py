"""Attention without its weights: from queries, keys and values to their blend.

Shapes: N images, C channels in heads of d, H by W pixels, L tokens. Channels of q, k and v of the pixels are ordered
(head, channel, q/k/v).
"""

import math
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from edm2.networks.magnitude import normalize


def dot_product_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """softmax(q·k / sqrt(d)) v, computed in at least float32: the logits may be of any size (Section B.1).

    [N, 3 C, H, W] -> [N, C, H, W] in the dtype of `qkv`.
    """
    wide = sort_by_kind(qkv.to(torch.promote_types(qkv.dtype, torch.float32)), num_heads)
    q, k, v = wide.flatten(2).mT.unflatten(2, (3, num_heads, -1)).unbind(2)  # [N, pixels, heads, d]
    return blend(q, k, v, qkv.shape[2:]).to(qkv.dtype)


def cosine_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """softmax(q·k / sqrt(d)) v for q, k and v of unit magnitude per head and pixel (Section 2.1, Eq. 27).

    The logits q·k / sqrt(d) = sqrt(d) cos(q, k) cannot exceed sqrt(d), whatever the weights do, so any dtype will do.

    [N, 3 C, H, W] -> [N, C, H, W] in the dtype of `qkv`.
    """
    return sorted_cosine_attention(sort_by_kind(qkv, num_heads), num_heads)


def sorted_cosine_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """`cosine_attention` for channels ordered (q/k/v, head, channel): what is normalized lies in one piece."""
    qkv_by_pixel = qkv.flatten(2).mT.unflatten(2, (3, num_heads, -1))  # [N, pixels, 3, heads, d]
    q, k, v = normalize(qkv_by_pixel, dim=4).unbind(2)
    return blend(q, k, v, qkv.shape[2:])


def sort_by_kind(qkv: Tensor, num_heads: int, dim: int = 1) -> Tensor:
    """Bring channels (head, channel, q/k/v), along `dim`, into the order (q/k/v, head, channel)."""
    return qkv.unflatten(dim, (num_heads, -1, 3)).movedim(dim + 2, dim).flatten(dim, dim + 2)


def cross_attention(q: Tensor, kv: Tensor, num_heads: int, there: Tensor) -> Tensor:
    """softmax(q·k / sqrt(d)) v of pixels and tokens, each of unit magnitude per head as in `cosine_attention`.

    Args:
        q: [N, C, H, W].
        kv: [N, L, 2 C], channels ordered (k/v, head, channel).
        num_heads: Number of heads.
        there: [N, L], False for tokens to leave out; one of each image at least is True.

    Returns:
        [N, C, H, W].
    """
    q_by_pixel = normalize(q.flatten(2).mT.unflatten(2, (num_heads, -1)), dim=3)  # [N, pixels, heads, d]
    k, v = normalize(kv.unflatten(2, (2, num_heads, -1)), dim=4).unbind(2)  # [N, L, heads, d]
    return blend(q_by_pixel, k, v, q.shape[2:], there[:, None, None, :])


def blend(q: Tensor, k: Tensor, v: Tensor, size: torch.Size, mask: Tensor | None = None) -> Tensor:
    """softmax(q·k / sqrt(d)) v over all keys, or those where `mask` is True.

    q [N, pixels, heads, d], k and v [N, keys, heads, d], mask [N, 1, 1, keys] -> [N, C, *size].
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [N, heads, pixels, d]
    if q.device.type == "cpu":  # plain products: faster there than torch's fused kernel
        logits = q @ (k * (1 / math.sqrt(q.shape[-1]))).mT  # [N, heads, pixels, keys]
        logits = logits if mask is None else logits.masked_fill(~mask, -torch.inf)
        wide = torch.promote_types(logits.dtype, torch.float32)  # faster than a softmax in bfloat16
        y = logits.softmax(dim=-1, dtype=wide).to(v.dtype) @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v, mask)
    return y.transpose(1, 2).flatten(2).mT.unflatten(2, size)


def higher_derivatives() -> AbstractContextManager[None]:
    """Context in which attention has derivatives of any order, backward and forward (`torch.func.jvp`).

    Consistency models, mean flows and gradient penalties need them. Everything else in these networks always has them;
    the fused attention kernels of GPUs have one backward derivative alone, so torch's mathematical form is selected.
    """
    return sdpa_kernel(SDPBackend.MATH)
