"""`edm2 distill`: a network to a flow map, and what draws from it afterwards."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from command_line import complaint, edm2, succeed, torchrun, write_images
from safetensors.torch import load_file

from edm2 import generate
from edm2.distillation.samples import draw_samples
from edm2.distillation.teacher import Teacher
from edm2.io.guided import GuidedFile
from edm2.io.model import ASSETS, load, read_metadata, save
from edm2.networks import fold
from edm2.sampling.samplers import HEUN, SAMPLERS
from edm2.sampling.samplers.flow_map import sample_map
from edm2.sweep.evaluator import Score
from edm2.sweep.sweep import Point, ScoredPoint, Sweep
from edm2.tools.options.run_network import network_of_run
from edm2.tools.reports.tables import read_sweep, write_sweep
from edm2.training import codec_from_json, open_dataset, read_run_config
from edm2.training.distributed.processes import ONE_PROCESS

SHORT = (
    "--data",
    "digits",
    "--duration",
    256,
    "--snapshot",
    64,
    "--checkpoint",
    128,
    "--sample",
    256,
    "--device",
    "cpu",
)
DRAWN = ("--seeds", "0-3", "--device", "cpu")


@pytest.fixture(scope="module")
def maps(outspoken_network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished distillation of a few steps."""
    out = tmp_path_factory.mktemp("distilled") / "run"
    succeed("distill", outspoken_network, *SHORT, "--out", out)
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "raw-weights.safetensors")


def test_a_later_end_changes_nothing_else(maps, outspoken_network, tmp_path):
    """Neither ramp-up nor snapshots move, which follow from the duration in a new run."""
    longer = shutil.copytree(maps, tmp_path / "longer")
    longer_too = [384 if word == 256 else word for word in SHORT]
    del longer_too[longer_too.index("--snapshot") :][:2]
    succeed("distill", outspoken_network, *longer_too, "--out", longer)
    before, after = read_run_config(maps), read_run_config(longer)
    assert after == dataclasses.replace(before, out=str(longer), duration=384, sample_every=384)
    assert [path.name for path in sorted((longer / "snapshots").iterdir())][-1].startswith("snapshot-000000000384-")


def test_a_run_that_stopped_goes_on_to_the_bit(maps, outspoken_network, tmp_path):
    """By the same command; the teacher may have moved, but not changed."""
    part = tmp_path / "part"
    command = ("distill", outspoken_network, *SHORT, "--out", part)
    stopped = edm2(*command, "--max-time", "0.001s")
    assert stopped.code == 124, stopped.err
    moved = shutil.copy(outspoken_network, tmp_path / "moved.safetensors")
    succeed("distill", moved, *SHORT, "--out", part)
    assert all(torch.equal(tensor, weights(maps)[name]) for name, tensor in weights(part).items())


@pytest.mark.slow
def test_two_processes_distil_the_same(maps, outspoken_network, tmp_path):
    """Beyond rounding: in the loss's draws, and in the order of sums."""
    torchrun(2, "distill", outspoken_network, *SHORT, "--out", tmp_path / "two")
    for name, tensor in weights(tmp_path / "two").items():
        if tensor.ndim:
            torch.testing.assert_close(tensor, weights(maps)[name], rtol=1e-3, atol=1e-3 * tensor.abs().max().item())


def test_a_snapshot_says_what_it_can_do(maps, outspoken_network):
    metadata = read_metadata(next(iter((maps / "snapshots").iterdir())))
    assert metadata["abilities"] == ["denoise", "map"]
    assert metadata["map_levels"]["2"] == [80, 0.3, 0]
    assert metadata["codec"] == read_metadata(outspoken_network)["codec"]
    assert metadata["network"]["target_level"] == "mean"
    assert "abilities" not in read_metadata(outspoken_network)
    assert "denoise and map, between noise levels 80,0; 80,0.3,0;" in succeed("info", maps / "raw-weights.safetensors")
    assert "draws as" not in succeed("info", outspoken_network)


