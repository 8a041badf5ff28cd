"""Latents: the codec against the published pipeline, a real (tiny) autoencoder, and training on moments."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dataset_files import npy, write_zip
from golden_data import arrays, max_rel, table
from safetensors.torch import load_file, save_file
from tiny_vae import save_tiny_vae

from edm2.networks import NetworkConfig, build_network
from edm2.post_hoc_ema import find_snapshots
from edm2.training import (
    ArrayDataset,
    DatasetError,
    LatentCodec,
    Trainer,
    TrainingConfig,
    codec_from_json,
    open_dataset,
)
from edm2.training.data import vae as latents_module
from edm2.training.data.batches import BatchStream
from edm2.training.data.vae import VAEError, latent_codec_of, load_vae
from edm2.training.randomness import PositionRandom
from edm2.training.step import TrainStep


@pytest.mark.parametrize("form", ["vae", "pipeline", "half precision"])
def test_a_vae_is_found_in_every_form_that_diffusers_stores(tmp_path, form):
    folder = save_tiny_vae(tmp_path / "vae")
    if form == "pipeline":
        folder = tmp_path
    elif form == "half precision":
        whole = folder / "diffusion_pytorch_model.safetensors"
        whole.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert load_vae(str(folder), torch.device("cpu")).config.latent_channels == 4


def test_a_single_file_is_no_vae(tmp_path):
    (tmp_path / "one.safetensors").touch()
    with pytest.raises(VAEError, match=r"one\.safetensors: is a file; give the folder"):
        load_vae(str(tmp_path / "one.safetensors"), torch.device("cpu"))


def test_latents_are_drawn_and_scaled_as_published(golden):
    constants = table(golden, "dataset/dataset.json")["constants"]
    codec = LatentCodec()
    assert (list(codec.mean), list(codec.std)) == (constants["raw_mean"], constants["raw_std"])
    for ours, name in zip(codec._scale_and_bias(torch.device("cpu")), ("scale_fp32", "bias_fp32"), strict=True):
        torch.testing.assert_close(ours.flatten(), torch.tensor(constants[name]), rtol=1e-6, atol=0)
    values = arrays(golden, "dataset/dataset.safetensors")
    final = codec.encode(values["latents/raw_moments"], values["latents/eps"])
    assert max_rel(final, values["latents/final"]) < 1e-6
    assert max_rel(codec.to_vae(final), values["latents/vae_decoder_input"]) < 1e-6


def test_decoded_pixels_are_those_of_the_published_pipeline(golden, monkeypatch):
    """With the stand-in decoder of the golden set: out_o = sum_c m[o, c] z_c + 0.5, each pixel repeated 8 by 8."""
    values = arrays(golden, "dataset/dataset.safetensors")
    if "latents/decoded_uint8" not in values:
        pytest.skip("the compact selection leaves out decoded pixels")
    matrix = values["standin_vae/decode_matrix"].float()

    def decode(z):
        out = torch.einsum("oc,nchw->nohw", matrix, z) + 0.5
        return SimpleNamespace(sample=out.repeat_interleave(8, 2).repeat_interleave(8, 3))

    monkeypatch.setattr(latents_module, "load_vae", lambda name, device: SimpleNamespace(decode=decode))
    pixels = LatentCodec().decode(values["latents/final"])
    difference = (pixels.int() - values["latents/decoded_uint8"].int()).abs()
    assert difference.max() <= 1  # truncation turns a rounding in the last digit into one level, rarely
    assert (difference > 0).float().mean() < 1e-3


def test_moments_give_their_distribution_and_come_back():
    codec = LatentCodec(vae="mine", mean=(1.0, -2.0), std=(2.0, 4.0), pixel_range=(-1, 1))
    assert codec_from_json(json.loads(json.dumps(codec.to_json()))) == codec
    moments = torch.tensor([3.0, 2.0, 0.5, 1.0]).reshape(1, 4, 1, 1).expand(1, 4, 128, 128)
    drawn = codec.encode(moments, torch.randn(1, 2, 128, 128, generator=torch.Generator().manual_seed(0)))
    error = 4 / 128  # four standard errors of 128² numbers
    assert drawn[:, 0].mean() == pytest.approx((3 - 1) * 0.25, abs=error * 0.125)
    assert drawn[:, 1].std() == pytest.approx(1.0 * 0.125, rel=error)
    assert torch.equal(codec.encode(moments)[:, 0], torch.full((1, 128, 128), 0.5))  # without noise: the mean
    x = torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(codec.encode(torch.cat([codec.to_vae(x), torch.zeros_like(x)], dim=1)), x)


@pytest.mark.parametrize(
    ("description", "channels", "named"),
    [
        (None, 4, "8 moments"),
        ({"mean": [0], "std": [0]}, 2, "std positive"),
        ({"mean": [0], "std": [1, 2]}, 2, "one number per channel"),
        ({"mean": [float("nan")] * 4, "std": [1] * 4}, 8, "one number per channel"),
        ({"mean": [0] * 8, "std": [1] * 8}, 8, "latents of 8 channels have 16 moments .* but the data have 8 channels"),
        ({"mean": None}, 8, "malformed"),
        ({"pixel_range": [1, 0]}, 8, "pixel_range"),
        ({"pixel_range": [0, float("inf")]}, 8, "pixel_range"),
        ({"vae": 7}, 8, "vae=7 must be the name of one"),
        ({"colour": "blue"}, 8, "malformed"),
    ],
)
def test_latents_that_do_not_fit_are_refused(description, channels, named):
    with pytest.raises(ValueError, match=named):
        latent_codec_of(description, channels, 0.5)
    described = {"mean": [0] * 4, "std": [1] * 4, "sigma_data": 4.1}
    assert latent_codec_of(described, 8, 0.5).sigma_data == 0.5  # the network's, whatever the latents have


@pytest.fixture(scope="module")
def tiny_vae(tmp_path_factory):
    return save_tiny_vae(tmp_path_factory.mktemp("vae"))


def test_a_real_autoencoder_decodes_and_one_that_is_not_there_is_named(tiny_vae, tmp_path, monkeypatch):
    codec = LatentCodec(vae=str(tiny_vae))
    x = torch.randn(3, 4, 8, 8)
    pixels = codec.decode(x, batch_size=2)
    assert pixels.shape == (3, 3, 16, 16)
    assert pixels.dtype == torch.uint8
    direct = load_vae(str(tiny_vae), torch.device("cpu")).decode(codec.to_vae(x[:1])).sample
    assert torch.equal(pixels[:1], codec.to_pixels(direct))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(VAEError, match="nowhere"):
        load_vae(str(tmp_path / "nowhere"), torch.device("cpu"))


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied_vae(tiny_vae, tmp_path):
    """One to break."""
    return shutil.copytree(tiny_vae, tmp_path / "copy")


def drop_tensors(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file(dict(list(tensors.items())[3:]), folder / WEIGHTS)


BROKEN = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "cannot be read: .* no file named .*; give a folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "cannot be read: .* no file named config.json"),
    "cut short": (lambda folder: os.truncate(folder / WEIGHTS, 500), "cannot be read"),
    "incomplete": (drop_tensors, "the weights lack 3 tensors, such as .*; give those of a whole AutoencoderKL"),
    "a pickle": (
        lambda folder: (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin"),
        "cannot be read: .*as .safetensors",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_vae_is_refused_in_one_line(copied_vae, capfd, name):
    """diffusers itself would make up missing weights, and say several lines about everything."""
    damage, message = BROKEN[name]
    damage(copied_vae)
    with pytest.raises(VAEError, match=f"^VAE {copied_vae}: {message}") as refused:
        load_vae(str(copied_vae), torch.device("cpu"))
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


def test_attention_under_the_names_of_old_times(copied_vae, tiny_vae):
    """SD-VAE was saved when diffusers called the projections otherwise."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(copied_vae / WEIGHTS)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in tensors.items()}
    assert any(".proj_attn." in key for key in tensors)
    save_file(tensors, copied_vae / WEIGHTS)
    x = torch.rand(1, 3, 8, 8)
    a, b = (load_vae(str(path), torch.device("cpu")).encode(x).latent_dist.mean for path in (copied_vae, tiny_vae))
    assert torch.equal(a, b)


