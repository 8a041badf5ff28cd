"""A run small enough to train in a second, and what it leaves."""

import json

import torch
from golden_data import rms_rel
from torch import Tensor

from edm2.networks import NetworkConfig
from edm2.training import ArrayDataset, Trainer, TrainingConfig
from edm2.training.callbacks import Callback


def tiny_data(count: int = 40, classes: int = 3) -> ArrayDataset:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 8, 8), generator=g).to(torch.uint8)
    return ArrayDataset(images, torch.arange(count) % classes)


def tiny_config(out, **changes) -> TrainingConfig:
    network = NetworkConfig(
        8, 1, 3, model_channels=8, channel_mult=changes.pop("channel_mult", (1, 2)), num_blocks=1,
        attn_resolutions=(4,), channels_per_head=8, logvar_channels=8, dropout=changes.pop("dropout", 0.0),
    )  # fmt: skip
    settings = {
        "duration": 96, "batch_size": 8, "ref_batches": 4, "rampup_images": 16, "status_every": 16,
        "snapshot_every": 24, "checkpoint_every": 40, "workers": 0, "random_block": 4, "label_dropout": 0.2,
        "xflip": True,
    }  # fmt: skip
    return TrainingConfig(data="tiny", out=str(out), network=network, **settings | changes)


def run(config: TrainingConfig, **options) -> Trainer:
    trainer = Trainer(config, dataset=tiny_data(), **options)
    trainer.run()
    return trainer


class StopAt(Callback):
    """Stops a run at this number of images."""

    def __init__(self, images: int) -> None:
        self.images = images

    def on_step(self, trainer, result) -> None:
        trainer.stop_requested = trainer.images_seen >= self.images


def final_state(trainer: Trainer) -> dict:
    averages = {f"{s}/{k}": v for s in trainer.config.sigma_rels for k, v in trainer.step.ema.average(s).items()}
    moments = {
        f"{name}/{key}": value for name, state in trainer.tensors()["optimizer"].items() for key, value in state.items()
    }
    return {**trainer.net.state_dict(), **averages, **moments}


def assert_same_bits(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def stats(folder) -> list[dict]:
    """Records without what depends on the machine's speed."""
    timed = {"seconds", "images_per_second", "peak_memory_gb"}
    lines = (folder / "stats.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def assert_same_numbers(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """To 1e-5 root-mean-square, for weights and averages. Sums over a step are taken in another order.

    Gains are numbers that start at zero and may pass it: all of a network count as one tensor. Adam's moments are left
    out: where gradients cancel, nothing but rounding is left of them.
    """
    assert ours.keys() == theirs.keys()
    names = [name for name in ours if "/exp_avg" not in name and not name.endswith("/step")]
    for name in names:
        if ours[name].ndim and theirs[name].any():
            assert rms_rel(ours[name], theirs[name]) < 1e-5, name
    gains = [name for name in names if not ours[name].ndim and name.endswith("gain")]
    assert not gains or rms_rel(*(torch.stack([tensors[name] for name in gains]) for tensors in (ours, theirs))) < 1e-5
