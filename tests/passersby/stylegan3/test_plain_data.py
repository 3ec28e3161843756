"""Plain data of pickles: read as Python reads it, under every protocol; whatever else carries its names is refused."""

import collections
import copyreg
import io
import pickle

import numpy as np
import pytest
import torch

from passersby.errors import InputError
from passersby.stylegan3.pickle_machine import PickleMachine
from passersby.stylegan3.reference_pickle import known_names

PROTOCOLS = range(6)


def load(data: bytes):
    return PickleMachine(io.BytesIO(data), known_names(len(data))).load()


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        set(),
        {"a", "b"},
        {1, 2.5, None, b"x"},
        frozenset(),
        frozenset({"a", 7}),
        [],
        [1, [2]],
        (),
        ({"a"}, frozenset("b")),
        {"nested": {"set": {"x"}}},
        {1.5: "float key", None: 0, b"k": 1},
        collections.OrderedDict([("b", 1), ("a", {2})]),
        b"",
        bytes(range(256)),
        bytearray(),
        bytearray(range(256)),
        complex(1, -2),
        slice(1, None, 2),
        range(0, 10, 3),
        range(10**15),
        -(2**62),
        0.1,
        "ü\n\\ 😀",
    ],
)
def test_plain_values_are_read_as_python_reads_them(value, protocol):
    data = pickle.dumps(value, protocol)
    assert load(data) == pickle.loads(data) == value
    assert type(load(data)) in (type(value), dict)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_references_own_kind_of_dict(tiny, protocol):
    assert load(tiny.easy_dict_bytes(protocol, resolution=16, path="people.zip")) == {
        "resolution": 16,
        "path": "people.zip",
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(2)), np.arange(8)[::2]])
def test_numpy_arrays_have_a_place_and_numbers_their_value(array, protocol):
    load(pickle.dumps({"array": array, "empty": np.empty(0)}, protocol))
    values = {"half": np.float16(0.5), "whole": np.int64(-3), "true": np.bool_(True), "wide": np.complex64(1j)}
    assert load(pickle.dumps(values, protocol)) == {"half": 0.5, "whole": -3, "true": True, "wide": 1j}


@pytest.mark.parametrize("package", [b"numpy.core", b"numpy._core"])
def test_numpy_moved_its_modules(package):
    data = pickle.dumps({"array": np.arange(4), "number": np.float64(2)}, 2)
    other = data.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", package)
    assert load(other)["number"] == 2.0


def test_python_2_names_and_texts():
    # A set, a bytes-like text of Python 2 (protocol 2), and the number and array of its numpy.
    assert load(b"\x80\x02c__builtin__\nset\n]U\x01aa\x85R.") == {"a"}
    assert load(b"c__builtin__\nxrange\n(I0\nI3\nI1\ntR.") == range(0, 3)
    assert load(b"\x80\x02U\x02hiT\x03\x00\x00\x00you\x86.") == ("hi", "you")
    scalar = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    assert load(scalar + b"S'\\x00\\x00\\x00\\x00\\x00\\x00\\x00@'\ntR.") == 2.0
    assert load(b"ccollections\nOrderedDict\n((lp0\n(lp1\nS'a'\naI1\naatR.") == {"a": 1}


def test_sizes_types_and_devices_of_torch_are_data():
    values = {"size": torch.Size([2, 3]), "type": torch.float16}
    assert load(pickle.dumps(values, 3))["size"] == (2, 3)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call(set, "text"), "a container made from text"),
        (Call(set, range(10**12)), "a container made from a range"),
        (Call(list, 5), "a container made from 5"),
        (Call(dict, [1, 2]), "a dict of something else than pairs"),
        (Call(set, [(1, 2)]), "tuple as a key"),
        (Call(frozenset, [[1]]), "list as a key"),
        (Call(dict, [((1, 2), 3)]), "tuple as a key"),
        (Call(bytes, 10**12), "bytes made from 1000000000000"),
        (Call(bytearray, 10**12), "bytes made from 1000000000000"),
        (Call(complex, "1"), "a complex number of something else"),
        (Call(slice, "a"), "a slice between something else"),
        (Call(range, "a"), "a range between something else"),
        (Call(object), "constructs a bare object"),
        (Call(copyreg._reconstructor, dict, dict, 5), "a container made from 5"),
        (Call(copyreg._reconstructor, torch.storage._load_from_bytes, object, None), "no plain container"),
        (Call(copyreg._reconstructor, copyreg._reconstructor, object, None), "no plain container"),
    ],
)
def test_plain_names_take_plain_values_alone(call, reason):
    with pytest.raises(InputError, match=reason):
        load(pickle.dumps(call, 4))


@pytest.mark.parametrize("encoding", ["zlib", "hex", "utf-8", "rot13", None])
def test_no_codec_but_latin_1_is_run(encoding):
    arguments = b"(X\x01\x00\x00\x00a" + (b"N" if encoding is None else b"X%c\x00\x00\x00" % len(encoding))
    arguments += b"" if encoding is None else encoding.encode()
    with pytest.raises(InputError, match="bytes encoded as"):
        load(b"c_codecs\nencode\n" + arguments + b"tR.")


@pytest.mark.parametrize("name", ["eval", "getattr", "apply", "file", "execfile", "reduce", "unicode", "memoryview"])
@pytest.mark.parametrize("module", ["builtins", "__builtin__"])
def test_other_builtins_are_refused_by_name(name, module):
    with pytest.raises(InputError, match=f"refers to `{module}.{name}`"):
        load(f"c{module}\n{name}\n(tR.".encode())


def test_one_value_copied_again_and_again_does_not_fill_the_memory():
    items = pickle.dumps(list(range(1000)), 2)[:-1]
    copies = b"".join(b"c__builtin__\nlist\nh\x00\x85R" for _ in range(50))
    with pytest.raises(InputError, match="more plain data than the file has"):
        load(items + b"(" + copies + b"t\x86.")
    text = b"X\xe8\x03\x00\x00" + b"a" * 1000 + b"q\x00"
    copies = b"".join(b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" for _ in range(50))
    with pytest.raises(InputError, match="more plain data than the file has"):
        load(text + b"(" + copies + b"t\x86.")
