"""Networks, losses, datasets and callbacks of the user's in the trainer."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from jobs import Job
from tiny_run import StopAt, assert_same_bits, assert_same_numbers, final_state, run, stats, tiny_config, tiny_data
from torch import Tensor, nn

import edm2
from edm2.networks import build_network
from edm2.post_hoc_ema import SnapshotError, find_snapshots, reconstruct
from edm2.training import CheckpointError, Dataset, Trainer, TrainingConfig, read_run_config
from edm2.training.callbacks import Callback
from edm2.training.distributed.processes import joined_processes
from edm2.training.run.checkpoint_folder import find_checkpoints

README = Path(__file__).parents[2] / "docs" / "operations.md"


class MLP(nn.Module):
    """A denoiser of flat images, preconditioned by hand, with dropout and a buffer that is not stored."""

    def __init__(self, width: int = 24, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = dropout
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(66, width), nn.Linear(width, width), nn.Linear(width, 64)])
        for parameter in self.parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        sigma = sigma.reshape(-1, 1)
        class_number = (-torch.ones(len(x)) if labels is None else labels).reshape(-1, 1)
        h = torch.cat([x.flatten(1) / (sigma**2 + self.scale**2).sqrt(), sigma.log() / 4, class_number], dim=1)
        for layer in self.layers[:-1]:
            h = nn.functional.dropout(layer(h).relu(), self.dropout, self.training)
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2) + self.layers[-1](h).reshape(x.shape)


class WithAnotherDraw:
    """Squared error of a random half of the pixels, drawn by position; reports how many there were."""

    reports = ("masked",)

    def __call__(self, net, images, labels=None, *, sigma, noise, conditions=None, context):
        mask = context.draw("mask", images.shape[1:], kind="uniform") < 0.5
        shift = context.draw("shift")
        assert len(context.positions) == len(images)
        assert context.positions.start >= context.images_seen
        context.report("masked", mask.double().mean())
        denoised = net(images + sigma.reshape(-1, 1, 1, 1) * noise, sigma, labels)
        return mask * (denoised - images - 0.01 * shift.reshape(-1, 1, 1, 1)) ** 2


class Stripes(Dataset):
    """Images made on demand."""

    def __init__(self) -> None:
        super().__init__("stripes", (1, 8, 8), "pixels", 256, ("even", "odd"))

    def __len__(self) -> int:
        return 20

    def images(self, indices) -> Tensor:
        rows = torch.tensor([int(i) for i in indices]).reshape(-1, 1, 1, 1)
        return ((torch.arange(8).reshape(1, 1, 8, 1) + rows) * 12 % 256).expand(-1, -1, -1, 8).to(torch.uint8)

    def labels(self, indices) -> Tensor:
        return torch.tensor([int(i) % 2 for i in indices])


def own_config(out, **changes) -> TrainingConfig:
    settings = {
        "duration": 96, "batch_size": 8, "ref_lr": 1e-3, "rampup_images": 0, "status_every": 16, "snapshot_every": 48,
        "checkpoint_every": 40, "workers": 0, "random_block": 4, "weighting": "edm", "holdout": 4, "xflip": True,
    }  # fmt: skip
    return TrainingConfig(data="stripes", out=str(out), network=None, sigma_data=0.4, **settings | changes)


def own_trainer(config: TrainingConfig, net: nn.Module | None = None, **options) -> Trainer:
    return Trainer(config, net=net or MLP(), loss=WithAnotherDraw(), dataset=Stripes(), **options)


def trained(config: TrainingConfig, **options) -> Trainer:
    trainer = own_trainer(config, **options)
    trainer.run()
    return trainer


def test_an_own_network_loss_and_dataset_stop_and_resume_to_the_bit(tmp_path):
    whole = trained(own_config(tmp_path / "whole"))
    assert trained(own_config(tmp_path / "parts"), callbacks=[StopAt(56)]).images_seen == 56
    torch.manual_seed(123)
    resumed = trained(own_config(tmp_path / "parts"))
    assert_same_bits(final_state(whole), final_state(resumed))
    assert stats(tmp_path / "whole") == stats(tmp_path / "parts")
    assert all(0.4 < record["masked"] < 0.6 for record in stats(tmp_path / "whole"))
    assert "holdout_loss" in stats(tmp_path / "whole")[-1]
    assert read_run_config(tmp_path / "whole") == own_config(tmp_path / "whole")


def train_own(out: str, shard: bool, final: Path) -> None:
    with joined_processes() as processes:
        config = own_config(out, shard=shard, micro_batch=8 // processes.count**2)  # of two, each has two rounds
        trainer = trained(config, net=MLP(dropout=0), processes=processes)
        whole = dict(trainer.step.strategy.gathered(final_state(trainer)))
        if processes.is_first:
            torch.save(whole, final)


@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_train_an_own_network_as_one_does(tmp_path, shard):
    """Draws of the loss depend neither on processes nor on micro-batches. Without dropout, which the split changes."""
    for count in (1, 2):
        out, final = str(tmp_path / f"{count}"), tmp_path / f"{count}.pt"
        job = Job(count, tmp_path / f"said{count}", train_own, out, shard, final)
        assert job.wait() == [0] * count, job.words(0)
    assert_same_numbers(*(torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2)))


def test_a_run_is_resumed_with_its_own_network_only(tmp_path):
    trained(own_config(tmp_path, duration=48))
    with pytest.raises(CheckpointError, match=r"another network \(layers.0.bias is \(24,\) there and \(32,\) here"):
        trained(own_config(tmp_path), net=MLP(width=32))
    with pytest.raises(ValueError, match="belongs to another run"):
        run(tiny_config(tmp_path))
    assert len(find_checkpoints(tmp_path / "checkpoints")) == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weighting": "uncertainty"}, "choose a static one, such as weighting='edm'"),
        ({"weighting": "pareto"}, "pareto"),
        ({"precision": "bf16"}, "precision='bf16' is for networks that edm2 builds"),
        ({"recompute": True}, "leave it out"),
        ({"diagnostics_every": 16}, "leave out diagnostics_every"),
    ],
)
def test_settings_that_need_a_network_of_ours_are_refused_in_one_line(tmp_path, changes, named):
    with pytest.raises(ValueError, match=rf"^[^\n]*{re.escape(named)}[^\n]*$"):
        Trainer(own_config(tmp_path, **changes), net=MLP(), dataset=Stripes())
    with pytest.raises(ValueError, match="needs the network itself"):
        Trainer(own_config(tmp_path))
    config = tiny_config(tmp_path)
    with pytest.raises(ValueError, match="set network=None"):
        Trainer(config, net=build_network(config.network))


def test_an_own_loss_trains_a_network_of_ours(tmp_path):
    """The head for u(sigma) rests, as nothing asks for it; a report that was not announced is refused."""
    trainer = Trainer(tiny_config(tmp_path / "run", duration=24), loss=WithAnotherDraw(), dataset=tiny_data())
    trainer.run()
    assert not trainer.net.logvar_linear.weight.requires_grad
    assert all("masked" in record for record in stats(tmp_path / "run"))
    silent = WithAnotherDraw()
    silent.reports = ()
    with pytest.raises(ValueError, match="'masked', which its attribute `reports` does not name"):
        Trainer(tiny_config(tmp_path / "other"), loss=silent, dataset=tiny_data()).run()


class Log(Callback):
    def __init__(self) -> None:
        self.events = []

    def on_step(self, trainer, result):
        self.events.append(("step", trainer.images_seen))

    def on_report(self, trainer, record):
        self.events.append(("report", record["images_seen"]))

    def on_snapshot(self, trainer):
        self.events.append(("snapshot", trainer.images_seen))
        return {"mine": 1.0}

    def on_end(self, trainer):
        self.events.append(("end", trainer.images_seen))


def test_callbacks_are_called_when_things_happen(tmp_path):
    log = Log()
    run(tiny_config(tmp_path, duration=24), callbacks=[log])
    events = ("step", 8), ("report", 16), ("step", 16), ("report", 24), ("snapshot", 24), ("step", 24), ("end", 24)
    assert log.events == [*events]


def test_the_logger_in_the_documentation_works(tmp_path, monkeypatch):
    """With a stand-in for wandb."""
    logged = []
    wandb = types.SimpleNamespace(
        log=lambda record, step: logged.append((step, record["loss"])), init=lambda **named: None
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    [code] = re.findall(r"```python\n(import wandb\n.*?)```", README.read_text(), re.S)
    names = {"config": tiny_config(tmp_path, duration=32), "dataset": tiny_data()}
    exec(code.replace("Trainer(config", "Trainer(config, dataset=dataset"), names)
    assert [step for step, _ in logged] == [16, 32]


def test_snapshots_of_an_own_network_say_so_reconstruct_and_load_into_it_alone(tmp_path):
    trainer = trained(own_config(tmp_path))
    snapshots = find_snapshots(tmp_path)
    last = snapshots[-1]
    assert last.metadata["architecture"] == "external"
    assert "network" not in last.metadata
    assert set(last.names) == set(trainer.net.state_dict())
    [state] = reconstruct(snapshots, [0.1])
    MLP().load_state_dict(state)

    net = edm2.load(last.path, net=MLP())
    assert not net.training
    average = trainer.step.ema.average(trainer.config.sigma_rels[-1])
    loaded = net.state_dict()
    assert all(torch.allclose(loaded[name], average[name].to(loaded[name]), atol=1e-3) for name in loaded)
    for path, options, complaint in (
        (last.path, {}, r"^[^\n]*holds tensors of a network of the user's own[^\n]*$"),
        (last.path, {"net": MLP(width=7)}, "another network than net"),
        ("digits8", {"net": MLP()}, "leave out net"),
    ):
        with pytest.raises(SnapshotError, match=complaint):
            edm2.load(path, **options)
