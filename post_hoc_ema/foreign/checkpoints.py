"""Checkpoints of other programs: the weights in a file or in the files of a folder, found and read.

Weights are tensors by name: in safetensors files, or in files of `torch.save` that hold a state dict, alone or as one
of their entries. Those of a ZIP file, as torch writes since 1.6, stay in the file until they are used.
"""

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from edm2.post_hoc_ema.files import first_line, parse_json, visible_files
from edm2.post_hoc_ema.foreign.facts import Facts
from edm2.post_hoc_ema.snapshot import PartialSnapshot, SnapshotError, open_safetensors
from edm2.post_hoc_ema.tails import Profile
from edm2.post_hoc_ema.tensor_files import CODES, StoredTensor, TensorLayout, locate_tensors, read_numbers

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
"""Endings of files of `torch.save`."""

WEIGHTS = (
    *("model.safetensors", "diffusion_pytorch_model.safetensors", "adapter_model.safetensors"),
    *("pytorch_lora_weights.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.bin", "adapter_model.bin"),
)
"""Names under which transformers, diffusers, accelerate and PEFT store weights, in a folder for each checkpoint."""

TIMES = ("global_step", "step", "steps", "ss_steps", "iteration")
"""Entries inside a file that tell its time."""

BUFFERS = ("num_batches_tracked", "running_mean", "running_var", "alpha")
"""Last parts of the names of tensors that are copied: statistics of BatchNorm, and the constant scale of a LoRA."""


class Tensors(Protocol):
    """Named tensors of one checkpoint, read in parts."""

    layouts: dict[str, TensorLayout]

    def read_part(self, name: str, start: int, stop: int) -> Tensor:
        """Numbers `start` to `stop` of a tensor."""
        ...


