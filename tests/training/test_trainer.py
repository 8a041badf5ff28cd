"""The training step against the published trajectory, and what a run guarantees."""

import json
import math

import pytest
import torch
from golden_data import arrays, rms_rel, select, table
from tiny_run import StopAt, assert_same_bits, final_state, run, stats, tiny_config, tiny_data

from edm2.networks import NetworkConfig
from edm2.post_hoc_ema import find_snapshots
from edm2.training import (
    ArrayDataset,
    CheckpointError,
    DatasetError,
    PixelCodec,
    RunFolder,
    RunFolderError,
    Trainer,
    TrainingConfig,
    TrainingError,
    codec_from_json,
    read_run_config,
)
from edm2.training.callbacks import SampleGrids, SpeedReport
from edm2.training.data.batches import Batch, BatchStream
from edm2.training.data.dataset import Subset
from edm2.training.draws import GivenDraws
from edm2.training.randomness import PositionRandom, Stream
from edm2.training.run import speed
from edm2.training.run.checkpoint import adam_state
from edm2.training.run.checkpoint_folder import find_checkpoints

# ------------------------------------------------------------------------------------------ the published trajectory


def golden_trainer(settings: dict, state0: dict, tmp_path) -> Trainer:
    shape = (settings[name] for name in ("img_resolution", "img_channels", "label_dim"))
    config = TrainingConfig(
        data="given by the test",
        out=str(tmp_path),
        network=NetworkConfig(*shape, sigma_data=settings["sigma_data"], **settings["netcfg"]),
        duration=settings["batch"] * settings["iters"],
        batch_size=settings["batch"],
        micro_batch=settings["batch_gpu"],
        rampup_images=settings["rampup_Mimg"] * 1e6,
        betas=settings["adam"]["betas"],
        sigma_rels=settings["stds"],
        **{name: settings[name] for name in ("ref_lr", "ref_batches", "P_mean", "P_std")},
    )
    trainer = Trainer(config)
    trainer.net.load_state_dict(state0)
    return trainer


@pytest.mark.parametrize("run", ["main", "accum2", "nonfinite"])
def test_step_repeats_the_published_trajectory(golden, run, tmp_path):
    values, settings = arrays(golden, f"train/{run}.safetensors"), table(golden, "train/train.json")[run]
    if "step/images" not in values:
        pytest.skip(f"the compact selection leaves out {run}")
    state0 = select(arrays(golden, "train/main.safetensors"), "state0")
    trainer = golden_trainer(settings, state0, tmp_path)
    poison = settings.get("poison")
    for k in range(settings["iters"]):
        images = values["step/images"][k].clone()
        if poison and poison[0] == k:
            images[0][tuple(poison[1])] = torch.inf
        sigma = trainer.step.loss.distribution.sigma(values["step/rnd_normal"][k]).flatten()
        assert trainer.step.learning_rate() == pytest.approx(float(values["step/lr"][k]), rel=1e-6, abs=1e-12)
        trainer.step.draws = GivenDraws(trainer.images_seen, sigma, values["step/unit_noise"][k].flatten(0, 1))
        result = trainer.step(list(map(Batch, images, values["step/labels"][k])))
        assert trainer.images_seen == int(values["step/cur_nimg_after"][k])
        if poison and poison[0] == k:
            assert result.nonfinite == 1
            assert result.grad_norm == 0
        else:
            assert result.nonfinite == 0
            assert float(result.loss) == pytest.approx(float(values["step/loss_per_image"][k]), rel=1e-5)
            assert float(result.grad_norm) == pytest.approx(float(values["step/grad_norm"][k]), rel=1e-4)
        check_weights(trainer.net.state_dict(), select(values, f"after_step_{k + 1}"))
    assert select(values, f"after_step_{settings['iters']}")
    for std in settings["stds"]:  # stored for some runs
        check_weights(trainer.step.ema.average(std), select(values, f"ema_{std:.3f}"))
    moments = adam_state(trainer.net, trainer.step.optimizer)
    for moment in ("exp_avg", "exp_avg_sq"):
        for name, expected in select(values, f"adam_{moment}").items():
            assert rms_rel(moments[name][moment], expected) < 1e-4, name


def check_weights(ours: dict, theirs: dict) -> None:
    """Tolerances of the specification: absolute 2e-4, root-mean-square 1e-5 relative per tensor."""
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=2e-4)
        if expected.numel() > 1:
            assert rms_rel(ours[name], expected) < 1e-5, name


# ------------------------------------------------------------------------------------------------------ a small run


