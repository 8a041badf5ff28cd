"""What a training step and an evaluation ask of the device: how many operations, how much memory, no waiting.

A GPU is busy as long as the host asks ahead of it. Each test says what that takes, and counts; none looks at a clock.
Most run on torch's meta device: a device other than the CPU, on which every attempt to read a number fails.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jobs import Job
from operations import Operations, operations_of
from tiny_run import tiny_config, tiny_data

from edm2.networks import MPConv, NetworkConfig, build_network, fold, force_weight_normalization_
from edm2.networks.blocks import blocks
from edm2.networks.reference import ReferencePrecond, reference_loss
from edm2.post_hoc_ema import PowerFunctionEMA
from edm2.sampling.guidance import guided, without_labels
from edm2.sampling.samplers import SAMPLERS
from edm2.training import ArrayDataset, EDM2Loss, Trainer, TrainingConfig
from edm2.training.data.batches import Batch, BatchStream
from edm2.training.distributed.processes import joined_processes
from edm2.training.distributed.strategies import clean_
from edm2.training.initialization import fresh_network
from edm2.training.run.totals import Totals
from edm2.training.step import TrainStep

BATCH = 8


class MetaRandom:
    """In place of `PositionRandom`, whose generators the meta device does not have."""

    def __init__(self, seed: int, block_size: int, device: torch.device) -> None:
        self.generator = SimpleNamespace(device=device)

    def normal(self, stream, start: int, stop: int, shape: tuple[int, ...] = ()) -> torch.Tensor:
        return torch.randn(stop - start, *shape, device=self.generator.device)

    def uniform(self, stream, start: int, stop: int, shape: tuple[int, ...] = ()) -> torch.Tensor:
        return torch.rand(stop - start, *shape, device=self.generator.device)

    def derived_seed(self, stream, index: int) -> int:
        return index


def network(num_blocks: int = 1, channel_mult: tuple[int, ...] = (1, 2), **changes) -> NetworkConfig:
    """Two levels, attention in the lower one."""
    return NetworkConfig(
        16, 4, 10, model_channels=64, channel_mult=channel_mult, num_blocks=num_blocks, attn_resolutions=(8,), **changes
    )


def run(net: NetworkConfig, device: str = "meta", **changes) -> TrainingConfig:
    """A step of which sees BATCH images."""
    settings = {"batch_size": BATCH, "duration": 64 * BATCH, "random_block": BATCH, "device": device, "workers": 0}
    return TrainingConfig(data="", out="", network=net, **settings | changes)


def step_on_meta(monkeypatch, config: TrainingConfig) -> TrainStep:
    """A step without numbers."""
    monkeypatch.setattr("edm2.training.step.PositionRandom", MetaRandom)
    with torch.device("meta"):
        net = build_network(config.network)
    return TrainStep(config, net)


def microbatches(config: TrainingConfig) -> list[Batch]:
    """Of one step."""
    shape = config.images_per_forward, config.network.img_channels, *config.network.size
    images = torch.ones(shape, device=config.device)
    labels = torch.zeros(len(images), dtype=torch.int64, device=config.device)
    return [Batch(images, labels)] * (config.batch_size // len(images))


def num_blocks(net) -> int:
    """Residual blocks."""
    return len(net.unet.enc) + len(net.unet.dec) - 1


# ----------------------------------------------------------------------------------------------------------------------
# The counter itself


def test_the_counter_sees_work_copies_and_reads():
    x = torch.ones(10, 10)
    operations = operations_of(lambda: (x.t() @ x).sum().item())
    assert operations.launches == {"mm": 1, "sum": 1, "_local_scalar_dense": 1}  # the transposed is a view
    assert operations.reads == [("_local_scalar_dense", "cpu")]
    assert operations.allocated == 400 + 4
    operations = operations_of(lambda: x.to("meta"))
    assert operations.copied == {("cpu", "meta"): 400}
    assert operations.reads == []


def test_the_meta_device_does_not_let_itself_be_read():
    x = torch.ones(2, device="meta")
    for read in (x.sum().item, x.tolist, x.cpu, lambda: float(x[0]), lambda: bool(x[0] > 0)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()


# ----------------------------------------------------------------------------------------------------------------------
# Waiting


@pytest.mark.parametrize(
    ("of_network", "of_run"),
    [
        ({}, {}),
        ({}, {"precision": "bf16", "micro_batch": 2}),
        ({}, {"precision": "fp16", "loss_scale": 100.0, "stratified_sigma": False, "recompute": True}),
        ({}, {"weighting": "min-snr", "traditional_ema": 1000}),
        ({"label_balance": 0.4, "resample_filter": (1, 3, 3, 1)}, {"weighting": "v", "relative_weighting": True}),
        ({"config": "C", "channels_per_group": 16}, {"weighting": "edm"}),
    ],
    ids=["plain", "accumulating", "half-precision", "other-weighting", "filter", "config-c"],
)
def test_a_step_waits_for_no_number_and_copies_nothing(monkeypatch, of_network, of_run):
    """Neither to the host (which would fail here) nor to the device, and what it adds up stays there."""
    config = run(network(**of_network, channel_mult=(1,)), **of_run)
    step, totals = step_on_meta(monkeypatch, config), Totals(torch.device("meta"))
    batches = microbatches(config)
    operations = operations_of(lambda: totals.add(step(batches)))
    assert [read for read in operations.reads if read[1] != "cpu"] == []
    assert operations.copied == {}


def test_images_and_labels_are_all_that_goes_to_the_device(monkeypatch):
    """Bytes of pixels: 8 bits each, not 32."""
    config = run(network(), xflip=True, label_dropout=0.5)
    random = MetaRandom(0, BATCH, torch.device("meta"))
    pixels = torch.zeros(20, 4, 16, 16, dtype=torch.uint8)
    dataset = ArrayDataset(pixels, torch.arange(len(pixels)) % 10)
    batches = BatchStream(config, dataset, random).steps(start=0)
    next(batches)
    operations = operations_of(lambda: next(batches))
    assert operations.copied == {("cpu", "meta"): BATCH * (4 * 16 * 16 + 8)}


def test_an_evaluation_waits_for_no_number():
    """Of a trained network, and of one folded for sampling; with classes in any form."""
    with torch.device("meta"):
        net = build_network(network()).eval()
        x, sigma = torch.ones(BATCH, 4, 16, 16), torch.ones(BATCH)
        classes = None, torch.zeros(BATCH, dtype=torch.int64), torch.zeros(BATCH, 10)
    for evaluated in (net, fold(net, torch.bfloat16)):
        for labels in classes:
            assert operations_of(lambda n=evaluated, c=labels: n(x, sigma, c)).copied == {}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=lambda sampler: sampler.name)
def test_sampling_waits_for_no_number(sampler):
    """Guidance within an interval included: whether a step has it is decided on the host."""
    with torch.device("meta"):
        net = fold(build_network(network()))
    noise, labels = torch.ones(BATCH, 4, 16, 16, device="meta"), torch.zeros(BATCH, dtype=torch.int64, device="meta")
    options = {"num_steps": 6, "S_churn": 3} if sampler.churns else {"num_steps": 6}
    for guide in (without_labels(net), fold(net)):
        denoise = guided(net, guide, 1.5, interval=(0.1, 10))
        operations = operations_of(lambda d=denoise: sampler.sample(d, noise, labels, **options))
        assert [read for read in operations.reads if read[1] != "cpu"] == []


class Watched(Trainer):
    """A trainer that notes what is read between steps."""

    def train_step(self, *arguments):
        self.read_before.append(len(self.operations.reads))
        result = super().train_step(*arguments)
        self.read_after.append(len(self.operations.reads))
        return result


def test_between_reports_a_run_reads_nothing(tmp_path):
    """15 steps with a report after every fifth. In between the speedometer waits for the device, twice in a run."""
    config = tiny_config(tmp_path / "run", duration=15 * 8, status_every=40, snapshot_every=80, checkpoint_every=120)
    trainer = Watched(config, dataset=tiny_data())
    trainer.read_before, trainer.read_after = [], []
    with Operations() as trainer.operations:
        trainer.run()
    starts = [*trainer.read_before[1:], len(trainer.operations.reads)]
    between = [start - end for start, end in zip(starts, trainer.read_after, strict=True)]
    due = {4, 9, 14}
    assert sum(count for step, count in enumerate(between) if step not in due) <= 2
    assert all(between[step] for step in due)  # reports do read: else nothing would have been counted


# ----------------------------------------------------------------------------------------------------------------------
# How many operations


def per_block(found: list[tuple[int, int]]) -> float:
    """Launches that each further block costs, of (blocks, launches) at three depths: as many at any depth."""
    (b1, c1), (b2, c2), (b3, c3) = found
    assert (c3 - c2) * (b2 - b1) == (c2 - c1) * (b3 - b2)
    return (c3 - c1) / (b3 - b1)


def test_passes_take_a_bounded_number_of_operations_per_block(monkeypatch):
    """Half of the blocks have attention. One more multiplication in each would be one forward and two backward.

    That of an encoder block is at least: 2 convolutions and 1 linear layer, whose 3 weights are normalized, scaled and
    cast, 2 activations, a pixel norm, a modulation and a sum. A folded network takes half of what a pass in training
    takes: no weight is normalized or cast again.
    """
    forward, backward, folded = [], [], []
    for depth in (1, 2, 3):
        config = run(network(depth), precision="bf16")
        step = step_on_meta(monkeypatch, config)
        [(images, labels, _)] = microbatches(config)
        sigma, losses = torch.ones(BATCH, device="meta"), []

        def passes(step=step, images=images, labels=labels, sigma=sigma, losses=losses) -> None:
            losses.append(step.loss(step.denoiser, images, labels, sigma=sigma, noise=images).sum())

        blocks = num_blocks(step.net)
        forward.append((blocks, operations_of(passes).total))
        backward.append((blocks, operations_of(losses.pop().backward).total))
        with torch.no_grad():
            evaluate = partial(fold(step.net, torch.bfloat16), images, sigma)
            folded.append((blocks, operations_of(evaluate).total))
    assert per_block(forward) <= 48
    assert per_block(backward) <= 90
    assert per_block(folded) <= 24


def test_less_is_asked_than_by_the_plain_form():
    """By the same network in the form in which papers print it: fewer operations, and much less memory to write."""
    config = network()
    with torch.device("meta"):
        ours, theirs = build_network(config), ReferencePrecond(config)
        ours.compute_dtype = theirs.compute_dtype = torch.bfloat16
        x, sigma, labels = torch.ones(BATCH, 4, 16, 16), torch.ones(BATCH), torch.ones(BATCH, 10)

    def our_passes() -> None:
        force_weight_normalization_(ours)
        EDM2Loss()(ours, x, labels, sigma=sigma, noise=x).sum().backward()

    our_step = operations_of(our_passes)
    their_step = operations_of(lambda: reference_loss(theirs, x, labels, sigma, x).sum().backward())
    assert our_step.total < 0.8 * their_step.total
    assert our_step.allocated < 0.55 * their_step.allocated
    folded = fold(ours, torch.bfloat16)
    with torch.no_grad():
        our_evaluation = operations_of(lambda: folded(x, sigma, labels))
        their_evaluation = operations_of(lambda: theirs.eval()(x, sigma, labels))
    assert our_evaluation.total < 0.5 * their_evaluation.total
    assert our_evaluation.allocated < 0.45 * their_evaluation.allocated


@pytest.mark.parametrize("depth", [1, 3])
def test_what_surrounds_the_passes_takes_few_operations_however_deep_the_network(depth):
    """Forced normalization: one for the norm of each layer, and for all layers together its scale, the epsilon and the
    division. Averages: one for each, of all tensors at once. The optimizer: two for each group of parameters, as steps
    are counted and all tensors are updated at once."""
    config = run(network(depth), device="cpu")
    step = TrainStep(config, fresh_network(config.network, 0))
    layers = sum(isinstance(module, MPConv) for module in step.net.modules())
    assert operations_of(lambda: force_weight_normalization_(step.net)).total <= layers + 4
    tracker = PowerFunctionEMA(step.net, (0.05, 0.10, 0.15), watch=False)
    assert operations_of(lambda: tracker.update(8)).total == 3
    step(microbatches(config))
    assert operations_of(step.optimizer.step).total <= 2 * len(step.optimizer.param_groups)


def test_gradients_are_cleaned_in_one_pass_over_each():
    """And their norm is taken over all at once: a constant number of operations beside."""

    def norm(gradients):
        return torch.nn.utils.get_total_norm(gradients)

    def cleaning(count: int, value: float) -> int:
        gradients = [torch.full((3,), value) for _ in range(count)]
        return operations_of(lambda: clean_(gradients, norm)).total

    assert cleaning(100, 1.0) == cleaning(10, 1.0)
    assert cleaning(100, float("nan")) - cleaning(10, float("nan")) <= 90


# ----------------------------------------------------------------------------------------------------------------------
# Memory


@pytest.mark.parametrize(
    "changes", [{}, {"micro_batch": 4}, {"precision": "bf16"}], ids=["plain", "accumulating", "bf16"]
)
def test_every_step_does_the_same_in_as_much_memory(tmp_path, changes):
    """From the second on: Adam's moments and the averages are there, and nothing grows."""
    config = replace(tiny_config(tmp_path / "run"), random_block=8, **changes)
    step = TrainStep(config, fresh_network(config.network, 0))
    batches = BatchStream(config, tiny_data(), step.random).steps(start=0)
    step(next(batches))
    steps = [operations_of(lambda: step(next(batches))) for _ in range(3)]
    assert steps[0].names == steps[1].names == steps[2].names
    assert steps[0].allocated == steps[1].allocated == steps[2].allocated


