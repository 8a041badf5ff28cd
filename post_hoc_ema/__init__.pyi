from edm2.post_hoc_ema.conversions import (
    beta_to_half_life as beta_to_half_life,
    half_life_to_beta as half_life_to_beta,
    half_life_to_sigma_rel as half_life_to_sigma_rel,
    rampup_ratio_to_sigma_rel as rampup_ratio_to_sigma_rel,
    sigma_rel_to_half_life as sigma_rel_to_half_life,
    sigma_rel_to_rampup_ratio as sigma_rel_to_rampup_ratio,
)
from edm2.post_hoc_ema.files import atomic_output as atomic_output
from edm2.post_hoc_ema.foreign.facts import Facts as Facts
from edm2.post_hoc_ema.foreign.rebuilding import rebuild as rebuild
from edm2.post_hoc_ema.foreign.recognition import ForeignFolder as ForeignFolder, recognize as recognize
from edm2.post_hoc_ema.planning import (
    StoragePlan as StoragePlan,
    evenly_spaced_error as evenly_spaced_error,
    forecast_errors as forecast_errors,
    plan_storage as plan_storage,
    rounding_error as rounding_error,
    snapshots_needed as snapshots_needed,
    storage_dtype as storage_dtype,
    thin as thin,
    thin_along as thin_along,
)
from edm2.post_hoc_ema.profile import (
    SIGMA_REL_MAX as SIGMA_REL_MAX,
    ReconstructionError as ReconstructionError,
    gamma_to_sigma_rel as gamma_to_sigma_rel,
    power_function_beta as power_function_beta,
    power_function_profile as power_function_profile,
    power_function_response as power_function_response,
    power_function_step as power_function_step,
    profile_inner_product as profile_inner_product,
    reconstruction_error as reconstruction_error,
    sigma_rel_to_gamma as sigma_rel_to_gamma,
    solve_coefficients as solve_coefficients,
)
from edm2.post_hoc_ema.reconstruction import (
    reconstruct as reconstruct,
    reconstruct_files as reconstruct_files,
    reconstruct_tensors as reconstruct_tensors,
)
from edm2.post_hoc_ema.selection import missing_snapshots as missing_snapshots, select_snapshots as select_snapshots
from edm2.post_hoc_ema.session import PostHocEMA as PostHocEMA
from edm2.post_hoc_ema.snapshot import (
    PartialSnapshot as PartialSnapshot,
    SafetensorsSnapshot as SafetensorsSnapshot,
    Snapshot as Snapshot,
    SnapshotError as SnapshotError,
    find_snapshots as find_snapshots,
    read_metadata as read_metadata,
    snapshot_name as snapshot_name,
    write_snapshot as write_snapshot,
)
from edm2.post_hoc_ema.tails import (
    ExponentialProfile as ExponentialProfile,
    PowerProfile as PowerProfile,
    Profile as Profile,
    RawProfile as RawProfile,
    box_profile as box_profile,
    power_profile as power_profile,
    tail_coefficients as tail_coefficients,
    tail_error as tail_error,
    tail_forecast as tail_forecast,
)
from edm2.post_hoc_ema.tensor_files import TensorLayout as TensorLayout
from edm2.post_hoc_ema.tracker import (
    IntervalMeans as IntervalMeans,
    PowerFunctionEMA as PowerFunctionEMA,
    TraditionalEMA as TraditionalEMA,
)
