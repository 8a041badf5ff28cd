"""A pipeline of diffusers draws what `edm2 generate` draws, by our solver and theirs, and survives being saved."""

import dataclasses
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor

import edm2
from edm2.io.guided import GuidedFile
from edm2.io.model import network_from_state
from edm2.networks import NetworkConfig, Precond, fold
from edm2.pipeline import (
    EDM2Denoiser,
    EDM2HeunScheduler,
    EDM2Pipeline,
    is_pipeline_folder,
    pipeline,
    read_pipeline_metadata,
    read_pipeline_tensors,
    storing,
)
from edm2.post_hoc_ema import SnapshotError
from edm2.sampling.generation import SeedRandom
from edm2.sampling.guidance import without_labels
from edm2.training import LatentCodec, PixelCodec, codec_from_json

SEEDS = [0, 1, 7, 2**32 - 1]
STEPS = 4
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]
ABOUT = {
    "images_seen": 4096,
    "sigma_rel": 0.1,
    "preset": "tiny",
    "data": {"name": "/home/somebody/animals.zip", "class_names": NAMES},
}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FILES = {"README.md", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS}
CODEC = PixelCodec((100.0,), (60.0,))


def make_pipeline(net: Precond, guide: Precond | None = None, **options: Any) -> EDM2Pipeline:
    """Around a network, quiet."""
    wrapped = None if guide is None else EDM2Denoiser.from_network(guide)
    options = {"codec": CODEC.to_json(), "metadata": ABOUT, "guide": wrapped, **options}
    return quiet(EDM2Pipeline(EDM2Denoiser.from_network(net), EDM2HeunScheduler(), **options))


def quiet(pipe: EDM2Pipeline) -> EDM2Pipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(
    pipe: EDM2Pipeline, seeds: list[int] | None = SEEDS, num_inference_steps: int = STEPS, **options: Any
) -> Tensor:
    """Samples of a pipeline, undecoded."""
    options = {"output_type": "latent", **options}
    return pipe(seeds=seeds, num_inference_steps=num_inference_steps, **options).images


def generated(net: Precond, seeds: list[int] = SEEDS, *arguments: Any, **options: Any) -> Tensor:
    """Samples of `edm2.generate`."""
    [batch] = edm2.generate(net, seeds, *arguments, **{"num_steps": STEPS, **options})
    return batch.samples


@pytest.fixture
def pipe(net) -> EDM2Pipeline:
    return make_pipeline(net)


