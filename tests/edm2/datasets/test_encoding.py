"""Encoding: the VAE's moments, the same bytes however often stopped and whoever did the work, and their statistics."""

import json
import shutil
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dataset_files import Stopped, encoded, npy, stop_at_rename, write_folder
from golden_data import arrays, max_rel, table
from PIL import Image
from tiny_vae import save_tiny_vae
from torch import Tensor, nn

from edm2.datasets import encoding, moments
from edm2.datasets.encoding import encode
from edm2.datasets.moments import MomentEncoder
from edm2.training import ArrayDataset, DatasetError, LatentCodec, open_dataset
from edm2.training.data.vae import load_vae
from edm2.training.distributed.processes import Processes

# ----------------------------------------------------------------------------------------------------------------------
# Autoencoders


class Config(dict):
    """As diffusers has it: a dictionary whose entries are attributes, too."""

    __getattr__ = dict.__getitem__


class StandIn(nn.Module):
    """Averages of blocks of pixels, mixed linearly: q = M avgpool(x) + b; mean = q[:C] std + mean, std of the rest.

    The VAE of the golden set is of this form; everything else about it is what diffusers' AutoencoderKL offers.
    """

    def __init__(self, matrix: Tensor, bias: Tensor, raw_mean: Tensor, raw_std: Tensor, factor: int) -> None:
        super().__init__()
        for name, value in (("matrix", matrix), ("bias", bias), ("raw_mean", raw_mean), ("raw_std", raw_std)):
            self.register_buffer(name, value)
        self.config = Config(in_channels=3, block_out_channels=[1] * (factor.bit_length()))
        self.factor = factor

    def encode(self, x: Tensor) -> SimpleNamespace:
        pooled = nn.functional.avg_pool2d(x, self.factor)
        q = torch.einsum("oc,nchw->nohw", self.matrix, pooled) + self.bias.view(-1, 1, 1)
        mean, std = q.chunk(2, dim=1)
        mean = mean * self.raw_std.view(-1, 1, 1) + self.raw_mean.view(-1, 1, 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=0.05 + 0.1 * std.sigmoid()))


def stand_in() -> StandIn:
    """Two latent channels of blocks of 2x2 pixels."""
    g = torch.Generator().manual_seed(0)
    return StandIn(torch.randn(4, 3, generator=g), torch.zeros(4), torch.tensor([1.0, -2]), torch.tensor([3.0, 5]), 2)


def use(vae: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "load_vae", lambda name, device: vae)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A stand-in for any VAE, and four parts for seven images."""
    vae = stand_in()
    use(vae, monkeypatch)
    monkeypatch.setattr(encoding, "PART_SIZE", 2)
    return vae


@pytest.fixture(scope="module")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vae(tmp_path_factory.mktemp("vae"))


# ----------------------------------------------------------------------------------------------------------------------
# Images


def write_photos(folder: Path, count: int, height: int = 8, width: int = 12, classes: int = 2) -> Path:
    """Faces of two colors each, so that images differ much more than noise would."""
    random = np.random.default_rng(0)
    for i in range(count):
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        pixels[: height // 2], pixels[height // 2 :] = random.integers(0, 256, (2, 3))
        path = folder / f"class{i % classes}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images in two classes."""
    return write_photos(tmp_path / "photos", 7)


def encode_in_parts(
    source: Path, out: Path, encoder: MomentEncoder | None = None, batch_size: int = 2, **options
) -> encoding.Encoded | None:
    """Batches as small as parts are in these tests."""
    return encode(source, out, encoder or MomentEncoder(), batch_size, **options)


def contents(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("dataset.json"))


def everything(path: Path) -> Tensor:
    dataset = open_dataset(path)
    return dataset.images(range(len(dataset)))


# ----------------------------------------------------------------------------------------------------------------------
# Moments


