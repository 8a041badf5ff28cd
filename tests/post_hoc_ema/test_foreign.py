"""Files of other programs: recognized, taken for what they are, and averaged as well as their profiles allow."""

import json
import os
from collections.abc import Callable
from math import lgamma
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edm2.post_hoc_ema import (
    ExponentialProfile,
    PowerProfile,
    RawProfile,
    SnapshotError,
    power_profile,
    rebuild,
    tail_coefficients,
    tail_error,
    write_snapshot,
)
from edm2.post_hoc_ema.foreign.facts import Facts
from edm2.post_hoc_ema.foreign.recognition import recognize
from edm2.post_hoc_ema.foreign.tracked import profile_after

TIMES = (100, 200, 300, 400)
LENGTHS = (0.03, 0.07, 0.15, 0.20, 0.25)


def state(time: int) -> dict[str, Tensor]:
    """Weights that are known at every time, and statistics of BatchNorm that must not be averaged."""
    weight = torch.tensor([time / 400, 1.0, (time / 400) ** 2])
    return {
        "a.weight": weight,
        "b.bias": 2 * weight,
        "n.running_var": torch.tensor([70_000.0 + time]),
        "n.num_batches_tracked": torch.tensor(time),
    }


# ----------------------------------------------------------------------------------------------------------------------
# Layouts: each writer stores one checkpoint; all of them hold the same trajectory