def moments_zip(path, latents=None, channels=8):
    g, half = np.random.default_rng(0), channels // 2
    names = [f"00000/img-mean-std-{i:08d}.npy" for i in range(12)]
    arrays = (g.normal(size=(2, half, 8, 8)).astype(np.float32) for _ in names)
    files = {name: npy(np.concatenate([mean, np.abs(std)])) for name, (mean, std) in zip(names, arrays, strict=True)}
    description = {"labels": [[name, i % 2] for i, name in enumerate(names)]}
    description |= {"latents": latents} if latents else {}
    return write_zip(path, files | {"dataset.json": json.dumps(description).encode()})


def config(data, out, **changes):
    network = NetworkConfig(
        8, 4, 2, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(), logvar_channels=8
    )
    settings = {"duration": 16, "batch_size": 4, "status_every": 8, "snapshot_every": 8, "workers": 0}
    return TrainingConfig(data=str(data), out=str(out), network=network, **settings | changes)


def test_training_on_moments_tells_its_snapshots_the_codec(tmp_path):
    described = {"vae": "my/vae", "mean": [0, 1, 2, 3], "std": [1, 2, 3, 4], "pixel_range": [-1, 1]}
    Trainer(config(moments_zip(tmp_path / "a.zip", described), tmp_path / "run", holdout=2)).run()
    codec = codec_from_json(find_snapshots(tmp_path / "run")[-1].metadata["codec"])
    assert codec == LatentCodec("my/vae", (0, 1, 2, 3), (1, 2, 3, 4), 0.5, (-1, 1))


