"""Reading golden numbers; what their tolerances are stated in is in `edm2.tools.bench.device.golden`.

Files are read once per test run. What they hold is described in `golden/README.md`.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from edm2.tools.bench.device.golden import max_rel, rms_rel, select

__all__ = ["arrays", "max_rel", "ops_cases", "present", "rms_rel", "select", "table"]


@cache
def arrays(golden: Path, name: str) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file; shared by all tests, so clone what you change."""
    return load_file(golden / name)


@cache
def table(golden: Path, name: str) -> Any:
    """Contents of a `.json` file; shared by all tests, so copy what you change."""
    return json.loads((golden / name).read_text(encoding="utf-8"))


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