# ----------------------------------------------------------------------------------------------------------------------
# Several processes


def count_collectives_of_a_step(out: str, changes: dict, found: Path) -> None:
    """Of the third step, in the first process."""
    with joined_processes() as processes:
        config = tiny_config(out, **changes)
        step = TrainStep(config, fresh_network(config.network, 0), processes=processes)
        batches = BatchStream(config, tiny_data(), step.random, processes=processes).steps(start=0)
        for _ in range(2):
            step(next(batches))
        operations = operations_of(lambda: step(next(batches)))
        if processes.is_first:
            report = {"collectives": operations.collectives, "blocks": len(list(blocks(step.net)))}
            found.write_text(json.dumps(report))


def collectives(tmp_path: Path, **changes) -> tuple[dict[str, int], int]:
    """How often each was called in a step of two processes, and how many blocks the network has."""
    found = tmp_path / "found.json"
    job = Job(2, tmp_path / "said", count_collectives_of_a_step, str(tmp_path / "run"), changes, found)
    assert job.wait() == [0, 0], job.words(0)
    report = json.loads(found.read_text())
    return report["collectives"], report["blocks"]


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 2}], ids=["one-round", "accumulating"])
def test_copies_of_the_network_exchange_gradients_once_per_step(tmp_path, changes):
    """In one piece, since all of them fit into one of DDP's buckets; however many rounds a step has."""
    counts, _ = collectives(tmp_path, **changes)
    assert counts == {"allreduce_": 1}


@pytest.mark.parametrize("rounds", [1, 2])
def test_shares_of_the_network_travel_once_per_pass(tmp_path, rounds):
    """Weights of each block for the forward and for the backward pass of every round, but the last ones once; its
    gradients once per step, in the last round.

    Gradients of gains travel together, and norms are sums over the processes, before and after cleaning.
    """
    counts, num_blocks = collectives(tmp_path, shard=True, micro_batch=4 // rounds)
    units = num_blocks + 1  # what is in no block is one more
    assert counts.pop("_allgather_base_") <= 2 * units * rounds
    assert counts.pop("_reduce_scatter_base_") == units
    assert counts.pop("allreduce_") <= 3
    assert counts == {}
