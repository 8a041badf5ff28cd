"""An image depends on its seed and its class alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from golden_data import arrays, max_rel, present, select, table
from known_denoisers import golden_network
from torch import Tensor
from torch.nn.functional import one_hot

import edm2
from edm2.networks import Precond, fold
from edm2.sampling.external import empty_classes_of
from edm2.sampling.generation import SampleBatch, class_index, classes_of_seeds, random_classes
from edm2.sampling.samplers.heun import Denoiser, sample_heun
from edm2.training import PixelCodec

SEEDS = [0, 1, 7, 12, 345, 6789, 2**32 - 1, 2**33 + 5, 3]
STEPS = 4


@dataclass
class Drawn:
    """Batches of a call, concatenated."""

    seeds: list[int]
    noise: Tensor
    classes: Tensor | None
    samples: Tensor

    def image_of(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noise, class and pixels."""
        i = self.seeds.index(seed)
        return self.noise[i], self.classes[i], PixelCodec().decode(self.samples[i : i + 1])[0]


def draw(net: Precond, seeds: Sequence[int], *args: Any, **options: Any) -> Drawn:
    noise = []

    def watched(denoise: Denoiser, start: Tensor, labels: Tensor | None, **options: Any) -> Tensor:
        noise.append(start)
        return sample_heun(denoise, start, labels, **options)

    batches = list(edm2.generate(net, seeds, *args, sampler=watched, **{"num_steps": STEPS, **options}))
    classes = None if batches[0].classes is None else torch.cat([batch.classes for batch in batches])
    drawn_seeds = [seed for batch in batches for seed in batch.seeds]
    return Drawn(drawn_seeds, torch.cat(noise), classes, torch.cat([batch.samples for batch in batches]))


# ------------------------------------------------------------------------------------------------ golden/sampler