def test_moments_names_and_labels_are_the_published_ones(golden: Path, tmp_path: Path, monkeypatch):
    values, expected = arrays(golden, "dataset/dataset.safetensors"), table(golden, "dataset/dataset.json")
    constants = [torch.tensor(expected["constants"][name]) for name in ("raw_mean", "raw_std")]
    source, published = golden / "dataset/dhariwal.zip", values["latents/raw_moments"]
    factor = open_dataset(source).shape[1] // published.shape[2]
    vae = StandIn(values["standin_vae/encode_matrix"], values["standin_vae/encode_bias"], *constants, factor)
    use(vae, monkeypatch)
    encode(source, tmp_path / "out.zip", MomentEncoder(), batch_size=5)
    assert max_rel(everything(tmp_path / "out.zip"), published) < 1e-6
    assert contents(tmp_path / "out.zip")["labels"] == expected["latents"]["dataset_json"]["labels"]
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == expected["latents"]["names"]
        header = archive.read(archive.namelist()[0])[: len(expected["latents"]["npy_header"])]
        assert header.decode("latin-1").strip("\x93") == expected["latents"]["npy_header"].strip("\x93")


@pytest.mark.parametrize("pixel_range", [(0, 1), (-1, 1)])
def test_moments_are_those_of_the_autoencoder(tiny_vae: Path, tmp_path: Path, pixel_range):
    """Batches of three, to rounding: a sum has another order in another batch. The range is stored."""
    photos = write_photos(tmp_path / "photos", 7, 16, 24)
    encode(photos, tmp_path / "out.zip", MomentEncoder(str(tiny_vae), pixel_range), batch_size=3)
    black, white = pixel_range
    x = everything(photos).float() / 255 * (white - black) + black
    latents = load_vae(str(tiny_vae), torch.device("cpu")).encode(x).latent_dist
    expected = torch.cat([latents.mean, latents.std], dim=1)
    torch.testing.assert_close(everything(tmp_path / "out.zip"), expected, rtol=1e-5, atol=1e-5)
    described = contents(tmp_path / "out.zip")["latents"]
    assert described["pixel_range"] == [black, white]
    assert described["vae"] == str(tiny_vae)
    assert contents(tmp_path / "out.zip")["class_names"] == ["class0", "class1"]


def test_from_images_to_latents_and_back(tiny_vae: Path, tmp_path: Path):
    """What the dataset says of itself is all that decoding needs."""
    photos = write_photos(tmp_path / "photos", 4, 16, 24)
    encode(photos, tmp_path / "out.zip", MomentEncoder(str(tiny_vae), (-1, 1)))
    dataset = open_dataset(tmp_path / "out.zip")
    codec = LatentCodec(**{**dataset.latents, "sigma_data": 0.5})
    pixels = codec.decode(codec.encode(dataset.images(range(4))))
    assert pixels.shape == everything(photos).shape
    assert pixels.dtype == torch.uint8


@pytest.mark.usefixtures("quick")
def test_gray_becomes_color_and_transparency_is_dropped(tmp_path: Path):
    moments_of = []
    for mode, color in (("L", 40), ("LA", (40, 7)), ("RGB", (40, 40, 40)), ("RGBA", (40, 40, 40, 0))):
        (tmp_path / mode).mkdir()
        Image.new(mode, (4, 4), color).save(tmp_path / mode / "a.png")
        encode(tmp_path / mode, tmp_path / f"{mode}.zip", MomentEncoder())
        moments_of.append(everything(tmp_path / f"{mode}.zip"))
    assert all(torch.equal(moments_of[0], other) for other in moments_of)


@pytest.mark.usefixtures("quick")
def test_conditions_go_with_their_images(photos: Path, tmp_path: Path):
    """Under the new names; pictures, and tokens of any number."""
    names = [open_dataset(photos).item_name(i)[:-4] for i in range(7)]
    edges = {f"conditions/edges/{name}.png": encoded(Image.new("L", (5, 3), 30 * i)) for i, name in enumerate(names)}
    words = {f"conditions/words/{name}.npy": npy(np.full((1 + i % 3, 2), i)) for i, name in enumerate(names)}
    write_folder(photos, edges | words)
    old = open_dataset(photos)
    for most, chosen in ((None, list(range(7))), (4, [0, 1, 4, 5])):
        encode_in_parts(photos, tmp_path / f"{most}.zip", max_images=most)
        new = open_dataset(tmp_path / f"{most}.zip")
        assert new.condition_names == ("edges", "words")
        for name in new.condition_names:
            for i, index in enumerate(chosen):
                assert torch.equal(new.read_condition(name, [i]), old.read_condition(name, [index]))


