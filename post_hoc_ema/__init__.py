"""Averages of a network's weights whose length is chosen after training, for any PyTorch module.

A power-function profile gives past weights θ(τ), 0 < τ <= t, a share proportional to τ^γ: the initial weights get none,
and the width of the profile is a fixed fraction of the run, its `sigma_rel`. A few tracked profiles span all others:
snapshots of two averages, stored along the run, rebuild the average of any width at any stored time (Karras et al.
2024, arXiv 2312.02696v2, Section 3 and Appendix C). Time is counted in images seen.

    profile         what a profile is: width, update rule, inner products, coefficients, and the error to expect
    parameter_averages  averages kept while training, whatever their profile
    tracker         PowerFunctionEMA: those that post-hoc EMA starts from
    traditional     TraditionalEMA: that of a fixed half-life, as a baseline
    snapshot        the files in which averages are kept
    reconstruction  snapshots and a width -> weights
    combination     the sums of it, in parts, by several threads
    storage_plan    how many snapshots to keep, in which precision
    thinning        which snapshots to keep of too many
    conversions     other ways to name an EMA's length
    safetensors_file    parts of files, read and written
    dtypes          the precision in which averages are computed
    atomic          files that appear complete or not at all
"""

from edm2.post_hoc_ema.conversions import (
    beta_to_half_life,
    half_life_to_beta,
    half_life_to_sigma_rel,
    rampup_ratio_to_sigma_rel,
    sigma_rel_to_half_life,
    sigma_rel_to_rampup_ratio,
)
from edm2.post_hoc_ema.files import atomic_output
from edm2.post_hoc_ema.planning import (
    StoragePlan,
    evenly_spaced_error,
    plan_storage,
    rounding_error,
    snapshots_needed,
    storage_dtype,
    thin,
    thin_along,
)
from edm2.post_hoc_ema.profile import (
    SIGMA_REL_MAX,
    ReconstructionError,
    gamma_to_sigma_rel,
    power_function_beta,
    power_function_profile,
    power_function_response,
    power_function_step,
    profile_inner_product,
    reconstruction_error,
    sigma_rel_to_gamma,
    solve_coefficients,
)
from edm2.post_hoc_ema.reconstruction import reconstruct, reconstruct_files, reconstruct_tensors
from edm2.post_hoc_ema.selection import missing_snapshots, select_snapshots
from edm2.post_hoc_ema.snapshot import (
    PartialSnapshot,
    SafetensorsSnapshot,
    Snapshot,
    SnapshotError,
    find_snapshots,
    read_metadata,
    snapshot_name,
    write_snapshot,
)
from edm2.post_hoc_ema.tensor_files import TensorLayout
from edm2.post_hoc_ema.tracker import PowerFunctionEMA, TraditionalEMA

__all__ = [
    "SIGMA_REL_MAX",
    "PartialSnapshot",
    "PowerFunctionEMA",
    "ReconstructionError",
    "SafetensorsSnapshot",
    "Snapshot",
    "SnapshotError",
    "StoragePlan",
    "TensorLayout",
    "TraditionalEMA",
    "atomic_output",
    "beta_to_half_life",
    "evenly_spaced_error",
    "find_snapshots",
    "gamma_to_sigma_rel",
    "half_life_to_beta",
    "half_life_to_sigma_rel",
    "missing_snapshots",
    "plan_storage",
    "power_function_beta",
    "power_function_profile",
    "power_function_response",
    "power_function_step",
    "profile_inner_product",
    "rampup_ratio_to_sigma_rel",
    "read_metadata",
    "reconstruct",
    "reconstruct_files",
    "reconstruct_tensors",
    "reconstruction_error",
    "rounding_error",
    "select_snapshots",
    "sigma_rel_to_gamma",
    "sigma_rel_to_half_life",
    "sigma_rel_to_rampup_ratio",
    "snapshot_name",
    "snapshots_needed",
    "solve_coefficients",
    "storage_dtype",
    "thin",
    "thin_along",
    "write_snapshot",
]
