"""The checkpoints of a run as folders: which are complete, and what their state.json says. Reads no tensors."""

from pathlib import Path
from typing import Any

from edm2.post_hoc_ema.files import parse_json

STATE_FILE = "state.json"


def find_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.isdigit() and (path / STATE_FILE).is_file())


def last_good_checkpoint(folder: Path) -> Path | None:
    """Newest checkpoint from before the loss exploded, judged when it was written; None if there is none."""
    return next((path for path in reversed(find_checkpoints(folder)) if _is_good(path)), None)


def _is_good(checkpoint: Path) -> bool:
    """True if the loss was as low as usual, or in checkpoints of earlier versions, which do not say."""
    try:
        return (read_state(checkpoint).get("explosion") or {}).get("good", True)
    except (AttributeError, OSError, ValueError):
        return False


def read_state(path: Path) -> dict[str, Any]:
    """State beside the tensors. Raises ValueError if it is none."""
    state = parse_json((path / STATE_FILE).read_text(encoding="utf-8"))
    if not isinstance(state, dict) or type(state.get("images_seen")) is not int or state["images_seen"] < 0:
        raise ValueError(f"{STATE_FILE} does not say how many images were seen")
    return state
