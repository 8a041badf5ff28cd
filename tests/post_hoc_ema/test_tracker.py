"""PowerFunctionEMA: it realizes the profiles it is named after, whatever the update interval and the module."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from golden_data import arrays, table
from torch import nn
from torch.distributed.tensor import DTensor, Shard, init_device_mesh

from edm2.post_hoc_ema import PowerFunctionEMA, sigma_rel_to_gamma

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (0.05, 0.10, 0.20)


def realized_profile(times, sigma_rels=WIDTHS):
    """Share of each update in the averages: update k trains the k-th basis vector, so the weights are the profile."""
    net = nn.Linear(len(times), 1, bias=False).double().requires_grad_(False)
    tracker = PowerFunctionEMA(net, sigma_rels)
    for basis, t in zip(torch.eye(len(times)).double(), times, strict=True):
        net.weight.copy_(basis)
        tracker.update(t)
    return {sigma_rel: tracker.average(sigma_rel)["weight"].flatten().numpy() for sigma_rel in sigma_rels}


def train(net, tracker, steps, seed=0, images=64):
    """A random walk of the parameters; returns them as they were at each update."""
    generator = torch.Generator().manual_seed(seed)
    path = []
    for _ in range(steps):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn(p.shape, generator=generator).to(p))
        tracker.update(tracker.images_seen + images)
        path.append({name: p.detach().clone() for name, p in net.named_parameters()})
    return path


@pytest.mark.parametrize("interval", [1, 10, 100])
def test_tracker_realizes_the_profile_it_is_named_after(interval):
    """Center (γ + 1)/(γ + 2) and spread σ_rel of the weights, whatever the images per update."""
    times = np.arange(1, 1001) * interval
    for sigma_rel, weights in realized_profile(times.tolist()).items():
        u = times / times[-1] - 0.5 / len(times)  # the middle of the interval that an update stands for
        center = weights @ u
        gamma = sigma_rel_to_gamma(sigma_rel)
        assert center == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-4)  # O(1/updates²)
        assert math.sqrt(weights @ (u - center) ** 2) == pytest.approx(sigma_rel, rel=1e-3)


@pytest.mark.parametrize("times", [range(1, 301), range(10, 3001, 10), [100, 101, 150, 1000, 1003, 4000, 4001, 9000]])
def test_each_update_gets_the_integral_of_the_profile_over_its_interval(times):
    """Exactly, for regular and irregular intervals: ∫ p from t_{k-1} to t_k = (t_k/T)^(γ+1) - (t_{k-1}/T)^(γ+1)."""
    for sigma_rel, weights in realized_profile(list(times)).items():
        cumulative = (np.array([0, *times]) / times[-1]) ** (sigma_rel_to_gamma(sigma_rel) + 1)
        np.testing.assert_allclose(weights, np.diff(cumulative), rtol=1e-10, atol=1e-15)


def test_initial_weights_get_no_share_and_replaced_parameters_are_followed():
    """`load_state_dict(assign=True)` and `to` may put new tensors in place of those seen at the start."""
    net = nn.Linear(2, 2, bias=False)
    nn.init.constant_(net.weight, 1e6)
    tracker = PowerFunctionEMA(net)
    assert torch.equal(tracker.average(0.05)["weight"], net.weight)  # before the first update there is nothing else
    net.load_state_dict({"weight": torch.full((2, 2), 5.0)}, assign=True)
    net.double()
    tracker.update(1)
    assert tracker.average(0.05)["weight"].tolist() == [[5, 5], [5, 5]]


def test_average_is_a_state_dict_of_the_module():
    """Parameters averaged, frozen ones too; buffers and integers copied from the live module; loadable strictly.

    It is the caller's to keep: training goes on without changing it, and changing it does not change the tracker."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].bias.requires_grad_(False)
    net.register_parameter("table", nn.Parameter(torch.tensor([1, 2]), requires_grad=False))
    net.register_buffer("hidden", torch.ones(1), persistent=False)
    tracker = PowerFunctionEMA(net)
    tracker.update(10)
    with torch.no_grad():
        net[0].weight.add_(1)
        net[1].running_mean.add_(3)
    average = tracker.average(0.1)
    assert list(average) == list(net.state_dict())
    assert not torch.equal(average["0.weight"], net[0].weight)
    assert not any(x.requires_grad for x in [*average.values(), tracker.state_dict()["0.1/0.weight"]])
    assert torch.equal(average["0.bias"], net[0].bias)
    assert average["1.running_mean"].tolist() == [3, 3]
    assert average["1.num_batches_tracked"].dtype == average["table"].dtype == torch.int64
    net.load_state_dict(average, strict=True)
    assert torch.equal(net[0].weight, average["0.weight"])
    kept = {name: x.clone() for name, x in average.items()}
    train(net, tracker, 2)
    net[1].running_mean.add_(1)
    assert all(torch.equal(average[name], x) for name, x in kept.items())
    average["0.weight"].fill_(7)
    assert not torch.equal(tracker.average(0.1)["0.weight"], average["0.weight"])