@pytest.mark.parametrize(
    ("changes", "stop_at"), [({}, 40), ({"dropout": 0.3}, 56), ({"stratified_sigma": True}, 40)], ids=str
)
def test_stopped_and_resumed_equals_never_stopped_to_the_bit(tmp_path, changes, stop_at):
    whole = run(tiny_config(tmp_path / "whole", holdout=5, **changes))
    first = run(tiny_config(tmp_path / "parts", holdout=5, **changes), callbacks=[StopAt(stop_at)])
    assert first.images_seen == stop_at
    torch.manual_seed(123)  # whatever else happened in between
    second = run(tiny_config(tmp_path / "parts", holdout=5, **changes))
    assert_same_bits(final_state(whole), final_state(second))
    assert stats(tmp_path / "whole") == stats(tmp_path / "parts")
    for a, b in zip(find_snapshots(tmp_path / "whole"), find_snapshots(tmp_path / "parts"), strict=True):
        assert a.path.name == b.path.name
        assert all(torch.equal(a.read(name), b.read(name)) for name in a.names)


def test_workers_change_nothing(tmp_path):
    a = run(tiny_config(tmp_path / "a", duration=24))
    b = run(tiny_config(tmp_path / "b", duration=24, workers=2))
    assert_same_bits(final_state(a), final_state(b))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_like_float32(tmp_path, precision):
    """Activations are rounded to 8 or 11 bits, parameters and averages are not."""
    a = run(tiny_config(tmp_path / "a", duration=48))
    b = run(tiny_config(tmp_path / "b", duration=48, precision=precision))
    assert all(p.dtype == torch.float32 for p in b.net.parameters())
    for x, y in zip(stats(tmp_path / "a"), stats(tmp_path / "b"), strict=True):
        assert y["loss"] == pytest.approx(x["loss"], rel=0.02)  # a few roundings of 2^-9 each
    assert a.images_seen == b.images_seen


def test_run_folder_holds_what_was_promised(tmp_path):
    """With the largest seed, and dropout."""
    drawn = []
    config = tiny_config(tmp_path, sample_every=48, holdout=5, holdout_every=40, seed=2**32 - 1, dropout=0.1)
    run(config, callbacks=[SampleGrids(lambda net, codec, path: drawn.append((path.name, net.training)))])
    early = (8, 16, 24)  # after 1/64 of the run, and at each doubling
    assert drawn == [(f"samples-{images:012d}.png", False) for images in (*early, 48, 96)]
    assert [s.path.name for s in find_snapshots(tmp_path)] == [
        f"snapshot-{images:012d}-{s:.4f}.safetensors" for images in (24, 48, 72, 96) for s in (0.05, 0.10)
    ]
    assert [r["images_seen"] for r in stats(tmp_path)] == [16, 32, 40, 48, 64, 80, 96]
    assert [r["images_seen"] for r in stats(tmp_path) if "holdout_loss" in r] == [40, 80, 96]
    assert [p.name for p in find_checkpoints(tmp_path / "checkpoints")] == ["000000000080", "000000000096"]
    assert TrainingConfig.from_json(json.loads((tmp_path / "config.json").read_text())) == config
    assert (tmp_path / "raw-weights.safetensors").is_file()


def test_snapshots_hold_the_averages(tmp_path):
    trainer = run(tiny_config(tmp_path, snapshot_precision="fp16"))
    last = find_snapshots(tmp_path)[-1]
    average = trainer.step.ema.average(0.10)
    for name in last.names:
        # Fourier frequencies are multiplied by large numbers: rounding them would change the network.
        expected = average[name] if name in last.buffers else average[name].half()
        assert torch.equal(last.read(name), expected)


# ------------------------------------------------------------------------------------------------------ refusals


def test_folder_of_another_run_is_refused_by_field(tmp_path):
    run(tiny_config(tmp_path, duration=24))
    for change, named in (
        ({"ref_lr": 0.02}, "ref_lr is 0.01 there and 0.02 here"),
        ({"batch_size": 4}, "batch_size is 8 there and 4 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"dropout": 0.1}, "network.dropout is 0.0 there and 0.1 here"),
    ):
        with pytest.raises(RunFolderError, match=named):
            run(tiny_config(tmp_path, duration=24, **change))
    many = {"ref_lr": 0.02, "batch_size": 4, "seed": 1, "dropout": 0.1, "xflip": True}
    with pytest.raises(RunFolderError, match="seed is 0 there and 1 here, and 1 more differ"):
        run(tiny_config(tmp_path, duration=24, **many))


def test_a_run_that_left_nothing_may_become_another_one(tmp_path):
    """It failed before its first checkpoint, or was killed while it claimed the folder: nothing of it must stick."""
    RunFolder(tmp_path / "failed").claim(tiny_config(tmp_path / "failed", ref_lr=1.0), tiny_data())
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".config.json.4711.tmp").write_text('{"half')
    for out in (tmp_path / "failed", tmp_path / "killed"):
        assert run(tiny_config(out, duration=24)).images_seen == 24
        assert read_run_config(out).ref_lr == tiny_config(out).ref_lr


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("thesis.tex", "precious", "not empty"),
        ("config.json", '{"architectures": ["Other"]}', r"config\.json: not the configuration of a run"),
    ],
)
def test_foreign_files_are_not_touched(tmp_path, name, text, complaint):
    (tmp_path / name).write_text(text)
    with pytest.raises(RunFolderError, match=complaint):
        run(tiny_config(tmp_path))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: text}