def test_the_included_map_draws_at_once(tmp_path):
    shown = succeed("generate", "digits8-map", "--steps", 1, *DRAWN, "--out", tmp_path)
    assert "(1 evaluation each, map)" in shown
    assert (ASSETS / "digits8-map.safetensors").stat().st_size < 2e6


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_steps_of_a_map_are_evaluations(maps, steps, evaluations_of_maps):
    shown = edm2("generate", maps, "--steps", steps, *DRAWN, "--grid", maps.parent / "grid.png")
    assert f"({steps} evaluation{'s' if steps > 1 else ''} each, map)" in shown.out
    assert evaluations_of_maps == [4] * steps
    assert "Warning" not in shown.err


def test_a_map_remains_a_denoiser_and_few_steps_of_one_are_warned_of(maps):
    shown = edm2("generate", maps, "--solver", "heun", "--steps", 2, *DRAWN, "--grid", maps.parent / "grid.png")
    assert "(3 evaluations each, heun)" in shown.out
    assert "Warning: 3 evaluations are few" in shown.err


@pytest.fixture
def evaluations_of_maps(monkeypatch) -> list[int]:
    """Number of images of every jump."""
    from edm2.networks import Precond

    seen, forward = [], Precond.forward

    def watched(self, x, sigma, *args, target_sigma, **options):
        seen.append(len(x))
        return forward(self, x, sigma, *args, target_sigma=target_sigma, **options)

    monkeypatch.setattr(Precond, "forward", watched)
    return seen


@pytest.mark.slow
def test_a_sweep_finds_a_length_for_each_number_of_evaluations(maps, tmp_path):
    run = shutil.copytree(maps, tmp_path / "run")
    sweep = ("sweep", run, "--steps", "1,2", "--std", "0.05,0.1", "--samples", 20, "--device", "cpu")
    succeed(*sweep)
    known = (run / "sweep.jsonl").read_text()
    succeed(*sweep)
    assert (run / "sweep.jsonl").read_text() == known  # all scores were known
    succeed("sweep", run, "--levels", "80,0.5,0", *sweep[4:])
    assert (
        len((run / "sweep.jsonl").read_text().splitlines()) == len(known.splitlines()) + 3
    )  # other levels, other scores
    best = read_sweep(run / "sweep-2.csv").best.point.sigma_rel
    shown = succeed("generate", run, "--steps", 2, *DRAWN, "--grid", tmp_path / "grid.png")
    assert f"EMA length {best:g} (best in {run / 'sweep-2.csv'})" in shown


def test_a_guided_teacher_is_distilled(outspoken_network, network, tmp_path):
    guided = ("--guide", network, "--guidance", 1.5, "--interval", "0.1,10")
    out = tmp_path / "run"
    shown = succeed("distill", outspoken_network, *guided, *SHORT, "--out", out)
    assert "weight 1.5 between noise levels 0.1 and 10" in shown
    config = read_run_config(out)
    assert (config.distillation.guidance, config.distillation.interval) == (1.5, (0.1, 10))
    refused = edm2(
        "distill", outspoken_network, "--guide", network, "--guidance", 1.6, *guided[4:], *SHORT, "--out", out
    )
    assert "distillation.guidance is 1.5 there and 1.6 here" in complaint(refused.err)


