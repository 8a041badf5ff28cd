"""Untrusted network pickles: whatever no network needs is refused in one line, and nothing is executed."""

import io
import itertools
import json
import os
import pickle
import pickletools
import random
import re
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_mutations import changed_pickle
from published_lookalike import (
    NAME,
    Calling,
    EasyDict,
    contents,
    contents_of,
    dump,
    layers,
    refused,
    vae_encoder,
    write,
)
from torch import nn

import edm2
from edm2.io.published import PublishedSnapshot
from edm2.io.published.arrays import locate_tensor
from edm2.io.published.inert_pickle import BUDGET, INSTRUCTIONS, PickleFile, PickleRefused, read_pickle
from edm2.post_hoc_ema import SnapshotError

pytestmark = pytest.mark.usefixtures("nothing_is_executed")


# ------------------------------------------------------------------------------------------------ plain values


@pytest.mark.parametrize("protocol", [4, 5])
def test_plain_values_are_what_they_were(protocol):
    knot: dict[str, Any] = {"shared": [1], "numbers": [None, True, 255, 65535, -1, 1 << 31, -(1 << 70), 0.5]}
    knot |= {"texts": ["", "ä" * 300, "x" * 70_000], "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]}
    knot |= {"many": {str(i): i for i in range(3000)}, "set": set(), "also": knot["shared"]}
    knot["self"] = knot
    read = read_pickle(PickleFile(io.BytesIO(pickle.dumps(knot, protocol))))
    assert read.pop("self") is read
    assert read["shared"] is read["also"]
    del knot["self"]
    assert read == knot
    names = read_pickle(PickleFile(io.BytesIO(dump([torch.HalfStorage, Calling(torch.HalfStorage, 3)]))))
    assert [(call.name, call.arguments) for call in names] == [("torch.HalfStorage", None), ("torch.HalfStorage", (3,))]
    assert not any(callable(call) for call in names)


# ------------------------------------------------------------------------------------------------ attacks

ATTACK = Calling(os.system, "touch PWNED")

TARGETS = {
    "at the top": lambda value: (value, "extra"),
    "instead of the encoder": lambda value: (value, "encoder"),
    "among the data's options": lambda value: (value["dataset_kwargs"], "path"),
    "among the loss's attributes": lambda value: (value["loss_fn"].state, "P_mean"),
    "as an attribute of the network": lambda value: (value["ema"].state, "_extra"),
    "as an argument of the network": lambda value: (value["ema"].state["_init_kwargs"], "model_channels"),
    "as a hook": lambda value: (value["ema"].state["_forward_hooks"], "0"),
    "as a module": lambda value: (value["ema"].state["_modules"], "unet"),
    "as a weight": lambda value: (layers(value["ema"])[0].state["_parameters"], "weight"),
    "as the program's text": lambda value: (value["ema"].meta, "module_src"),
}


@pytest.mark.parametrize("where", TARGETS)
def test_commands_are_refused_wherever_they_are(net, tmp_path, where):
    value = contents_of(net)
    target, key = TARGETS[where](value)
    target[key] = ATTACK
    assert "asks for the global posix.system" in refused(write(tmp_path, value))


@pytest.mark.parametrize(
    "function",
    [eval, exec, open, getattr, __import__, torch.load, pickle.loads, np.load, nn.Linear],
    ids=lambda function: function.__name__,
)
def test_nothing_but_the_known_names_is_accepted(net, tmp_path, function):
    """Not even other names of torch and numpy."""
    assert "asks for the global" in refused(write(tmp_path, contents_of(net, extra=Calling(function, "PWNED"))))


def test_the_programs_text_is_only_text(net, tmp_path):
    value = contents_of(net)
    value["ema"].meta["module_src"] = "open('PWNED', 'w').close()"
    assert edm2.load(write(tmp_path, value)).config == net.config


@pytest.mark.parametrize("opcode", [o for o in pickletools.opcodes if o.name not in INSTRUCTIONS], ids=lambda o: o.name)
def test_other_instructions_are_refused(tmp_path, opcode):
    """Among them INST, OBJ, NEWOBJ_EX, EXT1 and PERSID, which could call or import something; REDUCE etc. are ours."""
    data = b"\x80\x04(NNN" + opcode.code.encode("latin-1") + b"posix\nsystem\n" * 3 + b"."
    message = refused(write(tmp_path, data))
    ours = ("FRAME", "REDUCE", "NEWOBJ", "BUILD", "EMPTY_DICT", "EMPTY_SET", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8")
    assert (f"instruction {opcode.name}," in message) == (opcode.name not in ours)


# ------------------------------------------------------------------------------------------------ tensors


def stream(*pickles: Any, tail: bytes = b"") -> bytes:
    """Pickles one after the other, as torch.save wrote them before it used ZIP files."""
    return b"".join(value if isinstance(value, bytes) else pickle.dumps(value, 2) for value in pickles) + tail


SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
MAGIC = 0x1950A86A20F9469CFC6C
COUNTED = struct.pack("<q", 1) + b"\0\0"


def identified(kind: Any = torch.HalfStorage, count: Any = 1) -> bytes:
    """A pickle of a storage's persistent id."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", kind, "0", "cpu", count, None) if value is Pickler else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(Pickler)
    return buffer.getvalue()


def tensor_of(numbers: Any, offset: Any = 0, size: Any = (1,), stride: Any = (1,)) -> Calling:
    """Pickle a tensor as torch does, around a storage, or around other bytes in its place."""
    if isinstance(numbers, bytes):
        numbers = Calling(torch.storage._load_from_bytes, numbers)
    return Calling(torch._utils._rebuild_tensor_v2, numbers, offset, size, stride, False, OrderedDict())


def with_weight(net: nn.Module, weight: Any) -> EasyDict:
    """Contents of a file with a network that has one more weight."""
    value = contents_of(net)
    value["ema"].state["_parameters"]["extra"] = weight
    return value


@pytest.mark.parametrize(
    ("inner", "complaint"),
    [
        (stream(ATTACK), "posix.system"),
        (stream(MAGIC, 1001, SYSTEM, ATTACK, ["0"], tail=COUNTED), "posix.system"),
        (stream(MAGIC, 1001, SYSTEM, identified(os.system), ["0"], tail=COUNTED), "posix.system"),
        (stream(MAGIC, 1001, SYSTEM, identified(torch.LongStorage), ["0"], tail=COUNTED), "torch.LongStorage"),
        (stream(MAGIC, 1001, SYSTEM, identified(count=1 << 61), ["0"], tail=COUNTED), "numbers"),
        (stream(MAGIC, 1001, SYSTEM, identified(count=-1), ["0"], tail=COUNTED), "numbers"),
        (stream(MAGIC, 1001, SYSTEM, identified(count="1"), ["0"], tail=COUNTED), "numbers"),
        (stream(MAGIC, 1001, SYSTEM, identified(), ["0"], tail=COUNTED[:-1]), "numbers"),
        (stream(MAGIC, 1001, SYSTEM, identified(), ["0"], tail=COUNTED + b"\0"), "numbers"),
        (stream(MAGIC, 1001, SYSTEM, identified(), ["0"], tail=struct.pack("<q", 2) + b"\0\0"), "numbers"),
        (stream(MAGIC, 1001, SYSTEM | {"little_endian": False}, identified(), ["0"], tail=COUNTED), "numbers"),
        (stream(MAGIC, 1000, SYSTEM, identified(), ["0"], tail=COUNTED), "numbers"),
        (stream(MAGIC + 1, 1001, SYSTEM, identified(), ["0"], tail=COUNTED), "numbers"),
        (stream("text", "text", "text", "text", "text"), "numbers"),
        (b"", "damaged"),
        (b"PK\x03\x04", "instruction"),
    ],
)
def test_streams_inside_the_pickle_are_read_as_carefully(net, tmp_path, inner, complaint):
    """Loading such bytes is a way of attack of its own, even if no tensor uses them. Intact ones are what torch writes:
    the refusals are for their reasons."""
    intact = stream(MAGIC, 1001, SYSTEM, identified(), ["0"], tail=COUNTED)
    assert "extra" in PublishedSnapshot(write(tmp_path, with_weight(net, tensor_of(intact)))).names
    assert complaint in refused(write(tmp_path, with_weight(net, tensor_of(inner))))
    unused = Calling(torch.storage._load_from_bytes, inner)
    assert complaint in refused(write(tmp_path, contents_of(net, extra=unused)))


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(("offset", "size", "stride"), [
    (0, (9,), (1,)), (1, (8,), (1,)), (0, (1 << 40,), (0,)), (0, (2, 8), (8, 1)), (0, (2,), (8,)), (8, (1,), (1,)),
    (-1, (4,), (1,)), (0, (-4,), (1,)), (0, (4,), (-1,)), (0, (4,), ()), (0, (1,) * 9, (1,) * 9), (0, (1 << 70,), (1,)),
    (0, (4.0,), (1,)), (0, (True,), (1,)), (0, [4], [1]),
])  # fmt: skip
def test_tensors_stay_within_their_numbers(net, tmp_path, offset, size, stride):
    weight = tensor_of(torch.zeros(8, dtype=torch.float16).storage(), offset, size, stride)
    assert "damaged" in refused(write(tmp_path, with_weight(net, weight)))


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_one_storage_cannot_be_loaded_a_thousand_times(net, tmp_path):
    """A file of a megabyte must not become a gigabyte of tensors."""
    value = contents_of(net)
    numbers = torch.zeros(1 << 18, dtype=torch.float16).storage()
    for i in range(1000):
        value["ema"].state["_parameters"][f"copy{i}"] = tensor_of(numbers, 0, (1 << 18,), (1,))
    path = write(tmp_path, value)
    assert path.stat().st_size < 2_000_000
    assert "larger than the file" in refused(path)


# ------------------------------------------------------------------------------------------------ other contents


def test_files_of_other_kinds(tmp_path):
    ends = (b"", b"\x80", b"\x80\x04", b"\x80\x04.", b"\x80\x04N.", b"\x80\x04}.", b"\x80\x04]K\x01a.")
    for data in (*ends, b"text", b"PK", b"{}"):
        refused(write(tmp_path, data))
    statistics = {"num_images": 4, "fid": {"mu": np.zeros(3), "sigma": np.eye(3)}}
    assert "holds no network" in refused(write(tmp_path, statistics))
    training_state = io.BytesIO()
    torch.save({"state": 1}, training_state)
    assert "training state" in refused(write(tmp_path, training_state.getvalue(), "training-state-0000005.pt"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"img_resolution": "8"}, "does not describe a network"),
        ({"model_channels": -1}, "does not describe a network"),
        ({"channel_mult": 5}, "does not describe a network"),
        ({"surprise\x1b[2J": 1}, "does not describe a network"),
        ({"sigma_data": [[1]]}, "something else than numbers"),
        ({"sigma_data": "long" * 1000}, "something else than numbers"),
        ({"channel_mult": [1] * 1000}, "something else than numbers"),
        ({"img_resolution": 1 << 80}, "something else than numbers"),
        ({str(i): i for i in range(1000)}, "too many entries"),
        ({"num_blocks": 10**9}, "num_blocks=1000000000"),
        ({"model_channels": 1 << 40}, "does not describe a network"),
        ({"label_dim": 3}, "do not fit"),
    ],
)
def test_networks_that_nobody_can_build(net, tmp_path, arguments, complaint):
    value = contents_of(net)
    value["ema"].state["_init_kwargs"].update(arguments)
    assert complaint in refused(write(tmp_path, value))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda value: value.pop("ema"), "no network"),
        (lambda value: value.pop("encoder"), "no network"),
        (lambda value: value.update(ema=value["loss_fn"]), "EDM2Loss"),
        (lambda value: value.update(ema=[]), "damaged"),
        (lambda value: value.update(encoder=value["loss_fn"]), "encoder"),
        (lambda value: value.update(encoder=vae_encoder("vae", [0.0], [0.0])), "impossible numbers"),
        (lambda value: value.update(encoder=vae_encoder("vae", [np.nan], [0.0])), "impossible numbers"),
        (lambda value: value.update(encoder=vae_encoder("vae", [1, 1], [0.0])), "impossible numbers"),
        (lambda value: value.update(encoder=vae_encoder("vae", np.ones(1000), np.ones(1000))), "number per channel"),
        (lambda value: value["encoder"].state.update(scale=np.zeros(2, dtype="int64")), "little-endian floats"),
        (lambda value: value["encoder"].state.update(scale=np.zeros(2, dtype=">f4")), "little-endian floats"),
        (lambda value: value["encoder"].state.update(scale=np.array([None])), "little-endian floats"),
        (lambda value: value["ema"].meta.update(class_name="Trojan"), "class Trojan"),
        (lambda value: value["ema"].meta.update(version=7), "another way"),
        (lambda value: value["ema"].meta.update(type="function"), "another way"),
        (lambda value: value["ema"].meta.pop("module_src"), "another way"),
        (lambda value: value["ema"].state.update(_init_args=(8,)), "named arguments"),
        (lambda value: value["ema"].state.pop("_parameters"), "without _parameters"),
        (lambda value: value["ema"].state["_parameters"].update(odd="text"), "no tensor"),
        (lambda value: value["ema"].state["_modules"].update(odd="text"), "no object"),
        (lambda value: value["ema"].state["_parameters"].update({"\x1b[2J": torch.zeros(1)}), "impossible names"),
        (lambda value: value.update(extra={1: 2}), "keys that are no texts"),
        (lambda value: value.update(extra={(1,): 2}), "keys that are no texts"),
        (lambda value: value.update(extra={1, 2}), "instruction ADDITEMS"),
        (lambda value: value.update(extra=OrderedDict([(1, 2)])), "keys that are no texts"),
        (lambda value: value["ema"].state.update(_modules=Calling(OrderedDict, [("a", "b")])), "without _modules"),
        (lambda value: value["ema"].state["_modules"].update(odd=Calling(nn.ModuleDict, {})), "no object"),
    ],
)
def test_structures_that_are_not_as_described(net, tmp_path, change, complaint):
    value = contents_of(net, encoder=vae_encoder("vae", [1.0], [0.0]))
    change(value)
    assert re.search(complaint, refused(write(tmp_path, value)))


# ------------------------------------------------------------------------------------------------ bombs


def test_a_network_that_contains_itself_or_doubles_at_every_level(net, tmp_path):
    """Forty modules of two entries each are 2^40 paths."""
    itself, modules = nn.ModuleDict(), [nn.ModuleDict() for _ in range(40)]
    itself._modules["again"] = itself
    for outer, inner in itertools.pairwise(modules):
        outer._modules.update(a=inner, b=inner)
    for bomb in (itself, modules[0]):
        value = contents_of(net)
        value["ema"].state["_modules"]["bomb"] = bomb
        assert "without _parameters of its own" in refused(write(tmp_path, value))


def test_texts_that_are_repeated(net, tmp_path):
    """A megabyte that every entry of a dict refers to."""
    value = contents_of(net)
    text = "x" * 1_000_000
    value["dataset_kwargs"].update({f"{i}": text for i in range(90)})
    metadata = PublishedSnapshot(write(tmp_path, value)).metadata
    assert len(json.dumps(metadata)) < 10_000
    value["dataset_kwargs"].update({f"{i}": "text" for i in range(200)})
    assert "too many entries" in refused(write(tmp_path, value))


@pytest.mark.parametrize(
    ("bomb", "complaint"),
    [
        (b")" + b"\x85" * 2_000_000, "more instructions"),
        (b"]" + b"\x94h\0a" * 1_000_000, "more instructions"),
        (b"".join(b"X\0\0\x10\0" + b"x" * (1 << 20) for _ in range(33)), "more instructions or text"),
        (b"Nr\xff\xff\xff\xff.", "no network"),  # an index of the memo
        (b")" + b"\x85" * 100_000 + b".", "no network"),  # nested deeper than Python recurses
        (b"]" * 50_000 + b"a" * 49_999 + b".", "no network"),
        (b"\x8d" + struct.pack("<Q", 1 << 60), "more instructions or text"),
        (b"X\xff\xff\xff\xff", "more instructions or text"),
        (b"B\xff\xff\xff\xff", "too early"),
        (b"\x8e" + struct.pack("<Q", 1 << 63), "too early"),
        (b"c" + b"x" * 1_100_000, "more instructions or text"),
        (b"X\x02\0\0\0\xff\xff.", "damaged: 'utf-8'"),
        (b"\xff.", "instruction 0xff"),
    ],
    ids=lambda value: value[:8].hex() if isinstance(value, bytes) else None,
)
def test_bombs(tmp_path, bomb, complaint):
    assert complaint in refused(write(tmp_path, b"\x80\x04" + bomb))


def test_text_is_not_read_before_it_is_counted(tmp_path):
    """Four gigabytes of it, in a file that takes no space on disk."""
    path = tmp_path / NAME
    with path.open("wb") as file:
        file.write(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 32))
        file.truncate(1 << 33)
    assert "more instructions or text" in refused(path)


def test_pickles_inside_share_the_budget():
    """Thousands of streams must not use the whole budget each."""
    file = PickleFile(io.BytesIO(dump(tensor_of(stream(MAGIC, 1001, SYSTEM, identified(), ["0"], tail=COUNTED)))))
    weight = read_pickle(file)
    before = file.budget
    locate_tensor(weight, file)
    assert BUDGET > before > file.budget + 40 * 32  # at least one read for each instruction inside
    file.budget = 1000
    with pytest.raises(PickleRefused, match="more instructions"):
        locate_tensor(weight, file)


# ------------------------------------------------------------------------------------------------ damage


@pytest.fixture(scope="module")
def small() -> bytes:
    """A pickle with everything in it, in which a random change often hits something that matters."""
    tensors = {"unet.enc.conv.weight": torch.ones(2, 2).half(), "f.freqs": torch.ones(2), "f.phases": torch.ones(2)}
    arguments = {"img_resolution": 8, "img_channels": 4, "label_dim": 0, "channel_mult": [1], "use_fp16": True}
    return dump(contents(tensors, arguments, encoder=vae_encoder("vae", [0.5, 1], [0, -1])))


def opened(path: Path) -> bool:
    """True if everything in a file can be read; anything but a SnapshotError is a bug."""
    try:
        snapshot = PublishedSnapshot(path)
        for name in snapshot.names:
            snapshot.read(name)
        json.dumps(snapshot.metadata)
    except SnapshotError:
        return False
    return True


def test_truncated_pickles(tmp_path, small):
    assert opened(write(tmp_path, small))
    for length in range(0, len(small), 37):
        assert not opened(write(tmp_path, small[:length]))
    assert "truncated" in refused(write(tmp_path, small[: len(small) // 2]))


@pytest.mark.parametrize("seed", range(4))
def test_mutated_pickles(tmp_path, small, seed):
    """Bytes or instructions changed, removed, repeated, or taken from elsewhere: read or refused, and nothing else."""
    chance = random.Random(seed)
    outcomes = [opened(write(tmp_path, changed_pickle(small, chance))) for _ in range(150)]
    assert 0 < sum(outcomes) < len(outcomes)


def test_a_file_that_shrinks_while_it_is_open(net, tmp_path):
    path = write(tmp_path, contents_of(net))
    snapshot = PublishedSnapshot(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SnapshotError, match="truncated while it was read"):
        snapshot.read(snapshot.names[-1])
