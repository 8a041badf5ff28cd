"""post_hoc_ema is useful alone: it brings neither the rest of the project nor heavy libraries along."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def loaded_by(statement):
    """Names of all modules loaded by a statement in a new process."""
    program = f"import json, sys; {statement}; print(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


def test_all_public_names_load_nothing_else_of_the_project_and_no_heavy_library():
    modules = loaded_by("from edm2.post_hoc_ema import *")
    assert "torch" in modules  # the list is of the right process
    assert not modules & {"diffusers", "sklearn", "matplotlib", "scipy", "PIL", "tensorboard", "transformers"}
    ours = {name for name in modules if name.startswith("edm2.")}
    assert {name for name in ours if not name.startswith("edm2.post_hoc_ema")} == set()


@pytest.mark.parametrize(
    ("names", "spared"),
    [
        ("find_snapshots", "edm2.post_hoc_ema.reconstruction"),
        ("PowerFunctionEMA", "edm2.post_hoc_ema.reconstruction"),
        ("__all__", "torch"),
        ("solve_coefficients, sigma_rel_to_half_life", "torch"),
        ("atomic_output", "torch"),
    ],
)
def test_names_load_only_what_they_need(names, spared):
    """The mathematics needs no torch, snapshots and trackers no reconstruction."""
    assert spared not in loaded_by(f"from edm2.post_hoc_ema import {names}")


def test_public_names_exist():
    import edm2.post_hoc_ema as package

    assert all(hasattr(package, name) for name in package.__all__)
    assert callable(package.reconstruct)  # not hidden by a module of the same name
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = package.nonsense
