"""Averages of LoRAs by their products B A, which is what they add to a network's weights.

An average of the factors is not the average of the products. Over short EMA lengths, up to 0.15, the difference is
below 1 % of a LoRA; over long ones it is several. The average of the products of n files has a rank n times as large:

    Σ_i c_i B_i A_i = [c_1 B_1 ... c_n B_n] [A_1; ...; A_n]

which can be kept ("stack") or brought back to the rank of the files by an SVD ("product"), the best approximation.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edm2.post_hoc_ema.files import atomic_output
from edm2.post_hoc_ema.reconstruction import Reconstruction
from edm2.post_hoc_ema.selection import group_of
from edm2.post_hoc_ema.tensor_files import average_dtype

FACTORS = (
    ("lora_A", "lora_B"),
    ("lora_embedding_A", "lora_embedding_B"),
    ("lora_down", "lora_up"),
    ("lora.down", "lora.up"),
)
"""Words in the names of A and B: of PEFT and diffusers, of kohya's trainer, and of older versions of diffusers."""

UNKNOWN = ("lora_mid", "hada_", "lokr_", "oft_")
"""Words in the names of other adapters, whose product is another."""


def factor_names(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names of A and B of each LoRA."""
    if other := next((name for name in names if any(word in name for word in UNKNOWN)), None):
        raise ValueError(f"{other} is no factor of a LoRA's product; average the factors (lora='factors')")
    known = {*names}
    pairs = [
        (name, partner)
        for name in names
        for down, up in FACTORS
        if down in name and (partner := up.join(name.rsplit(down, 1))) in known
    ]
    if not pairs:
        raise ValueError(
            f"there are no LoRAs, whose factors are named lora_A and lora_B, or lora_down and lora_up: {names[0]}"
        )
    return iter(pairs)


def combine_products(reconstruction: Reconstruction, form: str) -> list[dict[str, Tensor]]:
    """Return the averages of a reconstruction as state dicts, those of LoRAs by their products.

    Other tensors are averaged as always. Where the files tell α, by a tensor or in `adapter_config.json`, the scale
    α / r of a LoRA falls as its rank grows, so B is multiplied by that.
    """
    if form not in ("product", "stack"):
        raise ValueError(f"lora={form!r} must be factors, product or stack")
    inputs = reconstruction.inputs
    pairs = [*factor_names(reconstruction.newest.names)]
    states: list[dict[str, Tensor]] = [{} for _ in range(reconstruction.targets)]
    for name, tensors in reconstruction.tensors():
        for state, tensor in zip(states, tensors, strict=True):
            state[name] = tensor
    for down, up in pairs:
        newest = reconstruction.newest.read(down), reconstruction.newest.read(up)
        A = torch.cat([snapshot.read(down).double().flatten(1) for snapshot in inputs])  # [n r, in]
        Bs = [snapshot.read(up).double().flatten(1) for snapshot in inputs]  # [out, r] each
        for state, c in zip(states, reconstruction.coefficients[group_of(down, reconstruction.groups)].T, strict=True):
            B = torch.cat([c_i * B_i for c_i, B_i in zip(c.tolist(), Bs, strict=True)], dim=1)  # [out, n r]
            if form == "stack":
                factors = A, B * _fall_of_scale(reconstruction, down, len(inputs))
            else:
                factors = truncated(A, B, rank=len(newest[0]))
            state[down] = factors[0].reshape(-1, *newest[0].shape[1:]).to(average_dtype(newest[0].dtype))
            state[up] = factors[1].reshape(len(B), -1, *newest[1].shape[2:]).to(average_dtype(newest[1].dtype))
    return states


def truncated(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors [rank, in], [out, rank] whose product is nearest to that of A [R, in] and B [out, R]."""
    Q_B, R_B = torch.linalg.qr(B)
    Q_A, R_A = torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)  # [R, R]: B A itself, [out, in], is never made
    root = torch.zeros(rank, dtype=S.dtype)  # a narrow layer's product may have a lower rank than its factors
    rank = min(rank, len(S))
    root[:rank] = S[:rank].sqrt()
    padded = (F.pad(M[:, :rank], (0, len(root) - rank)) for M in (Q_A @ Vh.T, Q_B @ U))
    A, B = (M * root for M in padded)
    return A.T, B


def stacked_config(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return PEFT's `adapter_config.json` for LoRAs of so many times the rank."""
    patterns = {name: count * rank for name, rank in (config.get("rank_pattern") or {}).items()}
    return {**config, "r": count * config["r"], "rank_pattern": patterns}


def write_adapter_config(path: Path, config: Mapping[str, Any], growth: int) -> None:
    """Write PEFT's `adapter_config.json`, for a rank that has grown."""
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(stacked_config(config, growth), indent=2), encoding="utf-8")


def _fall_of_scale(reconstruction: Reconstruction, down: str, count: int) -> float:
    """Factor by which a reader's scale, α / r or α / sqrt(r), is smaller at so many times the rank."""
    if config := getattr(reconstruction.newest, "adapter", None):
        return math.sqrt(count) if config.get("use_rslora") else count
    alpha = re.sub(r"lora[._]down.*", "alpha", down)
    return count if alpha != down and alpha in reconstruction.newest.names else 1  # without α, the scale is 1
