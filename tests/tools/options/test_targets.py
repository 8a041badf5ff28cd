"""A finished result leaves nothing hidden behind, and removes nothing that belongs to another one."""

from pathlib import Path

import pytest
import torch

from edm2.sampling.output import ImageStore
from edm2.tools.options.targets import Targets


def begun(npz: Path, steps: int = 32) -> tuple[Targets, ImageStore]:
    """Targets of a command that has drawn its only latent, [4, 2, 2], but has not written its NPZ file."""
    targets = Targets(None, npz, None, latents=True)
    store = targets.store({"steps": steps}, processes=1)
    store.claim()
    store.save(0, torch.zeros(4, 2, 2))
    return targets, store


@pytest.mark.parametrize("name", ["STARS.npz", "[ab]*.npz", "a.npz"])
def test_a_result_removes_its_own_hidden_folders_only(tmp_path: Path, name: str):
    """Folders of earlier settings go too, those of other files stay, whatever characters are in the names."""
    others = [begun(tmp_path / other)[1].path for other in ("OTHERS.npz", "b.npz", f"{name}.npz", f"x{name}")]
    earlier = begun(tmp_path / name, steps=18)[1].path
    targets, store = begun(tmp_path / name)
    targets.finish(store, [0], None)
    assert (tmp_path / name).is_file()
    assert not earlier.exists()
    assert not store.path.exists()
    assert all(other.is_dir() for other in others)