@pytest.fixture
def folder(pipe, tmp_path) -> Path:
    pipe.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """Latents of 4x8x8 to pixels of 3x32x32, random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            block_out_channels=[16, 16, 32],
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
        )
    return vae.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------------ as edm2 generate


@pytest.mark.parametrize("num_steps", [1, 2, 3, 32])
@pytest.mark.parametrize("levels", [{}, {"sigma_min": 0.01, "sigma_max": 20, "rho": 5}], ids=str)
def test_heun_draws_what_generate_draws(pipe, net, num_steps, levels):
    """Noise, classes and every sum of the solver, to the bit."""
    pipe.scheduler = EDM2HeunScheduler(**levels)
    assert torch.equal(draw(pipe, num_inference_steps=num_steps), generated(net, num_steps=num_steps, **levels))


@pytest.mark.parametrize(
    ("label", "index"),
    [
        (3, 3),
        ("dog", 3),
        ("3", 3),
        ([1, "cat", 9, 0], [1, 2, 9, 0]),
        (np.arange(4), range(4)),
        (torch.arange(4), range(4)),
    ],
    ids=["number", "name", "text", "list", "array", "tensor"],
)
def test_classes(pipe, net, label, index):
    assert torch.equal(draw(pipe, class_labels=label), generated(net, SEEDS, index))


def test_without_a_class_and_images_that_are_not_square(pipe, net, make_net, unconditional):
    noise = SeedRandom(SEEDS).randn((3, 8, 8))
    assert torch.equal(draw(pipe, class_labels=-1), edm2.sample_heun(net, noise, None, num_steps=STEPS))
    for other in (unconditional, make_net(img_resolution=(4, 8), img_channels=1)):
        assert torch.equal(draw(make_pipeline(other)), generated(other))


@pytest.mark.parametrize("interval", [None, (0.5, 20.0), (500.0, 1000.0)], ids=str)
@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_guidance_by_the_network_itself_without_labels_or_by_another(net, make_net, unconditional, weight, interval):
    for given, guide in ((None, without_labels(net)), *((other, other) for other in (make_net(seed=3), unconditional))):
        samples = draw(make_pipeline(net, given), guidance_scale=weight, guidance_interval=interval)
        expected = generated(net, SEEDS, None, guide, weight, interval or (0, float("inf")))
        assert torch.equal(samples, expected)
    guided = weight != 1 and interval != (500.0, 1000.0)
    assert torch.equal(samples, generated(net)) != guided


def test_a_folded_network_draws_as_the_command_does(pipe, net):
    """`edm2 generate` folds its networks."""
    pipe.unet = fold(pipe.unet)
    assert torch.equal(draw(pipe), generated(fold(net)))


def test_the_snapshot_of_the_package():
    pipe = quiet(EDM2Pipeline.from_snapshot("digits8"))
    codec = pipe.codec
    pixels = codec.to_display(codec.decode(generated(edm2.load("digits8"))))
    images = pipe(seeds=SEEDS, num_inference_steps=STEPS).images
    assert [image.mode for image in images] == ["L"] * 4
    assert np.array_equal(np.stack(images), pixels[:, 0].numpy())


def test_snapshot_with_a_guide(net, make_net, tmp_path):
    guide = make_net(seed=3)
    for name, network in {"net": net, "guide": guide}.items():
        edm2.save(network, tmp_path / f"{name}.safetensors", ABOUT | {"codec": CODEC.to_json()})
    pipe = EDM2Pipeline.from_snapshot(tmp_path / "net.safetensors", tmp_path / "guide.safetensors")
    assert torch.equal(draw(quiet(pipe), guidance_scale=2.0), generated(net, SEEDS, None, guide, 2.0))
    pipe.save_pretrained(tmp_path / "saved")
    again = quiet(EDM2Pipeline.from_pretrained(tmp_path / "saved"))
    assert torch.equal(draw(again, guidance_scale=2.0), draw(pipe, guidance_scale=2.0))
    assert "images_seen 4096" in (tmp_path / "saved" / "README.md").read_text()


@pytest.mark.parametrize("itself", [False, True], ids=["guide", "itself"])
def test_a_guided_json_brings_guide_weight_and_interval_as_defaults(net, make_net, tmp_path, itself):
    networks = {"net": net, "guide": make_net(seed=3)}
    for name, network in networks.items():
        edm2.save(network, tmp_path / f"{name}.safetensors", ABOUT | {"codec": CODEC.to_json()})
    guide, path = None if itself else tmp_path / "guide.safetensors", tmp_path / "guided.json"
    GuidedFile(tmp_path / "net.safetensors", guide, 2.0, (0.5, 20.0)).write(path, {})
    pipe = quiet(EDM2Pipeline.from_snapshot(path))
    expected = generated(edm2.load(path), SEEDS)
    assert torch.equal(draw(pipe), expected)
    assert torch.equal(draw(pipe, guidance_scale=1.0), generated(net, SEEDS))
    pipe.save_pretrained(tmp_path / "pipe")
    assert torch.equal(draw(quiet(EDM2Pipeline.from_pretrained(tmp_path / "pipe"))), expected)
    assert "guided" not in edm2.read_metadata(tmp_path / "pipe"), "which load reads without its guide"
    with pytest.raises(ValueError, match="guided already"):
        EDM2Pipeline.from_snapshot(path, guide=tmp_path / "guide.safetensors")
    GuidedFile(tmp_path / "net.safetensors", None, 2.0, dropout=0.1).write(path, {})
    with pytest.raises(ValueError, match="no pipeline has"):
        EDM2Pipeline.from_snapshot(path)


# ------------------------------------------------------------------------------------------------ random numbers


def test_images_come_from_seeds_generators_or_noise(pipe):
    expected = draw(pipe)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    assert torch.equal(draw(pipe, None, generator=generators), expected)
    noise = SeedRandom(SEEDS).randn((3, 8, 8))
    assert torch.equal(draw(pipe, latents=noise), expected)
    assert torch.equal(draw(pipe, None, latents=noise, class_labels=4), draw(pipe, class_labels=4))
    first, second = (draw(pipe, None, generator=torch.Generator().manual_seed(3), batch_size=3) for _ in range(2))
    assert len(first) == 3
    assert torch.equal(first, second)
    assert len(draw(pipe, None)) == 1
    assert len(draw(pipe, None, class_labels=[1, 2, 3])) == 3


def test_seeds_leave_the_global_generator_alone(pipe):
    state = torch.random.get_rng_state()
    draw(pipe)
    assert torch.equal(torch.random.get_rng_state(), state)


# ------------------------------------------------------------------------------------------------ their schedulers


def euler(net: Precond, noise: Tensor, labels: Tensor, num_steps: int) -> Tensor:
    """Euler's method for dx/dt = (x - D(x; t)) / t."""
    t = edm2.sigma_steps(num_steps)
    x = noise * t[0]
    for now, after in pairwise(t):
        x = x + (after - now) * (x - net(x, now, labels)) / now
    return x


