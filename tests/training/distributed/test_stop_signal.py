"""Signals, time limits and memory that runs out: a run stops where it can go on, or goes on."""

import os
import signal
import time

import click
import pytest
import torch
from golden_data import rms_rel
from jobs import Job
from tiny_run import assert_same_bits, final_state, run, tiny_config, tiny_data

from edm2.networks import Precond
from edm2.tools.run import train_interruptibly
from edm2.training import Trainer, TrainingConfig
from edm2.training.distributed.processes import joined_processes
from edm2.training.distributed.strategies import SingleProcess, recompute_blocks_
from edm2.training.run.checkpoint_folder import find_checkpoints

LONG = {"duration": 80_000, "checkpoint_every": 80_000, "snapshot_every": 80_000, "status_every": 80}


def endless(out: str, max_seconds: float | None = None, workers: int = 0) -> None:
    """As `edm2 train` does it; with readers of data, they are one group."""
    if workers:
        os.setpgrp()
    with joined_processes() as processes:
        try:
            train_interruptibly(tiny_config(out, **LONG, workers=workers), tiny_data(), (), processes, max_seconds)
        except click.exceptions.Exit as leaving:
            raise SystemExit(leaving.exit_code) from None


def wait_for(path) -> None:
    """Until a run has written this."""
    end = time.monotonic() + 120
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("count", "workers", "number", "code"),
    [
        (1, 0, signal.SIGINT, 130),
        (1, 0, signal.SIGTERM, 143),
        pytest.param(1, 2, signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(2, 0, signal.SIGUSR1, 138, marks=pytest.mark.slow),
    ],
    ids=["ctrl-c", "sigterm", "sigterm-to-the-group", "sigusr1-to-one-of-two"],
)
def test_a_signal_saves_and_leaves_with_its_exit_code(tmp_path, count, workers, number, code):
    """Also where it reaches one process only: they agree, and write one checkpoint together. And where it goes to the
    whole group, as torchrun and schedulers send it: readers of data leave it alone, as the step still needs images."""
    job = Job(count, tmp_path / "said", endless, str(tmp_path / "run"), None, workers)
    wait_for(tmp_path / "run" / "stats.jsonl")
    (os.killpg if workers else os.kill)(job.processes[-1].pid, number)
    assert job.wait(120) == [code] * count, job.words(0)
    [checkpoint] = find_checkpoints(tmp_path / "run" / "checkpoints")
    assert f"Stopped at {int(checkpoint.name):,} images" in job.words(0)
    assert "Traceback" not in job.words(count - 1)


@pytest.mark.slow
def test_time_is_up_for_both_at_once(tmp_path):
    job = Job(2, tmp_path / "said", endless, str(tmp_path / "run"), 2.0)
    assert job.wait(120) == [124, 124], job.words(0)
    assert len(find_checkpoints(tmp_path / "run" / "checkpoints")) == 1


class SmallMemory(SingleProcess):
    """A device that runs out of memory with more than three images."""

    def wrap(self, net, compile):
        def denoise(x, *arguments, **options):
            if len(x) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return net(x, *arguments, **options)

        return denoise


def test_out_of_memory_halves_the_images_per_forward_pass(tmp_path, monkeypatch, capsys):
    """From 8 to 4 to 2. The batch stays: sums are taken in another order, as with --micro-batch 2 from the start."""
    config = tiny_config(tmp_path / "small", duration=40)
    with monkeypatch.context() as patch:
        patch.setattr("edm2.training.step.choose_strategy", lambda processes, *how: SmallMemory(processes))
        small = Trainer(config, dataset=tiny_data())
        small.run()
    assert "from now on 2 images per forward pass" in capsys.readouterr().out
    assert_same_bits(final_state(small), final_state(run(tiny_config(tmp_path / "two", duration=40, micro_batch=2))))
    whole = final_state(run(tiny_config(tmp_path / "whole", duration=40)))
    weight = "unet.enc.8x8_block0.conv_res0.weight"
    assert rms_rel(final_state(small)[weight], whole[weight]) < 1e-5


def test_instruments_keep_to_what_the_memory_holds(tmp_path, monkeypatch):
    """Diagnostics and held-out losses show no more images at once than training found to fit."""
    forward, sizes = Precond.forward, []

    def small(self, x, *arguments, **options):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x, *arguments, **options)

    monkeypatch.setattr(Precond, "forward", small)
    run(tiny_config(tmp_path, duration=24, diagnostics_every=16, holdout=8))
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2


def test_recomputed_activations_give_the_same_gradients_to_the_bit(tmp_path):
    """Dropout included: the same activations are dropped again."""
    states = [
        final_state(run(tiny_config(tmp_path / str(recompute), dropout=0.3, recompute=recompute, duration=40)))
        for recompute in (False, True)
    ]
    assert_same_bits(*states)


def test_recomputing_keeps_fewer_activations(tmp_path):
    def kept(recompute: bool) -> int:
        config: TrainingConfig = tiny_config(tmp_path)
        net = Trainer(config).net
        if recompute:
            recompute_blocks_(net)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            net(torch.randn(64, 1, 8, 8), torch.ones(64))
        return sum(sizes)

    assert kept(True) < kept(False) / 3