def test_a_guided_json_teaches_and_its_network_is_the_start(outspoken_network, network, tmp_path):
    """As the same guidance by options does, to the bit."""
    for name, source in {"network": outspoken_network, "guide": network}.items():
        shutil.copy(source, tmp_path / f"{name}.safetensors")
    guided = tmp_path / "guided.json"
    GuidedFile(tmp_path / "network.safetensors", tmp_path / "guide.safetensors", 1.5, (0.1, 10)).write(guided, {})
    succeed("distill", guided, *SHORT, "--out", tmp_path / "one")
    options = ("--guide", network, "--guidance", 1.5, "--interval", "0.1,10")
    succeed("distill", outspoken_network, *options, *SHORT, "--out", tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    twice = edm2("distill", guided, *options, *SHORT, "--out", tmp_path / "three")
    assert "guided already" in complaint(twice.err)


@pytest.mark.parametrize(
    ("words", "code", "mentions"),
    [
        ("distill absent --data digits --out out", 1, ("absent", "no such file")),
        ("distill @net --data @10x10 --out out", 2, ("10x10", "(1, 10, 10)", "(1, 8, 8)")),
        ("distill @net --data @classes --out out", 2, ("3 classes", "10")),
        ("distill @net --data digits --out out --guide digits8", 2, ("--guidance",)),
        ("distill @net --data digits --out out --interval 1,2", 2, ("--interval", "--guide")),
        ("distill @net --data digits --out out --anchor 2", 2, ("--anchor 2", "between 0 and 1")),
        ("distill @net --data digits --out out --derivative jvp --compile", 2, ("--derivative", "difference")),
        ("distill @net --data digits --out out --init absent", 2, ("absent", "no such file")),
        ("distill @net --data teacher:64 --out out --dry-run", 2, ("--dry-run", "teacher:64")),
        ("distill @net --data digits --out out --holdout 1797", 2, ("--holdout 1797", "leaves none")),
        ("distill @net --data digits --out out --tangent-norm 0", 2, ("--tangent-norm 0", "positive")),
        ("distill @net --data digits --out out --precision bf16", 2, ("--precision bf16", "--derivative 'jvp'")),
        ("distill digits8 --data digits --out out --unlabelled-guide --guidance 2", 1, ("class of every image",)),
        ("distill @net --data digits --out out --duration 100 --batch 64", 2, ("--duration 100", "try 128")),
        ("generate @net --solver map --grid g.png", 1, ("denoiser", "edm2 distill")),
        ("generate @net --levels 80,0 --grid g.png", 1, ("--levels", "flow map")),
        ("generate @run --levels 80,90,0 --grid g.png", 2, ("fall", "80,0.3,0")),
        ("generate @run --levels 80,0 --steps 2 --grid g.png", 2, ("--levels",)),
        ("generate @run --levels 80,0 --churn 5 --grid g.png", 2, ("--churn", "map adds no fresh noise")),
        ("generate @run --levels 80,0 --guide @net --guidance 2 --grid g.png", 1, ("no guide",)),
        ("generate @run --steps 3 --grid g.png", 1, ("1, 2, 4", "not for 3")),
        ("generate @run --solver map --guide @net --guidance 2 --grid g.png", 1, ("no guide",)),
        ("generate @consistent --steps 2 --grid g.png", 1, ("consistency model", "one evaluation")),
        ("generate @consistent --solver heun --grid g.png", 1, ("no denoiser", "--solver map")),
        ("distill @consistent --data digits --out out", 1, ("no denoiser", "teach")),
        ("sweep @run --solver map --guide @net --guidance 2", 1, ("no guide",)),
        ("sweep @run --interval 1,2", 2, ("--interval", "--guidance")),
        ("autoguide @run", 2, ("distilled", "--guides early,ema,dropout")),
        ("sweep @run --steps 0", 2, ("'0'", "1,2,4")),
        ("sweep @run --steps 3 --samples 4", 1, ("1, 2, 4", "not for 3")),
    ],
)
def test_impossible_requests_are_one_line(things_to_distil, tmp_path, monkeypatch, words, code, mentions):
    monkeypatch.chdir(tmp_path)
    given = [str(things_to_distil[word[1:]]) if word.startswith("@") else word for word in words.split()]
    result = edm2(*given, "--device", "cpu")
    line = complaint(result.err)
    assert result.code == code, line
    for mention in mentions:
        assert mention in line
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def things_to_distil(maps, outspoken_network, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("things")
    snapshot = maps / "raw-weights.safetensors"
    consistent = folder / "consistent.safetensors"
    save(load(snapshot), consistent, read_metadata(snapshot) | {"abilities": ["consistency"]})
    return {
        "net": outspoken_network,
        "run": maps,
        "10x10": write_images(folder / "10x10", (10, 10), count=40),
        "classes": write_images(folder / "classes", (8, 8), count=40, classes=3),
        "consistent": consistent,
    }


def test_a_folded_network_draws_but_is_no_student(maps, tmp_path):
    net = load(maps / "raw-weights.safetensors")
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, folded = (sample_map(n, noise, torch.tensor([0, 1]), num_steps=2) for n in (net, fold(net)))
    torch.testing.assert_close(folded, whole, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="for inference only"):
        fold(net).train()


def test_a_pipeline_of_diffusers_jumps_too(maps, tmp_path):
    """The same images to the bit, also from its folder; no guide."""
    from edm2 import EDM2Pipeline
    from edm2.io.model import load_to_sample

    snapshot = maps / "raw-weights.safetensors"
    pipe = EDM2Pipeline.from_snapshot(snapshot)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = EDM2Pipeline.from_pretrained(tmp_path / "pipe")
    [batch] = generate(load(snapshot), [3, 4], sampler=sample_map, num_steps=2)
    for one in (pipe, loaded):
        drawn = one(seeds=[3, 4], num_inference_steps=2, output_type="latent").images
        assert torch.equal(drawn, batch.samples)
        assert torch.equal(one(seeds=[3, 4], output_type="latent").images, drawn)
    with pytest.raises(ValueError, match="takes no guide"):
        pipe(seeds=[3], guidance_scale=2)
    assert "map" in load_to_sample(tmp_path / "pipe").abilities


def test_samples_of_the_teacher_are_data(outspoken_network, tmp_path):
    """Its codec gives them back, each with its class; the next run of the command draws none again."""
    out = tmp_path / "run"
    command = ("distill", outspoken_network, "--data", "teacher:40", *SHORT[2:], "--sample", 512, "--out", out)
    succeed(*command)
    dataset, net = open_dataset(tmp_path / "run-data"), load(outspoken_network)
    codec = codec_from_json(read_metadata(outspoken_network)["codec"])
    [batch] = generate(fold(net), range(40), [seed % 10 for seed in range(40)])
    assert torch.equal(dataset.images(range(40)), codec.decode(batch.samples))
    assert dataset.labels(range(40)).tolist() == [seed % 10 for seed in range(40)]
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "run-data").rglob("*.png")}
    succeed(*command)
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn
    assert codec_from_json(read_metadata(out / "raw-weights.safetensors")["codec"]) == codec
    assert "'many'" in complaint(edm2(*command[:3], "teacher:many", "--out", out).err)