@pytest.mark.parametrize(
    "options", [{}, {"sigma_data": 1.0}, {"prediction_type": "v_prediction"}], ids=["default", "sigma_data", "v"]
)
def test_euler_of_diffusers_is_euler(pipe, net, options):
    """Equal up to the rounding of a few steps: theirs computes levels in float64 and D from F."""
    pipe.scheduler = EDMEulerScheduler.from_config(pipe.scheduler.config, **options)
    noise = SeedRandom(SEEDS).randn((3, 8, 8))
    expected = euler(net, noise, torch.tensor([3] * 4), 8)
    samples = draw(pipe, class_labels=3, num_inference_steps=8)
    assert (samples - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.slow
def test_solvers_converge_to_the_ode_s_solution_with_their_order(pipe):
    """Halving the steps divides the error by 2^order. Down to level 0.1, where few steps show it."""

    def solution(scheduler: Any, num_steps: int) -> Tensor:
        pipe.scheduler = scheduler(sigma_min=0.1, sigma_max=10.0)
        return draw(pipe, [0], num_steps, class_labels=3)

    exact = solution(EDM2HeunScheduler, 256)
    for scheduler, order in ((EDM2HeunScheduler, 2), (EDMEulerScheduler, 1), (EDMDPMSolverMultistepScheduler, 2)):
        errors = [(solution(scheduler, n) - exact).square().mean().sqrt() for n in (16, 32, 64)]
        for coarse, fine in pairwise(errors):
            assert (coarse / fine).log2() == pytest.approx(order, abs=0.35)  # the next order shows at few steps


@pytest.mark.parametrize("options", [{"final_sigmas_type": "sigma_min"}, {"sigma_schedule": "exponential"}], ids=str)
@pytest.mark.parametrize("scheduler", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_their_options(pipe, scheduler, options):
    """Many steps of any schedule end near where ours end."""
    expected = draw(pipe, [0], 64)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **options)
    error = (draw(pipe, [0], 64) - expected).square().mean().sqrt()
    assert error < 0.06  # twice Euler's error with 64 steps; samples have a standard deviation near 0.5


def test_guidance_and_random_numbers_of_their_solvers(pipe):
    """A stochastic solver draws what belongs to the seed."""
    pipe.scheduler = EDMDPMSolverMultistepScheduler()
    plain = draw(pipe)
    assert not torch.equal(draw(pipe, guidance_scale=2.0), plain)
    assert torch.equal(draw(pipe, guidance_scale=2.0, guidance_interval=(500.0, 1000.0)), plain)
    pipe.scheduler = EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    together, alone = draw(pipe), draw(pipe, SEEDS[2:3])
    torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-4)  # convolutions round by the batch
    assert not torch.equal(together, plain)


