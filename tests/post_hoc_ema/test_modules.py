"""Modules as people have them: wrapped, changed, with tensors of every kind. Averaged, or refused by name."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DataParallel, DistributedDataParallel

from edm2.post_hoc_ema import PowerFunctionEMA, find_snapshots, read_metadata, reconstruct, write_snapshot
from edm2.post_hoc_ema.averages import CHECK_EVERY


def small() -> nn.Sequential:
    """A module with a name that could be taken for a wrapper's."""
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    net.add_module("module", nn.Linear(3, 1))
    return net


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled_part(net):
    net[0] = torch.compile(net[0])
    return net


def checkpointed_part(net):
    net[0] = checkpoint_wrapper(net[0])
    return net


WRAPPERS = {
    "compiled": torch.compile,
    "DDP": DistributedDataParallel,
    "data parallel": DataParallel,
    "compiled DDP": lambda net: torch.compile(DistributedDataParallel(net)),
    "DDP of a compiled one": lambda net: DistributedDataParallel(torch.compile(net)),
    "compiled in part": compiled_part,
    "checkpointed in part": checkpointed_part,
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) if "compiled" in name else name for name in WRAPPERS]
"""All of them; a compiler takes seconds to load."""


@pytest.mark.parametrize("wrapper", SLOW)
def test_plain_and_wrapped_modules_exchange_states_and_files(wrapper, one_process, tmp_path):
    plain = small()
    inner = small()
    inner.load_state_dict(plain.state_dict())
    ours, wrapped = PowerFunctionEMA(plain), PowerFunctionEMA(WRAPPERS[wrapper](inner))
    for t in (1, 2):
        with torch.no_grad():
            [p.add_(t) for p in (*plain.parameters(), *inner.parameters())]
        ours.update(t)
        wrapped.update(t)
    average = wrapped.average(0.1)
    assert list(average) == list(plain.state_dict())
    assert all(torch.equal(x, ours.average(0.1)[name]) for name, x in average.items())
    small().load_state_dict(average, strict=True)
    ours.save(tmp_path / "files")
    wrapped.load_state_dict(ours.state_dict())
    [p.data.add_(1) for p in (*plain.parameters(), *inner.parameters())]
    ours.update(3)
    wrapped.update(3)
    wrapped.save(tmp_path / "files")  # one run
    assert torch.equal(find_snapshots(tmp_path / "files")[-1].read("0.weight"), ours.average(0.1)["0.weight"])


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module."])
def test_states_of_earlier_versions_with_names_of_wrappers_are_read(prefix):
    tracker = PowerFunctionEMA(small())
    tracker.update(1)
    old = {key.replace("/", f"/{prefix}"): x for key, x in tracker.state_dict().items() if key != "run"}
    continued = PowerFunctionEMA(small())
    continued.load_state_dict(old)
    assert torch.equal(continued.average(0.1)["module.bias"], tracker.average(0.1)["module.bias"])


