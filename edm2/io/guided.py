"""guided.json: a network, its guide, the weight and the interval, which `load` reads as one network."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edm2.post_hoc_ema import SnapshotError, atomic_output
from edm2.post_hoc_ema.files import parse_json
from edm2.sampling.guidance import EVERYWHERE, Interval

KIND = "edm2-guided"


@dataclass(frozen=True)
class GuidedFile:
    """Contents of a guided.json; files lie beside it, so that the folder can be moved."""

    network: Path
    """Snapshot of the network."""
    guide: Path | None
    """Snapshot of the guide; None: the network itself."""
    weight: float
    """Guidance weight."""
    interval: Interval = EVERYWHERE
    """Noise levels with guidance."""
    dropout: float | None = None
    """Dropout rate of a network that guides itself with dropout; None: without labels, if there is no `guide`."""

    @property
    def files(self) -> list[Path]:
        """Snapshots that it is made of."""
        return [self.network] if self.guide is None else [self.network, self.guide]

    def to_json(self) -> dict[str, Any]:
        """Contents of the file."""
        low, high = self.interval
        by: Any = self.guide.name if self.guide else "unlabelled" if self.dropout is None else {"dropout": self.dropout}
        shown = [low, None if high == EVERYWHERE[1] else high]
        return {"kind": KIND, "network": self.network.name, "guide": by, "guidance": self.weight, "interval": shown}

    def write(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write the file, with what else is to be known `about` it."""
        with atomic_output(path) as temporary:
            temporary.write_text(json.dumps(self.to_json() | {"about": about}, indent=1) + "\n", encoding="utf-8")


def is_guided(path: str | Path) -> bool:
    """True if a file is to be read as a guided.json."""
    return Path(path).suffix == ".json"


def read_guided(path: str | Path) -> GuidedFile:
    """Read a guided.json, which may be a stranger's: it names files beside it, and nothing else.

    Raises:
        SnapshotError: it is none, or a file is missing.
        OSError: it cannot be read.
    """
    path = Path(path)
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("kind") != KIND:
            raise ValueError(f"kind is not {KIND}")
        low, high = values["interval"]
        interval = float(low), EVERYWHERE[1] if high is None else float(high)
        match values["guide"]:
            case "unlabelled":
                guide, dropout = None, None
            case {"dropout": float(rate)}:
                guide, dropout = None, rate
            case name:
                guide, dropout = _beside(path, name), None
        weight = float(values["guidance"])
        if not (math.isfinite(weight) and 0 <= interval[0] < interval[1]):
            raise ValueError(f"weight {weight:g}, interval {interval}")
        found = GuidedFile(_beside(path, values["network"]), guide, weight, interval, dropout)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:  # untrusted JSON
        raise SnapshotError(f"{path}: is no network with a guide, as edm2 autoguide writes it ({error})") from None
    for file in found.files:
        if not file.is_file():
            raise SnapshotError(f"{path}: {file.name} is not beside it; copy the whole folder")
    return found


def main_network(path: Path) -> Path:
    """File of the main network of a guided.json; any other file as it is."""
    return read_guided(path).network if path.is_file() and is_guided(path) else path


def _beside(path: Path, name: Any) -> Path:
    if not isinstance(name, str) or Path(name).name != name or is_guided(name):  # nor of itself
        raise ValueError(f"{name!r} is not the name of a snapshot beside it")
    return path.parent / name