def test_our_scheduler_in_a_loop_of_somebody_else(net):
    """Our scheduler is used like any scheduler of diffusers."""
    scheduler = EDM2HeunScheduler.from_config(EDMEulerScheduler(sigma_max=20.0).config)
    noise = SeedRandom(SEEDS).randn((3, 8, 8))
    scheduler.set_timesteps(STEPS)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        denoised = net(scheduler.scale_model_input(x, t), (4 * t).exp())
        x = scheduler.step(denoised, t, x).prev_sample
    expected = edm2.sample_heun(net, noise, num_steps=STEPS, sigma_max=20.0)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)  # exp(ln(sigma)) rounds
    assert len(scheduler.timesteps) == 2 * STEPS - 1
    with pytest.raises(ValueError, match="set_timesteps"):
        EDM2HeunScheduler().step(denoised, t, x)


@pytest.mark.parametrize("scheduler", [EDM2HeunScheduler, EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_callback_after_every_step(pipe, scheduler):
    """It may change the images."""
    pipe.scheduler = scheduler()
    seen = []

    def look(pipe: EDM2Pipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(step)
        return {"latents": tensors["latents"] * (step < STEPS - 1)}

    assert not draw(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["latents"]).any()
    assert seen == list(range(STEPS))


# ------------------------------------------------------------------------------------------------ pixels


def test_output_types(pipe, net):
    pixels = CODEC.to_display(CODEC.decode(generated(net)))
    assert np.array_equal(np.stack(draw(pipe, output_type="pil")), pixels.permute(0, 2, 3, 1).numpy())
    array, tensor = draw(pipe, output_type="np"), draw(pipe, output_type="pt")
    assert array.shape == (4, 8, 8, 3)
    assert array.dtype == np.float32
    assert torch.equal((tensor * 255).round().byte(), pixels)
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    [latents] = pipe(seeds=SEEDS, num_inference_steps=STEPS, output_type="latent", return_dict=False)
    assert torch.equal(latents, generated(net))


def test_latents_are_decoded_by_the_pipeline_s_vae(make_net, vae, tmp_path, monkeypatch):
    """In parts of a few images; the same pixels as by the codec alone."""
    net = make_net(img_channels=4)
    vae.save_pretrained(tmp_path / "vae")
    codec = LatentCodec(str(tmp_path / "vae"))
    edm2.save(net, tmp_path / "net.safetensors", ABOUT | {"codec": codec.to_json()})
    pipe = quiet(EDM2Pipeline.from_snapshot(tmp_path / "net.safetensors"))
    monkeypatch.setattr(pipeline, "DECODE_BATCH", 3)
    expected = codec.decode(generated(net)).permute(0, 2, 3, 1).numpy()
    images = np.stack(draw(pipe, output_type="pil")).astype(int)
    assert images.shape == (4, 32, 32, 3)
    assert abs(images - expected).max() <= 1  # the VAE's convolutions round by the size of the batch

    pipe.save_pretrained(tmp_path / "saved")
    again = quiet(EDM2Pipeline.from_pretrained(tmp_path / "saved"))
    assert np.array_equal(np.stack(draw(again, output_type="pil")), images)
    again.vae = None  # then the one that the codec names
    assert abs(np.stack(draw(again, output_type="pil")).astype(int) - expected).max() <= 1


def test_a_vae_of_one_s_own_is_used_and_saved(make_net, vae, tmp_path):
    """The folder is complete, wherever the VAE came from."""
    codec = LatentCodec("nowhere/at/all")
    pipe = make_pipeline(make_net(img_channels=4), vae=vae, codec=codec.to_json())
    assert np.stack(draw(pipe, output_type="pil")).shape == (4, 32, 32, 3)
    pipe.save_pretrained(tmp_path / "saved")
    described = codec_from_json(edm2.read_metadata(tmp_path / "saved")["codec"])
    assert described == dataclasses.replace(codec, vae=str(tmp_path / "saved" / "vae"))
    assert described.decode(torch.zeros(1, 4, 8, 8)).shape[:2] == (1, 3)
    half = pipe.to(torch.bfloat16)
    assert half.vae.dtype == torch.bfloat16
    assert np.stack(draw(half, output_type="pil")).shape == (4, 32, 32, 3)
    vae.to(torch.float32)


def test_a_name_of_a_vae_stays_in_its_line(make_net, tmp_path):
    codec = LatentCodec("a`\n# b\x1b[2J", (0.0,) * 4, (1.0,) * 4).to_json()
    edm2.save(make_net(img_channels=4), tmp_path / "net.safetensors", {"codec": codec})
    with pytest.warns(UserWarning, match="without its VAE") as warned:
        pipe = EDM2Pipeline.from_snapshot(tmp_path / "net.safetensors")
    assert str(warned[0].message).isprintable()
    assert "\n# b" not in pipe.card("x")


def test_a_vae_that_is_not_there(make_net, tmp_path):
    """The network can be packed all the same, and its latents drawn."""
    codec = LatentCodec(str(tmp_path / "gone"))
    edm2.save(make_net(img_channels=4), tmp_path / "net.safetensors", {"codec": codec.to_json()})
    with pytest.warns(UserWarning, match="gone"):
        pipe = quiet(EDM2Pipeline.from_snapshot(tmp_path / "net.safetensors"))
    assert draw(pipe).shape == (4, 4, 8, 8)
    with pytest.raises(OSError, match="gone"):
        draw(pipe, output_type="pil")


# ------------------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("loader", [EDM2Pipeline, DiffusionPipeline])
def test_a_saved_pipeline_is_the_same_pipeline(folder, pipe, net, loader):
    """Once edm2.pipeline has been imported, diffusers itself finds the class, without remote code."""
    loaded = quiet(loader.from_pretrained(folder))
    assert type(loaded) is diffusers.EDM2Pipeline is EDM2Pipeline
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], tensor), name
    assert loaded.unet.description == net.config
    assert not loaded.unet.training
    assert loaded.codec == CODEC
    assert loaded.class_names == NAMES
    assert isinstance(loaded.scheduler, EDM2HeunScheduler)
    assert torch.equal(draw(loaded), draw(pipe))


def test_files_are_json_safetensors_and_the_card(folder, net):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).as_posix() for path in files} == FILES
    assert len({path.stat().st_mode for path in files}) == 1
    assert set(load_file(folder / WEIGHTS)) == set(net.state_dict())  # the published names
    config = json.loads((folder / "unet" / "config.json").read_text())
    fields = {key: value for key, value in config.items() if not key.startswith("_")}
    assert fields == json.loads(json.dumps(net.config.to_json()))
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["edm2.pipeline.denoiser", "EDM2Denoiser"]
    assert index["scheduler"] == ["edm2.pipeline.scheduler", "EDM2HeunScheduler"]