def golden_options(golden, run: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` for a run; every option must be known."""
    described = {"id", "seeds", "batches", "files_written", "class_of_seed"}
    renamed = {"class_idx": "classes", "max_batch_size": "batch_size"}
    options = {renamed.get(name, name): value for name, value in run.items() if name not in described}
    if "guidance" in options:
        options["guide"] = golden_network(golden, "gnet")
    if "batch_size" in options:
        options["batch_size"] = max(map(len, run["batches"]))
    return options


def test_seeds_give_the_published_images(golden):
    """Noise and classes exactly; samples to the float32 rounding of the networks over the steps (2e-5)."""
    net, numbers = golden_network(golden, "net"), arrays(golden, "sampler/sampler.safetensors")
    seeded = [run for run in table(golden, "sampler/sampler.json")["runs"] if "seeds" in run]
    for run in present(seeded, numbers):
        expected = select(numbers, run["id"])
        ours = draw(net, run["seeds"], **golden_options(golden, run))
        assert ours.seeds == run["seeds"], run["id"]
        assert torch.equal(ours.noise, expected["noise"]), run["id"]
        if net.config.label_dim:
            assert ours.classes.tolist() == run["class_of_seed"], run["id"]
            assert torch.equal(one_hot(ours.classes, net.config.label_dim).float(), expected["labels"]), run["id"]
        assert max_rel(ours.samples, expected["latents"]) <= 2e-5, run["id"]
        assert torch.equal(PixelCodec().decode(expected["latents"]), expected["images_uint8"]), run["id"]
        pixels = PixelCodec().decode(ours.samples).int()
        assert (pixels - expected["images_uint8"].int()).abs().max() <= 1, run["id"]  # a level is where rounding ends


# ------------------------------------------------------------------------------------------------ independence


@pytest.mark.parametrize(
    "order", [sorted, lambda seeds: seeds[::-1], lambda seeds: seeds[3:4]], ids=["sorted", "reversed", "alone"]
)
@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_an_image_depends_on_its_seed_alone(net, batch_size: int, order: Callable):
    """Noise and class to the bit; pixels within one level, since convolutions round by the size of the batch."""
    reference = draw(net, SEEDS)
    other = draw(net, order(SEEDS), batch_size=batch_size)
    for seed in other.seeds:
        (noise, label, pixels), (noise_, label_, pixels_) = reference.image_of(seed), other.image_of(seed)
        assert torch.equal(noise, noise_)
        assert label == label_
        assert (pixels.int() - pixels_.int()).abs().max() <= 1


def test_seeds_differ_and_count_modulo_2_to_the_32(net):
    drawn = draw(net, range(100), num_steps=1)
    assert len(drawn.noise.flatten(1).unique(dim=0)) == 100
    assert set(drawn.classes.tolist()) == set(range(10))  # missing one of ten has a chance of 3e-4; seeds are fixed
    first, second = draw(net, [5, -1]), draw(net, [5 + 2**32, 2**32 - 1])
    assert torch.equal(first.samples, second.samples)
    assert not torch.equal(first.noise, draw(net, [5 + 2**31, 2**31 - 1]).noise)


def test_churn_noise_belongs_to_the_seed_too(net):
    state = torch.random.get_rng_state()
    alone, together = draw(net, [7], S_churn=3), draw(net, SEEDS, S_churn=3)
    assert torch.equal(torch.random.get_rng_state(), state)  # global random numbers are left alone
    pixels, pixels_ = alone.image_of(7)[2], together.image_of(7)[2]
    assert (pixels.int() - pixels_.int()).abs().max() <= 1
    assert not torch.equal(pixels, draw(net, [7]).image_of(7)[2])


# ------------------------------------------------------------------------------------------------ other networks


def test_batches_say_what_they_hold(net, unconditional):
    batches = list(edm2.generate(net, range(5), batch_size=2, num_steps=2))
    assert [batch.seeds for batch in batches] == [(0, 1), (2, 3), (4,)]
    for batch in batches:
        assert isinstance(batch, SampleBatch)
        assert batch.samples.dtype == torch.float32
        assert batch.samples.shape == (len(batch.seeds), 3, 8, 8)
        assert batch.classes.dtype == torch.int64
    assert list(edm2.generate(net, [])) == []
    [batch] = edm2.generate(unconditional, [1, 2], num_steps=2)
    assert batch.classes is classes_of_seeds(unconditional, SEEDS) is None
    assert batch.samples.shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="without labels"):
        edm2.generate(unconditional, [0], 3)


def test_guidance_reaches_the_sampler_and_a_folded_network_draws_the_same(net, unconditional):
    """Weights normalized beforehand: float32 rounding over a few steps."""
    plain, unguided = draw(net, SEEDS), draw(net, SEEDS, guide=unconditional)
    assert torch.equal(plain.samples, unguided.samples)  # the default weight is 1
    guided = draw(net, SEEDS, guide=unconditional, guidance=2.0)
    assert max_rel(guided.samples, plain.samples) > 0.01
    nowhere = draw(net, SEEDS, guide=unconditional, guidance=2.0, interval=(500, 1000))
    assert torch.equal(nowhere.samples, plain.samples)
    assert max_rel(draw(fold(net), SEEDS).samples, plain.samples) < 2e-5


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor], ids=["list", "tuple", "array", "tensor"])
def test_classes_are_known_without_drawing_come_in_any_sequence_and_keep_the_noise(net, kind):
    assert classes_of_seeds(net, []).tolist() == []
    assert draw(net, range(2), np.int64(3)).classes.tolist() == [3, 3]
    by_seed = draw(net, SEEDS, batch_size=4)
    assert torch.equal(draw(net, kind(SEEDS), batch_size=4).samples, by_seed.samples)
    for halves in ({"seeds": [0.5]}, {"seeds": [0], "classes": [1.5]}):
        with pytest.raises(TypeError, match="integer"):
            edm2.generate(net, **halves)
    assert torch.equal(draw(net, SEEDS, by_seed.classes.tolist(), batch_size=4).samples, by_seed.samples)
    for classes in (None, 3, kind([9, 8, 7, 6, 5, 4, 3, 2, 1])):
        drawn = draw(net, SEEDS, classes, batch_size=4)
        assert torch.equal(classes_of_seeds(net, SEEDS, classes, batch_size=4), drawn.classes)
        assert torch.equal(drawn.noise, by_seed.noise)


# ------------------------------------------------------------------------------------------------ classes

GAPS = (0, 3, 4, 9)


def test_classes_without_images_are_not_drawn_by_themselves(net, make_net):
    """Others are drawn in their place, equally often; what is drawn of the others, and what is asked for, stays."""
    with_gaps, seeds = make_net(), range(3000)
    with_gaps.empty_classes = GAPS
    before, after = classes_of_seeds(net, seeds), classes_of_seeds(fold(with_gaps), seeds)
    full = torch.tensor([c not in GAPS for c in before.tolist()])
    assert torch.equal(before[full], after[full])
    counts = after.bincount(minlength=10)
    assert counts[list(GAPS)].sum() == 0
    assert counts[[1, 2, 5, 6, 7, 8]].min() > 400  # 500 expected, with a standard deviation of 20
    [batch] = edm2.generate(with_gaps, [1, 2], 3, num_steps=1)
    assert batch.classes.tolist() == [3, 3]


def test_without_empty_classes_one_number_is_drawn():
    """So that churn draws what it always drew."""
    asked = []
    random_classes(lambda high: asked.append(high) or torch.zeros(1, dtype=torch.int64), 10, ())
    assert asked == [10]


@pytest.mark.parametrize(
    ("data", "empty"),
    [({"empty_classes": [2, 1]}, (1, 2)), ({}, ()), (None, ()), ("x", ()), ({"empty_classes": [7, -1, "1", True]}, ())]
    + [({"empty_classes": [0, 1, 2]}, ()), ({"empty_classes": 1}, ())],
)
def test_what_a_file_says_of_empty_classes_is_not_trusted(data, empty):
    assert empty_classes_of({"data": data}, 3) == empty


NUMBERS = ("1", "10", "2")


@pytest.mark.parametrize(
    ("label", "names", "index"),
    [("dog", ("cat", "dog"), 1), ("1", ("cat", "dog"), 1), (1, ("cat", "dog"), 1), ("7", (), 7), ("2", NUMBERS, 2)]
    + [(10, NUMBERS, 1), (-1, NUMBERS, -1), ("e\u0301", ("\u00e9",), 0), ("\u00e9", ("e\u0301",), 0)],
)
def test_classes_by_name_or_number(label, names, index):
    assert class_index(label, names) == index


@pytest.mark.parametrize(("label", "names"), [("0", NUMBERS), (3, NUMBERS), ("bird", ("cat", "dog")), ("bird", ())])
def test_what_is_no_class(label, names):
    with pytest.raises(ValueError, match=r"class '?(0|3|bird)'? is (none of|neither a number)"):
        class_index(label, names)


# ------------------------------------------------------------------------------------------------ mistakes


def test_mistakes_are_told_in_one_line_at_the_call(net, make_net):
    """The sampler's own options with the first batch."""
    guide = {"guidance": 2.0, "guide": lambda x, sigma, labels: x}
    for options, words in (
        ({"classes": 10}, "class 10 .* 0 to 9"),
        ({"classes": -1}, "class -1"),
        ({"classes": [0, 1, 2]}, "3 classes for 2 seeds"),
        ({"classes": [0, 99]}, "class 99"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": -4}, "batch_size=-4"),
        ({"guidance": 2.0}, "guide"),
        (guide | {"interval": (2.0, 1.0)}, "interval"),
        (guide | {"guide": make_net(img_channels=1)}, "1x8x8 of 10 classes, not 3x8x8"),
        (guide | {"guide": make_net(img_resolution=16)}, "3x16x16"),
        (guide | {"guide": make_net(label_dim=7)}, "7 classes, not 3x8x8 of 10"),
    ):
        with pytest.raises(ValueError, match=rf"^[^\n]*{words}[^\n]*$"):
            edm2.generate(net, [0, 1], **options)
    with pytest.raises(ValueError, match="num_steps=0"):
        list(edm2.generate(net, [0, 1], num_steps=0))