def test_damaged_checkpoint_is_named(tmp_path):
    run(tiny_config(tmp_path))
    checkpoint = find_checkpoints(tmp_path / "checkpoints")[-1]
    [data] = checkpoint.glob("*.safetensors")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=checkpoint.name):
        run(tiny_config(tmp_path, duration=120))


class Poisoned(Trainer):
    """Steps in which every image is infinite: those that begin with so many images seen."""

    poisoned = range(0, 1000)

    def train_step(self, microbatches):
        if self.images_seen in self.poisoned:
            microbatches = [batch._replace(images=batch.images * torch.inf) for batch in microbatches]
        return super().train_step(microbatches)


@pytest.mark.parametrize(
    "changes",
    [{"duration": 96.0}, {"rampup_images": 1e1}, {"ref_lr": float("inf")}, {"ref_batches": float("nan")}],
    ids=str,
)
def test_settings_that_config_json_cannot_give_back_are_refused(tmp_path, changes):
    """The run would train, but could be neither resumed nor sampled."""
    [name] = changes
    with pytest.raises(ValueError, match=f"{name}=.* is no value of this setting"):
        run(tiny_config(tmp_path, **changes))


@pytest.mark.parametrize(("most", "steps"), [(3, 3), (64, 12)])
def test_persistent_nonfinite_gradients_stop_the_run_and_a_single_step_does_not(tmp_path, most, steps):
    """Also if a run has fewer steps than the limit, all of them bad: it must not say that it is done."""
    config = tiny_config(tmp_path / "bad", max_nonfinite_steps=most)
    with pytest.raises(TrainingError, match=rf"{steps} steps .* non-finite"):
        Poisoned(config, dataset=tiny_data()).run()
    trainer = Poisoned(tiny_config(tmp_path / "good", max_nonfinite_steps=most), dataset=tiny_data())
    trainer.poisoned = [40]
    trainer.run()
    assert trainer.images_seen == 96
    assert all(p.isfinite().all() for p in trainer.net.parameters())
    assert sum(r["nonfinite_steps"] for r in stats(tmp_path / "good")) == 1


def test_finished_run_is_left_alone_and_cannot_become_shorter(tmp_path):
    run(tiny_config(tmp_path))
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "snapshots").iterdir()}
    assert run(tiny_config(tmp_path)).images_seen == 96
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "snapshots").iterdir()}
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(RunFolderError, match="96 images already"):
        run(tiny_config(tmp_path, duration=48))
    assert (tmp_path / "config.json").read_text() == before


# --------------------------------------------------------------------------------------------------- fine-tuning


def test_init_starts_the_clock_at_zero(tmp_path):
    run(tiny_config(tmp_path / "a", duration=24))
    snapshot = find_snapshots(tmp_path / "a")[-1]
    trainer = Trainer(tiny_config(tmp_path / "b", init=str(snapshot.path)), dataset=tiny_data())
    assert trainer.images_seen == 0
    assert torch.equal(trainer.net.state_dict()["unet.emb_label.weight"], snapshot.read("unet.emb_label.weight"))


# ------------------------------------------------------------------------------------------------ random numbers


def test_random_numbers_belong_to_their_place(tmp_path):
    """However a batch is split, and wherever a run goes on; stratified, one noise level per eighth of the distribution
    in a step."""
    random = PositionRandom(seed=1, block_size=8, device=torch.device("cpu"))
    whole = random.normal(Stream.NOISE, 0, 32, (2, 3))
    for start, stop in ((0, 7), (5, 6), (3, 29), (8, 16)):
        assert torch.equal(random.normal(Stream.NOISE, start, stop, (2, 3)), whole[start:stop])
    draws = Trainer(tiny_config(tmp_path, stratified_sigma=True)).step.draws
    whole = draws.sigma(0, 32)
    parts = [draws.sigma(start, stop - start) for start, stop in [(0, 2), (2, 8), (8, 13), (13, 32)]]
    assert torch.equal(whole, torch.cat(parts))
    quantile = torch.special.ndtr(whole.log() + 0.4).reshape(4, 8)
    assert torch.equal((8 * quantile).floor(), torch.arange(8.0).expand(4, 8))


