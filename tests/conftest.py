"""What every test shares: the golden numbers, few threads, no windows."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib
# At toy sizes a second thread brings little, and on a busy machine threads that wait for each other cost a multiple.
# Commands started by tests inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)

HERE = Path(__file__).resolve().parent
COMPACT = HERE / "golden"
FULL = Path(os.environ.get("EDM2_GOLDEN", HERE.parent.parent / "shared" / "golden"))


@pytest.fixture(scope="session", params=["compact", pytest.param("full", marks=pytest.mark.slow)])
def golden(request: pytest.FixtureRequest) -> Path:
    """Root of a golden set: the selection in this repository, then the full one where there is one."""
    if request.param == "compact":
        return COMPACT
    if not FULL.is_dir():
        pytest.skip(f"full golden set not found at {FULL}; set EDM2_GOLDEN to its folder")
    return FULL
