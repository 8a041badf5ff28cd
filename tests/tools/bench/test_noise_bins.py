"""`python -m edm2.tools.bench.studies.noise_bins`: fine-tuning one bin of noise levels at a time."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from edm2.sweep.averages import Averages
from edm2.tools.bench.studies.noise_bins import ALL, FineTuning, main
from edm2.training import open_dataset, read_run_config
from edm2.training.loss.bins import equal_bins
from edm2.training.loss.objective import DenoisingLoss


@pytest.fixture
def tuning(tiny_run: Path) -> FineTuning:
    return FineTuning(read_run_config(tiny_run), open_dataset("digits"), bins=3)


def test_a_matrix_with_a_row_for_all_bins(tiny_run: Path, tmp_path: Path):
    options = ["--bins", "3", "--steps", "2", "--lr", "0.01", "--std", "0.1", "--out", str(tmp_path)]
    done = CliRunner().invoke(main, [str(tiny_run), *options], catch_exceptions=False)
    assert done.exit_code == 0
    with open(tmp_path / "noise-bins.csv", newline="") as file:
        names, *rows = csv.reader(file)
    assert [row[0] for row in rows] == [*names[1:], "all"]
    assert len({tuple(row[1:]) for row in rows}) == 4
    assert (tmp_path / "noise-bins.png").stat().st_size > 5000
    assert done.output.count("%") == 1


def test_without_learning_nothing_changes(tuning: FineTuning, tiny_run: Path):
    """But for rounding: weights are normalized on the way, which the network does not notice, and averaged."""
    [net] = Averages(tiny_run).networks(512, [0.1])
    np.testing.assert_allclose(tuning.changes(net, steps=2, lr=0.0), 0, atol=1e-4)


def test_noise_levels_are_those_of_the_bin(tuning: FineTuning, monkeypatch: pytest.MonkeyPatch):
    bins, images = equal_bins(tuning.objective.distribution, 3), torch.zeros(200, 1, 8, 8)
    heard = []

    def hear(self, net, images, labels, *, sigma, noise):
        heard.append(bins.index(sigma).unique().tolist())
        return images

    monkeypatch.setattr(DenoisingLoss, "__call__", hear)
    for number in (0, 1, 2, ALL):
        tuning.loss(None, images, None, number, 0)
    assert heard == [[0], [1], [2], [0, 1, 2]]
