"""Averages in files of ema-pytorch, pytorch-posthoc-ema and diffusers, and the profiles that they really have.

The first two use the β of one step at every k-th step only. An average of exponent a = γ + 1 so becomes another, whose
tail follows a power function of exponent a / k:

    P(u) = 1 - ((u + 1/2) / (n + (k + 1)/2))^(a / k) for 1 <= u < n,    n = k floor((S - 1)/k) + 1

for a file of step S, whose last update was at n. The rest, P(1), stays on the weights of step 1, with which it began.

An `EMAModel` of diffusers has the decay n / (n + 9) in its update n until that reaches β (for 0.9999: 90,000 updates).
It is a power function of exponent 9 so long, and of constant decay afterwards.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from edm2.post_hoc_ema.foreign.checkpoints import ForeignSnapshot, LoadedTensors, read_pickle
from edm2.post_hoc_ema.foreign.facts import Facts
from edm2.post_hoc_ema.profile import sigma_rel_to_gamma
from edm2.post_hoc_ema.snapshot import SnapshotError
from edm2.post_hoc_ema.tails import ExponentialProfile, PowerProfile, Profile, RawProfile

TRACKED_NAME = re.compile(r"(\d{1,3})\.(\d{1,17})\.pt")
"""Number of the average, and steps."""


PREFIX = "ema_model."
"""Prefix of names of tensors in files of ema-pytorch; those of pytorch-posthoc-ema have no prefix."""


def is_tracked(paths: Sequence[Path]) -> bool:
    """True if all files have names and entries of one of the two packages."""
    return (
        all(map(TRACKED_NAME.fullmatch, (path.name for path in paths)))
        and {"initted", "step"} <= read_pickle(paths[0]).keys()
    )


def package_of(paths: Sequence[Path]) -> str:
    """Name of the package that wrote the files."""
    prefixed = any(str(name).startswith(PREFIX) for name in read_pickle(paths[0]))
    return "ema-pytorch" if prefixed else "pytorch-posthoc-ema"


def tracked_snapshots(folder: Path, paths: Sequence[Path], facts: Facts) -> list[ForeignSnapshot]:
    """Open the averages; of files without an update between them, which are equal, the last."""
    package, k = package_of(paths), facts.update_every
    count = 1 + max(_numbers(path)[0] for path in paths)
    if k is None or len(facts.tracked) != count or facts.decay is not None:
        default = 100 if package == "ema-pytorch" else 10
        raise SnapshotError(
            f"{folder}: files of {package} tell neither their EMA lengths nor how often they were updated; give a"
            f" length for each of the averages 0 to {count - 1}, and the interval of updates (--tracked 0.05,0.10"
            f" --update-every {default}, its default); no decay"
        )
    paths = sorted(paths, key=lambda path: _numbers(path)[1])
    clock = 0 if package == "ema-pytorch" else _clock_begin(paths[0])
    last_of = {profile_after(step, facts.tracked[i], k, clock): path for path in paths for i, step in [_numbers(path)]}
    return [ForeignSnapshot(path, _tensors(path, package), profile) for profile, path in last_of.items()]


def _numbers(path: Path) -> tuple[int, int]:
    """Number of the average, and steps."""
    match = TRACKED_NAME.fullmatch(path.name)
    assert match  # is_tracked
    return int(match[1]), int(match[2])


def _tensors(path: Path, package: str) -> LoadedTensors:
    """Tensors of the network, by their names in it."""
    state = read_pickle(path)
    if package == "ema-pytorch":
        state = {name.removeprefix(PREFIX): t for name, t in state.items() if name.startswith(PREFIX)}
    return LoadedTensors(
        path, {n: t for n, t in state.items() if isinstance(t, Tensor) and n not in ("initted", "step")}
    )


def profile_after(step: int, sigma_rel: float, k: int, clock: int) -> Profile:
    """Profile that an average of that package has after a number of steps."""
    last = k * ((step - clock - 1) // k) + 1  # updates are at steps 1, 1 + k, 1 + 2 k, ... of its clock
    if last <= 1:  # the copy with which it began
        return RawProfile(clock + 1)
    exponent = (float(sigma_rel_to_gamma(sigma_rel)) + 1) / k
    return PowerProfile(clock + last, exponent, clock=clock - 0.5, start=clock + 1, full=clock + last + k / 2)


def diffusers_profile(path: Path, config: Mapping[str, Any], time: int, decay: float) -> Profile:
    """Profile of an average of diffusers' `EMAModel`, by the configuration that it stores."""
    updates, after = (config.get(name, 0) for name in ("optimization_step", "update_after_step"))
    if config.get("use_ema_warmup") or config.get("min_decay") or not type(updates) is type(after) is int:
        raise SnapshotError(
            f"{path}: its average has a warm-up of its own (use_ema_warmup, min_decay), which is not known"
        )
    if config.get("decay") != decay:
        raise SnapshotError(f"{path}: its average has the decay {config.get('decay')}, not {decay:g}; give that")
    begin = time - updates + after  # the average copies the weights until then, and at the step after it
    n = time - begin
    if n <= 1:
        return RawProfile(time)
    if n / (n + 9) < decay:
        return PowerProfile(time, 9, clock=begin - 4.5, start=begin + 1, full=time + 0.5)
    return ExponentialProfile(time, -math.log(decay), start=max(0, begin))


def _clock_begin(path: Path) -> int:
    """Steps before the averages began to count, from the earliest file, where rounding to float16 is least."""
    step, counted = _numbers(path)[1], read_pickle(path)["step"]
    counted = float(counted) if isinstance(counted, Tensor) and counted.numel() == 1 else math.nan
    if not 0 < counted <= step:
        raise SnapshotError(f"{path}: its entry step is no number of steps up to that in its name; copy it again")
    return step - int(counted)
