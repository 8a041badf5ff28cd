"""`--detect-anomaly` names the layer in which the first NaN or infinity appears, and the images."""

import math

import click
import pytest
import torch
from golden_data import rms_rel
from jobs import Job
from tiny_run import final_state, run, tiny_config, tiny_data

from edm2.tools.run import reported_once
from edm2.training import Trainer, TrainingError
from edm2.training.distributed.processes import Processes, joined_processes
from edm2.training.trainer import OwnTrainingError

LAYER = "unet.enc.8x8_block0.conv_res0"


class Poisoned(Trainer):
    """A trainer whose step after 16 images is poisoned by a function of the network and the step's batches."""

    def __init__(self, poison, config, **options) -> None:
        super().__init__(config, dataset=tiny_data(), **options)
        self.poison = poison

    def train_step(self, microbatches, *arguments):
        if self.images_seen == 16:
            microbatches = self.poison(self.net, microbatches) or microbatches
        return super().train_step(microbatches, *arguments)


def poison_weight(net, microbatches):
    net.get_submodule(LAYER).weight.data[1, 2, 0, 0] = math.nan


def poison_gradient(net, microbatches):
    """NaN in the gradient of a layer's weight."""
    weight = net.get_submodule(LAYER).weight
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), math.nan))


class Spoil(torch.autograd.Function):
    """Identity, but backward one image's gradient overflows."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.clone()
        gradient[2] = math.inf
        return gradient


def poison_backward(net, microbatches):
    """Infinity in the gradient that a layer returns to the layer before."""
    layer = net.get_submodule(LAYER)
    forward = layer.forward
    layer.forward = lambda x, *rest, **options: forward(Spoil.apply(x), *rest, **options)


def poison_images(net, microbatches):
    """NaN and infinity in the second and the fourth image of the step."""
    [batch] = microbatches
    images = batch.images.clone()
    images[1, 0, 3, 3], images[3, 0, 0, 0] = math.nan, math.inf
    return [batch._replace(images=images)]


def poison_fourth_image(net, microbatches):
    """The second of the step's four forward passes has it."""
    images = microbatches[1].images.clone()
    images[1] = math.nan
    return [microbatches[0], microbatches[1]._replace(images=images), *microbatches[2:]]


def poison_embedding(net, microbatches):
    """The embedding is finite; the block multiplies activations by it, and some are larger than 1.2."""
    embedding = net.get_submodule("unet.enc.8x8_block0.emb_linear")
    embedding.register_forward_hook(lambda *all: torch.full_like(all[-1], 3e38))


def message_of(trainer: Trainer) -> str:
    with pytest.raises(TrainingError) as error:
        trainer.run()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("poison", "where", "positions"),
    [
        (poison_weight, f"forward, in {LAYER} (its weight is not finite)", "positions 16, 17, 18, 19, 20, 21, 22, 23"),
        (poison_gradient, f"gradient of {LAYER}.weight", "which images is unknown"),
        (poison_backward, f"gradient, in {LAYER}", "positions 18 of"),
        (poison_images, "the noisy images", "positions 17, 19 of"),
        (poison_embedding, f"forward, between the layer before and {LAYER[:-1]}1", "positions"),
    ],
)
def test_the_layer_and_the_images_are_named(tmp_path, poison, where, positions, recompute):
    config = tiny_config(tmp_path, detect_anomaly=True, checkpoint_every=8, recompute=recompute)
    said = message_of(Poisoned(poison, config))
    assert f"in the step after 16 images: {where}; {positions}" in said
    assert said.endswith("000000000016")


def test_it_is_found_in_any_part_of_the_step(tmp_path):
    trainer = Poisoned(poison_fourth_image, tiny_config(tmp_path, detect_anomaly=True, micro_batch=2, holdout=5))
    said = message_of(trainer)
    [index] = trainer.stream.indices([19])
    assert f"positions 19 of the run (images {index} of tiny)" in said
    assert trainer.stream.train_set.indices[trainer.stream.train_set.indices == index].size == 1  # not one held out


@pytest.mark.parametrize("recompute", [False, True])
def test_checks_change_nothing_but_rounding(tmp_path, recompute):
    """Gradients are added up in another order, within 1e-5 after five steps. No hook is left on the network."""
    changes = {"duration": 40, "recompute": recompute, "dropout": 0.2}
    checked = run(tiny_config(tmp_path / "checked", detect_anomaly=True, **changes))
    plain = final_state(run(tiny_config(tmp_path / "plain", **changes)))
    for name, tensor in checked.net.named_parameters():
        assert tensor.ndim == 0 or rms_rel(tensor.detach(), plain[name]) < 1e-5, name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in checked.net.modules())


def poisoned_together(out: str, shard: bool) -> None:
    """Train as one of two processes, of which the second has a bad image."""
    with joined_processes() as processes:
        config = tiny_config(out, detect_anomaly=True, shard=shard)
        poison = poison_images if processes.rank == 1 else lambda net, microbatches: None
        try:
            Poisoned(poison, config, processes=processes).run()
        except RuntimeError as error:
            print(type(error).__name__, error)
            raise SystemExit(1) from None


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_the_process_that_has_the_image_reports_it(tmp_path, shard):
    job = Job(2, tmp_path / "said", poisoned_together, str(tmp_path / "run"), shard)
    assert job.wait(100) == [1, 1]
    assert "OwnTrainingError" in job.words(1)
    assert "the noisy images; positions 21, 23 of the run" in job.words(1)  # its images begin at position 20


def test_an_error_of_one_process_alone_is_reported_by_it():
    """An error of all processes is reported by the first."""
    second = Processes(rank=1, count=2)
    with pytest.raises(OwnTrainingError), reported_once(second):
        raise OwnTrainingError("at place 21")
    with pytest.raises(click.exceptions.Exit), reported_once(second):
        raise TrainingError("in all processes")


def test_a_compiled_network_has_no_layers(tmp_path):
    with pytest.raises(ValueError, match="leave out --compile"):
        tiny_config(tmp_path, detect_anomaly=True, compile=True)