@pytest.mark.filterwarnings("ignore")  # FSDP1 is out of date
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_flat_shards_are_refused(use_orig_params, one_process):
    """FSDP1's state dict gathers other tensors than the parameters, so averages were never seen again."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    net = FullyShardedDataParallel(nn.Linear(3, 3), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"parameter .* in flat shards of FSDP1 .*fully_shard\(module\)"):
        PowerFunctionEMA(net)


def renamed_by_a_hook():
    net = nn.Linear(2, 2)
    net.register_state_dict_post_hook(lambda m, state, prefix, meta: state.update(kernel=state.pop("weight")))
    return net


def of_other_shape_in_the_state():
    net = nn.Linear(2, 2)
    net.register_state_dict_post_hook(lambda m, state, prefix, meta: state.update(weight=state["weight"].T[:1]))
    return net


def with_parameter(tensor):
    net = nn.Linear(2, 2)
    net.weight = nn.Parameter(tensor, requires_grad=False)
    return net


REFUSED = {
    "renamed by a hook": (renamed_by_a_hook, r"weight is not in the module's state_dict\(\).*keep="),
    "reshaped by a hook": (of_other_shape_in_the_state, r"weight has another shape, \(1, 2\)"),
    "empty": (lambda: with_parameter(torch.empty(0)), "weight is empty, as ZeRO-3 .*fully_shard"),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), "weight is on the meta device; .*to_empty"),
    "lazy": (lambda: nn.LazyLinear(2), "weight has no shape yet; run the module once"),
    "sparse": (lambda: with_parameter(torch.eye(2).to_sparse()), "weight is sparse .*dense"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore")  # torch says that lazy and sparse are new
def test_what_cannot_be_averaged_is_named_with_the_remedy(kind):
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=f"^parameter {message}") as caught:
        PowerFunctionEMA(make())
    assert "\n" not in str(caught.value)
    if "keep" in str(caught.value):  # the remedy
        assert "bias" in PowerFunctionEMA(make(), keep=lambda name, p: name == "bias").average(0.1)


def removed(net):
    del net[1]


def added(net):
    net.append(nn.Linear(2, 2))


def renamed(net):
    nn.utils.parametrizations.weight_norm(net[0])


def reshaped(net):
    net[0].weight = nn.Parameter(torch.ones(1, 1))


def emptied(net):
    net[0].weight.data = torch.empty(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (removed, "parameter 1.bias was removed"),
        (added, "parameter 2.bias was added"),
        (renamed, "parameter 0.parametrizations.weight.original0 was added"),
        (reshaped, r"parameter 0.weight is \(1, 1\) now and was \(2, 2\)"),
        (emptied, r"parameter 0.weight is \(0,\) now"),
    ],
)
def test_a_module_that_changed_is_refused_by_name(change, message):
    """Both by an update and where averages are asked for."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tracker = PowerFunctionEMA(net)
    tracker.update(64)
    change(net)
    with pytest.raises(ValueError, match=message):
        tracker.update(128)
    if change not in (reshaped, emptied):
        with pytest.raises(ValueError, match=message):
            tracker.average(0.05)