def test_samples_of_another_teacher_or_more_of_them_are_not_taken_for_its_own(outspoken_network, network, tmp_path):
    def draw(count: int, guidance: float) -> None:
        draw_samples(Teacher(str(outspoken_network), str(network), guidance=guidance), count, tmp_path)

    draw(4, 1.5)
    draw(4, 1.5)
    with pytest.raises(ValueError, match="other settings \\(guidance in"):
        draw(4, 3)
    with pytest.raises(ValueError, match="more than 2 samples"):
        draw(2, 1.5)


@pytest.mark.slow
def test_a_consistency_model_draws_in_one_evaluation_unless_asked(outspoken_network, tmp_path):
    """In the grids of its own training, by the command, and as a pipeline."""
    from edm2 import EDM2Pipeline

    out = tmp_path / "run"
    only = ("--anchor", 0, "--to-zero", 1, "--duration", 64, "--sample", 64)
    succeed("distill", outspoken_network, "--data", "digits", *only, "--device", "cpu", "--out", out)
    assert list((out / "samples").iterdir())
    assert "(1 evaluation each, map)" in succeed("generate", out, *DRAWN, "--grid", tmp_path / "grid.png")
    pipe = EDM2Pipeline.from_snapshot(out / "raw-weights.safetensors")
    assert list(pipe.scheduler.known_levels) == [1]
    assert pipe(seeds=[0], output_type="latent").images.shape == (1, 1, 8, 8)


def test_a_weight_of_one_is_no_guidance_and_held_out_images_are_as_many_as_asked_for(outspoken_network, tmp_path):
    plain = ("--guidance", 1, "--holdout", 500, "--dry-run", "--out", tmp_path / "run")
    shown = succeed("distill", outspoken_network, "--unlabelled-guide", *plain, *SHORT)
    assert "guided by" not in shown
    assert "500 of them held out" in shown


def test_the_length_of_a_run_is_that_of_the_steps_that_are_drawn(maps, tmp_path, capsys):
    """Of a sweep over several numbers: a flow map draws in 2 steps by default, a denoiser in 32."""
    run = shutil.copytree(maps, tmp_path / "run")
    for steps, sigma_rel in {2: 0.05, 16: 0.1, 32: 0.05}.items():
        point = ScoredPoint(Point(256, sigma_rel), (Score(1.0, None, None),))
        write_sweep(run / f"sweep-{steps}.csv", Sweep([point]))
    for steps, sampler, table in ((None, None, 2), (None, HEUN, 32), (16, SAMPLERS["deis"], 16), (2, None, 2)):
        network_of_run(run, None, ONE_PROCESS, steps, sampler)
        assert f"best in {run / f'sweep-{table}.csv'}" in capsys.readouterr().out
