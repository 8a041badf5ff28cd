"""Inputs of a run, known by contents, never by path: its images and the network that it starts from.

`inputs.json` in the run folder holds it. A run whose data have moved goes on; one whose images have changed would mix
held-out with trained images, and averages of two datasets, so it is refused.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edm2.post_hoc_ema.files import parse_json
from edm2.training.data.dataset import Dataset
from edm2.training.run.files import write_json

INPUTS_FILE = "inputs.json"


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """Number, classes and fingerprint of the images, as JSON; neither paths nor times enter."""
    labels = dataset.labels(range(len(dataset))).numpy()
    counts = np.bincount(labels[labels >= 0], minlength=dataset.num_classes).tolist()
    return {
        "images": len(dataset),
        "classes": dict(zip(dataset.class_names, counts, strict=True)),
        "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
        "contents": dataset.fingerprint(),
    }


def describe_file(path: str | Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_inputs(folder: Path) -> dict[str, Any]:
    """The inputs of a run; empty if it has not begun, or was begun by a version that did not write them."""
    try:
        inputs = parse_json((folder / INPUTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return inputs if isinstance(inputs, dict) else {}


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
    return (
        f"other labels of the {now['images']} images"
        if before["labels"] != now["labels"]
        else (f"as many images ({now['images']}), but not the same")
    )


def _listed(classes: Mapping[str, int]) -> str:
    shown = [f"{name} ({count})" for name, count in classes.items()]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") or "none"
