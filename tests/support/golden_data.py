"""Reading golden numbers, and the two distances in which their tolerances are stated.

Files are read once per test run. What they hold is described in `golden/README.md`.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


@cache
def arrays(golden: Path, name: str) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file; shared by all tests, so clone what you change."""
    return load_file(golden / name)


@cache
def table(golden: Path, name: str) -> Any:
    """Contents of a `.json` file; shared by all tests, so copy what you change."""
    return json.loads((golden / name).read_text(encoding="utf-8"))


def select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries below `prefix/`, without the prefix."""
    return {key.removeprefix(f"{prefix}/"): x for key, x in tensors.items() if key.startswith(f"{prefix}/")}


def present(cases: list[dict[str, Any]], tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The cases of which `tensors` holds arrays below `<id>/`; a test without a single one would prove nothing."""
    found = [case for case in cases if any(key.startswith(f"{case['id']}/") for key in tensors)]
    assert found, "no case of this kind has arrays in this golden set"
    return found


def ops_cases(golden: Path, op: str) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Cases of one operation in `ops`, each with its arrays."""
    tensors = arrays(golden, "ops/ops.safetensors")
    cases = [case for case in table(golden, "ops/ops.json")["cases"] if case["op"] == op]
    return [(case, select(tensors, case["id"])) for case in present(cases, tensors)]


def max_rel(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|, in float64. For b = 0 this is 0 if a = 0 too, else infinite."""
    return _ratio((_difference(a, b)).abs().max(), b.detach().double().abs().max())


def rms_rel(a: Tensor, b: Tensor) -> float:
    """rms(a - b) / rms(b), in float64. For b = 0 this is 0 if a = 0 too, else infinite."""
    return _ratio(_difference(a, b).square().mean().sqrt(), b.detach().double().square().mean().sqrt())


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """a - b in float64; shapes must agree, as broadcasting would hide a wrong one."""
    if a.shape != b.shape:
        raise AssertionError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    return a.detach().double() - b.detach().double()


def _ratio(error: Tensor, scale: Tensor) -> float:
    """error / scale, where nothing is expected only nothing will do."""
    if scale == 0:
        return 0.0 if error == 0 else torch.inf
    return (error / scale).item()
