"""The restricted reader of reference pickles: it reads what they hold and runs nothing that is in them."""

import contextlib
import copyreg
import importlib
import io
import os
import pickle
import pickletools
import struct
import subprocess

import numpy as np
import pytest
import torch

from passersby.errors import InputError
from passersby.stylegan3.pickle_machine import PickleMachine
from passersby.stylegan3.reference_pickle import known_names, read_reference_pickle


def read(data: bytes):
    return read_reference_pickle(io.BytesIO(data))


class Call:
    """Pickles as a call of `function`: what an attacker writes."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


# ---- what a file holds


def test_reads_tensors_keywords_and_numpy_values(tiny):
    data = read(tiny.reference_file())
    for name, network in zip(("G_ema", "G", "D"), tiny.networks(), strict=True):
        tensors = data[name].tensors()
        assert tensors.keys() == network.state_dict().keys()
        assert all(torch.equal(tensors[key], value) for key, value in network.state_dict().items())
    assert data["G_ema"].keywords()["mapping_kwargs"] == {"num_layers": 2}
    assert data["G_ema"].state["bandwidth"] == 2.0
    assert data["training_set_kwargs"]["resolution"] == 16


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_reads_as_python_reads_it(protocol):
    rng = np.random.default_rng(0)
    value = {"a": [1, -1, 255, 65536, 2**40, -(2**40)], "b": (None, True, False), 7: ()}
    value |= {
        "text": "ü" * 300,
        "deep": [[[]], {}],
        "pair": (1, 2),
        "one": (1,),
        "three": (1, 2, 3),
        "f": 1.5,
    }
    value |= {"many": [int(n) for n in rng.integers(-(2**31), 2**31, 3000)], "same": [value["a"], value["a"]]}
    assert PickleMachine(io.BytesIO(pickle.dumps(value, protocol)), {}).load() == value


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.float64, torch.bfloat16, torch.int64, torch.int16, torch.int8, torch.bool],
)
def test_tensors_of_all_kinds(dtype, protocol):
    tensor = (torch.arange(24).reshape(2, 3, 4) % 5).to(dtype)
    # A transposed view, a slice with an offset, no elements, no dimensions.
    views = [tensor, tensor.permute(2, 0, 1), tensor[1, :, ::2], tensor[:0], tensor[0, 0, 1]]
    data = pickle.dumps(views, protocol)
    read_back = PickleMachine(io.BytesIO(data), known_names(len(data))).load()
    assert all(torch.equal(a, b) for a, b in zip(views, read_back, strict=True))
    assert all(a.dtype == b.dtype for a, b in zip(views, read_back, strict=True))


def test_files_written_with_numpy_1(tiny):
    old = tiny.reference_file().replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    # The replacement has changed the lengths of frames: this reader has no use for them.
    assert b"numpy._core" not in old
    assert old != tiny.reference_file()
    assert read(old)["G_ema"].state["bandwidth"] == 2.0


# ---- attacks: each one works against Python's own unpickler


def _attacks(marker):
    """Name -> (pickle that creates the file `marker` when Python loads it, the name in the refusal)."""
    command, text = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"

    def dumps(value):
        return pickle.dumps({"G_ema": value}, 4)

    legacy = io.BytesIO()
    torch.save(Call(os.system, command), legacy, _use_new_zipfile_serialization=False)
    modern = io.BytesIO()
    torch.save(Call(os.system, command), modern)
    load_from_bytes = torch.storage._load_from_bytes
    array = np.empty(1, dtype=object)
    array[0] = Call(os.system, command)
    return {
        "os.system": (dumps(Call(os.system, command)), "posix.system"),
        "system by its other name": (b"cos\nsystem\n(X" + _counted(command) + b"tR.", "os.system"),
        "eval": (dumps(Call(eval, text)), "builtins.eval"),
        "exec": (dumps(Call(exec, text)), "builtins.exec"),
        "subprocess": (dumps(Call(subprocess.check_call, command.split())), "subprocess.check_call"),
        "nested legacy torch.load": (dumps(Call(load_from_bytes, legacy.getvalue())), "posix.system"),
        "nested zip torch.load": (
            dumps(Call(load_from_bytes, modern.getvalue())),
            "storage is not in PyTorch",
        ),
        "array of objects": (dumps(array), "numpy.dtype(O8)"),
        "dotted name": (
            b"\x80\x04\x8c\x05shlex\x8c\x09os.system\x93\x8c" + _short(command) + b"\x85R.",
            "shlex.os.system",
        ),
        "INST": (b"(X" + _counted(command) + b"ios\nsystem\n.", "INST"),
        "OBJ": (b"(cos\nsystem\nX" + _counted(command) + b"o.", "os.system"),
        "in a set state": (
            b"\x80\x04cbuiltins\neval\n\x8c" + _short(text) + b"\x85R}b.",
            "builtins.eval",
        ),
        "after valid data": (
            b"\x80\x04]\x94(cos\nsystem\n\x8c" + _short(command) + b"\x85Re.",
            "os.system",
        ),
    }


def _counted(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode()


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


ATTACKS = list(_attacks("x"))


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_pickles_are_refused_by_name_and_nothing_runs(name, tmp_path):
    marker = tmp_path / "ran"
    data, named = _attacks(marker)[name]
    with pytest.raises(InputError) as refusal:
        read(data)
    assert named in str(refusal.value)
    assert not marker.exists()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attacks_are_real(name, tmp_path):
    """Python's own unpickler falls for each of them: the test above would notice a reader that runs them."""
    marker = tmp_path / "ran"
    importlib.import_module("shlex")
    with contextlib.suppress(TypeError, AttributeError):  # what comes after the call may fail
        pickle.loads(_attacks(marker)[name][0])
    assert marker.exists()


