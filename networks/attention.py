"""Self-attention over the pixels, without its weights: from queries, keys and values to their blend.

Shapes: N images, C channels in heads of d, H by W pixels. The 3 C channels in are ordered (head, channel, q/k/v).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from edm2.networks.magnitude import normalize


def dot_product_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """softmax(q·k / sqrt(d)) v, computed in at least float32: the logits may be of any size (Section B.1).

    [N, 3 C, H, W] -> [N, C, H, W] in the dtype of `qkv`.
    """
    wide = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    return _join_heads(_blend(_split_heads(wide, num_heads)), qkv).to(qkv.dtype)


def cosine_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """The same of queries, keys and values of unit magnitude per head and pixel (Section 2.1, Eq. 27).

    The logits q·k / sqrt(d) = sqrt(d) cos(q, k) cannot exceed sqrt(d), whatever the weights do, so any dtype will do.

    [N, 3 C, H, W] -> [N, C, H, W] in the dtype of `qkv`.
    """
    return _join_heads(_blend(normalize(_split_heads(qkv, num_heads), dim=2)), qkv)


def _split_heads(qkv: Tensor, num_heads: int) -> Tensor:
    """[N, 3 C, H, W] -> [N, heads, d, 3, pixels]."""
    n, c, h, w = qkv.shape
    return qkv.reshape(n, num_heads, c // (3 * num_heads), 3, h * w)


def _blend(qkv: Tensor) -> Tensor:
    """[N, heads, d, 3, pixels] -> [N, heads, pixels, d]: values in proportion to the softmax over the keys."""
    q, k, v = qkv.permute(3, 0, 1, 4, 2).unbind(0)
    return F.scaled_dot_product_attention(q, k, v)


def _join_heads(y: Tensor, qkv: Tensor) -> Tensor:
    """[N, heads, pixels, d] -> [N, C, H, W] of the image that `qkv` is of."""
    n, c, h, w = qkv.shape
    return y.transpose(2, 3).reshape(n, c // 3, h, w)