def sharded(folder: Path, state: dict[str, Tensor]) -> None:
    """As transformers does with large models: two files and an index."""
    folder.mkdir(parents=True)
    parts = {f"model-0000{i}-of-00002.safetensors": [*state][i - 1 :: 2] for i in (1, 2)}
    for file, names in parts.items():
        save_file({name: state[name] for name in names}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def stored(path: Path, state: dict[str, Tensor], **metadata: str) -> None:
    """One safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata or None)


def pickled(path: Path, contents: object) -> None:
    """One file of torch.save."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(contents, path)


def transformers(folder: Path, t: int) -> None:
    stored(folder / f"checkpoint-{t}/model.safetensors", state(t), format="pt")
    pickled(folder / f"checkpoint-{t}/optimizer.pt", {"state": {}})
    stored(folder / "model.safetensors", state(7))  # the final weights: of no time
    pickled(folder / "training_args.bin", [Path("not weights")])


def diffusers(folder: Path, t: int) -> None:
    stored(folder / f"checkpoint-{t}/unet/diffusion_pytorch_model.safetensors", state(t))
    stored(folder / f"checkpoint-{t}/unet_ema/diffusion_pytorch_model.safetensors", state(0))


def lightning(folder: Path, t: int) -> None:
    contents = {"state_dict": state(t), "global_step": t, "epoch": 1, "optimizer_states": [{"state": {0: state(1)}}]}
    pickled(folder / f"epoch={t}-loss=0.{t // 100}.ckpt", contents)
    pickled(folder / "last.ckpt", contents)


def kohya(folder: Path, t: int) -> None:
    stored(folder / f"name-{t // 100:06d}.safetensors", state(t), ss_steps=str(t))


def own_loop(folder: Path, t: int) -> None:
    pickled(folder / f"run2_model_{t}.pt", {"model": state(t), "model_ema": state(0), "optimizer": {"lr": 1e-3}})


LAYOUTS: dict[str, Callable[[Path, int], None]] = {
    "files of safetensors": lambda folder, t: stored(folder / f"model_{t:05d}.safetensors", state(t)),
    "transformers": transformers,
    "transformers, in parts": lambda folder, t: sharded(folder / f"checkpoint-{t}", state(t)),
    "transformers, pickled": lambda folder, t: pickled(folder / f"checkpoint-{t}/pytorch_model.bin", state(t)),
    "diffusers": diffusers,
    "accelerate": lambda folder, t: stored(folder / f"checkpoint_{t}/model.safetensors", state(t)),
    "Lightning": lightning,
    "kohya": kohya,
    "plain": lambda folder, t: pickled(folder / f"{t}.pth", state(t)),
    "a dict of one's own": own_loop,
    "torch.save before ZIP files": lambda folder, t: torch.save(
        state(t), folder / f"{t}.pt", _use_new_zipfile_serialization=False
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_checkpoints_of_any_layout_are_averaged(layout: str, tmp_path: Path):
    """The mean over time of the straight lines between checkpoints (facts of the reference: closed form)."""
    for t in TIMES:
        LAYOUTS[layout](tmp_path, t)
    c = [0.014953674, 0.115233356, 0.444048272, 0.425764698]  # for 0.15, from quarters of the run
    rebuilt = rebuild(tmp_path, 0.15)
    assert rebuilt.keys() == state(0).keys()
    for name in ("a.weight", "b.bias"):
        expected = sum(c_i * state(t)[name] for c_i, t in zip(c, TIMES, strict=True))
        torch.testing.assert_close(rebuilt[name], expected, rtol=0, atol=1e-6)


def test_buffers_are_copied_from_the_newest(tmp_path: Path):
    for t in TIMES:
        transformers(tmp_path, t)
    rebuilt = rebuild(tmp_path, 0.1)
    for name in ("n.running_var", "n.num_batches_tracked"):
        assert torch.equal(rebuilt[name], state(400)[name])
        assert rebuilt[name].dtype == state(400)[name].dtype


def test_initial_weights_count_if_they_are_there(tmp_path: Path):
    """A wide average of three files knows more with the initial weights."""
    for t in (0, 200, 400):
        transformers(tmp_path, t)
    found = recognize(tmp_path, Facts())
    assert [s.profile for s in found.snapshots] == [RawProfile(0), RawProfile(200), RawProfile(400)]
    assert set(found.left_aside) == {"model.safetensors", "training_args.bin"}
    a = power_profile(400, 0.2).exponent
    linear = rebuild(tmp_path, 0.2)["a.weight"][0].item()  # weights t/T: exact, as between checkpoints all is straight
    assert linear == pytest.approx(a / (a + 1), abs=1e-6)


def test_fine_tuning_has_a_clock_of_its_own(tmp_path: Path):
    """Checkpoints at 1000 + t, averaged from 1000 on, are those at t averaged from 0 on."""
    for t in (0, *TIMES):
        pickled(tmp_path / f"run/{t}.pt", state(t))
        pickled(tmp_path / f"fine/{1000 + t}.pt", state(t))
    expected = rebuild(tmp_path / "run", 0.12)
    rebuilt = rebuild(tmp_path / "fine", 0.12, clock_from=1000)
    torch.testing.assert_close(rebuilt["a.weight"], expected["a.weight"], rtol=0, atol=1e-6)
    other = rebuild(tmp_path / "fine", 0.12)
    assert (other["a.weight"] - expected["a.weight"]).abs().max() > 0.01  # of the run's clock: the last 12 % of 1400


# ----------------------------------------------------------------------------------------------------------------------
# A walk: errors against the average itself


@pytest.fixture(scope="module")
def walk() -> Tensor:
    """Weights [time, weight] that move at random, with unit end spread."""
    steps = torch.randn(3201, 5000, generator=torch.Generator().manual_seed(0)) / 3200**0.5
    steps[0] = 0
    return steps.cumsum(dim=0)


def averaged(walk: Tensor, sigma_rel: float, t: int) -> Tensor:
    """The average of EMA length `sigma_rel` at time t, from all weights."""
    share = torch.linspace(0, 1, t + 1, dtype=torch.float64) ** power_profile(t, sigma_rel).exponent
    return share.diff().float() @ walk[1 : t + 1]


def rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item()


RAW_ERRORS = {
    8: (0.0909, 0.0827, 0.0571, 0.0471, 0.0399),
    16: (0.0614, 0.0444, 0.0288, 0.0236, 0.0199),
    32: (0.0344, 0.0226, 0.0144, 0.0118, 0.0099),
    64: (0.0178, 0.0114, 0.0072, 0.0059, 0.0050),
}
"""Errors for plain checkpoints, evenly spaced, of a walk with unit end spread, by their number, for LENGTHS."""

MERGED_ERRORS = {16: (0.101, 0.088, 0.067, 0.062, 0.060), 32: (0.063, 0.047, 0.034, 0.031, 0.030)}
"""The same where each checkpoint is merged into the last result with the β of a tracker that sees nothing else."""


def merged_coefficients(count: int, sigma_rel: float) -> np.ndarray:
    """Coefficients of checkpoints that are merged one after the other, with a clock that begins at the first."""
    reached = (np.arange(count) / (count - 1)) ** power_profile(1, sigma_rel).exponent
    return np.diff(reached, prepend=0)


@pytest.mark.parametrize("count", RAW_ERRORS)
def test_plain_checkpoints_err_as_little_as_can_be(count: int):
    """Better than merging one after the other, at every length; both as in the table."""
    inputs = [RawProfile((i + 1) / count) for i in range(count)]
    for sigma_rel, error in zip(LENGTHS, RAW_ERRORS[count], strict=True):
        target = [power_profile(1, sigma_rel)]
        best = tail_error(inputs, target, tail_coefficients(inputs, target)).item()
        merged = tail_error(inputs, target, merged_coefficients(count, sigma_rel)[:, None]).item()
        assert best == pytest.approx(error, abs=6e-5)
        assert best < 0.8 * merged
        if count in MERGED_ERRORS:
            assert merged == pytest.approx(MERGED_ERRORS[count][LENGTHS.index(sigma_rel)], abs=6e-4)


@pytest.mark.parametrize("count", [16, 32])
def test_files_of_plain_checkpoints_err_as_the_table_says(count: int, walk: Tensor, tmp_path: Path):
    for t in range(3200 // count, 3201, 3200 // count):
        stored(tmp_path / f"step-{t}.safetensors", {"w": walk[t].clone()})
    for sigma_rel, error in zip(LENGTHS, RAW_ERRORS[count], strict=True):
        expected = averaged(walk, sigma_rel, 3200)
        assert rms(rebuild(tmp_path, sigma_rel)["w"] - expected) == pytest.approx(error, rel=0.05)


@pytest.mark.parametrize(("decay", "every"), [(0.98, 1), (0.99, 10)])
def test_averages_of_constant_decay_become_others(decay: float, every: int, walk: Tensor, tmp_path: Path):
    """Their error is the one that their profiles predict, and far below that of the same number of checkpoints."""
    average, profiles = walk[0].clone(), []
    for t in range(1, 3201):
        if t % every == 0:
            average.lerp_(walk[t], 1 - decay)
        if t % 200 == 0:
            stored(tmp_path / f"ema_{t}.safetensors", {"w": average.clone()})
            profiles.append(ExponentialProfile(t, -np.log(decay) / every))
    found = recognize(tmp_path, Facts(decay=decay, update_every=every))
    assert [snapshot.profile for snapshot in found.snapshots] == profiles
    for sigma_rel in (0.1, 0.2):
        target = [power_profile(3200, sigma_rel)]
        predicted = tail_error(profiles, target, tail_coefficients(profiles, target)).item() / 3200**0.5
        rebuilt = rebuild(tmp_path, sigma_rel, decay=decay, update_every=every)["w"]
        late = every / 2 / 3200  # weights of half an interval ago, on average
        assert rms(rebuilt - averaged(walk, sigma_rel, 3200)) == pytest.approx(predicted, rel=0.1, abs=1.5 * late)
        assert predicted < 0.8 * RAW_ERRORS[16][1]


# ----------------------------------------------------------------------------------------------------------------------
# ema-pytorch


def realized_tail(k: int, sigma_rel: float, calls: int, m: np.ndarray) -> np.ndarray:
    """Mass R(m) on the weights up to update m, for updates at calls 1, 1 + k, 1 + 2 k, ... with the β of one call."""
    M, a = (calls - 1) // k, power_profile(1, sigma_rel).exponent
    parts = [lgamma(M + 1 + 1 / k) - lgamma(M + 1 + 2 / k) + lgamma(i + 1 + 2 / k) - lgamma(i + 1 + 1 / k) for i in m]
    return np.exp(a * np.array(parts))


REALIZED = {
    10: ((0, 50, 100, 150, 198), (0.011268129, 0.336661917, 0.580636753, 0.799701893, 0.996022391)),
    100: ((0, 5, 10, 18), (0.755998514, 0.904652896, 0.952123099, 0.995834519)),
}
"""Updates m and R(m) after 2,000 calls at the length 0.10, by the interval of updates."""


def ema_pytorch_files(folder: Path, k: int, tracked: tuple[float, ...], walk: Tensor, every: int, calls: int) -> None:
    """Files as ema-pytorch writes them, made by its law in float32."""
    averages = [walk[1].clone() for _ in tracked]
    folder.mkdir(exist_ok=True)
    for n in range(1, calls + 1):
        for i, (average, sigma_rel) in enumerate(zip(averages, tracked, strict=True)):
            if (n - 1) % k == 0:
                average.lerp_(walk[n], 1 - (1 - 1 / (n + 1)) ** power_profile(1, sigma_rel).exponent)
            if n % every == 0:
                entries = {"initted": torch.tensor(1.0), "step": torch.tensor(float(n)), "ema_model.w": average}
                torch.save({name: t.half() for name, t in entries.items()}, folder / f"{i}.{n}.pt")


@pytest.mark.parametrize("k", REALIZED)
def test_the_profile_of_a_file_is_what_the_package_realizes(k: int, tmp_path: Path):
    """Exactly R(m) after update m; the profile is that between updates, whose last is before the file was stored."""
    m, R = (np.array(x) for x in REALIZED[k])
    np.testing.assert_allclose(realized_tail(k, 0.10, 2000, m), R, atol=1e-9)
    basis = torch.eye(2001)  # the average of unit vectors is the profile itself
    ema_pytorch_files(tmp_path, k, (0.10,), basis, every=2000, calls=2000)
    found = recognize(tmp_path, Facts(update_every=k, tracked=(0.10,)))
    [snapshot] = found.snapshots
    mass = snapshot.read("w").double().cumsum(0)
    np.testing.assert_allclose(mass[m * k + 1], R, atol=2e-3)  # rounded to float16
    last = k * (1999 // k) + 1
    assert snapshot.images_seen == snapshot.profile.t == last
    assert mass[last] == pytest.approx(1, abs=2e-3)
    middle = m[m * k + 1 < last] * k + 1 + k / 2
    np.testing.assert_allclose(1 - snapshot.profile.tail(middle[1:]), R[1 : len(middle)], atol=1e-4)
    np.testing.assert_allclose(1 - snapshot.profile.tail(middle[:1]), R[:1], atol=7e-3)  # a Gamma function's beginning
    assert isinstance(snapshot.profile, PowerProfile)
    assert snapshot.profile.exponent == pytest.approx(power_profile(1, 0.10).exponent / k)


@pytest.mark.parametrize(("k", "offset"), [(1, 0), (10, 0), (10, 99)])
def test_pytorch_posthoc_ema_counts_from_where_it_began(k: int, offset: int, walk: Tensor, tmp_path: Path):
    """Its files have no prefix and tell how many steps it has counted, so its clock need not be given."""
    ema_pytorch_files(tmp_path / "a", k, (0.05, 0.28), walk[offset:], every=100, calls=2000)
    for path in (tmp_path / "a").iterdir():
        i, n, _ = path.name.split(".")
        entries = torch.load(path, weights_only=True)
        entries["w"] = entries.pop("ema_model.w").float()
        entries["step"] = torch.tensor(int(n))
        pickled(tmp_path / f"b/{i}.{int(n) + offset}.pt", entries)
    found = recognize(tmp_path / "b", Facts(update_every=k, tracked=(0.05, 0.28)))
    assert "pytorch-posthoc-ema" in found.kind
    t = found.snapshots[-1].images_seen
    assert t == offset + k * (1999 // k) + 1
    rebuilt = rebuild(tmp_path / "b", 0.15, update_every=k, tracked=(0.05, 0.28))["w"]
    assert rms(rebuilt - averaged(walk, 0.15, t)) < 0.01 * rms(rebuilt)


def test_files_without_an_update_between_them_count_once(walk: Tensor, tmp_path: Path):
    """With an update every 100 calls, files every 50 calls hold every average twice; the first is of one update."""
    ema_pytorch_files(tmp_path, 100, (0.05, 0.10), walk, every=50, calls=600)
    found = recognize(tmp_path, Facts(update_every=100, tracked=(0.05, 0.10)))
    assert [s.path.name for s in found.snapshots[:3]] == ["1.100.pt", "0.200.pt", "1.200.pt"]
    assert found.snapshots[0].profile == RawProfile(1)
    assert len(found.snapshots) == 11
    assert len(found.left_aside) == 13


def test_the_time_of_a_file_is_that_of_its_last_update():
    """Profiles that end at the step in the name of the file err by ten times as much, at the short length most."""
    steps, k = range(200, 2001, 100), 100
    inputs = [profile_after(step, sigma_rel, k, clock=0) for step in steps for sigma_rel in (0.05, 0.10)]
    labelled = [PowerProfile(step, inputs[i].exponent) for step in steps for i in (0, 1)]
    for sigma_rel in (0.03, 0.10, 0.20):
        error, as_labelled = (
            tail_error(inputs, target, tail_coefficients(profiles, target)).item() / 2000**0.5
            for profiles, target in (
                (inputs, [power_profile(1901, sigma_rel)]),
                (labelled, [power_profile(2000, sigma_rel)]),
            )
        )
        assert error < 0.02
        assert as_labelled > 10 * error


@pytest.mark.parametrize(("ridge", "error", "as_labelled"), [(0, 0.0152, 0.80), (7.5e-10, 0.0204, 0.292)])
def test_how_much_a_wrong_time_costs_depends_on_the_ridge(ridge: float, error: float, as_labelled: float):
    """With 20 files of each length, target 0.03; without a ridge, coefficients of wrong profiles grow without bound.

    The ridge, 3.8e-13 of the run, is that of rounding to float32 where weights have moved by 4 % of their size.
    """
    steps, k = range(200, 2001, 100), 100
    inputs = [profile_after(step, sigma_rel, k, clock=0) for step in steps for sigma_rel in (0.05, 0.10)]
    labelled = [PowerProfile(step, inputs[i].exponent) for step in steps for i in (0, 1)]
    for profiles, end, expected in ((inputs, 1901, error), (labelled, 2000, as_labelled)):
        target = [power_profile(end, 0.03)]
        found = tail_error(inputs, target, tail_coefficients(profiles, target, ridge)).item() / 2000**0.5
        assert found == pytest.approx(expected, rel=0.01)


RESCUED = {10: (0.0098, 0.0027, 0.0011, 0.0006), 100: (0.027, 0.015, 0.011, 0.0085)}
"""Relative errors of weights rebuilt from files of ema-pytorch 0.8.3, for the lengths 0.05, 0.10, 0.15, 0.20, by k."""


@pytest.mark.slow
@pytest.mark.parametrize("k", RESCUED)
def test_rescue_of_real_files(k: int, tmp_path: Path):
    """ema-pytorch beside exact averages of the same run: its files hold them, its own synthesis does not."""
    package = pytest.importorskip("ema_pytorch")
    from edm2.tools.bench.studies.rescue import rescue

    for own, rescued, stated in zip(*rescue(package, k, tmp_path), RESCUED[k], strict=True):
        assert rescued < 1.5 * stated
        assert own > 15 * rescued


@pytest.mark.slow
@pytest.mark.parametrize(("after", "decay", "steps"), [(0, 0.9999, 300), (40, 0.9999, 300), (0, 0.9, 300)])
def test_averages_of_diffusers_are_what_their_configuration_says(after: int, decay: float, steps: int, tmp_path: Path):
    """Real files of an `EMAModel`, whose decay grows for its first 9/(1 - β) updates; of unit vectors, as above."""
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.training_utils import EMAModel

    class Net(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self, size: int = steps + 1) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(size))

    net = Net()
    average = EMAModel(
        net.parameters(), decay, update_after_step=after, use_ema_warmup=False, model_cls=Net, model_config=net.config
    )
    for basis in torch.eye(steps + 1)[1:]:
        net.weight.data.copy_(basis)
        average.step(net.parameters())
    average.save_pretrained(tmp_path / f"checkpoint-{steps}/unet_ema")
    net.save_pretrained(tmp_path / f"checkpoint-{steps}/unet")
    [snapshot] = recognize(tmp_path, Facts(decay=decay)).snapshots
    mass = snapshot.read("weight").double().cumsum(0)
    middle = np.arange(steps) + 0.5
    np.testing.assert_allclose(snapshot.profile.tail(middle), 1 - mass[:-1], atol=2e-3 if decay > 0.99 else 0.07)
    assert recognize(tmp_path, Facts()).snapshots[0].profile == RawProfile(steps)
    with pytest.raises(SnapshotError, match=f"its average has the decay {decay}, not 0.5"):
        recognize(tmp_path, Facts(decay=0.5))


# ----------------------------------------------------------------------------------------------------------------------
# Wrong input


class Executed:
    """An object whose pickle runs a program."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


def facts_of_plain_files(folder: Path) -> None:
    for t in TIMES:
        pickled(folder / f"{t}.pt", state(t))


def ours(folder: Path) -> None:
    for t in TIMES:
        write_snapshot(folder / f"{t}.safetensors", state(t), {"images_seen": t, "sigma_rel": 0})


def with_folders(folder: Path) -> None:
    transformers(folder, 100)
    pickled(folder / "model_200.pt", state(200))


def without_a_part(folder: Path) -> None:
    sharded(folder / "checkpoint-5", state(5))
    (folder / "checkpoint-5/model-00002-of-00002.safetensors").unlink()


def without_an_index(folder: Path) -> None:
    sharded(folder / "checkpoint-5", state(5))
    (folder / "checkpoint-5/model.safetensors.index.json").unlink()


def index_of_elsewhere(folder: Path) -> None:
    stored(folder / "secret.safetensors", state(1))
    sharded(folder / "checkpoint-5", state(5))
    (folder / "checkpoint-5/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../secret.safetensors"}})
    )


def two_networks(folder: Path) -> None:
    stored(folder / "checkpoint-5/unet/diffusion_pytorch_model.safetensors", state(5))
    stored(folder / "checkpoint-5/text_encoder/model.safetensors", state(5))


def stretched(folder: Path) -> None:
    pickled(folder / "1.pt", {"w": torch.zeros(1).expand(1 << 40)})


def ema_pytorch(folder: Path) -> None:
    ema_pytorch_files(folder, 10, (0.05, 0.10), torch.randn(41, 3), every=20, calls=40)


WRONG: dict[str, tuple[Callable[[Path], object], dict, str]] = {
    "nothing": (lambda f: (f / "notes.txt").write_text(""), {}, "no snapshots and no weights in ckpts"),
    "snapshots of ours among others": (
        lambda f: (ours(f), stored(f / "9.safetensors", state(9))),
        {},
        "mixes snapshots",
    ),
    "two formats": (lambda f: (facts_of_plain_files(f), stored(f / "9.safetensors", state(9))), {}, "mixes kinds"),
    "files and folders": (with_folders, {}, "mixes kinds, such as checkpoint-100 and model_200.pt"),
    "no index": (without_an_index, {}, "no index (model.safetensors.index.json)"),
    "an index that is none": (
        lambda f: (without_an_index(f), (f / "checkpoint-5/model.safetensors.index.json").write_text("[]")),
        {},
        "is no index of weights",
    ),
    "a part is missing": (without_a_part, {}, "lists model-00002-of-00002.safetensors, which is not beside it"),
    "an index that points elsewhere": (index_of_elsewhere, {}, "lists secret.safetensors, which is not beside it"),
    "a pickle that runs a program": (lambda f: pickled(f / "1.pt", Executed()), {}, "is no file of weights"),
    "a pickle of no weights": (lambda f: pickled(f / "1.pt", {"lr": 1}), {}, "holds no tensors by name"),
    "a tensor alone": (lambda f: pickled(f / "1.pt", torch.zeros(1)), {}, "no tensors by name"),
    "no pickle": (lambda f: (f / "1.pt").write_text("weights"), {}, "1.pt is no file of weights"),
    "truncated": (
        lambda f: (pickled(f / "1.pt", state(1)), (f / "1.pt").write_bytes((f / "1.pt").read_bytes()[:500])),
        {},
        "1.pt is no file of weights",
    ),
    "a truncated safetensors file": (lambda f: (f / "1.safetensors").write_bytes(b"\x08" + bytes(9)), {}, "truncated"),
    "numbers from nowhere": (stretched, {}, "w is no tensor that can be averaged"),
    "sparse": (
        lambda f: pickled(f / "1.pt", {"w": torch.eye(2).to_sparse()}),
        {},
        "w is no tensor that can be averaged",
    ),
    "an unusual type": (
        lambda f: stored(f / "1.safetensors", {"w": torch.ones(2).to(torch.float8_e8m0fnu)}),
        {},
        "w is of a type that cannot be averaged",
    ),
    "no times": (lambda f: pickled(f / "model.pt", state(1)), {}, "model_500.pt"),
    "two networks in a folder": (two_networks, {}, "weights in text_encoder and in unet; name one"),
    "two networks in a file": (
        lambda f: pickled(f / "1.pt", {"generator": state(1), "discriminator": state(1)}),
        {},
        "weights in generator, discriminator; name one",
    ),
    "an average alone": (
        lambda f: [pickled(f / f"{t}.pt", {"ema": state(t), "step": t}) for t in TIMES],
        {},
        "holds an average alone; say its --decay",
    ),
    "no such part": (two_networks, {"part": "vae"}, "such as checkpoint-5, has weights in vae"),
    "no lengths": (ema_pytorch, {"update_every": 10}, "tell neither their EMA lengths nor"),
    "too few lengths": (
        ema_pytorch,
        {"update_every": 10, "tracked": (0.05,)},
        "a length for each of the averages 0 to 1",
    ),
    "no interval": (ema_pytorch, {"tracked": (0.05, 0.1)}, "--update-every 100"),
    "lengths of plain files": (facts_of_plain_files, {"tracked": (0.05, 0.1)}, "holds no files of ema-pytorch"),
    "an interval of plain files": (facts_of_plain_files, {"update_every": 3}, "holds no files of ema-pytorch"),
    "other shapes": (
        lambda f: (pickled(f / "1.pt", {"w": torch.zeros(2)}), pickled(f / "2.pt", {"w": torch.zeros(3)})),
        {},
        "w is (3,) and (2,)",
    ),
    "other names": (
        lambda f: (pickled(f / "1.pt", {"w": torch.zeros(2)}), pickled(f / "2.pt", {"v": torch.zeros(2)})),
        {},
        "different networks",
    ),
    "twice the same time": (
        lambda f: (pickled(f / "a1.pt", state(1)), pickled(f / "b1.pt", state(1))),
        {},
        "keep only one of them",
    ),
    "one file": (lambda f: pickled(f / "1.pt", state(1)), {}, "needs two snapshots or more"),
    "an impossible decay": (facts_of_plain_files, {"decay": 1.5}, "decay=1.5 must be between 0 and 1"),
    "an impossible interval": (facts_of_plain_files, {"update_every": 0}, "update_every=0 must be 1"),
    "an impossible clock": (facts_of_plain_files, {"clock_from": -1}, "clock_from=-1"),
    "a clock that begins after the end": (facts_of_plain_files, {"clock_from": 400}, "is not after 400"),
    "an impossible tracked length": (facts_of_plain_files, {"tracked": (0.5,)}, "0.2887"),
    "a LoRA that is none": (facts_of_plain_files, {"lora": "product"}, "there are no LoRAs"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_used_is_told_in_one_line(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make, facts, complaint = WRONG[wrong]
    (tmp_path / "ckpts").mkdir()
    make(tmp_path / "ckpts")
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        rebuild("ckpts", 0.1, **facts)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("executed").exists()
