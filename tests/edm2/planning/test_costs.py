"""Costs of a run are known before it starts: FLOPs as published, memory as tensors take it.

That processes really take so much, `tests/training/distributed/test_forecast_of_processes.py` shows.
"""

from dataclasses import replace

import pytest
import torch
from golden_data import table

from edm2.networks import NetworkConfig
from edm2.planning.costs import (
    LiveTensors,
    count_flops,
    count_parameters,
    estimate_memory,
    evaluations_per_image,
    largest_micro_batch,
)
from edm2.training import TrainingConfig
from edm2.training.settings import DistillationConfig


def network_of(values: dict) -> NetworkConfig:
    return NetworkConfig(
        values["img_resolution"], values["img_channels"], values["label_dim"], model_channels=values["channels"]
    )


def run_of(network: NetworkConfig, **settings) -> TrainingConfig:
    return TrainingConfig(data="none", out="none", network=network, **settings)


def test_flops_are_the_published_ones(golden):
    """Convolutions, linear layers and attention to the last one. What differs: resampling, which is pooling and
    repetition here, a convolution of 2x2 taps per channel there (its cost is that of the finer side). Elementwise
    operations, which are left out of our count, are less than 2 % of everything."""
    for name, values in table(golden, "tables/presets.json")["presets"].items():
        operations = values["flops"]["cond"]["by_op"]
        w = values["channels"]
        side = values["img_resolution"]
        down = sum(4 * w * k * (side >> k) ** 2 for k in (1, 2, 3))
        up = sum(4 * w * (k + 1) * (side >> (k - 1)) ** 2 for k in (1, 2, 3))
        published = operations["aten::_convolution"]["flops"] + operations["aten::matmul"]["flops"]
        assert count_flops(network_of(values)) == published - down - up, name
        assert count_flops(network_of(values)) == pytest.approx(values["flops"]["cond"]["total"], rel=0.02), name


def test_living_tensors_are_counted_once_and_until_they_die():
    before = torch.zeros(1000, device="meta")
    with LiveTensors() as live:
        a = torch.zeros(1000, device="meta")
        view = a[:10]
        b = a + 1
        assert live.now == 8000
        del a
        assert live.now == 8000, "its view keeps the memory"
        del view
        assert live.now == 4000
        b.mul_(2)
        before[:10].add_(1)
    assert (live.now, live.peak) == (4000, 8000), "what was there before is not counted"


SMALL = NetworkConfig(32, 3, 0, model_channels=32, channel_mult=(1, 2), num_blocks=2)


def test_memory_grows_with_images_precision_and_averages():
    def memory(**settings):
        return estimate_memory(run_of(SMALL, batch_size=32, **settings))

    weights = 4 * count_parameters(SMALL)
    assert memory().persistent == 5 * weights  # weights, two moments, two averages
    assert memory(sigma_rels=(0.1,)).persistent == 4 * weights
    sizes = [memory(micro_batch=n).step for n in (4, 8, 16)]
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=1e-3)
    assert 0.5 < memory(precision="bf16").step / memory().step < 0.75, "the loss and the ends stay float32"
    one_round, rounds = memory(micro_batch=32).step, estimate_memory(run_of(SMALL, batch_size=64, micro_batch=32)).step
    assert rounds == pytest.approx(one_round + weights, rel=1e-3), "gradients of earlier rounds are there all the time"


@pytest.mark.parametrize("memory", [0.55e9, 0.7e9, 1e9, 10e9])
def test_the_proposed_micro_batch_fits(memory):
    config = run_of(SMALL, batch_size=64)
    images = largest_micro_batch(config, memory)
    assert 64 % images == 0
    assert estimate_memory(replace(config, micro_batch=images)).total <= memory
    assert images == 64 or estimate_memory(replace(config, micro_batch=2 * images)).total > memory
    assert largest_micro_batch(config, 1e6) is None, "too little for one image"


@pytest.mark.parametrize(
    ("distillation", "evaluations"),
    [(None, 3), ({}, 5), ({"guidance": 1.4}, 6), ({"guidance": 1.4, "derivative": "jvp"}, 8)],
)
def test_a_distillation_also_evaluates_teacher_guide_and_derivative(distillation, evaluations):
    distilled = distillation if distillation is None else DistillationConfig(contents="digest", **distillation)
    assert evaluations_per_image(run_of(replace(SMALL, target_level="mean"), distillation=distilled)) == evaluations