def test_every_visit_draws_a_new_latent_that_belongs_to_its_place(tmp_path):
    dataset = open_dataset(moments_zip(tmp_path / "a.zip"))
    settings = config(tmp_path / "a.zip", tmp_path / "run", batch_size=12, duration=12)
    feed = BatchStream(settings, dataset, PositionRandom(0, 64, torch.device("cpu")))
    steps = feed.steps(0)
    (first, labels, _), (second, _, _) = next(steps)[0], next(steps)[0]
    by_content = sorted(first.flatten(1).mean(1).tolist()), sorted(second.flatten(1).mean(1).tolist())
    assert by_content[0] != by_content[1]  # the same twelve images, other latents
    assert labels.shape == (12,)
    again = next(BatchStream(settings, dataset, PositionRandom(0, 64, torch.device("cpu"))).steps(12))[0][0]
    assert torch.equal(again, second)


def test_latents_are_drawn_apart_from_the_noise_of_diffusion(tmp_path):
    """Of mean 0 and standard deviation 1, each is the noise it is drawn with: 12,288 numbers at places 0 to 191, to
    which those that the step adds there must not be related. Five standard deviations of their correlation."""
    moments = torch.cat([torch.zeros(12, 1, 8, 8), torch.ones(12, 1, 8, 8)], dim=1)
    dataset = ArrayDataset(moments)
    dataset.latents = {"mean": [0], "std": [1]}
    network = NetworkConfig(8, 1, 0, model_channels=8, channel_mult=(1,), num_blocks=1)
    settings = TrainingConfig(data="", out=str(tmp_path), network=network, batch_size=192, duration=192, workers=0)
    step = TrainStep(settings, build_network(network))
    feed = BatchStream(settings, dataset, step.random)
    latents = torch.cat([batch.images for batch in next(feed.steps(0))])
    assert latents.std().item() == pytest.approx(0.5, rel=5 / (2 * 12_288) ** 0.5)
    noise = step.draws.noise(0, latents.shape)
    assert abs(torch.corrcoef(torch.stack([latents.flatten(), noise.flatten()]))[0, 1]) < 5 / 12_288**0.5


@pytest.mark.parametrize(
    ("change", "channels", "named"),
    [({"xflip": True}, 8, "mirrored"), ({}, 4, "8 moments"), ({}, 6, "8 moments")],
)
def test_moments_that_do_not_fit_are_refused(tmp_path, change, channels, named):
    data = moments_zip(tmp_path / "a.zip", channels=channels)
    with pytest.raises(DatasetError, match=named):
        Trainer(config(data, tmp_path / "run", **change)).run()
    assert not (tmp_path / "run").exists()