@pytest.mark.parametrize("scheduler", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_large_networks_are_sharded_and_their_schedulers_saved_too(pipe, scheduler, tmp_path):
    pipe.scheduler = scheduler(sigma_max=20.0)
    pipe.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert len(list((tmp_path / "saved" / "unet").glob("*.safetensors"))) > 1
    loaded = EDM2Pipeline.from_pretrained(tmp_path / "saved")
    assert type(loaded.scheduler) is scheduler
    assert loaded.scheduler.config.sigma_max == 20.0
    assert torch.equal(draw(quiet(loaded)), draw(pipe))
    tensors = dict(read_pipeline_tensors(tmp_path / "saved"))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in pipe.unet.state_dict().items())


def test_saving_over_another(folder, pipe, make_net):
    other = make_pipeline(make_net(seed=9))
    other.save_pretrained(folder)
    assert torch.equal(draw(quiet(EDM2Pipeline.from_pretrained(folder))), draw(other))
    pipe.to(torch.float16).save_pretrained(folder, variant="fp16")
    tensors = load_file((folder / WEIGHTS).with_suffix(".fp16.safetensors"))
    assert {tensor.dtype for tensor in tensors.values() if tensor.ndim > 2} == {torch.float16}
    assert torch.equal(draw(quiet(EDM2Pipeline.from_pretrained(folder))), draw(other))
    half = EDM2Pipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.float16)
    assert torch.equal(draw(quiet(half)), draw(pipe))


