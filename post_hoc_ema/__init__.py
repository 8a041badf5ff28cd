"""Averages of a network's weights whose length is chosen after training, for any PyTorch module.

A power-function profile gives past weights θ(τ), 0 < τ <= t, a share proportional to τ^γ: the initial weights get none,
and the width of the profile is a fixed fraction of the run, its `sigma_rel`. A few tracked profiles span all others:
snapshots of two averages, stored along the run, rebuild the average of any width at any stored time (Karras et al.
2024, arXiv 2312.02696v2, Section 3 and Appendix C). Time is counted in images seen.

    profile         what a profile is: width, update rule, inner products, coefficients, and the error to expect
    tracker         PowerFunctionEMA: keeps averages while training
    snapshot        the files in which averages are kept
    reconstruction  snapshots and a width -> weights
    dtypes          the precision in which averages are computed
    atomic          files that appear complete or not at all
"""

from edm2.post_hoc_ema.atomic import atomic_output
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
from edm2.post_hoc_ema.reconstruction import reconstruct, reconstruct_tensors
from edm2.post_hoc_ema.snapshot import (
    SafetensorsSnapshot,
    Snapshot,
    SnapshotError,
    find_snapshots,
    read_metadata,
    snapshot_name,
    write_snapshot,
)
from edm2.post_hoc_ema.tracker import PowerFunctionEMA

__all__ = [
    "SIGMA_REL_MAX",
    "PowerFunctionEMA",
    "ReconstructionError",
    "SafetensorsSnapshot",
    "Snapshot",
    "SnapshotError",
    "atomic_output",
    "find_snapshots",
    "gamma_to_sigma_rel",
    "power_function_beta",
    "power_function_profile",
    "power_function_response",
    "power_function_step",
    "profile_inner_product",
    "read_metadata",
    "reconstruct",
    "reconstruct_tensors",
    "reconstruction_error",
    "sigma_rel_to_gamma",
    "snapshot_name",
    "solve_coefficients",
    "write_snapshot",
]