def test_embedded_source_text_is_never_executed(tiny, tmp_path):
    marker = tmp_path / "ran"
    data = read(tiny.reference_bytes(*tiny.networks(), source=f"open({str(marker)!r}, 'w').close()"))
    data["G_ema"].tensors()
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "function", "arguments"),
    [
        ("subprocess.Popen", copyreg._reconstructor, (subprocess.Popen, object, None)),
        ("builtins.getattr", getattr, ("text", "upper")),
        ("importlib.import_module", importlib.import_module, ("antigravity",)),
        ("torch.serialization.load", torch.load, ("file.pt",)),
        ("torch._utils._rebuild_qtensor", torch._utils._rebuild_qtensor, ()),
        ("numpy.load", np.load, ("file.npy",)),
    ],
)
def test_other_functions_are_refused_by_name(name, function, arguments):
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        read(pickle.dumps({"G_ema": Call(function, *arguments)}, 4))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x04\x82\x01.", "EXT1"),
        (b"\x80\x04X\x01\x00\x00\x00aQ.", "outside itself"),
        (b"\x80\x02P1\n.", "PERSID"),
        # BUILD and attributes: a dict, then the stand-in of a class, as the object whose state is set.
        (b"\x80\x04}}X\x01\x00\x00\x00a]sb.", "Buildable"),
        (b"\x80\x04cdnnlib.util\nEasyDict\n}b.", "Buildable"),
        (b"\x80\x04cdnnlib.util\nEasyDict\n)}\x92.", "NEWOBJ_EX"),
        # Dotted paths from an allowed name.
        (b"\x80\x04\x8c\x0ccollections\x00\x8c\x01a\x93.", r"collections\\x00.a"),
        (b"\x80\x04ccollections\nOrderedDict.__init__.__globals__\n.", "OrderedDict.__init__.__globals__"),
        (b"\x80\x04)}R.", "calls what is no function"),
        (b"\x80\x04ccollections\nOrderedDict\n]R.", "calls what is no function"),
        # Sizes out of nowhere: 2^40 bytes, a memo of 2^31 entries, an integer of 2^30 bytes.
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.", "remain"),
        (b"\x80\x04Nr\xff\xff\xff\x7f0.", "POP"),
        (b"\x80\x04\x8b\x00\x00\x00\x40abc.", "not enough data"),
        (b"\x80\x04\x8b\x20\x00\x00\x00" + b"\x7f" * 32 + b".", "64 bits"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".", "damaged"),
        # Keys that are hashed recursively.
        (b"\x80\x04})" + b"\x85" * 100_000 + b"Ns.", "tuple as a key"),
        (b"\x80\x04.", "damaged"),
        (b"\x80\x04h\x07.", "damaged"),
        (b"\x80\x04(.", "damaged"),
        (b"\x80\x04NN.", "left-over"),
        (b"\x80\x04N", "no end|exhausted"),
    ],
)
def test_instructions_without_a_place_in_a_network_file(data, reason):
    with pytest.raises(InputError, match=reason):
        read(data)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call(np.dtype, "O", False, True), "no type of numbers"),
        (Call(np.dtype, [("a", "O")]), "no type of numbers"),
        (Call(np.ndarray, (2**40,)), "bare array"),
        (Call(torch.storage._load_from_bytes, b""), "not in PyTorch's format"),
        (Call(torch.storage._load_from_bytes, "text"), "not in PyTorch's format"),
        (Call(torch._utils._rebuild_tensor_v2, 1, 0, (1,), (1,), False, None), "without storage"),
        (Call(torch._utils._rebuild_parameter, 1, False, None), "no tensor"),
        (Call(torch._utils._rebuild_parameter), "damaged"),
    ],
)
def test_allowed_functions_check_their_arguments(call, reason):
    with pytest.raises(InputError, match=reason):
        read(pickle.dumps({"G_ema": call}, 4))


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((2**40,), (0,), 0),
        ((4,), (1,), 1),
        ((2,), (4,), 0),
        ((-1,), (1,), 0),
        ((1,), (-1,), 0),
        ((2, 2), (1,), 0),
        ((1,) * 50, (1,) * 50, 0),
    ],
)
def test_tensors_outside_their_storage(size, stride, offset):
    function, arguments = torch.arange(4.0)._typed_storage().__reduce__()
    storage = Call(function, *arguments)
    call = Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, None)
    with pytest.raises(InputError, match="damaged"):
        read(pickle.dumps({"G_ema": call}, 4))


