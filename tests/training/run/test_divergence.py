"""A loss that explodes ends a run, and the last checkpoint of before is there; one that jumps and returns does not."""

import math
from types import SimpleNamespace

import pytest
import torch
from jobs import Job
from tiny_run import assert_same_bits, final_state, run, tiny_config, tiny_data

from edm2.networks import NetworkConfig, build_network
from edm2.post_hoc_ema import find_snapshots, thin_along
from edm2.training import Trainer, TrainingError, trainer
from edm2.training.distributed.processes import joined_processes
from edm2.training.loss.objective import EDM2Loss, errors
from edm2.training.run import failures
from edm2.training.run.checkpoint_folder import find_checkpoints
from edm2.training.run.failures import EXPLODED, STEPS, Divergence
from edm2.training.run.totals import StepResult


@pytest.mark.parametrize("scale", [0.05, 0.5, 4.0])
def test_a_network_that_outputs_nothing_has_error_1_on_any_data_and_a_perfect_one_0(scale):
    """Also where the data's standard deviation is not the one that the network expects. F = 0 in a new network."""
    net = build_network(NetworkConfig(8, 1, 0, model_channels=8, channel_mult=(1,), num_blocks=1, channels_per_head=8))
    images, noisy, sigma = scale * torch.randn(64, 1, 8, 8), torch.randn(64, 1, 8, 8), torch.rand(64, 1, 1, 1)
    reported = {}
    EDM2Loss()(net, images, context=SimpleNamespace(report=reported.__setitem__))
    assert float(reported["error"] / reported["error_of_zero"]) == pytest.approx(1, abs=1e-5)
    assert float(errors(torch.zeros_like(images), noisy, images, sigma, 0.5)[0]) == 0


def watched(errors: list[float]) -> Divergence:
    divergence = Divergence(torch.device("cpu"))
    for error in errors:
        divergence.add(torch.tensor(error))
    return divergence


@pytest.mark.parametrize(
    ("errors", "steps"),
    [
        ([1.0] * 5 + [0.4] * 20, 0),
        ([1.0] + [1e5] * 30 + [1.2], 0),  # config G at 80 times its learning rate
        ([8.4, 7.2, 20.0, 60.0], 0),  # config F starts high
        ([8.4] + [90.0] * 3, 3),
        ([1.0] + [11.0, math.inf, math.nan], 3),
        ([math.nan, 1.0, 9.0], 0),  # the first step tells nothing
        ([0.1] + [9.0] * 40, 0),  # better than nothing from the start, as in fine-tuning: nothing counts as 1
        ([0.1] + [11.0] * 40, 40),
    ],
)
def test_steps_that_count(errors, steps):
    assert int(watched(errors).steps) == steps


def test_errors_are_suspect_before_they_count_and_a_resumed_run_goes_on_counting():
    assert not watched([1.0, 1.9]).is_suspect()
    assert watched([1.0, 2.1]).is_suspect()
    assert watched([1.0, math.nan]).is_suspect()
    resumed = Divergence(torch.device("cpu"))
    resumed.load_state(watched([3.0, 50.0, 50.0]).state())
    resumed.add(torch.tensor(50.0))
    assert resumed.state() == {"steps": 3.0, "usual": 3.0, "good": False}


EVERY_STEP = {"checkpoint_every": 8, "keep_checkpoints": 1, "snapshot_every": 8, "keep_snapshots": 3}


class Breaking(Trainer):
    """From some image on, every step spoils the weights; for so many steps."""

    breaks_at, for_steps = 48, 1000

    def train_step(self, *arguments):
        if 0 <= self.images_seen - self.breaks_at < 8 * self.for_steps:
            with torch.no_grad():
                self.net.unet.out_gain.fill_(50)
        elif self.images_seen > self.breaks_at:
            with torch.no_grad():
                self.net.unet.out_gain.fill_(0.1)
        return super().train_step(*arguments)


def test_a_loss_that_explodes_ends_the_run_and_the_last_good_checkpoint_is_kept(tmp_path, monkeypatch):
    """One checkpoint is kept besides, and snapshots are not thinned any more: the new ones may be worthless."""
    monkeypatch.setattr(trainer, "STEPS", 4)
    config = tiny_config(tmp_path, **EVERY_STEP, duration=800)
    exploded = r"the loss has exploded: in 4 steps up to image 96 .*000000000048$"
    with pytest.raises(TrainingError, match=exploded) as said:
        Breaking(config, dataset=tiny_data()).run()
    assert "\n" not in str(said.value)
    assert [int(path.name) for path in find_checkpoints(tmp_path / "checkpoints")] == [48, 88]
    times = sorted({snapshot.images_seen for snapshot in find_snapshots(tmp_path)})
    assert times == [*thin_along(range(8, 49, 8), 3), 56, 64, 72, 80, 88]


def explode(out: str) -> None:
    """One of several processes; all of them meet it."""
    trainer.STEPS = 4
    with joined_processes() as processes:
        try:
            Breaking(tiny_config(out, **EVERY_STEP), dataset=tiny_data(), processes=processes).run()
        except TrainingError as error:
            print(error)
            raise SystemExit(1) from None


@pytest.mark.slow
def test_several_processes_agree_that_a_loss_has_exploded(tmp_path):
    job = Job(2, tmp_path / "said", explode, str(tmp_path / "run"))
    assert job.wait(100) == [1, 1], job.words(0)
    for rank in (0, 1):
        assert "in 4 steps up to image 96" in job.words(rank)
    assert "000000000048" in job.words(0)


def test_a_loss_that_returns_is_let_alone(tmp_path, monkeypatch):
    """It stays high for three steps of the four. Afterwards there is as much on the disk as was asked for."""
    monkeypatch.setattr(trainer, "STEPS", 4)

    class Jumping(Breaking):
        for_steps = 3

    config = tiny_config(tmp_path, **EVERY_STEP)
    Jumping(config, dataset=tiny_data()).run()
    assert [int(path.name) for path in find_checkpoints(tmp_path / "checkpoints")] == [96]
    assert len({snapshot.images_seen for snapshot in find_snapshots(tmp_path)}) == 3


def test_the_device_is_asked_every_256_steps_only(tmp_path, monkeypatch):
    """Reading a number waits for the device."""
    asked = []

    class Watched(Trainer):
        def _mean_over_ranks(self, tensor):
            asked.append(self.images_seen)
            return super()._mean_over_ranks(tensor)

    assert STEPS == 256
    config = tiny_config(tmp_path, duration=8 * 600, status_every=8000, snapshot_every=8000, checkpoint_every=8000)
    monkeypatch.setattr(Watched, "train_step", nothing_but_the_clock)
    for name in ("_write_what_is_due", "save_checkpoint"):
        monkeypatch.setattr(Watched, name, lambda *arguments: None)
    Watched(config, dataset=tiny_data()).run()
    assert asked == [8 * 256, 8 * 512, 8 * 600]


def nothing_but_the_clock(trainer: Trainer, *arguments) -> StepResult:
    trainer.step.images_seen += trainer.config.batch_size
    return StepResult(torch.ones(()), torch.ones(()), torch.zeros((), dtype=torch.int64), torch.ones(()))


def test_watching_changes_nothing(tmp_path, monkeypatch):
    """Weights are the same to the bit with a watch that never looks."""
    with_watch = final_state(run(tiny_config(tmp_path / "a", duration=40)))
    monkeypatch.setattr(failures.Divergence, "add", lambda *arguments: None)
    assert_same_bits(final_state(run(tiny_config(tmp_path / "b", duration=40))), with_watch)
    assert EXPLODED > 8.4  # where config F starts, and where its first steps may be counted from
