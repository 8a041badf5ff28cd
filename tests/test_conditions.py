"""Conditions travel by name from the dataset to the network, in training and in sampling."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from command_line import complaint, edm2 as edm2_command, succeed
from tiny_run import assert_same_bits, final_state, tiny_config
from torch import Tensor, nn

import edm2
from edm2.networks import NetworkConfig, Precond, build_network
from edm2.sampling.guidance import guided, without_conditions, without_labels
from edm2.sampling.samplers import SAMPLERS
from edm2.training import ArrayDataset, EDM2Loss, Trainer, TrainingConfig
from edm2.training.data.batches import Batch
from edm2.training.diagnostics.batches import by_bin, over_all_levels
from edm2.training.diagnostics.holdout import measure_loss
from edm2.training.diagnostics.magnitudes import measure_activations
from edm2.training.diagnostics.noise_levels import measure_noise_levels
from edm2.training.loss.noise import LnNormal
from edm2.training.loss.weighting import EDM


class Shifted(nn.Module):
    """A denoiser that is told the brightness of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, 0.1]))

    def forward(self, x: Tensor, sigma: Tensor, labels=None, conditions=None) -> Tensor:
        bright = conditions["brightness"].to(x.dtype).reshape(-1, 1, 1, 1)
        return self.weight[0] * x + self.weight[1] * bright


