"""Reference statistics in the published form: those of the golden set, or pickles that look the same."""

import pickle
from pathlib import Path

from golden_data import arrays, table
from hostile_mutations import Attack


def published_reference(golden: Path, folder: Path) -> Path:
    """Statistics of the first case of `metrics`, as FID's."""
    path = golden / "metrics/reference.pkl"
    if path.exists():
        return path
    case = min(name for name, told in table(golden, "metrics/metrics.json").items() if isinstance(told, dict))
    numbers = arrays(golden, "metrics/metrics.safetensors")
    mu, sigma = (numbers[f"{case}/ref/{name}"].numpy() for name in ("mu", "sigma"))
    content = {"num_images": len(numbers[f"{case}/ref/features"]), "fid": {"mu": mu, "sigma": sigma}}
    path = folder / "reference.pkl"
    path.write_bytes(pickle.dumps(content))
    return path


def hostile_reference(golden: Path, folder: Path) -> Path:
    """The same with a command inside."""
    path = golden / "metrics/malicious-reference.pkl"
    if not path.exists():
        path = folder / "malicious-reference.pkl"
        path.write_bytes(pickle.dumps({"num_images": 2, "fid": {"mu": Attack()}}))
    return path
