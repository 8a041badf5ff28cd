"""The folder of a run.

It holds config.json, stats.jsonl, TensorBoard events, snapshots/, checkpoints/, samples/, and at the end
raw-weights.safetensors; traditional-ema.safetensors where such an average was asked for.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from edm2.post_hoc_ema import SafetensorsSnapshot
from edm2.post_hoc_ema.files import parse_json, visible_files
from edm2.training.config import TrainingConfig
from edm2.training.data.dataset import Dataset, DatasetError, open_dataset
from edm2.training.field_types import mistyped_fields
from edm2.training.imports import is_target
from edm2.training.run.checkpoint_folder import find_checkpoints
from edm2.training.run.files import is_free, is_inside, listed_differences, write_json
from edm2.training.run.inputs import (
    RunFolderError,
    change_of_data,
    describe_file,
    describe_inputs,
    read_inputs,
    write_inputs,
)

INTERIM = "interim"
"""Entry in the metadata of snapshots that a run left because it stopped."""


class RunFolder:
    """Files of a run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.snapshots = self.path / "snapshots"
        self.raw_weights = self.path / "raw-weights.safetensors"
        self.traditional_ema = self.path / "traditional-ema.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"

    def check(
        self, config: TrainingConfig, names: Mapping[str, str] | None = None, data: Mapping[str, Any] | None = None
    ) -> None:
        """Raise unless this folder may become the run described by `config`, or is it already; nothing is written.

        A folder whose run has left neither a checkpoint nor a snapshot may become another one.

        Args:
            config: The run.
            names: Names of settings in messages, such as {"ref_lr": "--lr"}.
            data: Its images, as `describe_inputs` does.

        Raises:
            RunFolderError: it belongs to another run, or holds something else; or a setting is of another type.
        """
        for name in mistyped_fields(config):  # which config.json could not give back
            value = getattr(config, name)
            raise RunFolderError(
                f"{self.path}: {name}={value!r} is no value of this setting; write whole numbers as such"
            )
        if self.config.exists():
            other = read_run_config(self.path)  # also of a run that left nothing: the file may be somebody else's
            if self.has_begun():
                self._refuse_other_inputs(config, other, data)  # first: classes and size follow from the images
                self._refuse_another(config, other, names or {})
                self._refuse_to_go_back(config)
                return
        if config.data != "digits" and is_inside(self.path, config.data):
            raise RunFolderError(
                f"{self.path}: lies among the images in {config.data}, and its samples would become some of them; "
                "choose another --out"
            )
        self.check_free()

    def check_free(self) -> None:
        """Raise RunFolderError if there is something else than a run here."""
        if not self.config.exists() and not is_free(self.path):
            what = "is not empty and holds no run" if self.path.is_dir() else "is a file"
            raise RunFolderError(f"{self.path}: {what}; choose another --out")

    def claim(self, config: TrainingConfig, dataset: Dataset) -> None:
        """Make this folder the run described by `config` on the images of `dataset`, if it is not already.

        Raises:
            RunFolderError: as `check`.
        """
        data = describe_inputs(dataset, config)
        self.check(config, data=data)
        run = self.run() or self._run_of_snapshots() if self.has_begun() else uuid4().hex
        write_json(self.config, config.to_json())
        write_inputs(self.path, data, config.init, run)
        self.snapshots.mkdir(exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context in which no other process may train here; one that is killed leaves no lock behind."""
        lock = FileLock(self.path / ".lock")
        with suppress(NotImplementedError, OSError):  # a file system without locks
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise RunFolderError(
                    f"{self.path}: another process trains here at this moment; wait for it, or choose another --out"
                ) from None
        try:
            yield
        finally:
            lock.release()

    def run(self) -> str | None:
        """Identifier of the run, which its snapshots have too; None if an earlier version began it."""
        return read_inputs(self.path).get("run")

    def _run_of_snapshots(self) -> str | None:
        """Identifier in the newest snapshot: of a run whose record of its inputs was removed."""
        snapshots = visible_files(self.snapshots, "snapshot-*.safetensors")
        return SafetensorsSnapshot(snapshots[-1]).metadata.get("run") if snapshots else None

    def snapshot_times(self, until: float = math.inf, after: int = 0) -> list[int]:
        """Images seen at the snapshots after `after` and up to `until`, by the names of their files."""
        names = (
            re.fullmatch(r"snapshot-(\d+)-[\d.]+", path.stem) for path in visible_files(self.snapshots, "*.safetensors")
        )
        return sorted({time for name in names if name and after < (time := int(name[1])) <= until})

    def interim_times(self) -> set[int]:
        """Images seen at snapshots that were written because the run stopped."""
        if not self.snapshots.is_dir():
            return set()
        snapshots = (SafetensorsSnapshot(path) for path in visible_files(self.snapshots, "snapshot-*.safetensors"))
        return {snapshot.images_seen for snapshot in snapshots if snapshot.metadata.get(INTERIM)}

    def images_seen(self) -> int:
        """Images seen at the last checkpoint, where a run would go on."""
        checkpoints = find_checkpoints(self.checkpoints)
        return int(checkpoints[-1].name) if checkpoints else 0

    def has_begun(self) -> bool:
        """True if a run has left a checkpoint or a snapshot here."""
        return self.images_seen() > 0 or bool(visible_files(self.snapshots, "*.safetensors"))

    def _refuse_another(self, config: TrainingConfig, other: TrainingConfig, names: Mapping[str, str]) -> None:
        found = config.differences(other)
        if found:
            listed = listed_differences([(names.get(name, name), theirs, mine) for name, mine, theirs in found])
            raise RunFolderError(
                f"{self.path}: belongs to another run ({listed}); choose another --out, or repeat that run's "
                "settings to resume it"
            )

    def _refuse_other_inputs(
        self, config: TrainingConfig, other: TrainingConfig, data: Mapping[str, Any] | None
    ) -> None:
        inputs = read_inputs(self.path)
        if not inputs and (config.data, config.init) != (other.data, other.init):  # of a version that kept paths only
            was = f"--data {other.data}" if config.data != other.data else f"--init {other.init}"
            raise RunFolderError(f"{self.path}: was begun with {was}; repeat that once, so that its contents are noted")
        if data is not None and (change := change_of_data(inputs.get("data"), data)):
            raise RunFolderError(
                f"{self.path}: the images in {config.data} have changed since this run began: {change}. Going on would "
                "mix held-out images with trained ones, and two datasets in one average: bring the images back, or "
                "begin a new run from a snapshot of this one (--init)"
            )
        known = inputs.get("init")
        if config.init is not None and Path(config.init).is_file() and known not in (None, describe_file(config.init)):
            raise RunFolderError(f"{self.path}: was begun from another network than {config.init}; leave out --init")

    def _refuse_to_go_back(self, config: TrainingConfig) -> None:
        if (seen := self.images_seen()) > config.duration:
            raise RunFolderError(
                f"{self.path}: has seen {seen} images already, more than the duration {config.duration}; "
                "choose a longer one, or reconstruct at an earlier time"
            )


def open_run_data(folder: str | Path, moved: Dataset | None = None) -> Dataset:
    """Open the images that a run was trained on.

    Args:
        folder: Run folder.
        moved: Images that are returned if they are those of the run, by contents; others are left alone.

    Raises:
        DatasetError: they are not where they were, or others are in their place.
        RunFolderError: there is no run.
    """
    config = read_run_config(folder)
    source, known = config.data, read_inputs(Path(folder)).get("data")
    if moved is not None and known and change_of_data(known, describe_inputs(moved, config)) is None:
        return moved
    if is_target(source):  # a stranger's folder must not name programs
        raise DatasetError(f"{folder}: was trained on {source}, a program; name it with --data if you trust it")
    dataset = open_dataset(source)
    if known and (change := change_of_data(known, describe_inputs(dataset, config))):
        raise DatasetError(f"{source}: not the images that {folder} was trained on: {change}; name those with --data")
    return dataset


def read_run_config(folder: str | Path) -> TrainingConfig:
    """The configuration of the run in `folder`.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    path = Path(folder) / "config.json"
    try:
        config = TrainingConfig.from_json(parse_json(path.read_text(encoding="utf-8")))
        wrong = mistyped_fields(config)
    except FileNotFoundError:
        raise RunFolderError(f"{folder}: holds no run (config.json is missing)") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # whatever is in it
        raise RunFolderError(f"{path}: not the configuration of a run ({error})") from None
    if wrong:
        raise RunFolderError(f"{path}: not the configuration of a run ({', '.join(wrong)} of a type that cannot be)")
    return config