def test_one_storage_named_again_and_again_does_not_fill_the_memory():
    function, (data,) = torch.zeros(100_000)._typed_storage().__reduce__()
    bomb = pickle.dumps([Call(function, data) for _ in range(1000)], 4)  # the bytes once, by reference
    assert len(bomb) < 2 * len(data)
    with pytest.raises(InputError, match="more bytes of tensors"):
        read(bomb)


# ---- damaged files


def test_truncated_files_are_refused(tiny):
    for end in np.linspace(0, len(tiny.reference_file()) - 1, 30).astype(int):
        with pytest.raises(InputError):
            read(tiny.reference_file()[:end])


@pytest.mark.slow
def test_flipped_bytes_never_do_more_than_change_or_refuse(tiny):
    """Random damage ends in an `InputError` or in other data, never in another exception."""
    rng = np.random.default_rng(0)
    ends = [position for opcode, _, position in pickletools.genops(tiny.reference_file()) if opcode.name != "BINBYTES"]
    refused = 0
    for position in rng.choice(ends, 60):
        data = bytearray(tiny.reference_file())
        data[position] ^= int(rng.integers(1, 256))
        try:
            network = read(bytes(data))["G_ema"]
            network.tensors(), network.keywords()
        except InputError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1, 2], "a list instead of a dict"),
        ({"weights": 1, "optimizer": 2}, "without a network G_ema.*weights, optimizer"),
        ({"G_ema": {"a": 1}}, "without a network G_ema"),
        ({}, "its keys: none"),
    ],
)
def test_pickles_of_something_else(value, reason):
    with pytest.raises(InputError, match=reason):
        read(pickle.dumps(value, 4))


def test_another_version_of_network_objects(tiny):
    older = tiny.reference_file().replace(b"\x8c\x07version\x94K\x06", b"\x8c\x07version\x94K\x05")
    assert older != tiny.reference_file()
    with pytest.raises(InputError, match="version 5: this reader knows 6"):
        read(older)
