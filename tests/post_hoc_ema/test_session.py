"""PostHocEMA: averages, files and weights to validate with, in one object; among them whatever other packages offer."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from jobs import Job
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, init_device_mesh

from edm2.post_hoc_ema import PostHocEMA, PowerFunctionEMA, find_snapshots, reconstruct
from edm2.post_hoc_ema.modules import whole
from edm2.training.distributed.processes import joined_processes


def net_with_buffers(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 1))


def train(net, until, *averages, start=0, seed=1):
    """Steps of SGD, at random but the same from every start."""
    net.train()
    for step in range(start + 1, until + 1):
        generator = torch.Generator().manual_seed(seed * 10_000 + step)
        net(torch.randn(16, 6, generator=generator))  # moves the buffers
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
        for average in averages:
            average.update(step)


def state_of(net):
    return {name: x.clone() for name, x in net.state_dict().items()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(x, b[name]) for name, x in a.items() if isinstance(x, torch.Tensor))


def copy_of(state):
    return {key: x.clone() if isinstance(x, torch.Tensor) else x for key, x in state.items()}


# ------------------------------------------------------------------------------------------ what other packages offer


def test_files_are_stored_by_themselves_and_the_end_too(tmp_path):
    """Also where steps jump over the multiples of `every`; a time is stored once."""
    ema = PostHocEMA(net := net_with_buffers(), tmp_path / "ema", every=32)
    assert not (tmp_path / "ema").exists()
    for t in (10, 20, 31, 32, 33, 70, 96, 100):
        ema.update(t)
    ema.store()
    ema.store()
    snapshots = find_snapshots(tmp_path / "ema")
    assert [s.images_seen for s in snapshots[::2]] == [32, 70, 96, 100]
    assert snapshots[0].layout("0.weight").dtype == torch.float16
    assert snapshots[0].layout("1.running_var").dtype == torch.float32
    net.load_state_dict(reconstruct(snapshots, [0.08])[0])


def interrupted(ema):
    ema.update(3)
    raise KeyboardInterrupt


def test_a_context_stores_the_end_unless_the_run_failed(tmp_path):
    with PostHocEMA(net_with_buffers(), tmp_path / "a", every=10) as ema:
        ema.update(3)
    assert find_snapshots(tmp_path / "a")[-1].images_seen == 3
    with pytest.raises(KeyboardInterrupt), PostHocEMA(net_with_buffers(), tmp_path / "b", every=10) as ema:
        interrupted(ema)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("sigma_rel", [0.10, 0.07])
@pytest.mark.parametrize("fails", [False, True])
def test_a_model_has_averaged_weights_for_a_while(sigma_rel, fails, tmp_path):
    """Tracked or rebuilt; then its own again to the bit, with buffers and modes, also after an error."""
    net = net_with_buffers()
    ema = PostHocEMA(net, tmp_path, every=25)
    exact = PowerFunctionEMA(net, [sigma_rel])
    train(net, 200, ema, exact)
    net[2].eval()
    before, modes = state_of(net), [m.training for m in net.modules()]
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with ExitStack() as stack:
        if fails:
            stack.enter_context(pytest.raises(KeyError))
        with ema.swapped(sigma_rel):
            assert optimizer.param_groups[0]["params"][0] is net[0].weight
            inside, wanted = state_of(net), exact.average(sigma_rel)
            net.train()(torch.randn(9, 6))  # a mistake: it moves the buffers
            net.eval()
            if fails:
                raise KeyError
    assert_equal(state_of(net), before)
    assert [m.training for m in net.modules()] == modes
    away = (before["0.weight"] - wanted["0.weight"]).norm()
    assert (inside["0.weight"] - wanted["0.weight"]).norm() < (1e-6 if sigma_rel == 0.10 else 0.02) * away
    assert torch.equal(inside["1.running_var"], before["1.running_var"])


def test_weights_are_put_aside_and_brought_back_by_hand(tmp_path):
    """As store, copy_to and restore of other packages: a context may be entered in one place and left in another."""
    net = net_with_buffers()
    ema = PostHocEMA(net, tmp_path, every=100)
    train(net, 50, ema)
    before, aside = state_of(net), ExitStack()
    aside.enter_context(ema.swapped(0.05))
    assert torch.equal(net[0].weight, ema.average(0.05)["0.weight"])
    with ema.swapped(0.10):  # one within the other
        assert torch.equal(net[0].weight, ema.average(0.10)["0.weight"])
    for forbidden in (lambda: ema.update(51), lambda: ema.copy_to(0.05)):
        with pytest.raises(ValueError, match="averaged weights at present"):
            forbidden()
    aside.close()
    assert_equal(state_of(net), before)
    ema.copy_to(0.05)  # for good
    assert torch.equal(net[0].weight, ema.average(0.05)["0.weight"])
    ema.update(51)


def test_a_list_of_parameters_in_place_of_a_module(tmp_path):
    net = net_with_buffers()
    ema, whole = PostHocEMA(list(net.parameters()), tmp_path, every=10), PowerFunctionEMA(net)
    train(net, 20, ema, whole)
    before, names = state_of(net), [name for name, _ in net.named_parameters()]
    averages = ema.average(0.05).values()
    assert all(torch.equal(x, whole.average(0.05)[name]) for name, x in zip(names, averages, strict=True))
    with ema.swapped(0.05):
        assert torch.equal(net[3].weight, whole.average(0.05)["3.weight"])
    assert_equal(state_of(net), before)
    assert len(find_snapshots(tmp_path)) == 4


def test_ignored_names_and_trainable_parameters_only(tmp_path):
    """Left out are neither tracked nor stored nor swapped: of a LoRA, files hold the factors alone."""
    net = nn.ModuleDict({"base": nn.Linear(6, 6), "lora_A": nn.Linear(6, 2, bias=False)})
    net["base"].requires_grad_(False)
    trainable = PostHocEMA(net, tmp_path / "a", every=1, keep=lambda name, p: p.requires_grad)
    ignored = PostHocEMA(net, tmp_path / "b", every=1, keep=lambda name, p: not name.endswith("bias"))
    for t in (1, 2):
        with torch.no_grad():
            [p.add_(1) for p in net.parameters()]
        trainable.update(t)
        ignored.update(t)
    assert list(trainable.average(0.1)) == ["lora_A.weight"]
    assert {*ignored.average(0.1)} == {"base.weight", "lora_A.weight"}
    before = state_of(net)
    with ignored.swapped(0.1):
        assert torch.equal(net["base"].bias, before["base.bias"])
        assert not torch.equal(net["base"].weight, before["base.weight"])
    net.load_state_dict(reconstruct(find_snapshots(tmp_path / "a"), [0.08])[0], strict=False)
    with pytest.raises(ValueError, match="no floating-point parameters that `keep` selects"):
        PostHocEMA(net, tmp_path, every=1, keep=lambda name, p: False)


def test_averages_begin_after_a_while(tmp_path):
    """The clock counts the images before all the same: the profile says where it begins."""
    net = net_with_buffers()
    late = PostHocEMA(net, tmp_path / "late", every=20, after=30)
    early = PostHocEMA(net, tmp_path / "early", every=20)
    train(net, 30, late, early)
    assert (late.images_seen, early.images_seen) == (0, 30)
    train(net, 200, late, early, start=30)
    profile = find_snapshots(tmp_path / "late")[-1].profile
    assert (profile.start, profile.t) == (31, 200)
    assert min(s.images_seen for s in find_snapshots(tmp_path / "late")) == 40
    a, b = (x.average(0.05)["0.weight"] for x in (late, early))
    assert (a - b).norm() < 1e-3 * a.norm()  # what the first 31 of 200 images weigh, at this length


def test_another_module_at_an_update(tmp_path):
    """Where every step makes a new one, or the model is wrapped later: update(step, model)."""
    models = [net_with_buffers(seed) for seed in range(5)]
    ema, followed = PostHocEMA(models[0], tmp_path, every=10), net_with_buffers()
    reference = PowerFunctionEMA(followed)
    for t, model in enumerate(models, start=1):
        ema.update(t, nn.DataParallel(model))
        followed.load_state_dict(model.state_dict())
        reference.update(t)
    assert_equal(ema.average(0.1), reference.average(0.1))
    with pytest.raises(ValueError, match="bias was removed"):
        ema.update(9, nn.Linear(2, 2))


def test_expected_errors_are_those_of_the_table_and_can_be_drawn(tmp_path):
    """2x16 files: .00131, .00009 and .00014 for 0.03, 0.07 and 0.15. Files are rounded, which errors do not include."""
    ema = PostHocEMA(nn.Linear(2, 2), tmp_path / "ema", every=64)
    with pytest.raises(ValueError, match="there are no averages yet"):
        ema.errors([0.1])
    for t in range(1, 1025):
        ema.update(t)
    assert ema.errors([0.03, 0.07, 0.15]) == pytest.approx([0.00131, 0.00009, 0.00014], rel=0.06)
    ema.plot_errors(tmp_path / "errors.png")
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("sigma_rels", [(0.05, 0.10), None], ids=["two lengths", "means"])
@pytest.mark.parametrize("through", ["state", "files"])
def test_a_resumed_run_is_to_the_bit_one_that_never_stopped(sigma_rels, through, tmp_path):
    """Its files too: those of a future that was given up are gone. Intervals may change."""
    options = {"every": 10, "sigma_rels": sigma_rels, "dtype": None}
    whole = PostHocEMA(net := net_with_buffers(), tmp_path / "whole", **options)
    train(net, 60, whole)
    first = PostHocEMA(net := net_with_buffers(), tmp_path / "parts", **options)
    train(net, 30, first)
    saved, weights = copy_of(first.state_dict()), state_of(net)
    train(net, 45, first, start=30)
    first.store()
    second = PostHocEMA(net := net_with_buffers(seed=7), tmp_path / "parts", **options)
    net.load_state_dict(weights)
    second.load_state_dict(saved) if through == "state" else second.resume(30)
    train(net, 60, second, start=30)
    assert second.images_seen == 60
    for a, b in zip(find_snapshots(tmp_path / "parts"), find_snapshots(tmp_path / "whole"), strict=True):
        assert (a.images_seen, a.profile) == (b.images_seen, b.profile)
        assert all(torch.equal(a.read(name), b.read(name)) for name in a.names)


def test_another_run_or_a_forgotten_state_is_refused_at_the_first_update(tmp_path):
    ema = PostHocEMA(net := net_with_buffers(), tmp_path, every=10)
    train(net, 20, ema)
    again = PostHocEMA(net, tmp_path, every=10)
    with pytest.raises(ValueError, match=r"is of another run; choose another folder, or load .*state"):
        again.update(21)
    assert again.images_seen == 0
    again.load_state_dict(ema.state_dict())
    again.update(21)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"every": 0}, ValueError, "every=0 must be positive"),
        ({"after": -1}, ValueError, "after=-1 must be .* 0 or more"),
        ({"dtype": torch.int8}, ValueError, "dtype=torch.int8: .* such as torch.float16"),
        ({"dtype": "float16"}, ValueError, "dtype=float16: .* such as torch.float16"),
        ({"metadata": {"run": "mine"}}, ValueError, "an entry run of their own; choose another name"),
        ({"metadata": {"config": object()}}, TypeError, "cannot hold .*; give numbers or texts"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_the_first_file_would_refuse_is_refused_before_training(options, error, said, tmp_path):
    with pytest.raises(error, match=said):
        PostHocEMA(net_with_buffers(), tmp_path, **{"every": 10, **options})


@pytest.mark.parametrize("sigma_rels", [(0.05, 0.10), None], ids=["two lengths", "means"])
def test_there_are_no_averages_before_the_first_update(sigma_rels, tmp_path):
    """Also during a warm-up, and right after it: the first weights are nobody's average."""
    ema = PostHocEMA(net := net_with_buffers(), tmp_path / "ema", every=10, sigma_rels=sigma_rels, after=5)
    for until in (0, 5):
        train(net, until, ema)
        for ask in (lambda: ema.average(0.05), lambda: ema.average(0.08), lambda: ema.errors([0.08])):
            with pytest.raises(ValueError, match="there are no averages yet"):
                ask()
    train(net, 6, ema, start=5)  # a copy, which no profile describes yet
    ema.store()
    assert not (tmp_path / "ema").exists()
    with pytest.raises(ValueError, match="two snapshots or more"):
        ema.average(0.08)
    train(net, 7, ema, start=6)
    ema.store()
    assert [s.profile.start for s in find_snapshots(tmp_path / "ema")] == [6] * len(sigma_rels or ["mean"])


