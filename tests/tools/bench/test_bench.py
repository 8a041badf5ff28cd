"""`edm2 bench`: what it measures, what it writes, what it refuses. No test looks at how long anything takes."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from command_line import complaint, edm2, half_written, succeed
from tiny_vae import save_tiny_vae

from edm2.networks import NetworkConfig
from edm2.planning.costs import count_flops, count_parameters
from edm2.tools.bench import karras
from edm2.tools.bench.measuring import convolutions
from edm2.tools.bench.rivals import RIVALS
from edm2.tools.bench.sections import SECTIONS, Bench
from edm2.tools.bench.timing import Clock, Duration, Timing
from edm2.tools.bench.workload import Workload, settings_for
from edm2.tools.commands.bench import KNOWN

TINY = ("bench", "--quick", "--preset", "digits8", "--channels", 8, "--batch", 4, "--device", "cpu")
LATENTS = ("bench", "--quick", "--preset", "edm2-img512-xs", "--channels", 8, "--batch", 1, "--device", "cpu")

FAKE_KARRAS_UNET = """
import torch
from torch import nn
from denoising_diffusion_pytorch.attend import Attend

class KarrasUnet(nn.Module):
    def __init__(self, *, image_size, dim, dim_max, num_classes, channels, num_downsamples, num_blocks_per_stage,
                 attn_res, attn_dim_head, dropout):
        super().__init__()
        self.inside = nn.Conv2d(channels, dim, 3, padding=1)
        self.first = nn.Sequential(*(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(10)))
        self.between = nn.Conv2d(dim, dim_max, 1)
        self.last = nn.Sequential(*(nn.Conv2d(dim_max, dim_max, 3, padding=1) for _ in range(15)))
        self.outside = nn.Conv2d(dim_max, channels, 3, padding=1)
        self.gain = nn.Parameter(torch.zeros([]))

    def forward(self, x, time, class_labels=None):
        return self.outside(self.last(self.between(self.first(self.inside(x))))) * self.gain