def test_tied_parameters_appear_under_every_name_and_are_averaged_once():
    net = nn.ModuleDict({"embed": nn.Linear(3, 3, bias=False), "head": nn.Linear(3, 3, bias=False)})
    net["head"].weight = net["embed"].weight
    tracker = PowerFunctionEMA(net, [0.1])
    train(net, tracker, 5)
    average = tracker.average(0.1)
    assert average.keys() == {"embed.weight", "head.weight"}
    assert average["embed.weight"] is average["head.weight"]
    assert [key for key in tracker.state_dict() if "/" in key] == ["0.1/embed.weight"]


@pytest.fixture
def mesh(tmp_path):
    """One process is enough for what is local anyway."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_sharded_parameters_are_averaged_in_place(mesh):
    """As FSDP2 has them; sharded and whole tensors side by side."""
    net, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(net.state_dict())
    net.weight = nn.Parameter(DTensor.from_local(net.weight.detach().clone(), mesh, [Shard(0)]))
    tracker, expected = PowerFunctionEMA(net, [0.1]), PowerFunctionEMA(plain, [0.1])
    for t in range(1, 6):
        with torch.no_grad():
            [p.add_(t) for p in (*net.parameters(), *plain.parameters())]
        tracker.update(t)
        expected.update(t)
    average = tracker.average(0.1)
    assert isinstance(average["weight"], DTensor)
    assert torch.equal(average["weight"].full_tensor(), expected.average(0.1)["weight"])
    assert torch.equal(average["bias"], expected.average(0.1)["bias"])


SHARDED = """
import sys
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from edm2.post_hoc_ema import PowerFunctionEMA

distributed.init_process_group("gloo")
torch.manual_seed(0)
net, plain = nn.Linear(3, 5), nn.Linear(3, 5)  # two processes cannot share 5 rows evenly
plain.load_state_dict(net.state_dict())
fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
tracker, expected = PowerFunctionEMA(net), PowerFunctionEMA(plain)
for t in range(1, 6):
    with torch.no_grad():
        [p.add_(t) for p in (*net.parameters(), *plain.parameters())]
    with CommDebugMode() as communication:
        tracker.update(t)
        averages = tracker.average(0.1)
    assert communication.get_total_counts() == 0, communication.get_comm_counts()
    expected.update(t)
assert averages["weight"].to_local().numel() == (9, 6)[distributed.get_rank()]
for name, average in expected.average(0.1).items():
    assert torch.equal(averages[name].full_tensor(), average), name
distributed.barrier()  # who leaves early may end the other, which is still fetching
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_average_their_shards_without_a_word(tmp_path):
    (tmp_path / "job.py").write_text(SHARDED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, tmp_path / "job.py"], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr


