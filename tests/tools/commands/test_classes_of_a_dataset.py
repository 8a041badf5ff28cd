"""Classes from folders to samples: what they are called, and those without images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TINY, complaint, edm2, succeed, write_images
from PIL import Image

from edm2 import load
from edm2.pipeline import EDM2Pipeline

FEW = ("--seeds", "0-15", "--steps", 1, "--device", "cpu")


def drawn(network: Path, *options: object) -> tuple[list[int], str]:
    """Classes of the samples, and what was printed."""
    npz = network.with_suffix(".npz")
    npz.unlink(missing_ok=True)
    said = succeed("generate", network, *FEW, "--npz", npz, *options)
    return np.load(npz)["arr_1"].tolist(), said


@pytest.fixture(scope="module")
def with_gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network whose classes 0, 3 and 4 had no image."""
    folder = tmp_path_factory.mktemp("gaps")
    data = write_images(folder / "data", (8, 8, 3), count=30)
    labels = [[path.name, (1, 2, 5)[k % 3]] for k, path in enumerate(sorted(data.glob("*.png")))]
    (data / "dataset.json").write_text(json.dumps({"labels": labels}))
    said = succeed("train", *TINY, "--data", data, "--duration", 64, "--out", folder / "run")
    assert "WARNING: 3 classes have no image, and will not be drawn unless asked for: 0, 3, 4" in " ".join(said.split())
    return folder / "run/raw-weights.safetensors"


def test_classes_without_images_are_left_out(with_gaps: Path):
    assert load(with_gaps).empty_classes == (0, 3, 4)
    assert set(drawn(with_gaps)[0]) == {1, 2, 5}
    assert drawn(with_gaps, "--balanced")[0] == [1, 2, 5] * 5 + [1]
    assert set(drawn(with_gaps, "--class", 3)[0]) == {3}


@pytest.mark.parametrize(("count", "columns"), [(15, 3), (3, 2)], ids=["a column per class", "too few for rows"])
def test_a_balanced_grid_has_a_column_for_each_class_that_is_drawn(with_gaps: Path, tmp_path: Path, count, columns):
    grid = tmp_path / "grid.png"
    succeed("generate", with_gaps, *FEW, "--seeds", f"0-{count - 1}", "--balanced", "--grid", grid)
    assert Image.open(grid).width == columns * 64 + (columns - 1) * 8


def test_a_pipeline_draws_the_same_classes(with_gaps: Path):
    pipe = EDM2Pipeline.from_snapshot(with_gaps)
    classes = pipe._classes(None, 16, [torch.Generator().manual_seed(seed) for seed in range(16)])
    assert set(classes.tolist()) <= {1, 2, 5}


def test_names_that_are_numbers(tmp_path: Path):
    """Of folders 1 to 12, `--class 2` is the folder 2, which is the fifth in sort order; there is no 0."""
    for name in range(1, 13):
        write_images(tmp_path / f"data/{name}", (8, 8, 3), count=3)
    succeed("train", *TINY, "--data", tmp_path / "data", "--duration", 64, "--out", tmp_path / "run")
    network = tmp_path / "run/raw-weights.safetensors"
    classes, said = drawn(network, "--class", 2)
    assert set(classes) == {4}
    assert "16 images of class 2 (number 4) in" in said
    refused = edm2("generate", network, *FEW, "--class", 0, "--npz", tmp_path / "zero.npz")
    assert refused.code == 1
    assert "class 0 is none of the network's classes, whose names are numbers: 1, 10, 11, 12" in complaint(refused.err)
    pipe = EDM2Pipeline.from_snapshot(network)
    assert pipe._classes([2], 1, None).tolist() == [4]