"""


@pytest.fixture
def fake_rival(tmp_path, monkeypatch):
    """A package of that name whose own __init__ cannot run, as without torchvision."""
    folder = tmp_path / "site" / karras.PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('this must not run')\n")
    (folder / "attend.py").write_text("Attend = object\n")
    (folder / "karras_unet.py").write_text(FAKE_KARRAS_UNET)
    monkeypatch.syspath_prepend(folder.parent)


def table_rows(markdown: str) -> list[list[str]]:
    """Cells of all lines of tables, heads included, rules left out."""
    lines = [line for line in markdown.splitlines() if line.startswith("|") and not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# ----------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[str, dict, str]:
    """What a run of everything says, and the JSON and the Markdown that it writes."""
    folder = tmp_path_factory.mktemp("bench")
    said = succeed(*TINY, "--against", "plain", "--out", folder / "new" / "b.json", "--markdown", folder / "b.md")
    assert not half_written(folder)
    return said, json.loads((folder / "new" / "b.json").read_text()), (folder / "b.md").read_text()


def test_everything_is_measured(measured):
    """Each part has a time by every clock; those that compute also what share of the device they use."""
    _, found, _ = measured
    parts = {(m["section"], m["part"]): m for m in found["measurements"]}
    assert {part for section, part in parts if section == "training"} == {
        "whole step", "data", "forward", "backward",
        "forced weight normalization", "gradients' norm", "Adam", "averages",
    }  # fmt: skip
    assert {part for section, part in parts if section == "sampling"} == {"evaluation", "Heun", "Heun with guidance"}
    assert {part for section, part in parts if section == "ema"} == {
        "update of two averages", "reconstruction of one average",
    }  # fmt: skip
    for measurement in parts.values():
        timing = measurement["timing"]
        assert 0 < timing["low"] <= timing["seconds"] <= timing["high"]
        assert timing["wall"] > 0
        assert timing["processor"] > 0
        if measurement["flops"]:
            assert measurement["flops_per_second"] == pytest.approx(measurement["flops"] / timing["seconds"])
            peaks = [peak["flops_per_second"] for peak in found["peaks"]]
            assert measurement["shares"] == pytest.approx([measurement["flops_per_second"] / peak for peak in peaks])
    step = parts["training", "whole step"]
    assert step["images_per_second"] == pytest.approx(4 / step["timing"]["seconds"])
    assert step["peak_memory"] > 4 * found["network"]["parameters"]  # at least the gradients


def test_it_says_what_where_and_how(measured):
    """Enough to repeat it."""
    _, found, _ = measured
    assert {"sections": tuple(SECTIONS), "against": tuple(RIVALS)} == KNOWN
    assert found["settings"]["preset"] == "digits8"
    assert found["settings"]["batch"] == 4
    assert found["settings"]["clock"] in ("processor time", "wall time")
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert {"date", "processor", "cores", "device", "edm2"} <= found["machine"].keys()
    network = Workload(settings_for("cpu", {"channels": 8})).network
    assert found["network"]["parameters"] == count_parameters(network)
    assert found["network"]["flops_per_image"] == 2 * count_flops(network)


def test_the_plain_form_is_compared_and_the_markdown_is_tables_of_the_same_numbers(measured):
    said, found, markdown = measured
    measurements, comparisons = found["measurements"], found["comparisons"]
    assert {(c["section"], c["part"]) for c in comparisons} == {
        ("training", "forward and backward"), ("training", "whole step"), ("training", "averages"),
        ("sampling", "Heun"), ("sampling", "Heun with guidance"),
    }  # fmt: skip
    rows = table_rows(markdown)
    assert len(rows) == 2 + len(measurements) + len(comparisons)
    assert {len(row) for row in rows[: 1 + len(measurements)]} == {7}
    assert {len(row) for row in rows[1 + len(measurements) :]} == {6}
    titles = [f"{m['section']}: {m['part']}" for m in measurements]
    assert [row[0] for row in rows[1 : 1 + len(measurements)]] == titles
    assert all(title in said for title in titles)
    for row, comparison in zip(rows[2 + len(measurements) :], comparisons, strict=True):
        assert row[4] == f"{comparison['ratio']:.2f}"
        assert comparison["rival"] == "plain"
        assert comparison["what"]
        assert comparison["precisions"] == ["fp32", "fp32"]
        assert len(comparison["ratios"]) == found["settings"]["repeats"]
    why = "networks of preset digits8 draw pixels, which need none"
    assert found["skipped"] == [{"section": "vae", "why": why}]
    assert f"vae: skipped, {why}" in said
    assert f"vae was skipped: {why}" in markdown


def test_half_precision_and_a_choice_of_sections(tmp_path):
    out = tmp_path / "b.json"
    succeed(*TINY, "--only", "sampling", "--precision", "bf16", "--against", "plain", "--out", out)
    found = json.loads(out.read_text())
    assert {m["section"] for m in found["measurements"]} == {"sampling"}
    assert {c["section"] for c in found["comparisons"]} == {"sampling"}
    assert found["comparisons"][0]["precisions"] == ["bf16", "fp32"]
    assert all("bfloat16" in peak["name"] for peak in found["peaks"])


def test_a_vae_decodes_latents_if_there_is_one(tmp_path, monkeypatch):
    vae, out = save_tiny_vae(tmp_path / "vae"), tmp_path / "b.json"
    succeed(*LATENTS, "--only", "vae", "--vae", vae, "--out", out)
    [decoding] = json.loads(out.read_text())["measurements"]
    assert decoding["section"] == "vae"
    assert decoding["images_per_second"] == pytest.approx(1 / decoding["timing"]["seconds"])
    assert str(vae) in decoding["note"]
    (tmp_path / "empty").mkdir()
    result = edm2(*LATENTS, "--vae", tmp_path / "empty")
    assert (result.code, result.out) == (1, ""), "nothing was measured"
    assert f"VAE {tmp_path / 'empty'}: cannot be read" in complaint(result.err)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "vae: skipped, diffusers is not installed: pip install diffusers" in succeed(*LATENTS, "--only", "vae")


def test_a_reconstruction_that_the_disk_cannot_hold_is_skipped(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    said = succeed(*TINY, "--only", "ema")
    assert "ema: update of two averages" in said
    assert "ema: skipped, reconstruction needs" in said


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--only", "train"), 2, "--only train is unknown; there are training, sampling, vae, ema"),
        (("--only", ","), 2, "nothing to measure; there are training, sampling, vae, ema"),
        (("--against", "plain,speed"), 2, "--against speed is unknown; there are plain, karras-unet"),
        (("--only", "vae,ema", "--against", "plain"), 2, "--against compares training and sampling"),
        (("--preset", "edm3"), 2, "'edm3' is not one of"),
        (("--batch", "0"), 2, "--batch"),
    ],
)
def test_unknown_names_are_refused_in_one_line(tmp_path, words, code, message):
    out = tmp_path / "b.json"
    result = edm2(*TINY, *words, "--out", out)
    assert result.code == code
    assert message in complaint(result.err)
    assert result.out == ""
    assert not out.exists()


# ----------------------------------------------------------------------------------------------------------------------
# Another implementation


def test_it_is_compared_without_running_its_package(fake_rival, tmp_path):
    """With as many parameters, none of which is zero: that would be quick to compute with."""
    out = tmp_path / "b.json"
    succeed(*TINY, "--only", "training,sampling", "--against", "karras-unet", "--out", out)
    passes, evaluation = json.loads(out.read_text())["comparisons"]
    assert (passes["part"], evaluation["part"]) == ("forward and backward", "evaluation")
    assert "times the parameters" in passes["what"]
    assert karras.PACKAGE not in sys.modules  # an import of the real one still works
    network = NetworkConfig(16, 3, 5, model_channels=32, channel_mult=(1, 2), num_blocks=1)
    theirs = karras.equal_karras_unet(network)
    assert sum(p.numel() for p in theirs.parameters()) == pytest.approx(count_parameters(network), rel=0.02)
    assert theirs.gain == 1


def test_what_it_cannot_be_compared_with_is_refused(fake_rival, monkeypatch):
    """Before anything is measured."""
    with pytest.raises(ValueError, match="KarrasUnet is for square images, not 8x16"):
        karras.check_karras_unet(NetworkConfig((8, 16), 1, 0, model_channels=8, channel_mult=(1,)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = edm2(*TINY, "--against", "karras-unet")
    assert (result.code, result.out) == (1, "")
    assert "pip install --no-deps --target DIR denoising-diffusion-pytorch einops" in complaint(result.err)


def test_the_real_one_fits_too():
    """Where it can be imported: sizes of the digits and of the paper's XS."""
    try:
        karras.load_karras_unet()
    except karras.MissingRival as error:
        pytest.skip(str(error))
    digits = Workload(settings_for("cpu", {}, quick=True)).network
    theirs = karras.equal_karras_unet(digits)
    count = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert count == pytest.approx(count_parameters(digits), rel=0.02)
    assert karras.count_karras_flops(theirs, digits) == pytest.approx(2 * count_flops(digits), rel=1)  # same order