@pytest.mark.parametrize("sigma_rels", [(0.05, 0.10), None], ids=["two lengths", "means"])
@pytest.mark.parametrize("t", [20, 30])
def test_processes_need_not_wait_for_the_one_that_writes(sigma_rels, t, tmp_path, monkeypatch):
    """They rebuild the same weights, to the bit, whether the files of now are there already, as in DDP."""
    first = PostHocEMA(net := net_with_buffers(), tmp_path, every=10, sigma_rels=sigma_rels)
    train(net, t, first)
    wanted = first.average(0.08)
    monkeypatch.setattr("edm2.post_hoc_ema.session.is_first_process", lambda: False)
    monkeypatch.setattr("edm2.post_hoc_ema.tracker.is_first_process", lambda: False)
    other = PostHocEMA(net := net_with_buffers(), tmp_path, every=10, sigma_rels=sigma_rels)
    train(net, t, other)
    assert_equal(other.average(0.08), wanted)
    for path in tmp_path.glob(f"snapshot-{t:012d}-*"):
        path.unlink()
    assert_equal(other.average(0.08), wanted)


def test_only_its_own_files_count(tmp_path):
    """Whatever else lies in the folder, such as that of a trainer."""
    found = []
    for name in ("alone", "among others"):
        ema = PostHocEMA(net := net_with_buffers(), tmp_path / name, every=10)
        if name == "among others":
            (tmp_path / name / "snapshots").mkdir(parents=True)
            (tmp_path / name / "model.safetensors").write_bytes(b"of another program")
        train(net, 40, ema)
        found.append(ema.average(0.15))
    assert_equal(*found)