class SafetensorsTensors:
    """Tensors of a safetensors file, or of several that make up one checkpoint."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._stored: dict[str, tuple[Path, StoredTensor]] = {}
        self.metadata: dict[str, str] = {}
        for path in paths:
            with open_safetensors(path) as file:
                names, metadata = {*file.keys()}, file.metadata()
            stored = locate_tensors(path)
            if unknown := sorted(names - stored.keys()):
                raise SnapshotError(f"{path}: {unknown[0]} is of a type that cannot be averaged; convert it to float16")
            self._stored |= {name: (path, tensor) for name, tensor in stored.items()}
            self.metadata |= metadata or {}
        self.layouts = {name: stored.layout for name, (_, stored) in self._stored.items()}

    def read_part(self, name: str, start: int, stop: int) -> Tensor:
        path, stored = self._stored[name]
        try:
            return read_numbers(path, stored, start, stop)
        except EOFError:
            raise SnapshotError(f"{path}: truncated since it was opened; copy or write it again") from None


class LoadedTensors:
    """Tensors of a file of `torch.save`; their numbers stay in the file until they are used, if it is a ZIP file."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        for name, tensor in tensors.items():
            is_plain = tensor.layout is torch.strided and tensor.dtype in CODES and not tensor.is_meta
            if (
                not is_plain or tensor.untyped_storage().nbytes() < tensor.nbytes
            ):  # strides of 0 could stand for any size
                what = (
                    f"{tensor.dtype}, {tensor.layout}, {tensor.untyped_storage().nbytes() if is_plain else 'no'} bytes"
                )
                raise SnapshotError(f"{path}: {name} is no tensor that can be averaged ({what})")
        self.layouts = {name: TensorLayout(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}

    def read_part(self, name: str, start: int, stop: int) -> Tensor:
        return self._tensors[name].detach().reshape(-1)[start:stop]


class ForeignSnapshot(PartialSnapshot):
    """A checkpoint of another program."""

    def __init__(
        self, path: Path, tensors: Tensors, profile: Profile, adapter: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self.profile, self.adapter, self._tensors = path, profile, adapter, tensors
        self.metadata: dict[str, Any] = {}
        self.images_seen, self.sigma_rel = int(profile.t), profile.sigma_rel
        self.names = tuple(tensors.layouts)
        self.buffers = frozenset(name for name in self.names if name.rpartition(".")[2] in BUFFERS)

    def layout(self, name: str) -> TensorLayout:
        return self._tensors.layouts[name]

    def read(self, name: str) -> Tensor:
        """One tensor, in the type in which it is stored."""
        layout = self.layout(name)
        return self._tensors.read_part(name, 0, layout.numel).reshape(layout.shape)

    def read_part(self, name: str, start: int, stop: int) -> Tensor:
        """Numbers `start` to `stop` of a tensor, in the type in which it is stored."""
        return self._tensors.read_part(name, start, stop)


@dataclass(frozen=True)
class Checkpoint:
    """Weights of one time, before their time and profile are known."""

    path: Path
    """File or folder whose name may tell the time."""
    tensors: Tensors
    time: int | None = None
    """Time that is told inside."""
    adapter: dict[str, Any] | None = None
    """Configuration of a LoRA, as PEFT stores it."""
    average: dict[str, Any] | None = None
    """Configuration of an average, as diffusers stores it with that of the network."""


def weights_in(folder: Path, facts: Facts) -> list[Path]:
    """Files of the weights in the folder of a checkpoint, or in one of its subfolders; none if it holds no weights."""
    if facts.part is not None:
        return _weights_at(folder / facts.part)
    if files := _weights_at(folder):
        return files
    inside = {path.name: files for path in visible_files(folder, "*") if path.is_dir() and (files := _weights_at(path))}
    names = _named_for(inside, facts)
    if len(names) > 1:
        raise SnapshotError(f"{folder} holds weights in {' and in '.join(names)}; name one (--part {names[0]})")
    return inside[names[0]] if names else []


def _named_for(names: Mapping[str, Any], facts: Facts) -> list[str]:
    """Names of averages if those are wanted and there are some, else of plain weights."""
    averages = [name for name in names if "ema" in name.lower()]
    return averages if facts.decay and averages else [name for name in names if name not in averages]


def _weights_at(folder: Path) -> list[Path]:
    """Files of the weights in this folder itself: one, or all that its index lists."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            return _indexed_files(index)
    if parts := [path for path in visible_files(folder, "*-of-*") if re.search(r"-\d+-of-\d+\.", path.name)]:
        stem = re.sub(r"-\d+-of-\d+", "", parts[0].name)
        raise SnapshotError(f"{folder} holds {parts[0].name}, and no index ({stem}.index.json); copy that too")
    safetensors = visible_files(folder, "*.safetensors")
    return safetensors if len(safetensors) == 1 else []


def _indexed_files(index: Path) -> list[Path]:
    """Files of one checkpoint that an index lists."""
    try:
        listed = parse_json(index.read_bytes())["weight_map"].values()
        files = sorted({index.parent / name for name in listed})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise SnapshotError(f"{index} is no index of weights; copy it again") from None
    for path in files:
        if path.parent != index.parent or not path.is_file():
            raise SnapshotError(f"{index} lists {path.name}, which is not beside it; copy it too")
    return files


def checkpoint_in_folder(path: Path, files: Sequence[Path], facts: Facts) -> Checkpoint:
    """Checkpoint in a folder of its own, which alone tells the time."""
    tensors = checkpoint_in_file(path, files, Facts(decay=facts.decay)).tensors  # the part was a subfolder
    adapter = _read_config(files[0].with_name("adapter_config.json"))
    average = None if facts.decay is None else _read_config(files[0].with_name("config.json"))
    ranks = (adapter or {"r": 1}).get("r"), *((adapter or {}).get("rank_pattern") or {}).values()
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        raise SnapshotError(f"{path}: adapter_config.json is no configuration of a LoRA with a rank r; copy it again")
    return Checkpoint(path, tensors, adapter=adapter, average=average)


def _read_config(path: Path) -> dict[str, Any] | None:
    """JSON object in a file; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        config = parse_json(path.read_bytes())
    except ValueError:
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("rank_pattern") or {}, dict):
        raise SnapshotError(f"{path} is no configuration in JSON; copy it again")
    return config


def checkpoint_in_file(path: Path, files: Sequence[Path], facts: Facts) -> Checkpoint:
    """Checkpoint in one file, or in the safetensors files of a folder."""
    if files[0].suffix == ".safetensors":
        tensors = SafetensorsTensors(files)
        return Checkpoint(path, tensors, _time_in(tensors.metadata))
    contents: dict[str, Any] = {}
    states: dict[str, Tensor] = {}
    for file in files:
        contents = read_pickle(file)
        states |= _state_dict(file, contents, facts)
    return Checkpoint(path, LoadedTensors(path, states), _time_in(contents))


def _time_in(entries: Mapping[str, Any]) -> int | None:
    """Time that one of the entries tells, as a number or, in the metadata of safetensors, as its digits."""
    texts = (str(entries[name]) for name in TIMES if type(entries.get(name)) in (int, str))
    return next((int(text) for text in texts if re.fullmatch(r"\d{1,17}", text)), None)


def read_pickle(path: Path) -> dict[Any, Any]:
    """Dict in a file of `torch.save`: of tensors and plain values, nothing else, and nothing is called."""
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # whatever a stranger's pickle makes it raise
        other = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = (
            f"it holds {other[1]}, and reading that could run a stranger's code"
            if other
            else first_line(error).partition(". ")[0]
        )
        raise SnapshotError(
            f"{path} is no file of weights ({found}); save its state_dict alone, or as safetensors"
        ) from None
    if not isinstance(contents, dict):
        raise SnapshotError(f"{path} is no file of weights: it holds a {type(contents).__name__}, no tensors by name")
    return contents


def _state_dict(path: Path, contents: Mapping[Any, Any], facts: Facts) -> dict[str, Tensor]:
    """State dict in the contents of a file: themselves, or one of their entries."""
    inner = {str(name): dict(_tensors_of(value)) for name, value in contents.items()}
    states = {name: state for name, state in inner.items() if any(t.is_floating_point() for t in state.values())}
    own = dict(_tensors_of(contents))
    if facts.part is not None:
        names = [facts.part] if facts.part in states else []
    elif not (names := _named_for(states, facts)) and states:
        only = next(iter(states))
        raise SnapshotError(
            f"{path} holds an average alone; say its --decay, or take it for plain weights (--part {only})"
        )
    if len(names) > 1:
        raise SnapshotError(f"{path} holds weights in {', '.join(names)}; name one (--part {names[0]})")
    if not names and (facts.part is not None or not own):
        where = f" in {facts.part}" if facts.part is not None else ""
        raise SnapshotError(f"{path} is no file of weights: it holds no tensors by name{where}")
    return states[names[0]] if names else own


def _tensors_of(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name in a dict; none in anything else."""
    if isinstance(value, dict):
        yield from ((name, t) for name, t in value.items() if isinstance(name, str) and isinstance(t, Tensor))
