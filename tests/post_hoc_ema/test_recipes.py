"""The recipes of docs/post_hoc_ema.md, run as they are written, on a toy: train, store, resume, rebuild."""

import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from edm2 import post_hoc_ema
from edm2.post_hoc_ema import find_snapshots, reconstruct

ROOT = Path(__file__).resolve().parents[2]
LOOP, ACCELERATE, LIGHTNING = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "docs/post_hoc_ema.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)
BATCHES, BATCH, INTERVAL = 64, 4, 8
"""Batches of a run, images in each of them, and batches between snapshots."""


def toy() -> nn.Sequential:
    """A module with buffers, floating-point and integer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))


def batches(first: int = 0) -> DataLoader:
    """The same for every run; without the `first` ones."""
    images = torch.randn(BATCHES * BATCH, 6, generator=torch.Generator().manual_seed(1))
    return DataLoader(images[first * BATCH :], batch_size=BATCH)


def run(recipe: str, **given: object) -> dict:
    """Execute a recipe that stores a snapshot at short intervals; returns its names."""
    names = {"torch": torch, **vars(post_hoc_ema), **given}
    exec(compile(recipe.replace("% 4096", f"% {INTERVAL}"), "recipe", "exec"), names)
    return names


def check_rebuilt(model: nn.Module, times: int, prefix: str = "") -> None:
    """All snapshots are there, and a length between those that are tracked loads into the model."""
    snapshots = find_snapshots("ema")
    assert len(snapshots) == 2 * times
    [state] = reconstruct(snapshots, [0.08])
    model.load_state_dict(state)
    short, long = (snapshot.read(f"{prefix}0.weight").float() for snapshot in snapshots[-2:])
    between = (state[f"{prefix}0.weight"] - short).norm() + (state[f"{prefix}0.weight"] - long).norm()
    assert between < 1.5 * (short - long).norm()  # of two averages of one walk, neither far from the other
    assert state[f"{prefix}1.num_batches_tracked"].dtype == torch.int64


def assert_same_state(a: dict, b: dict) -> None:
    """To the bit."""
    assert a.keys() == b.keys()
    assert a["images_seen"] == b["images_seen"] > 0
    assert all(torch.equal(a[key], b[key]) for key in a.keys() - {"images_seen"})


def test_a_plain_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(LOOP)
    assert len(list((tmp_path / "ema").iterdir())) == 16


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 2])
def test_accelerate(accumulated, tmp_path, monkeypatch):
    """Stopped in the middle and resumed it ends with the averages of a run that never stopped."""
    accelerate = pytest.importorskip("accelerate")

    def train(batches: DataLoader, resume: str | None, stop: int | None = None) -> tuple[dict, dict]:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
        net = toy()
        model, optimizer, loader = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 0.1), batches)

        def train_step(batch: torch.Tensor) -> None:
            with accelerator.accumulate(model):
                accelerator.backward(model(batch).square().mean())
                optimizer.step()
                optimizer.zero_grad()

        loader = loader if stop is None else islice(loader, stop)
        given = {"accelerator": accelerator, "model": model, "loader": loader, "train_step": train_step}
        names = run(ACCELERATE, **given, images_per_batch=BATCH, resume=resume)
        accelerator.save_state("saved")
        return names["ema"].state_dict(), names

    monkeypatch.chdir(tmp_path)
    whole, _ = train(batches(), resume=None)
    for path in (tmp_path / "ema").iterdir():
        path.unlink()
    train(batches(), resume=None, stop=24)
    resumed, names = train(batches(24), resume="saved")
    assert_same_state(resumed, whole)
    assert resumed["images_seen"] == BATCHES * BATCH
    check_rebuilt(names["accelerator"].unwrap_model(names["model"]), times=BATCHES // INTERVAL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and loggers
@pytest.mark.parametrize("accumulated", [1, 2])
def test_lightning(accumulated, tmp_path, monkeypatch):
    """As with Accelerate; steps of the optimizer are counted, also where gradients add up."""
    lightning = pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = toy()

        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    def train(epochs: int, resume: str | None = None) -> tuple[dict, nn.Module]:
        callback = run(LIGHTNING, lightning=lightning)["PostHocEMA"]()
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulated,
        )  # fmt: skip
        trainer.fit(module, batches(), ckpt_path=resume)
        trainer.save_checkpoint("saved.ckpt")
        return callback.state_dict(), module

    whole, _ = train(epochs=2)
    train(epochs=1)
    resumed, module = train(epochs=2, resume="saved.ckpt")
    assert_same_state(resumed, whole)
    assert resumed["images_seen"] == 2 * BATCHES // accumulated
    check_rebuilt(module, times=2 * BATCHES // accumulated // INTERVAL, prefix="net.")
