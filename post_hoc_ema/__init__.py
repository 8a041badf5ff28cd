"""Averages of a network's weights whose EMA length is chosen after training, for any PyTorch module.

A power-function profile weights past parameters θ(τ), 0 < τ <= t, in proportion to τ^γ: the initial ones do not count,
and the profile's standard deviation is a fixed fraction of the run, its EMA length `sigma_rel`. A few tracked profiles
span all others: snapshots of two averages, stored along the run, rebuild the average of any EMA length at any stored
time (Karras et al. 2024, arXiv 2312.02696v2, "the paper", Section 3 and Appendix C). Time is counted in images seen.

    profile.py         what a profile is: EMA length, update rule, inner products, coefficients, the error to expect
    conversions.py     other ways to name an EMA length, such as a half-life
    tracker.py         PowerFunctionEMA, kept while training; TraditionalEMA, of a fixed half-life, as a baseline
    snapshot.py        the files in which averages are kept
    reconstruction.py  snapshots and EMA lengths -> weights (Algorithm 3)
    selection.py       which snapshots that takes, and which do not belong together
    streaming.py       its sums, in bounded memory and by several threads
    planning.py        which snapshots to store, and in which precision
    tensor_files.py    parts of safetensors files, read and written
    files.py           files that appear complete or not at all, and texts from untrusted files
"""

import importlib
from typing import Any

_NAMES_IN = {
    "conversions": (
        "beta_to_half_life",
        "half_life_to_beta",
        "half_life_to_sigma_rel",
        "rampup_ratio_to_sigma_rel",
        "sigma_rel_to_half_life",
        "sigma_rel_to_rampup_ratio",
    ),
    "files": ("atomic_output",),
    "planning": (
        "StoragePlan",
        "evenly_spaced_error",
        "plan_storage",
        "rounding_error",
        "snapshots_needed",
        "storage_dtype",
        "thin",
        "thin_along",
    ),
    "profile": (
        "SIGMA_REL_MAX",
        "ReconstructionError",
        "gamma_to_sigma_rel",
        "power_function_beta",
        "power_function_profile",
        "power_function_response",
        "power_function_step",
        "profile_inner_product",
        "reconstruction_error",
        "sigma_rel_to_gamma",
        "solve_coefficients",
    ),
    "reconstruction": ("reconstruct", "reconstruct_files", "reconstruct_tensors"),
    "selection": ("missing_snapshots", "select_snapshots"),
    "snapshot": (
        "PartialSnapshot",
        "SafetensorsSnapshot",
        "Snapshot",
        "SnapshotError",
        "find_snapshots",
        "read_metadata",
        "snapshot_name",
        "write_snapshot",
    ),
    "tensor_files": ("TensorLayout",),
    "tracker": ("PowerFunctionEMA", "TraditionalEMA"),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _NAMES_IN.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use: the mathematics and the files need no torch."""
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
