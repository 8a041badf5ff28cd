"""`--detect-anomaly` names the layer in which the first NaN or infinity appears, and the images."""

import math

import click
import pytest
import torch
from golden_data import rms_rel
from jobs import Job
from tiny_run import final_state, run, tiny_config, tiny_data

from edm2.tools.run import told_once
from edm2.training import Trainer, TrainingError
from edm2.training.distributed.processes import Processes, joined_processes
from edm2.training.trainer import OwnTrainingError

LAYER = "unet.enc.8x8_block0.conv_res0"


class Poisoned(Trainer):
    """After 16 images something goes wrong."""

    def step(self, microbatches, *arguments):
        return super().step(self.poison(microbatches) if self.images_seen == 16 else microbatches, *arguments)

    def poison(self, microbatches):
        return microbatches


class PoisonedWeight(Poisoned):
    value = math.nan

    def poison(self, microbatches):
        self.net.get_submodule(LAYER).weight.data[1, 2, 0, 0] = self.value
        return microbatches


class PoisonedGradient(Poisoned):
    """Of a layer's weight."""

    def poison(self, microbatches):
        weight = self.net.get_submodule(LAYER).weight
        weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), math.nan))
        return microbatches


class Spoil(torch.autograd.Function):
    """Nothing forward; backward, one image's gradient overflows."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.clone()
        gradient[2] = math.inf
        return gradient


class PoisonedBackward(Poisoned):
    """Of what a layer hands back to the layer before."""

    def poison(self, microbatches):
        layer = self.net.get_submodule(LAYER)
        forward = layer.forward
        layer.forward = lambda x, *rest, **options: forward(Spoil.apply(x), *rest, **options)
        return microbatches


class PoisonedImages(Poisoned):
    """The second and the fourth of the step."""

    def poison(self, microbatches):
        [(images, labels)] = microbatches
        images = images.clone()
        images[1, 0, 3, 3], images[3, 0, 0, 0] = math.nan, math.inf
        return [(images, labels)]


def said_by(trainer: Trainer) -> str:
    with pytest.raises(TrainingError) as told:
        trainer.run()
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("kind", "where", "places"),
    [
        (PoisonedWeight, f"forward, in {LAYER} (its weight is not finite)", "places 16, 17, 18, 19, 20, 21, 22, 23 of"),
        (PoisonedGradient, f"gradient of {LAYER}.weight", "which images, it does not tell"),
        (PoisonedBackward, f"gradient, in {LAYER}", "places 18 of"),
        (PoisonedImages, "the noisy images", "places 17, 19 of"),
    ],
)
def test_the_layer_and_the_images_are_named(tmp_path, kind, where, places, recompute):
    config = tiny_config(tmp_path, detect_anomaly=True, checkpoint_every=8, recompute=recompute)
    said = said_by(kind(config, tiny_data()))
    assert f"in the step after 16 images: {where}; {places}" in said
    assert said.endswith("000000000016")


def test_it_is_found_in_whatever_part_of_the_step(tmp_path):
    """Of the step's four forward passes the second has the fourth image, of which nothing else is looked at then."""

    class InParts(Poisoned):
        def poison(self, microbatches):
            images = microbatches[1][0].clone()
            images[1] = math.nan
            return [microbatches[0], (images, microbatches[1][1]), *microbatches[2:]]

    trainer = InParts(tiny_config(tmp_path, detect_anomaly=True, micro_batch=2, holdout=5), tiny_data())
    said = said_by(trainer)
    [index] = trainer.feed.indices([19])
    assert f"places 19 of the run (images {index} of tiny)" in said
    assert trainer.feed.train_set.indices[trainer.feed.train_set.indices == index].size == 1  # not one held out


def test_an_overflow_between_layers_is_told_by_its_neighbours(tmp_path):
    """The embedding is finite still; the block multiplies activations by it, and some are larger than 1.2."""

    class Between(Poisoned):
        def poison(self, microbatches):
            embedding = self.net.get_submodule("unet.enc.8x8_block0.emb_linear")
            embedding.register_forward_hook(lambda *all: torch.full_like(all[-1], 3e38))
            return microbatches

    said = said_by(Between(tiny_config(tmp_path, detect_anomaly=True), tiny_data()))
    assert "forward, between the layer before and unet.enc.8x8_block0.conv_res1; places" in said


@pytest.mark.parametrize("recompute", [False, True])
def test_looking_changes_nothing_but_rounding(tmp_path, recompute):
    """Gradients are added up in another order, within 1e-5 after five steps. Nothing stays behind on the network."""
    changes = {"duration": 40, "recompute": recompute, "dropout": 0.2}
    looking = run(tiny_config(tmp_path / "looking", detect_anomaly=True, **changes))
    plain = final_state(run(tiny_config(tmp_path / "plain", **changes)))
    for name, tensor in looking.net.named_parameters():
        assert tensor.ndim == 0 or rms_rel(tensor.detach(), plain[name]) < 1e-5, name
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in looking.net.modules())


def poisoned_together(out: str, shard: bool) -> None:
    """The second process of two meets a bad image."""

    class Second(PoisonedImages):
        def poison(self, microbatches):
            return super().poison(microbatches) if self.processes.rank == 1 else microbatches

    with joined_processes() as processes:
        config = tiny_config(out, detect_anomaly=True, shard=shard)
        try:
            Second(config, tiny_data(), processes=processes).run()
        except RuntimeError as error:
            print(type(error).__name__, error)
            raise SystemExit(1) from None


@pytest.mark.parametrize("shard", [False, True])
def test_of_several_processes_the_one_that_has_the_image_tells(tmp_path, shard):
    job = Job(2, tmp_path / "said", poisoned_together, str(tmp_path / "run"), shard)
    assert job.wait(100) == [1, 1]
    assert "OwnTrainingError" in job.words(1)
    assert "the noisy images; places 21, 23 of the run" in job.words(1)  # of its share, which begins at place 20


def test_what_one_process_alone_knows_it_tells_itself():
    """What all of them know, the first one tells."""
    second = Processes(rank=1, count=2)
    with pytest.raises(OwnTrainingError), told_once(second):
        raise OwnTrainingError("at place 21")
    with pytest.raises(click.exceptions.Exit), told_once(second):
        raise TrainingError("in all processes")


def test_a_compiled_network_has_no_layers(tmp_path):
    with pytest.raises(ValueError, match="leave out --compile"):
        tiny_config(tmp_path, detect_anomaly=True, compile=True)