@pytest.mark.usefixtures("quick")
def test_fp16_is_fp32_rounded(photos: Path, tmp_path: Path):
    encode(photos, tmp_path / "long.zip", MomentEncoder(dtype="fp32"))
    encode(photos, tmp_path / "short.zip", MomentEncoder(dtype="fp16"))
    assert everything(tmp_path / "short.zip").dtype == torch.float16
    assert torch.equal(everything(tmp_path / "short.zip"), everything(tmp_path / "long.zip").half())


# ----------------------------------------------------------------------------------------------------------------------
# Statistics


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_statistics_are_those_of_all_latents(photos: Path, tmp_path: Path, dtype: str):
    """Of what is stored, so rounding to fp16 counts. Law of total variance: Var z = Var mean + E std²."""
    result = encode(photos, tmp_path / "out.zip", MomentEncoder(dtype=dtype))
    mean, std = everything(tmp_path / "out.zip").double().chunk(2, dim=1)
    dims = (0, 2, 3)
    variance = mean.var(dims, correction=0) + std.square().mean(dims)
    close = {"rel": 1e-12, "abs": 1e-12}  # float64, added in another order
    assert result.statistics.mean == pytest.approx(mean.mean(dims).tolist(), **close)
    assert result.statistics.std == pytest.approx(variance.sqrt().tolist(), **close)
    assert result.statistics.sigma_data == pytest.approx(variance.mean().sqrt().item(), **close)
    stored = open_dataset(tmp_path / "out.zip").latents
    assert stored["mean"] == list(result.statistics.mean)
    assert stored["std"] == list(result.statistics.std)
    assert stored["sigma_data"] == result.statistics.sigma_data


@pytest.mark.usefixtures("quick")
def test_latents_reach_the_network_with_mean_0_and_the_networks_sigma_data(photos: Path, tmp_path: Path):
    encode(photos, tmp_path / "out.zip", MomentEncoder())
    dataset = open_dataset(tmp_path / "out.zip")
    codec = LatentCodec(**{**dataset.latents, "sigma_data": 0.5})
    data = everything(tmp_path / "out.zip").repeat(400, 1, 1, 1)
    noise = torch.randn(len(data), *codec.encode(data[:1]).shape[1:], generator=torch.Generator().manual_seed(0))
    x = codec.encode(data, noise).double()
    error = 4 / (400 * 7 * 4 * 6) ** 0.5  # four standard errors of as many numbers, if all were noise
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0, 0], abs=0.5 * error)
    assert x.std((0, 2, 3)).tolist() == pytest.approx([0.5, 0.5], rel=error)


def test_the_paper_s_statistics_on_request(tmp_path: Path, photos: Path, quick: StandIn, monkeypatch):
    """The measured ones are still reported, and what is measured of all channels is still stored."""
    paper = LatentCodec()
    four = StandIn(quick.matrix.repeat(2, 1), torch.zeros(8), torch.zeros(4), torch.ones(4), 2)
    use(four, monkeypatch)
    measured = encode(photos, tmp_path / "measured.zip", MomentEncoder())
    result = encode(photos, tmp_path / "paper.zip", MomentEncoder(), paper_statistics=True)
    assert result.statistics == measured.statistics
    stored = open_dataset(tmp_path / "paper.zip").latents
    assert LatentCodec(**{**stored, "sigma_data": 0.5}) == paper
    assert stored["sigma_data"] == measured.statistics.sigma_data
    for other in (MomentEncoder("another/vae"), MomentEncoder(pixel_range=(-1, 1))):
        with pytest.raises(ValueError, match=r"paper's statistics belong to stabilityai/sd-vae-ft-mse"):
            encode(photos, tmp_path / "no.zip", other, paper_statistics=True)


# ----------------------------------------------------------------------------------------------------------------------
# Several processes, stopped


@dataclass(frozen=True)
class Thread(Processes):
    """One of several that share the work in this process."""

    barrier: threading.Barrier | None = None

    def wait(self) -> None:
        self.barrier.wait(timeout=60)


def encode_together(count: int, photos: Path, out: Path) -> list[encoding.Encoded | None]:
    barrier = threading.Barrier(count)
    members = [Thread(rank, count, rank, barrier=barrier) for rank in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda member: encode_in_parts(photos, out, processes=member), members))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("count", [2, 3, 5])