def test_means_go_back_to_a_time_before_the_last_file(tmp_path):
    ema = PostHocEMA(net := net_with_buffers(), tmp_path, every=10, sigma_rels=None, dtype=None)
    train(net, 35, ema)
    ema.resume(20)
    train(net, 25, ema, start=20)
    ema.store()
    assert [s.profile.t for s in find_snapshots(tmp_path)] == [10, 20, 25]


def test_a_state_exists_before_training():
    fresh = PostHocEMA(net_with_buffers(), "nowhere", every=10)
    other = PostHocEMA(net_with_buffers(), "nowhere", every=10)
    other.load_state_dict(copy_of(fresh.state_dict()))
    assert other.images_seen == 0
    assert other.tracker.run == fresh.tracker.run


@pytest.fixture
def mesh(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def train_sharded(folder, final):
    """Twenty steps of a module that FSDP2 shards, and its averages of lengths tracked and rebuilt, before and after a
    resume from the files."""
    with joined_processes() as processes:
        net = net_with_buffers()
        if processes.count > 1:
            for layer in (net[0], net[3]):
                fully_shard(layer, mesh=init_device_mesh("cpu", (processes.count,)))
        ema = PostHocEMA(net, folder, every=5, dtype=None)
        found = {}
        for t in range(1, 21):
            with torch.no_grad():
                [p.add_(t**0.5) for p in net.parameters()]
            ema.update(t)
            if t == 10:
                ema = PostHocEMA(net, folder, every=5, dtype=None)
                ema.resume(10)
            if t in (10, 17, 20):
                for sigma_rel in (0.05, 0.08):
                    with ema.swapped(sigma_rel):
                        found |= {
                            f"{t}/{sigma_rel}/{name}": x.clone() for name, x in whole(dict(net.named_parameters()))
                        }
        found |= dict(whole(dict(net.named_parameters())))
        if processes.is_first:
            torch.save(found, final)


@pytest.mark.slow
def test_two_processes_that_share_a_module_by_fsdp2_rebuild_what_one_does(tmp_path):
    results = []
    for count in (1, 2):
        final = tmp_path / f"{count}.pt"
        job = Job(count, tmp_path / f"said{count}", train_sharded, tmp_path / str(count), final)
        assert job.wait() == [0] * count, [job.words(rank) for rank in range(count)]
        results.append(torch.load(final, weights_only=True))
    assert_equal(*results)
    for a, b in zip(find_snapshots(tmp_path / "1"), find_snapshots(tmp_path / "2"), strict=True):
        assert_equal({name: a.read(name) for name in a.names}, {name: b.read(name) for name in b.names})


def test_sharded_parameters_are_stored_whole_swapped_and_resumed(mesh, tmp_path):
    """As FSDP2 has them."""

    def sharded(net):
        for m in (net[0], net[3]):
            m.weight = nn.Parameter(DTensor.from_local(m.weight.detach().clone(), mesh, [Shard(0)]))
        return net

    plain, net = net_with_buffers(), sharded(net_with_buffers())
    ours = PostHocEMA(plain, tmp_path / "plain", every=5, dtype=None)
    ema = PostHocEMA(net, tmp_path / "sharded", every=5, dtype=None)
    for t in range(1, 21):
        with torch.no_grad():
            [p.add_(t**0.5) for p in (*plain.parameters(), *net.parameters())]
        ours.update(t)
        ema.update(t)
    for a, b in zip(find_snapshots(tmp_path / "plain"), find_snapshots(tmp_path / "sharded"), strict=True):
        assert all(torch.equal(a.read(name), b.read(name)) for name in a.names)
    live = net[0].weight.full_tensor()
    for sigma_rel in (0.05, 0.08):
        with ema.swapped(sigma_rel), ours.swapped(sigma_rel):
            assert torch.equal(net[0].weight.full_tensor(), plain[0].weight)
    assert torch.equal(net[0].weight.full_tensor(), live)
    again = PostHocEMA(net, tmp_path / "sharded", every=5)
    again.resume(20)
    assert isinstance(again.average(0.1)["0.weight"], DTensor)
    assert torch.equal(again.average(0.1)["0.weight"].full_tensor(), ours.average(0.1)["0.weight"])
    assert np.isfinite(ema.errors([0.08])).all()
