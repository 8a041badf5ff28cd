"""Inputs of a run, known by contents, never by path: its images and the network that it starts from.

`inputs.json` in the run folder holds it. A run whose data have moved goes on; one whose images have changed would mix
held-out with trained images, and averages of two datasets, so it is refused.
"""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edm2.post_hoc_ema.files import parse_json, plain_line
from edm2.training.config import TrainingConfig
from edm2.training.data.conditions import parse_maker
from edm2.training.data.dataset import Dataset
from edm2.training.run.files import write_json

INPUTS_FILE = "inputs.json"


class RunFolderError(ValueError):
    """A run folder cannot be used; the message is one line that names it and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(plain_line(message))


def describe_data(dataset: Dataset, conditions: Collection[str] = ()) -> dict[str, Any]:
    """Number, classes and fingerprints of the images and some of their conditions; neither paths nor times enter."""
    labels = dataset.labels(range(len(dataset))).numpy()
    counts = np.bincount(labels[labels >= 0], minlength=dataset.num_classes).tolist()
    stored = ((name, dataset.condition_contents(name)) for name in conditions if name in dataset.condition_names)
    contents = {name: digest for name, digest in stored if digest is not None}
    return {
        "images": len(dataset),
        "classes": dict(zip(dataset.class_names, counts, strict=True)),
        "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
        "contents": dataset.fingerprint(),
        **({"conditions": contents} if contents else {}),
    }


def describe_inputs(dataset: Dataset, config: TrainingConfig) -> dict[str, Any]:
    """Describe the data of a run, with the conditions that its network takes."""
    known = () if config.network is None else config.network.conditions
    made = {parse_maker(text)[0] for text in config.make_conditions}
    return describe_data(dataset, [c.name for c in known if c.name not in made])


def describe_file(path: str | Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_inputs(folder: Path) -> dict[str, Any]:
    """The inputs of a run; empty if it has not begun, or was begun by a version that did not write them.

    Raises:
        RunFolderError: the file is damaged.
        OSError: it is there, but cannot be read: to go on without it would give the run another identifier.
    """
    path = folder / INPUTS_FILE
    if not path.exists():
        return {}
    try:
        return dict(parse_json(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError):
        raise RunFolderError(f"{path}: is damaged; remove it to go on with the images that are there now") from None


def write_inputs(folder: Path, data: Mapping[str, Any], init: str | None, run: str | None = None) -> None:
    """Write the inputs of a run and its identifier; `init` is the file of its first network, which may be gone."""
    known = read_inputs(folder).get("init")
    contents = describe_file(init) if init is not None and Path(init).is_file() else known
    write_json(folder / INPUTS_FILE, {"data": data, "init": contents, "run": run})


def change_of_data(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """Phrase that says how images differ from those of `before`; None if they do not, or nothing is known of them."""
    if not before or all(before.get(name) in (now[name], None) for name in now):
        return None
    if before["images"] != now["images"]:
        return f"{before['images']} images then, {now['images']} now"
    if before["classes"] != now["classes"]:
        return f"classes {_listed(before['classes'])} then, {_listed(now['classes'])} now"
    if before["labels"] != now["labels"]:
        return f"other labels of the {now['images']} images"
    if before["contents"] not in (now["contents"], None):
        return f"as many images ({now['images']}), but not the same"
    differing = [name for name, digest in now["conditions"].items() if before["conditions"].get(name) != digest]
    return f"other conditions of the same images ({', '.join(differing)})"


def _listed(classes: Mapping[str, int]) -> str:
    shown = [f"{name} ({count})" for name, count in classes.items()]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") or "none"