@pytest.mark.parametrize("name", ["saved", "new"])
def test_what_was_not_finished_is_no_pipeline(folder, pipe, monkeypatch, name):
    """Neither a folder that is written over, nor a new one."""
    monkeypatch.setattr(EDM2HeunScheduler, "save_pretrained", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipe.save_pretrained(folder.with_name(name))
    with pytest.raises(SnapshotError, match=r"no model_index\.json"):
        EDM2Pipeline.from_pretrained(folder.with_name(name))


def test_folded_networks_and_pickles_are_not_saved(pipe, tmp_path):
    with pytest.raises(ValueError, match="safetensors"):
        pipe.save_pretrained(tmp_path / "saved", safe_serialization=False)
    pipe.unet = fold(pipe.unet)
    with pytest.raises(ValueError, match="folded"):
        pipe.save_pretrained(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="a file is here"):
        quiet(EDM2Pipeline.from_snapshot("digits8")).save_pretrained(tmp_path / "file")


# ------------------------------------------------------------------------------------------------ half precision


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_half_precision_is_for_convolutions(folder, net, dtype, tolerance):
    """Weights and activations of convolutions are rounded to 11 bits or 8; ten times that over a few steps."""
    loaded = quiet(EDM2Pipeline.from_pretrained(folder, torch_dtype=dtype))
    converted = quiet(EDM2Pipeline.from_pretrained(folder)).to(dtype)
    halved = EDM2Denoiser.from_network(net)
    halved = halved.half() if dtype == torch.float16 else halved.bfloat16()
    for denoiser in (loaded.unet, converted.unet, halved):
        assert denoiser.dtype == denoiser.compute_dtype == dtype
        for name, tensor in denoiser.state_dict().items():
            exact = net.state_dict()[name]
            assert torch.equal(tensor, exact.to(dtype) if exact.ndim > 2 else exact), name
    samples, expected = draw(loaded), generated(net)
    assert torch.equal(samples, draw(converted))
    assert samples.dtype == torch.float32
    assert 0 < (samples - expected).square().mean().sqrt() < tolerance * expected.square().mean().sqrt()
    # The embedding stays in float32: rounded, angles of up to 2 pi 4 f would be off by much of a turn.
    c_noise, labels = torch.tensor([-1.5, 1.0]), torch.eye(10)[:2]
    assert torch.equal(halved.unet.embed(c_noise, labels), net.unet.embed(c_noise, labels))


# ------------------------------------------------------------------------------------------------ without diffusers


FRESH = """
import sys
from edm2.pipeline import read_pipeline_metadata, read_pipeline_tensors
read_pipeline_metadata(sys.argv[1]), dict(read_pipeline_tensors(sys.argv[1]))
assert "diffusers" not in sys.modules
from edm2.pipeline import EDM2Pipeline
pipe = EDM2Pipeline.from_pretrained(sys.argv[1])
assert pipe(class_labels="cat", seeds=[0], num_inference_steps=2, output_type="latent").images.shape == (1, 3, 8, 8)
"""
"""Reads a folder, then loads it, in an interpreter that has imported nothing."""


@pytest.mark.slow
def test_a_folder_reads_without_diffusers(folder, net):
    metadata = read_pipeline_metadata(folder)
    assert is_pipeline_folder(folder)
    assert not is_pipeline_folder(folder / "unet")
    assert NetworkConfig.from_json(metadata["network"]) == net.config
    assert metadata["images_seen"] == 4096
    assert metadata["data"]["class_names"] == NAMES
    assert metadata["codec"] == json.loads(json.dumps(CODEC.to_json()))
    loaded = network_from_state(metadata, dict(read_pipeline_tensors(folder)))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in net.state_dict().items())
    inputs = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 3.0]), torch.tensor([1, 7])
    denoiser = EDM2Denoiser.from_pretrained(folder, subfolder="unet")
    for network in (edm2.load(folder), denoiser):
        assert torch.equal(network(*inputs), net(*inputs))
    assert EDM2Denoiser.from_config(denoiser.config).description == net.config
    subprocess.run([sys.executable, "-c", FRESH, folder], check=True)


