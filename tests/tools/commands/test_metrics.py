"""`edm2 metrics`: references, scores, scores of samples never written, neighbours; several processes; mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import complaint, edm2, half_written, succeed, torchrun, write_images
from PIL import Image

from edm2.io.npz import write_npz
from edm2.metrics import read_reference
from edm2.metrics.neighbours import find_neighbours
from edm2.metrics.reference import read_features
from edm2.tools.figures.neighbours import draw_neighbours
from edm2.training import ArrayDataset, open_dataset

CPU = ("--device", "cpu")
QUICK = ("--steps", 3, *CPU)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """Of the digits, by their pixels."""
    path = tmp_path_factory.mktemp("reference") / "digits.npz"
    shown = succeed("metrics", "ref", "digits", path, "--detector", "pixels", "--keep", 500, *CPU)
    assert shown == f"statistics of 1,797 images in {path}: pixels\n"
    assert read_reference(path)["pixels"].num_images == 1797
    assert read_features(path, "pixels").shape == (500, 64)
    assert not half_written(path.parent)
    return path


def numbers(path: Path) -> dict[str, float]:
    return {metric["name"]: metric["value"] for metric in json.loads(path.read_text())["metrics"]}


# ------------------------------------------------------------------------------------------------ calc and gen


def test_scores_of_files_of_an_npz_and_of_samples_never_written_are_the_same(reference, outspoken_network, tmp_path):
    """The same batches of 64, so the same to the bit."""
    drawn = (outspoken_network, "--seeds", "0-99", "--balanced", *QUICK)
    succeed("generate", *drawn, "--out", tmp_path / "out", "--npz", tmp_path / "samples.npz")
    asked = ("--ref", reference, "--metrics", "pixels,kid,pr", "--out")
    np.savez_compressed(tmp_path / "packed.npz", arr_0=np.load(tmp_path / "samples.npz")["arr_0"])
    for images in (tmp_path / "out", tmp_path / "samples.npz", tmp_path / "packed.npz"):
        succeed("metrics", "calc", images, *asked, tmp_path / f"{images.stem}.json", *CPU)
    before = sorted(tmp_path.iterdir())
    result = edm2("metrics", "gen", *drawn, *asked, tmp_path / "gen.json")
    assert result.code == 0, result.err
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "gen.json"])
    found = [numbers(tmp_path / f"{name}.json") for name in ("out", "samples", "packed", "gen")]
    assert all(other == found[0] for other in found)
    assert list(found[0]) == ["frechet", "kernel", "precision", "recall"]
    assert "FD-pixels" in result.out
    settings = json.loads((tmp_path / "gen.json").read_text())
    assert (settings["num_images"], settings["steps"], settings["class"]) == (100, 3, "balanced")
    guided = ("--unlabelled-guide", "--guidance", 3, *asked, tmp_path / "guided.json")
    succeed("metrics", "gen", *drawn, *guided)
    assert numbers(tmp_path / "guided.json")["frechet"] != found[0]["frechet"]


def test_few_images_are_warned_of(reference, tmp_path):
    """Two images instead of fifty thousand."""
    write_npz(tmp_path / "two.npz", np.zeros((2, 8, 8, 1), dtype=np.uint8), 2)
    result = edm2("metrics", "calc", tmp_path / "two.npz", "--ref", reference, *CPU)
    assert result.code == 0
    biased, singular = result.err.splitlines()
    assert biased.startswith("Warning: Frechet distances of 2 images are biased upwards")
    assert "50,000" in biased
    assert "1 of the 64 directions" in singular
    write_npz(tmp_path / "five.npz", np.zeros((5, 8, 8, 1), dtype=np.uint8), 5)
    unbiased = edm2("metrics", "calc", tmp_path / "five.npz", "--ref", reference, "--metrics", "kid,pr", *CPU)
    assert (unbiased.code, unbiased.err) == (0, "")


# ------------------------------------------------------------------------------------------------ neighbours


def test_a_sample_that_repeats_a_training_image_is_shown_first(tmp_path):
    training = write_images(tmp_path / "training", (8, 8, 3), 30)
    samples = tmp_path / "samples"
    samples.mkdir()
    random = np.random.default_rng(1)
    for i in range(5):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(samples / f"{i}.png")
    copied = np.asarray(Image.open(training / "017.png"))
    Image.fromarray(np.clip(copied, 1, 255)).save(samples / "3.png")
    out = tmp_path / "neighbours.png"
    shown = succeed("metrics", "neighbours", samples, "--data", training, "--out", out, "--rows", 1, *CPU)
    assert "% of 5 samples are nearer" in shown
    assert "lowest 0.00" in shown
    with Image.open(out) as picture:
        assert picture.width > 4 * picture.height  # one row of six images


def test_a_row_names_the_sample_the_files_and_their_distances(tmp_path: Path):
    real = open_dataset(write_images(tmp_path / "training", (16, 16, 3), 20))
    samples = ArrayDataset(torch.cat([255 - real.images([0]), real.images([5])]))
    gray = ArrayDataset(real.images(range(20))[:, :1, ::2, ::2].contiguous())  # of another size and kind
    found = find_neighbours(*(data.images(range(len(data))).flatten(1).numpy() / 1.0 for data in (samples, real)), k=2)
    first = [axes.get_title() for axes in draw_neighbours(samples, real, found, rows=1).axes]
    assert first[:2] == ["sample 1", "005.png\n0.00"]
    assert float(first[2].split("\n")[1]) == pytest.approx(1)  # the next one is the neighbour of 005.png
    assert len(draw_neighbours(samples, gray, found).axes) == 6


# ------------------------------------------------------------------------------------------------ several processes


@pytest.mark.slow
def test_two_processes_compute_the_numbers_of_one(reference, outspoken_network, tmp_path):
    """To the bit: three batches, so that one process has one more than the other."""
    shared = ("gen", outspoken_network, "--seeds", "0-139", "--ref", reference, "--metrics", "pixels,kid,pr", *QUICK)
    one = succeed("metrics", *shared, "--out", tmp_path / "one.json")
    assert torchrun(2, "metrics", *shared, "--out", tmp_path / "two.json") == one, "one process speaks"
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


@pytest.mark.slow
def test_two_processes_make_the_reference_of_one(reference, tmp_path):
    torchrun(2, "metrics", "ref", "digits", tmp_path / "two.npz", "--detector", "pixels", "--keep", 500, *CPU)
    with np.load(reference) as one, np.load(tmp_path / "two.npz") as two:
        assert sorted(one.files) == sorted(two.files)
        assert all(np.array_equal(one[name], two[name]) for name in one.files)


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("words", "code", "mentions"),
    [
        ("calc digits", 2, ("--ref", "edm2 metrics ref")),
        ("calc digits --ref nothing.npz", 1, ("nothing.npz", "no such file", "edm2 metrics ref")),
        ("calc digits --ref text.npz", 1, ("text.npz", "no reference file")),
        ("calc digits --ref text.pkl", 1, ("text.pkl", "refused")),
        ("calc digits --ref REF --metrics fid", 1, ("of pixels, not of fid", "--detector fid")),
        ("calc digits --ref REF --metrics fd", 1, ("there is no detector 'fd'", "fd_dinov2", "module:callable", "kid")),
        ("calc digits --ref nothing.npz --metrics fd", 1, ("there is no detector 'fd'",)),
        ("calc digits --ref REF --metrics kid --detector vgg", 1, ("there is no detector 'vgg'", "efficientnet-lite0")),
        ("gen digits8 --ref REF --metrics pixels,fd", 1, ("there is no detector 'fd'",)),
        ("calc digits --ref REF --metrics pr --detector fid", 1, ("no features", "fid")),
        ("calc digits --ref REF --metrics kid --detector pr", 1, ("there is no detector 'pr'",)),
        ("calc digits --ref REF --detector pixels", 2, ("--detector pixels", "--metrics pixels")),
        ("calc nowhere/ --ref REF", 1, ("nowhere",)),
        ("calc one.npz --ref REF", 1, ("1 image", "50,000")),
        ("calc text.npz --ref REF", 1, ("text.npz", "arr_0")),
        ("calc large.npz --ref REF", 1, ("64 features", "have 16")),
        ("calc digits --metrics is --inception text.npz", 1, ("text.npz", "TorchScript")),
        ("ref digits out.txt --detector pixels", 2, (".npz",)),
        ("ref one.npz ./one.npz --detector pixels", 2, ("one.npz: holds the images",)),
        ("ref digits out.npz --detector vgg", 1, ("'vgg'", "efficientnet-lite0", "module:callable")),
        ("ref digits out.npz --detector no_such:thing", 1, ("no_such:thing", "module:callable")),
        ("ref digits out.npz --detector fid --inception text.npz", 1, ("text.npz", "TorchScript")),
        ("ref digits out.npz --detector fid --inception nothing.pt", 1, ("nothing.pt", "no such file")),
        ("gen --ref REF", 2, ("NETWORK", "--preset")),
        ("gen digits8", 2, ("--ref",)),
        ("gen digits8 --ref REF --guidance 2", 2, ("--guide or --unlabelled-guide",)),
        ("neighbours digits --data nowhere --out n.png", 1, ("nowhere",)),
        ("neighbours large.npz --data digits --out n.png", 1, ("large.npz: images of (1, 4, 4)", "digits, (1, 8, 8)")),
        ("neighbours digits --data digits --out n.jpg", 2, ("--out", "n.jpg", "write n.png")),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(words, code, mentions, reference, tmp_path, monkeypatch):
    if "--inception" in words:
        pytest.importorskip("cleanfid.inception_torchscript", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    for name in ("text.npz", "text.pkl"):
        (tmp_path / name).write_text("not what it seems")
    np.savez("one.npz", arr_0=np.zeros((1, 8, 8, 1), dtype=np.uint8))
    np.savez("large.npz", arr_0=np.zeros((20_000, 4, 4, 1), dtype=np.uint8))
    before = sorted(tmp_path.iterdir())
    result = edm2("metrics", *words.replace("REF", str(reference)).split(), *CPU)
    lines = [line for line in result.err.splitlines() if not line.startswith("Warning: ")]
    message = complaint("\n".join(lines))
    assert all(mention in message for mention in mentions), message
    assert result.code == code
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "words",
    [
        "metrics ref digits taken/out.npz --detector pixels",
        "metrics neighbours digits --data digits --out taken/out.png",
        "metrics calc digits --ref REF --out taken/out.json",
        "bench --quick --only ema --markdown taken/out.md",
    ],
)
def test_a_file_that_cannot_be_written_is_said_before_the_work(words, reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    for work in ("metrics.reference.collect", "metrics.scores.score", "tools.bench.measuring.measure"):
        monkeypatch.setattr(f"edm2.{work}", None)
    result = edm2(*words.replace("REF", str(reference)).split(), *CPU)
    assert result.code == 1
    assert "taken" in complaint(result.err)