def test_a_parameter_that_is_not_kept_may_come_and_go():
    net = nn.Sequential(nn.Linear(2, 2))
    tracker = PowerFunctionEMA(net, keep=lambda name, p: name.startswith("0."))
    tracker.update(1)
    net.append(nn.Linear(2, 2))
    net[0] = checkpoint_wrapper(net[0])  # nor does a wrapper matter
    tracker.update(2)
    assert list(tracker.average(0.1)) == ["0.weight", "0.bias"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("offload", [False, True])
def test_a_step_that_is_not_finite_is_named_when_it_happens(value, offload):
    """And nothing is changed, so that training may go on from a checkpoint."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tracker = PowerFunctionEMA(net, offload=offload)
    tracker.update(64)
    before = {key: x.clone() for key, x in tracker.state_dict().items() if "/" in key}
    with torch.no_grad():
        net[1].weight[0, 0] = value
    with pytest.raises(
        ValueError, match=r"parameter 1.weight has become NaN or infinite in the step before 128 images"
    ):
        tracker.update(128)
    assert tracker.images_seen == 64
    assert all(torch.equal(tracker.state_dict()[key], x) for key, x in before.items())


def test_nan_in_a_large_tensor_alone_is_found_later_and_never_stored(tmp_path):
    """A look at every number of every step would cost a third of an update."""
    net = nn.Linear(100, 100)
    tracker = PowerFunctionEMA(net)
    tracker.update(1)
    net.weight.data[3, 3] = torch.nan
    tracker.update(2)
    with pytest.raises(ValueError, match="parameter weight has become NaN"):
        tracker.save(tmp_path)
    assert not list(tmp_path.iterdir())
    net.weight.data.zero_()
    for t in range(3, CHECK_EVERY):
        tracker.update(t)
    with pytest.raises(ValueError, match="parameter weight has become NaN"):
        tracker.update(CHECK_EVERY)


def test_large_numbers_are_no_infinity():
    """Sums overflow before numbers do."""
    net = with_parameter(torch.full((2, 2), 3e38))
    net.bias = nn.Parameter(torch.full((2,), 6e4, dtype=torch.float16))
    tracker = PowerFunctionEMA(net)
    tracker.update(1)
    tracker.update(2)
    tracker.check()
    assert tracker.average(0.1)["bias"].tolist() == [6e4, 6e4]


class WithExtraState(nn.Linear):
    def get_extra_state(self):
        return {"scale": 3}

    def set_extra_state(self, state):
        self.scale = state["scale"]


def test_tensors_of_every_kind(tmp_path):
    """float8 parameters are averaged, buffers of any type keep it, a state that is no tensor stays out of files."""
    net = WithExtraState(2, 2)
    net.weight = nn.Parameter(torch.ones(2, 2).to(torch.float8_e4m3fn), requires_grad=False)
    for dtype in (torch.uint16, torch.float8_e5m2, torch.bfloat16, torch.bool):
        net.register_buffer(f"of_{dtype}".replace("torch.", ""), torch.ones(3).to(dtype))
    tracker = PowerFunctionEMA(net)
    tracker.update(1)
    tracker.update(2)
    tracker.save(tmp_path, torch.float16)
    net.weight.data = torch.full((2, 2), 2.0).to(torch.float8_e4m3fn)
    tracker.update(3)
    assert (tracker.average(0.1)["weight"] > 1.5).all()
    tracker.save(tmp_path, torch.float16)
    WithExtraState.load_state_dict(net, tracker.average(0.1), strict=True)
    [state] = reconstruct(find_snapshots(tmp_path), [0.08])
    assert state["weight"].dtype == torch.float32
    assert {name: x.dtype for name, x in net.named_buffers()} == {
        name: state[name].dtype for name, _ in net.named_buffers()
    }
    net.load_state_dict(state, strict=False)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, dtype=torch.complex128), "x is torch.complex128"),
        (torch.eye(2).to_sparse(), "x is of the layout torch.sparse_coo"),
        (torch.ones(2, device="meta"), "x is on the meta device"),
        ({"scale": 3}, "x is no tensor but a dict"),
    ],
)
def test_what_no_file_can_hold_is_named(tensor, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{message}.*; convert it or leave it out$"):
        write_snapshot(tmp_path / "a.safetensors", {"x": tensor}, {"images_seen": 1, "sigma_rel": 0.1})
    assert not list(tmp_path.iterdir())


def test_metadata_may_come_from_numpy_and_torch(tmp_path):
    said = {"images_seen": np.int64(64), "sigma_rel": np.float32(0.5), "loss": torch.tensor(2.0), "list": np.arange(2)}
    path = tmp_path / "a.safetensors"
    write_snapshot(path, {"x": torch.ones(2)}, said)
    assert read_metadata(path) == {"images_seen": 64, "sigma_rel": 0.5, "loss": 2.0, "list": [0, 1]}
    with pytest.raises(TypeError, match=r"metadata are JSON and cannot hold .* a Linear;"):
        write_snapshot(path, {"x": torch.ones(2)}, {"net": nn.Linear(1, 1)})


def test_numbers_beyond_half_precision_keep_their_type(tmp_path):
    """65,504 is the largest number of float16."""
    tensors = {"large": torch.tensor([1.0, 7e4]), "small": torch.ones(2)}
    write_snapshot(tmp_path / "a.safetensors", tensors, {"images_seen": 1, "sigma_rel": 0.1}, torch.float16)
    stored = load_file(tmp_path / "a.safetensors")
    assert stored["large"].tolist() == [1.0, 7e4]
    assert stored["small"].dtype == torch.float16


def test_lengths_whose_files_would_have_one_name_are_refused():
    with pytest.raises(ValueError, match=r"sigma_rels=\(0.05, 0.05001\) must differ in the four digits"):
        PowerFunctionEMA(nn.Linear(1, 1), [0.05, 0.05001])


def test_averages_may_be_moved_and_made_more_precise_but_not_less():
    net = nn.Linear(2, 2)
    tracker = PowerFunctionEMA(net)
    tracker.update(1)
    tracker.to("cpu", torch.float64)
    net.weight.data.add_(1)
    tracker.update(2)
    assert tracker.state_dict()["0.1/weight"].dtype == torch.float64
    for dtype in (torch.float16, torch.bfloat16, torch.int32):
        with pytest.raises(ValueError, match=f"averages cannot be kept in {dtype}"):
            tracker.to(dtype=dtype)