def test_fourier_features_are_not_rounded_on_loading_in_half_precision(tmp_path):
    EDM2Pipeline.from_snapshot("digits8").save_pretrained(tmp_path / "saved")
    exact, half = edm2.load("digits8"), edm2.load(tmp_path / "saved", dtype=torch.float16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    for name, buffer in exact.named_buffers():
        assert torch.equal(half.get_buffer(name), buffer), name


# ------------------------------------------------------------------------------------------------ the card


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """Header and text."""
    card = ModelCard((folder / "README.md").read_text())
    return card.data.to_dict(), card.text


@pytest.mark.parametrize(
    ("metadata", "licence", "facts", "absent"),
    [
        (
            ABOUT,
            "other",
            ("tiny", "4,096", "0.1", "ibis", "animals.zip", "2312.02696", "@inproceedings", "Not stated"),
            "somebody",  # nor the folders of whoever trained it
        ),
        ({"license": "cc-by-nc-sa-4.0"}, "cc-by-nc-sa-4.0", ("cc-by-nc-sa-4.0",), "ibis"),
        ({"license": "CC BY-NC-SA 4.0, for study"}, "cc-by-nc-sa-4.0", ("CC BY-NC-SA 4.0, for study",), "ibis"),
        (
            {"preset": "a\n---\n# b | c", "license": "x: [y]\n---"},
            "other",
            ("under x: [y] ---.", "a --- # b \\| c"),  # texts from files stay in their place
            "\n# b",
        ),
    ],
    ids=["own", "published", "published otherwise", "strange"],
)
def test_the_card(net, tmp_path, metadata, licence, facts, absent):
    make_pipeline(net, metadata=metadata, codec=LatentCodec().to_json()).save_pretrained(tmp_path / "saved")
    header, text = card_of(tmp_path / "saved")
    assert (header["license"], header["library_name"]) == (licence, "diffusers")
    for fact in (*facts, "stabilityai/sd-vae-ft-mse"):
        assert fact in text, fact
    assert absent not in text


def test_the_card_s_example_runs(folder, monkeypatch):
    _, text = card_of(folder)
    example, sampler = (part.split("```")[0] for part in text.split("```python\n")[1:3])
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {}
    exec(example, names)
    assert len(names["images"]) == 4
    exec(sampler, names)
    assert isinstance(names["pipe"].scheduler, EDMDPMSolverMultistepScheduler)


# ------------------------------------------------------------------------------------------------ the hub


class Hub:
    """Stands in for HfApi; keeps what is uploaded."""

    def __init__(self, has_card: bool = False) -> None:
        self.has_card = has_card
        self.files: dict[str, bytes] = {}

    def __call__(self, token: str | None = None) -> "Hub":
        return self

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> SimpleNamespace:
        assert exist_ok
        return SimpleNamespace(repo_id=f"somebody/{repo_id}")

    def file_exists(self, repo_id: str, name: str) -> bool:
        assert (repo_id, name) == ("somebody/tiny", "README.md")
        return self.has_card

    def upload_folder(self, folder_path: Path, ignore_patterns: list[str] | None, **options: Any) -> str:
        self.options = options
        paths = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        files = {path.relative_to(folder_path).as_posix(): path.read_bytes() for path in paths}
        self.files = {name: content for name, content in files.items() if name not in (ignore_patterns or ())}
        return "https://hub/commit"


@pytest.mark.parametrize("has_card", [False, True])
@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_pushing_uploads_the_files_and_our_card(pipe, tmp_path, monkeypatch, way, has_card):
    """A card that is there stays."""
    monkeypatch.setattr(storing, "HfApi", hub := Hub(has_card))
    if way == "push_to_hub":
        assert pipe.push_to_hub("tiny") == "https://hub/commit"
    else:
        pipe.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="tiny")
    assert hub.files.keys() == FILES - ({"README.md"} if has_card else set())
    assert has_card or b'from_pretrained("tiny")' in hub.files["README.md"]
    assert hub.options == {"repo_id": "somebody/tiny", "commit_message": "Upload EDM2Pipeline", "create_pr": False}


def test_from_the_hub(folder, pipe, monkeypatch):
    """A failure to fetch is one line, whatever the hub says."""

    def fetch(repo_id: str, allow_patterns: list[str], **options: Any) -> str:
        if repo_id == "somebody/gone":
            raise ConnectionError("a long story\nof many lines")
        assert (repo_id, options["revision"]) == ("somebody/tiny", "v1")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    loaded = EDM2Pipeline.from_pretrained("somebody/tiny", revision="v1")
    assert torch.equal(draw(quiet(loaded)), draw(pipe))
    assert "somebody/gone: no such file or folder" in refused_folder("somebody/gone", OSError)


# ------------------------------------------------------------------------------------------------ mistakes


