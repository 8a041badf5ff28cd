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


@pytest.fixture(scope="module")
def modules():
    """Names of all modules loaded by all public names of `edm2.post_hoc_ema`."""
    return loaded_by("from edm2.post_hoc_ema import *")


@pytest.mark.parametrize(
    "library", ["diffusers", "sklearn", "matplotlib", "scipy", "PIL", "tensorboard", "transformers"]
)
def test_importing_loads_no_heavy_library(modules, library):
    assert "torch" in modules  # the list is of the right process
    assert library not in modules


def test_importing_loads_nothing_else_of_the_project(modules):
    ours = {name for name in modules if name.split(".")[0] == "edm2"}
    assert {name for name in ours if name != "edm2" and not name.startswith("edm2.post_hoc_ema")} == set()


@pytest.mark.parametrize("names", ["find_snapshots", "PowerFunctionEMA"])
def test_snapshots_and_trackers_load_no_reconstruction(names):
    assert "edm2.post_hoc_ema.reconstruction" not in loaded_by(f"from edm2.post_hoc_ema import {names}")


@pytest.mark.parametrize("names", ["__all__", "solve_coefficients, sigma_rel_to_half_life", "atomic_output"])
def test_the_mathematics_needs_no_torch(names):
    assert "torch" not in loaded_by(f"from edm2.post_hoc_ema import {names}")


def test_public_names_exist():
    import edm2.post_hoc_ema as package

    assert all(hasattr(package, name) for name in package.__all__)
    assert callable(package.reconstruct)  # not hidden by a module of the same name
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = package.nonsense