def test_bytes_do_not_depend_on_who_encodes(photos: Path, tmp_path: Path, count: int):
    """Five share four parts: one has nothing to do."""
    alone = encode_in_parts(photos, tmp_path / "alone.zip", workers=1)
    first, *others = encode_together(count, photos, tmp_path / "together.zip")
    assert first == alone
    assert others == [None] * (count - 1)
    assert (tmp_path / "together.zip").read_bytes() == (tmp_path / "alone.zip").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.zip", "photos", "together.zip"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("count", [1, 2])
def test_stopped_at_any_rename_and_resumed(photos: Path, tmp_path: Path, count: int):
    """Four parts, the whole in their folder, and in its place: six places to stop at."""
    reference = encode_in_parts(photos, tmp_path / "reference.zip")
    for number in range(6):
        out, done = tmp_path / f"out{number}.zip", []
        with pytest.MonkeyPatch.context() as monkeypatch:
            stop_at_rename(monkeypatch, number)
            with pytest.raises(Stopped):
                encode_in_parts(photos, out)
        assert not out.exists()
        if count == 1:
            result = encode_in_parts(photos, out, report=lambda images, total, done=done: done.append(images))
            assert done[:1] == [min(2 * number, 7)], "finished parts were made again"
        else:
            result, _ = encode_together(count, photos, out)
        assert result.statistics.sigma_data == pytest.approx(reference.statistics.sigma_data, rel=1e-12)
        assert out.read_bytes() == (tmp_path / "reference.zip").read_bytes()
        assert not (tmp_path / f".out{number}.zip.parts").exists()


@pytest.mark.usefixtures("quick")
def test_stopped_while_parts_are_removed(photos: Path, tmp_path: Path, monkeypatch):
    """The result is complete by then; the next call refuses it and removes what was left."""
    encode_in_parts(photos, tmp_path / "reference.zip")
    out = tmp_path / "out.zip"

    def stop(folder: Path) -> None:
        raise Stopped

    with monkeypatch.context() as context:
        context.setattr(shutil, "rmtree", stop)
        with pytest.raises(Stopped):
            encode_in_parts(photos, out)
    assert out.read_bytes() == (tmp_path / "reference.zip").read_bytes()
    with pytest.raises(FileExistsError):
        encode_in_parts(photos, out)
    assert not (tmp_path / ".out.zip.parts").exists()


@pytest.mark.parametrize("change", ["weights", "range", "dtype", "batch", "image", "labels", "name"])
def test_parts_of_another_encoding_are_not_used(photos: Path, tmp_path: Path, quick: StandIn, change: str, monkeypatch):
    """Stopped before the end, then something is changed: as if it had never been started."""
    out, settings, batch_size = tmp_path / "out.zip", {}, 2
    with monkeypatch.context() as context:
        stop_at_rename(context, 4)
        with pytest.raises(Stopped):
            encode_in_parts(photos, out)
    if change == "weights":
        quick.matrix[0, 0] += 1e-6
    elif change == "image":
        shutil.copy(photos / "class0/002.png", photos / "class0/000.png")
    elif change == "labels":
        (photos / "dataset.json").write_text('{"labels": null}')
    elif change == "batch":
        batch_size = 1
    else:
        settings = {"range": {"pixel_range": (-1, 1)}, "dtype": {"dtype": "fp16"}, "name": {"vae": "other"}}[change]
    done = []
    encode_in_parts(
        photos, out, MomentEncoder(**settings), batch_size, report=lambda images, total: done.append(images)
    )
    assert done[0] == {"image": 5, "labels": 7, "name": 7}.get(change, 0)  # the last two do not touch moments
    encode(photos, tmp_path / "fresh.zip", MomentEncoder(**settings), batch_size)
    assert out.read_bytes() == (tmp_path / "fresh.zip").read_bytes()
    assert not (tmp_path / ".out.zip.parts").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Nobody waits


def test_the_next_batch_is_read_while_one_is_encoded(photos: Path, tmp_path: Path, quick: StandIn, monkeypatch):
    """The VAE waits for the reading of what follows: without threads it would wait forever."""
    has_read, direct, read = threading.Event(), quick.encode, encoding._read_rgb
    waited = []

    def patient(x: Tensor) -> SimpleNamespace:
        waited.append(has_read.wait(10))
        return direct(x)

    def telling(dataset: ArrayDataset, index: int) -> Tensor:
        image = read(dataset, index)
        if index == 3:  # of the second batch
            has_read.set()
        return image

    monkeypatch.setattr(quick, "encode", patient)
    monkeypatch.setattr(encoding, "_read_rgb", telling)
    encode(photos, tmp_path / "out.zip", MomentEncoder(), batch_size=2, workers=1)
    assert waited[0]