def refused(pipe: EDM2Pipeline, **options: Any) -> str:
    """The one line of a mistake."""
    with pytest.raises(ValueError) as error:
        draw(pipe, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def refused_folder(folder: Path | str, error_types: Any = SnapshotError) -> str:
    """The one line by which a folder is refused."""
    with pytest.raises(error_types) as error:
        EDM2Pipeline.from_pretrained(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_labels": "unicorn"}, "class 'unicorn' is neither"),
        ({"class_labels": 10}, "classes 0 to 9"),
        ({"class_labels": -2}, "class -2"),
        ({"class_labels": [1, 2]}, "class labels: 2"),
        ({"seeds": []}, "at least one"),
        ({"batch_size": 3}, "batch_size: 3"),
        ({"generator": torch.Generator()}, "not both"),
        ({"latents": torch.zeros(4, 3, 8, 9)}, "(4, 3, 8, 8)"),
        ({"latents": torch.zeros(3, 3, 8, 8)}, "latents: 3"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"output_type": "jpeg"}, "output_type='jpeg'"),
        ({"guidance_scale": 2.0, "guidance_interval": (3.0, 1.0)}, "low < high"),
        ({"guidance_interval": (1.0, 3.0)}, "give guidance_scale"),
        ({"unguided": ["caption"]}, "give guidance_scale"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "not prompt_embeds"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_mistakes_are_told_in_one_line(pipe, options, words):
    assert words in refused(pipe, **options)


def test_parts_that_do_not_fit_each_other(net, make_net, unconditional, pipe):
    assert "no classes" in refused(make_pipeline(unconditional), class_labels=1)
    for other in ({"label_dim": 9}, {"img_resolution": 16}):
        assert "cannot guide" in refused(make_pipeline(net, make_net(**other)), guidance_scale=2.0)
    assert "no classes to drop" in refused(make_pipeline(unconditional), guidance_scale=2.0)
    always_labelled = make_pipeline(net, metadata={"training": {"label_dropout": 0.0}})
    assert "trained with the class of every image" in refused(always_labelled, guidance_scale=2.0)
    draw(make_pipeline(net, metadata={"training": {"label_dropout": 0.1}}), guidance_scale=2.0)
    pipe.scheduler = diffusers.DDIMScheduler()
    assert "DDIMScheduler is not for EDM" in refused(pipe)
    assert "draw with EDM2MapScheduler" in refused(make_pipeline(net, metadata={"abilities": ["consistency"]}))


def test_folders_that_are_no_pipeline(folder):
    assert "unet: no model_index.json" in refused_folder(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    for text, words in [
        (json.dumps(index | {"_class_name": "DiTPipeline"}), "a DiTPipeline"),
        (json.dumps(index | {"metadata": 3}), "damaged"),
        ("[]", "not a JSON object"),
        ("{", "cannot be read"),
    ]:
        (folder / "model_index.json").write_text(text)
        assert words in refused_folder(folder)
    shards = {"weight_map": {"a": "../../elsewhere.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(shards))
    with pytest.raises(SnapshotError, match="outside its folder"):
        dict(read_pipeline_tensors(folder))


DAMAGE = {
    "missing": {"unet.out_conv.weight": None},
    "surplus": {"surplus": torch.zeros(3)},
    "another": {"unet.out_conv.weight": torch.zeros(3, 9, 3, 3)},
}


@pytest.mark.parametrize("damage", [*DAMAGE, "gone", "truncated"])
def test_damaged_weights_are_refused(folder, damage):
    """diffusers itself would go on with random weights."""
    weights = folder / WEIGHTS
    if damage == "gone":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    else:
        tensors = load_file(weights) | DAMAGE[damage]
        save_file({name: x for name, x in tensors.items() if x is not None}, weights, metadata={"format": "pt"})
    refused_folder(folder, (OSError, ValueError))


# ------------------------------------------------------------------------------------------------ the documentation


def test_the_documentation_s_examples_run(tmp_path, monkeypatch):
    text = (Path(edm2.__file__).parents[1] / "docs" / "diffusers.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for part in text.split("```python\n")[1:]:
        exec(part.split("```")[0], names)
    assert card_of(tmp_path / "folder")[0]["license"] == "apache-2.0"