def brightness_data() -> ArrayDataset:
    """Images with their mean, in [-1, 1], beside them."""
    images = torch.randint(256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    brightness = images.double().mean(dim=(1, 2, 3)) / 127.5 - 1
    return ArrayDataset(images, torch.arange(40) % 3, conditions={"brightness": brightness})


class Recorder(EDM2Loss):
    """The loss, with a look at whether images and conditions belong together."""

    def __call__(self, net, images, labels=None, *, conditions=None, **options) -> Tensor:
        mean = images.double().mean(dim=(1, 2, 3))
        correlation = torch.corrcoef(torch.stack([mean, conditions["brightness"]]))[0, 1]
        assert correlation > 1 - 1e-6
        return super().__call__(net, images, labels, conditions=conditions, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_hands_each_image_its_conditions_and_resumes_to_the_bit(tmp_path, workers):
    def trainer(name: str) -> Trainer:
        settings = {"weighting": "edm", "workers": workers, "micro_batch": 4, "holdout": 8}
        config = dataclasses.replace(tiny_config(tmp_path / name, **settings), network=None)
        return Trainer(config, net=Shifted(), loss=Recorder(weighting=EDM()), dataset=brightness_data())

    whole, stopped = trainer("whole"), trainer("stopped")
    whole.run()
    stopped.stop_requested = 1
    stopped.run()
    resumed = trainer("stopped")
    resumed.run()
    assert_same_bits(final_state(resumed), final_state(whole))


def condition_denoiser(x: Tensor, sigma: Tensor, labels=None, conditions=None) -> Tensor:
    shift = 0 if not conditions else sum(values.reshape(-1, 1, 1, 1) for values in conditions.values())
    return 0.1 * x + shift + (0 if labels is None else 10 * (labels >= 0).reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_pass_conditions_to_the_denoiser(name):
    noise, conditions = torch.randn(3, 1, 2, 2), {"a": torch.tensor([0.0, 1.0, 2.0])}
    drawn = SAMPLERS[name].sample(condition_denoiser, noise, conditions=conditions, num_steps=3)
    for i, value in enumerate(conditions["a"]):
        alone = SAMPLERS[name].sample(condition_denoiser, noise[i : i + 1], conditions={"a": value[None]}, num_steps=3)
        torch.testing.assert_close(drawn[i : i + 1], alone)


@torch.no_grad()
def test_guidance_drops_conditions_by_name():
    x, sigma, labels = torch.randn(2, 1, 2, 2), torch.tensor(1.0), torch.tensor([0, 1])
    conditions = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([30.0, 40.0])}
    full = condition_denoiser(x, sigma, labels, conditions)
    without_a = condition_denoiser(x, sigma, labels, {"b": conditions["b"]})
    without_class = condition_denoiser(x, sigma, None, conditions)
    for guide, expected in (
        (without_conditions(condition_denoiser, ["a"]), without_a),
        (without_labels(condition_denoiser), without_class),  # one batch of twice the size
    ):
        actual = guided(condition_denoiser, guide, 1.7)(x, sigma, labels, conditions)
        torch.testing.assert_close(actual, expected.lerp(full, 1.7))
    with pytest.raises(ValueError, match="conditions c cannot be dropped"):
        without_conditions(condition_denoiser, ["c"])(x, sigma, labels, conditions)


def test_measurements_of_a_run_hand_conditions_on():
    net = small_conditioned()
    images, labels, shift = torch.randn(6, 1, 8, 8), None, torch.linspace(-1, 1, 6)
    lacking, with_shift = Batch(images, labels), Batch(images, labels, {"shift": shift})
    shown = measure_noise_levels(net, EDM2Loss(), by_bin(with_shift, LnNormal(), 2), 4)["noise_levels"]["loss"]
    assert shown != measure_noise_levels(net, EDM2Loss(), by_bin(lacking, LnNormal(), 2), 4)["noise_levels"]["loss"]
    calls = []
    net.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs["conditions"]["shift"]), with_kwargs=True)
    measure_activations(net, over_all_levels(with_shift, LnNormal()).split(4))
    measure_loss(net, with_shift, LnNormal(), 4)
    assert torch.equal(torch.cat(calls), shift.repeat(len(calls) // 2))


class Conditioned(Precond):
    """A network whose images become brighter by what is asked for."""

    def forward(self, x, sigma, class_labels=None, return_logvar=False, *, conditions=None):
        given = dict(conditions or {})
        shift = given.pop("shift", torch.zeros(len(x))).reshape(-1, 1, 1, 1)
        D_x = super().forward(x, sigma, class_labels, return_logvar, conditions=given)
        return (D_x[0] + shift, D_x[1]) if return_logvar else D_x + shift


def small_conditioned() -> Precond:
    net = build_network(NetworkConfig(8, 1, 0, model_channels=8, channel_mult=(1,), attn_resolutions=()))
    net.__class__ = Conditioned
    return net


def test_generated_images_get_the_rows_of_their_seeds():
    net = small_conditioned()
    shift = torch.linspace(-1, 1, 5)
    options = {"num_steps": 3, "batch_size": 2}
    together = torch.cat([b.samples for b in edm2.generate(net, range(5), conditions={"shift": shift}, **options)])
    for seed in range(5):
        (alone,) = edm2.generate(net, [seed], conditions={"shift": shift[seed : seed + 1]}, **options)
        torch.testing.assert_close(together[seed : seed + 1], alone.samples, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="condition shift: 5 rows for 4 seeds"):
        edm2.generate(net, range(4), conditions={"shift": shift})
    with pytest.raises(ValueError, match="unknown conditions caption"):
        net(torch.zeros(1, 1, 8, 8), 1.0, conditions={"caption": torch.zeros(1)})


# ------------------------------------------------------------------------------------------------ a kind of our own

MODULE = """
import dataclasses
import importlib
import torch
from edm2.networks import NetworkConfig, Precond, build_network
from edm2.training import ArrayDataset

class BrightData(ArrayDataset):  # 1: the dataset
    def __init__(self):
        images = torch.randint(256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        images = (images // 4 + torch.arange(64).reshape(-1, 1, 1, 1) * 3).to(torch.uint8)
        super().__init__(images, conditions={"brightness": images.double().mean(dim=(1, 2, 3)).float() / 127.5 - 1})

@dataclasses.dataclass(frozen=True)
class BrightConfig(NetworkConfig):  # 2: the network's config
    brightness_scale: float = 1.0

class BrightPrecond(Precond):  # 3: the preconditioner
    def forward(self, x, sigma, class_labels=None, return_logvar=False, *, conditions=None):
        others = dict(conditions or {})
        brightness = others.pop("brightness").reshape(-1, 1, 1, 1) * self.config.brightness_scale
        return super().forward(x - brightness, sigma, class_labels, return_logvar, conditions=others) + brightness

def make():
    config = BrightConfig(8, 1, 0, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=())
    net = build_network(config)
    net.__class__ = BrightPrecond
    return net
"""


def test_a_new_kind_of_condition_needs_a_dataset_a_config_and_a_preconditioner(tmp_path, monkeypatch):
    """And nothing else of the project changes: it is trained and, from the command line, asked for."""
    (tmp_path / "bright.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    bright = importlib.import_module("bright")
    settings = {"weighting": "edm", "ref_lr": 1e-3, "duration": 96, "snapshot_every": 48, "workers": 0, "batch_size": 8}
    config = TrainingConfig(data="bright", out="run", network=None, **settings)
    Trainer(config, net=bright.make(), dataset=bright.BrightData()).run()
    asked = ("generate", "run", "--net-from", "bright:make", "--seeds", "0-3", "--steps", 4, "--device", "cpu")
    np.save("rows.npy", np.linspace(-0.5, 0.5, 4, dtype=np.float32))
    means = {}
    for value in (-0.5, 0.5, "rows.npy"):
        succeed(*asked, "--condition", f"brightness={value}", "--npz", f"{value}.npz")
        means[value] = np.load(f"{value}.npz")["arr_0"].reshape(4, -1).mean(axis=1)
    assert (means[0.5] - means[-0.5] > 30).all()
    assert means["rows.npy"][0] == means[-0.5][0]
    assert means["rows.npy"][3] == means[0.5][3]
    for wrong, named in (
        ("brightness", "write NAME=NUMBER"),
        ("brightness=dark", "neither a number nor an NPY file"),
        ("caption=1", "unknown conditions caption"),
    ):
        refused = edm2_command(*asked, "--condition", "brightness=0", "--condition", wrong, "--npz", "x.npz")
        assert named in complaint(refused.err)