def test_a_part_is_written_while_the_next_is_encoded(photos: Path, tmp_path: Path, quick: StandIn, monkeypatch):
    encoded, direct, write = [], quick.encode, encoding._write_part
    second, waited = threading.Event(), []

    def telling(x: Tensor) -> SimpleNamespace:
        encoded.append(len(x))
        if len(encoded) == 3:  # one batch is always under way, so the second is begun before the first is written
            second.set()
        return direct(x)

    def patient(*arguments) -> object:
        waited.append(second.wait(10))
        return write(*arguments)

    monkeypatch.setattr(quick, "encode", telling)
    monkeypatch.setattr(encoding, "_write_part", patient)
    encode(photos, tmp_path / "out.zip", MomentEncoder(), batch_size=2)
    assert waited[0]


@pytest.mark.usefixtures("quick")
def test_progress_ends_at_the_number_of_images(photos: Path, tmp_path: Path):
    reports = []
    encode(photos, tmp_path / "out.zip", MomentEncoder(), 2, 5, report=lambda *numbers: reports.append(numbers))
    assert reports == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert len(open_dataset(tmp_path / "out.zip")) == 5


# ----------------------------------------------------------------------------------------------------------------------
# Refused


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dtype": "bf16"}, r"dtype='bf16' is unknown.*fp32 or fp16"),
        ({"precision": "int8"}, r"precision='int8' is unknown"),
        ({"precision": "bf16"}, r"precision=bf16 needs a CUDA device, not cpu"),
        ({"pixel_range": (1, 0)}, r"pixel_range=\(1\.0, 0\.0\)"),
        ({"pixel_range": (0, float("nan"))}, "pixel_range"),
    ],
)
def test_impossible_settings(settings: dict, named: str):
    with pytest.raises(ValueError, match=named):
        MomentEncoder(**settings)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_moments_that_are_no_numbers(photos: Path, tmp_path: Path, quick: StandIn, monkeypatch, value: float):
    """The image is named, and what was finished before it is kept."""
    direct, batches = quick.encode, []

    def broken(x: Tensor) -> SimpleNamespace:
        latents = direct(x)
        if len(batches) == 2:
            latents.latent_dist.mean[1, 0, 0, 0] = value
        batches.append(x)
        return latents

    monkeypatch.setattr(quick, "encode", broken)
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    with pytest.raises(DatasetError, match=rf"photos/{names[5]}: VAE .* makes NaN or infinity"):
        encode(photos, tmp_path / "out.zip", MomentEncoder(), batch_size=2)
    assert len(list((tmp_path / ".out.zip.parts").glob("*.zip"))) == 2


def test_moments_too_large_for_fp16(photos: Path, tmp_path: Path, quick: StandIn):
    quick.raw_mean.fill_(1e5)
    with pytest.raises(DatasetError, match=r"photos/class0/000\.png: moments up to 1e\+05 do not fit fp16.*fp32"):
        encode(photos, tmp_path / "out.zip", MomentEncoder(dtype="fp16"))
    encode(photos, tmp_path / "out.zip", MomentEncoder(dtype="fp32"))


def test_images_that_the_vae_does_not_take(tmp_path: Path, quick: StandIn):
    quick.config["in_channels"] = 1
    with pytest.raises(ValueError, match="takes images of 1 channels, but colors have 3"):
        encode(write_photos(tmp_path / "even", 2), tmp_path / "out.zip", MomentEncoder())


def test_processes_that_do_not_share_a_folder(photos: Path, tmp_path: Path, quick: StandIn):
    """As on two machines: the first finds only its own parts."""

    class Elsewhere(Processes):
        def wait(self) -> None:
            pass

    with pytest.raises(OSError, match=r"2 parts are not in .*all processes must write them"):
        encode_in_parts(photos, tmp_path / "out.zip", processes=Elsewhere(0, 2))