def save_and_load_as_file(state, fresh, folder):
    torch.save(state, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


def save_and_load_as_checkpoint(state, fresh, folder):
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    dcp.load(fresh, checkpoint_id=folder, no_dist=True)
    return fresh


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says that this process is alone
@pytest.mark.parametrize("through", [save_and_load_as_file, save_and_load_as_checkpoint])
def test_resuming_equals_never_stopping_to_the_bit(through, tmp_path):
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    tracker = PowerFunctionEMA(net)
    train(net, tracker, 5, seed=1)
    resumed_net = nn.Linear(4, 3)
    resumed = PowerFunctionEMA(resumed_net)
    resumed_net.load_state_dict(net.state_dict())
    resumed.load_state_dict(through(tracker.state_dict(), resumed.state_dict(), tmp_path))
    assert resumed.images_seen == tracker.images_seen == 320
    assert resumed.run == tracker.run
    train(net, tracker, 5, seed=2)
    train(resumed_net, resumed, 5, seed=2)
    for sigma_rel in tracker.sigma_rels:
        for name, average in tracker.average(sigma_rel).items():
            assert torch.equal(average, resumed.average(sigma_rel)[name])


@pytest.mark.parametrize(
    ("other", "sigma_rels", "message"),
    [
        (nn.Linear(2, 2), (0.05, 0.2), r"lengths 0\.05, 0\.2, this tracker 0\.05, 0\.1"),
        (nn.Linear(2, 2, bias=False), (0.05, 0.1), "0.05/bias is missing"),
        (nn.Sequential(nn.Linear(2, 2)), (0.05, 0.1), "0.05/0.bias is unknown"),
        (nn.Linear(3, 2), (0.05, 0.1), r"0.05/weight is torch.float32 \(2, 3\), expected torch.float32 \(2, 2\)"),
        (nn.Linear(2, 2).double(), (0.05, 0.1), "0.05/bias is torch.float64"),
    ],
)
def test_the_state_of_another_run_is_refused_and_changes_nothing(other, sigma_rels, message):
    tracker = PowerFunctionEMA(nn.Linear(2, 2))
    before = {key: x.clone() for key, x in tracker.state_dict().items() if "/" in key}
    foreign = PowerFunctionEMA(other, sigma_rels)
    foreign.update(8)
    with pytest.raises(ValueError, match=message) as caught:
        tracker.load_state_dict(foreign.state_dict())
    assert "\n" not in str(caught.value)
    assert tracker.images_seen == 0
    assert all(torch.equal(tracker.state_dict()[key], x) for key, x in before.items())


def test_misuse_is_refused():
    net = nn.Linear(2, 2)
    for sigma_rels, message in (((0.05, 0.3), "sigma_rel=0.3"), ((0.1, 0.1), "each once"), ((), "EMA length or more")):
        with pytest.raises(ValueError, match=message):
            PowerFunctionEMA(net, sigma_rels)
    with pytest.raises(ValueError, match="Identity has no floating-point parameters"):
        PowerFunctionEMA(nn.Identity())
    tracker = PowerFunctionEMA(net)
    for images_seen in (0, -1):
        with pytest.raises(ValueError, match="must exceed 0"):
            tracker.update(images_seen)
    tracker.update(10)
    with pytest.raises(ValueError, match="images_seen=10 must exceed 10"):
        tracker.update(10)
    with pytest.raises(ValueError, match=r"sigma_rel=0.07 is not tracked; tracked are \(0.05, 0.1\)"):
        tracker.average(0.07)


def golden_trajectory(facts):
    """Parameters θ [steps, numbers] by the closed formula of phema.json."""
    u = torch.arange(1, facts["steps"] + 1, dtype=torch.float64)[:, None] / facts["steps"]
    columns = []
    for k, shape in enumerate(facts["tensor_shapes"]):
        e = torch.arange(math.prod(shape), dtype=torch.float64)
        slow = torch.sin((3 + 2 * k + 0.7 * e) * u + 0.5 * e + k) + 0.3 * torch.cos((40 + 11 * k + 3 * e) * u)
        fast = 0.05 * torch.sin((900 + 70 * k + 13 * e) * u + e)
        columns.append(slow + fast + torch.exp(-(2 + k) * u) * (1 + 0.1 * e))
    return torch.cat(columns, dim=1)


def golden_averages(facts, numbers, key):
    """(images seen, width, average) of every snapshot in `key`, and of the directly tracked targets."""
    yield from zip(numbers["snap/nimg"].tolist(), numbers["snap/std"].tolist(), numbers[key], strict=True)
    for when in ("mid", "final"):
        for sigma_rel, average in zip(numbers["target_std"].tolist(), numbers[f"exact/{when}"], strict=True):
            yield facts[f"{when}_nimg"], sigma_rel, average


@pytest.mark.parametrize(("dtype", "key"), [(torch.float64, "snap/fp64"), (torch.float32, "snap/fp32")])
def test_golden_tracked_averages(golden, dtype, key):
    facts = table(golden, "phema/phema.json")
    numbers = arrays(golden, "phema/endtoend.safetensors")
    theta = golden_trajectory(facts["endtoend"])
    for name in (name for name in numbers if name.startswith("theta/")):  # is the formula right?
        torch.testing.assert_close(theta[int(name.removeprefix("theta/")) - 1], numbers[name], rtol=0, atol=1e-13)
    # float32: both sides are that far from the exact average; float64: thousands of roundings to 1e-16
    tolerance = {torch.float32: 3 * facts["fp32_snapshot_vs_fp64_snapshot_max_abs"], torch.float64: 1e-13}[dtype]

    expected = list(golden_averages(facts["endtoend"], numbers, key))
    net = nn.ParameterDict({"theta": nn.Parameter(theta[0].to(dtype), requires_grad=False)})
    tracker = PowerFunctionEMA(net, sorted({sigma_rel for _, sigma_rel, _ in expected}))
    checked = 0
    for values in theta:
        net["theta"].copy_(values)
        tracker.update(tracker.images_seen + facts["endtoend"]["images_per_step"])
        for _, sigma_rel, reference in (entry for entry in expected if entry[0] == tracker.images_seen):
            average = tracker.average(sigma_rel)["theta"].double()
            torch.testing.assert_close(average, reference.double(), rtol=0, atol=tolerance)
            checked += 1
    assert checked == len(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_offloaded_averages_are_the_same(dtype):
    """To the bit; on a machine without a GPU only the way differs, not the place."""
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).to(dtype)
    here, offloaded = PowerFunctionEMA(net), PowerFunctionEMA(net, offload=True)
    for t in (3, 4, 10, 50):
        with torch.no_grad():
            [p.add_(t) for p in net.parameters()]
        here.update(t)
        offloaded.update(t)
    for s in here.sigma_rels:
        averages = offloaded.average(s)
        assert all(torch.equal(x, averages[name]) for name, x in here.average(s).items())
    resumed = PowerFunctionEMA(net, offload=True)
    resumed.load_state_dict(here.state_dict())
    assert torch.equal(resumed.average(0.05)["0.weight"], here.average(0.05)["0.weight"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offloaded_averages_live_on_the_cpu():
    """Parameters change right after the update, while a copy of them might still be under way."""
    net = nn.Linear(1000, 1000, device="cuda")
    here, offloaded = PowerFunctionEMA(net, [0.1]), PowerFunctionEMA(net, [0.1], offload=True)
    for t in range(1, 20):
        here.update(t)
        offloaded.update(t)
        with torch.no_grad():
            [p.normal_() for p in net.parameters()]
    assert {x.device.type for key, x in offloaded.state_dict().items() if "/" in key} == {"cpu"}
    average = offloaded.average(0.1)
    assert average["weight"].device.type == "cuda"
    torch.testing.assert_close(average["weight"], here.average(0.1)["weight"], rtol=1e-6, atol=1e-6)  # other kernels


def test_shards_are_not_offloaded(mesh):
    net = nn.Linear(3, 2)
    net.weight = nn.Parameter(DTensor.from_local(net.weight.detach().clone(), mesh, [Shard(0)]))
    with pytest.raises(ValueError, match="CPUOffloadPolicy"):
        PowerFunctionEMA(net, offload=True)


@pytest.mark.parametrize("interval", [1, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_any_interval_and_type_gives_the_exact_average(dtype, interval, monkeypatch):
    """The sum Σ ((t_k/T)^(γ+1) - (t_{k-1}/T)^(γ+1)) θ_k of weights as they are stored, within float32's rounding.

    Steps of 1/1000 of the distance would all be lost in bfloat16, which has 8 bits: averages are float32 at least."""
    monkeypatch.setattr("edm2.post_hoc_ema.averages.BATCH", 60)  # so that there are three of them
    generator = torch.Generator().manual_seed(0)
    net = nn.ParameterList([nn.Parameter(torch.zeros(37, dtype=dtype), requires_grad=False) for _ in range(5)])
    tracker = PowerFunctionEMA(net)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    steps, path = 200, []
    for k in range(1, steps + 1):
        for p in net:
            p.copy_(torch.randn(37, generator=generator))
        tracker.update(k * interval)
        path.append([p.to(wide, copy=True) for p in net])
    for sigma_rel in tracker.sigma_rels:
        weights = np.diff((np.arange(steps + 1) / steps) ** (sigma_rel_to_gamma(sigma_rel) + 1))
        for i, average in enumerate(tracker.average(sigma_rel).values()):
            exact = sum(w * values[i] for w, values in zip(weights, path, strict=True))
            assert average.dtype == torch.promote_types(dtype, torch.float32)
            torch.testing.assert_close(average.to(wide), exact, rtol=0, atol=2e-6)  # 200 roundings to 6e-8, at random