# ----------------------------------------------------------------------------------------------------------------------
# Measuring


class FakeTime:
    """A module `time` in which work takes as long as it says."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    def perf_counter(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.processor

    def spend(self, wall: float, processor: float) -> None:
        self.wall += wall
        self.processor += processor


@pytest.fixture
def fake_time(monkeypatch) -> FakeTime:
    """In place of the clocks."""
    fake = FakeTime()
    monkeypatch.setattr("edm2.tools.bench.timing.time", fake)
    return fake


@pytest.mark.parametrize(("threads", "kind", "seconds"), [(1, "processor time", 2), (4, "wall time", 5)])
def test_the_clock_that_counts(fake_time, monkeypatch, threads, kind, seconds):
    """Other programs make one thread wait, which is not its own slowness; several threads wait for each other, too.

    Preparations are off the clock.
    """
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    clock = Clock(torch.device("cpu"), repeats=3)
    timing = clock.time(lambda: fake_time.spend(wall=5, processor=2), lambda: fake_time.spend(10, 10))
    assert clock.kind == kind
    assert (timing.seconds, timing.wall, timing.processor) == (seconds, 5, 2)
    durations = [Duration(s, 10 * s, 5 * s) for s in (3.0, 1.0, 2.0, 100.0, 2.5)]
    assert Timing.of(durations) == Timing(2.5, 1.0, 100.0, wall=25.0, processor=12.5), "the median and the extremes"


def test_works_take_turns_in_alternating_order(fake_time):
    """So that a machine that grows slower or faster favours none of them."""
    order: list[str] = []

    def spend(name: str, seconds: float = 1) -> None:
        order.append(name)
        fake_time.spend(seconds, seconds)

    clock = Clock(torch.device("cpu"), repeats=4, warmup=0)
    durations = clock.by_turns({name: lambda n=name: spend(n) for name in "ab"})
    assert "".join(order) == "ab" + "abba" * 2  # once each to see how long it takes
    assert durations == {name: [Duration(1, 1, 1)] * 4 for name in "ab"}

    order.clear()
    timing = Clock(torch.device("cpu"), repeats=1, warmup=0).time(lambda: spend("short", 0.001))
    assert len(order) == 1 + 20, "short work is done many times, so that the clock's resolution does not matter"
    assert timing.seconds == pytest.approx(0.001)

    bench = Bench(Workload(settings_for("cpu", {}, quick=True)), Clock(torch.device("cpu"), repeats=3), ())
    comparison = bench.compared("training", "step", "plain", lambda: spend("a", 1), lambda: spend("b", 2), "")
    assert comparison.ratios == (2, 2, 2), "twice as slow"
    assert (comparison.ours.seconds, comparison.theirs.seconds) == (1, 2)


def test_the_largest_convolution_is_the_networks():
    """Convolutions are nearly all of the operations; the largest is a 3x3 one."""
    network = NetworkConfig(16, 4, 10, model_channels=64, channel_mult=(1, 2), num_blocks=1)
    found = list(convolutions(network, batch=3))
    total = sum(flops for flops, _, _ in found) / 3
    assert 0.8 * 2 * count_flops(network) < total <= 2 * count_flops(network)
    _, x_shape, w_shape = max(found)
    assert x_shape[0] == 3
    assert w_shape[2:] == (3, 3)
    assert w_shape[1] == x_shape[1]