def test_a_run_from_before_a_field_existed_goes_on(tmp_path):
    """And goes on as it was: what came new since is off. Changes that do no harm are accepted."""
    run(tiny_config(tmp_path, duration=24))
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["stratified_sigma"]
    path.write_text(json.dumps(values))
    harmless = {"micro_batch": 4, "workers": 1, "status_every": 8, "snapshot_every": 8}
    assert run(tiny_config(tmp_path, duration=48, **harmless)).images_seen == 48
    with pytest.raises(RunFolderError, match="stratified_sigma"):
        run(tiny_config(tmp_path, duration=96, stratified_sigma=True))


# ----------------------------------------------------------------------------------------- statistics of the data


def test_stored_statistics_make_the_codec(tmp_path):
    """If the run standardizes; stored ones are believed, others measured."""
    dataset = tiny_data()
    measured = opened(tmp_path, dataset, standardize=True)
    dataset.pixel_stats = {"mean": [100.0], "std": [30.0], "sigma_data": 30 / 127.5}
    assert opened(tmp_path, dataset, standardize=True).codec == PixelCodec((100.0,), (60.0,))
    assert opened(tmp_path, dataset, standardize=False).codec == PixelCodec((127.5,), (127.5,))
    assert measured.codec.mean != (100.0,)
    images = measured.all_of(dataset)[0]
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(0.5, rel=1e-3)
    blank = ArrayDataset(torch.zeros(40, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(DatasetError, match=r"^tiny: .*never varies[^\n]*--no-standardize"):
        opened(tmp_path, blank, standardize=True)


def opened(tmp_path, dataset, **settings) -> BatchStream:
    config = tiny_config(tmp_path, **settings)
    return BatchStream(config, dataset, PositionRandom(0, 4, torch.device("cpu")))


def test_held_out_images_are_encoded_no_more_at_once_than_a_step_takes(tmp_path):
    """A codec may be a large network, for which five hundred images at once are too much."""
    sizes = []

    class Counting(PixelCodec):
        def encode(self, data, noise=None):
            sizes.append(len(data))
            return super().encode(data, noise)

    stream = opened(tmp_path, tiny_data(), micro_batch=4)
    codec, whole = stream.codec, tiny_data().read(range(30))
    stream.codec = Counting(codec.mean, codec.std, codec.levels)
    batch = stream.all_of(Subset(tiny_data(), range(30)))
    assert sizes == [4] * 7 + [2]
    assert torch.equal(batch.images, codec.encode(whole[0]))
    assert torch.equal(batch.labels, whole[1])


def test_statistics_stored_during_a_run_do_not_change_what_it_sees(tmp_path):
    """They come with the next run: a resumed one keeps the codec of its checkpoint."""
    whole = run(tiny_config(tmp_path / "whole", standardize=True))
    run(tiny_config(tmp_path / "parts", standardize=True, duration=40))
    dataset = tiny_data()
    dataset.pixel_stats = {"mean": [100.0], "std": [30.0], "sigma_data": 30 / 127.5}
    resumed = Trainer(tiny_config(tmp_path / "parts", standardize=True), dataset=dataset)
    resumed.run()
    assert_same_bits(final_state(whole), final_state(resumed))
    last = find_snapshots(tmp_path / "parts")[-1]
    assert codec_from_json(last.metadata["codec"]) == whole.stream.codec


# -------------------------------------------------------------------------------------------------------- its speed


def test_the_speed_is_told_once_with_what_is_left_and_again_when_resumed(tmp_path, monkeypatch):
    """Five steps are measured, after three to warm up, however long they take."""
    monkeypatch.setattr(speed, "MANY_STEPS", 5)
    monkeypatch.setattr(speed, "SHORT_SECONDS", math.inf)
    monkeypatch.setattr(speed, "LONG_SECONDS", math.inf)
    told = []
    for duration in (80, 160):
        report = SpeedReport(lambda speed, left: told.append((speed > 0, left)))
        run(tiny_config(tmp_path, duration=duration), callbacks=[report])
    assert told == [(True, 80 - 8 * 8), (True, 160 - 80 - 8 * 8)]


def test_measuring_leaves_nothing_behind(tmp_path):
    images_per_second, peak_memory = Trainer(tiny_config(tmp_path / "run"), dataset=tiny_data()).measure()
    assert images_per_second > 0
    assert peak_memory > 1e6
    assert list(tmp_path.iterdir()) == []
