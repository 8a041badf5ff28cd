"""Recognition of the files of a folder: their kind, and the time and the profile of each.

A folder holds either a subfolder for each checkpoint, as of transformers (`checkpoint-500`), diffusers, accelerate and
PEFT, or a file for each. Their times are told inside all of them (`checkpoints.TIMES`), or by the last integers of
their names; what has none, such as the final weights beside its checkpoints, is left aside.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edm2.post_hoc_ema.files import visible_files
from edm2.post_hoc_ema.foreign.checkpoints import (
    PICKLED,
    Checkpoint,
    ForeignSnapshot,
    checkpoint_in_file,
    checkpoint_in_folder,
    weights_in,
)
from edm2.post_hoc_ema.foreign.facts import Facts
from edm2.post_hoc_ema.foreign.tracked import diffusers_profile, is_tracked, package_of, tracked_snapshots
from edm2.post_hoc_ema.snapshot import METADATA_KEY, SnapshotError, open_safetensors
from edm2.post_hoc_ema.tails import ExponentialProfile, Profile, RawProfile


@dataclass(frozen=True)
class ForeignFolder:
    """Checkpoints of another program, as they were recognized."""

    kind: str
    snapshots: list[ForeignSnapshot]
    left_aside: list[str]
    """Names of what looks like weights and is not used: it tells no time, or it is the same average as a later file."""


def recognize(folder: str | os.PathLike[str], facts: Facts) -> ForeignFolder | None:
    """Find out what the files of another program in a folder are.

    None for a run or snapshots of this package, for published pickles, and where there is no folder.

    Raises:
        SnapshotError: Kinds are mixed, a file is damaged or holds something else than weights, or what must be known of
            the files is not told.
        FileNotFoundError: There is nothing in it that could be weights.
    """
    folder = Path(folder)
    if not folder.is_dir() or _is_ours(folder):
        return None
    entries = visible_files(folder, "*")
    files = [path for path in entries if path.suffix in (".safetensors", *PICKLED) and path.is_file()]
    folders = [path for path in entries if path.is_dir() and _time_of(path) is not None]
    weights = {path: found for path in folders if (found := weights_in(path, facts))}
    if folders and facts.part is not None and not weights and not any(map(_has_time, files)):
        raise SnapshotError(f"{folder}: none of its folders, such as {folders[0].name}, has weights in {facts.part}")
    used = _one_kind(folder, [*weights], files)
    left_aside = [path.name for path in files if path not in used]
    if not weights and is_tracked(used):
        snapshots = tracked_snapshots(folder, used, facts)
        left_aside += [path.name for path in used if path not in {snapshot.path for snapshot in snapshots}]
        return ForeignFolder(f"files of {package_of(used)}, updated every {facts.update_every}", snapshots, left_aside)
    if facts.tracked or (facts.update_every and facts.decay is None):
        raise SnapshotError(
            f"{folder} holds no files of ema-pytorch, such as 0.1000.pt: only these have tracked lengths, and only"
            " these and averages of constant decay (--decay) an update_every"
        )
    if weights:
        checkpoints = [checkpoint_in_folder(path, weights[path], facts) for path in used]
    else:
        checkpoints = [checkpoint_in_file(path, [path], facts) for path in used]
    return ForeignFolder(_kind(facts), _with_profiles(checkpoints, facts), left_aside)


def _is_ours(folder: Path) -> bool:
    """True for a run, for snapshots with metadata of this package, and for published pickles."""
    if any((folder / name).is_dir() for name in ("snapshots", "checkpoints")) or visible_files(folder, "*.pkl"):
        return True
    is_snapshot: dict[bool, Path] = {}
    for path in visible_files(folder, "*.safetensors"):
        with open_safetensors(path) as file:
            is_snapshot[METADATA_KEY in (file.metadata() or {})] = path
    if len(is_snapshot) > 1:
        raise SnapshotError(
            f"{folder} mixes snapshots of edm2 ({is_snapshot[True].name}) with files of another program"
            f" ({is_snapshot[False].name}); keep one kind in a folder"
        )
    return True in is_snapshot


def _one_kind(folder: Path, folders: Sequence[Path], files: Sequence[Path]) -> list[Path]:
    """The checkpoints among folders and files: those whose names have a time, or all files if none has."""
    kinds = {
        "folders": folders,
        "safetensors": [path for path in files if path.suffix == ".safetensors"],
        "torch.save": [path for path in files if path.suffix in PICKLED],
    }
    timed = {name: with_time for name, paths in kinds.items() if (with_time := [p for p in paths if _has_time(p)])}
    found = timed or {name: [*paths] for name, paths in kinds.items() if paths}
    if len(found) > 1:
        one, another, *_ = (paths[0].name for paths in found.values())
        raise SnapshotError(f"{folder} mixes kinds, such as {one} and {another}; keep one kind in a folder")
    if not found:
        raise FileNotFoundError(
            f"no snapshots and no weights in {folder}; give a run folder, or one of snapshots, of files of weights"
            f" ({', '.join(('.safetensors', *PICKLED))}) or of folders such as checkpoint-500"
        )
    return next(iter(found.values()))


def _with_profiles(checkpoints: Sequence[Checkpoint], facts: Facts) -> list[ForeignSnapshot]:
    """Checkpoints with their times and profiles, the earliest first."""
    times = [checkpoint.time for checkpoint in checkpoints]
    if None in times:
        times = [_time_of(checkpoint.path) for checkpoint in checkpoints]
    snapshots = []
    for checkpoint, time in zip(checkpoints, times, strict=True):
        if time is None:
            raise SnapshotError(
                f"{checkpoint.path}: neither the file nor its name tells at how many steps it was stored; give it a"
                " name that does, such as model_500.pt"
            )
        profile = _profile(checkpoint, time, facts)
        snapshots.append(ForeignSnapshot(checkpoint.path, checkpoint.tensors, profile, checkpoint.adapter))
    return sorted(snapshots, key=lambda snapshot: snapshot.images_seen)


def _kind(facts: Facts) -> str:
    """Kind of checkpoints that are no files of ema-pytorch."""
    if facts.decay is None:
        return "checkpoints, taken for plain weights"
    return f"averages of constant decay {facts.decay:g}, updated every {facts.update_every or 1}"


def _profile(checkpoint: Checkpoint, time: int, facts: Facts) -> Profile:
    """Profile of a checkpoint: plain weights, or an average of constant decay."""
    if facts.decay is None or time in (0, facts.clock_from):  # an average begins with a copy
        return RawProfile(time)
    if checkpoint.average and "optimization_step" in checkpoint.average:
        return diffusers_profile(checkpoint.path, checkpoint.average, time, facts.decay)
    start = facts.clock_from if time > facts.clock_from else 0
    return ExponentialProfile(time, -math.log(facts.decay) / (facts.update_every or 1), start)


def _time_of(path: Path) -> int | None:
    """Last integer in a name, the numbers of a model's parts (`-00001-of-00002`) aside."""
    integers = re.findall(
        r"\d+", re.sub(r"-\d+-of-\d+", "", path.name.removesuffix(path.suffix if path.is_file() else ""))
    )
    return int(integers[-1]) if integers and len(integers[-1]) < 18 else None


def _has_time(path: Path) -> bool:
    """True if a name tells a time."""
    return _time_of(path) is not None
