"""MAT-files as SciPy reads them, and files that end SciPy's process or claim sizes that they do not have."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from scipy.io import loadmat, savemat

from datasets.storage.mat_file import read_mat


def cell(*values) -> np.ndarray:
    """A cell array, whose elements may be arrays."""
    array = np.empty((1, len(values)), object)
    array[0, :] = values
    return array


VALUES = {
    **{code: np.arange(-3, 9).reshape(3, 4).astype(code) for code in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")},
    "single": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
    "double": np.random.default_rng(0).normal(size=(2, 3, 4)),
    "a_long_name_of_an_array": np.float64(2.5),
    "empty": np.empty((0, 7)),
    "truth": np.array([[True, False]]),
    "text": np.array(["one", "three", "gr\u00f6\u00dfe"]),
    "files": cell("0001_c1.png", "2.png", ""),
    "nested": cell(np.arange(4.0), cell("a", np.ones((2, 2))), scipy.sparse.csc_array(np.eye(3))),
    "sparse": scipy.sparse.csc_array(np.diag([1.5, 0, -2.0])),
    "sparse_truth": scipy.sparse.csc_array(np.eye(3, 5) > 0),
}


def check_equal(found, expected) -> None:
    if scipy.sparse.issparse(expected):
        found, expected = found.toarray(), expected.toarray()
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if expected.dtype == object:
        for one, two in zip(found.reshape(-1), expected.reshape(-1), strict=True):
            check_equal(one, two)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("version", "packed"), [("4", False), ("5", False), ("5", True)])
def test_arrays_are_those_of_scipy(tmp_path, version, packed):
    values = VALUES if version == "5" else {name: VALUES[name] for name in ("i4", "double", "text", "sparse")}
    values = values | ({"double": np.eye(3)} if version == "4" else {})
    savemat(tmp_path / "f.mat", values, format=version, do_compression=packed)
    found, expected = read_mat(tmp_path / "f.mat", values.keys()), loadmat(tmp_path / "f.mat")
    for name in values:
        check_equal(found[name], expected[name])
    assert {*read_mat(tmp_path / "f.mat", ["i4", "nobody"])} & set(values) == {"i4"}


# ---- Files written here, in either order of bytes.


def element(kind: int, data: bytes, order: str = "<", size: int | None = None) -> bytes:
    tag = struct.pack(f"{order}2I", kind, len(data) if size is None else size)
    return tag + data + bytes(-len(data) % 8)


def array(kind: int, shape: tuple[int, ...], *parts: bytes, name: str = "x", order: str = "<", flags: int = 0) -> bytes:
    """The content of an array of a class, without its tag."""
    start = element(6, struct.pack(f"{order}2I", kind | flags, 0), order)
    start += element(5, struct.pack(f"{order}{len(shape)}i", *shape), order) + element(1, name.encode(), order)
    return start + b"".join(parts)


def write(path: Path, *contents: bytes, order: str = "<") -> Path:
    mark = b"\x00\x01IM" if order == "<" else b"\x01\x00MI"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + mark + b"".join(element(14, c, order) for c in contents))
    return path


def doubles(*values: float, order: str = "<") -> bytes:
    return element(9, struct.pack(f"{order}{len(values)}d", *values), order)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_orders_of_bytes(tmp_path, order):
    small = struct.pack(f"{order}I4s", 2 << 16 | 1, b"\x05\x06\0\0")  # a small element: its tag holds the numbers
    contents = (
        array(6, (1, 2), doubles(1.5, 2.5, order=order), order=order),
        array(8, (2, 1), small, name="y", order=order),
    )
    path = write(tmp_path / "f.mat", *contents, order=order)
    found, expected = read_mat(path, ["x", "y"]), loadmat(path)
    for name in found:
        check_equal(found[name], expected[name])


def nested(depth: int) -> bytes:
    content = array(6, (1, 1), doubles(1.0))
    for _ in range(depth):
        content = array(1, (1, 1), element(14, content))
    return content


def packed(content: bytes, claimed: int) -> bytes:
    data = zlib.compress(struct.pack("<2I", 14, claimed) + content)
    return struct.pack("<2I", 15, len(data)) + data


INDICES = element(5, struct.pack("<2i", 0, 1 << 30)), element(5, struct.pack("<3i", 0, 1, 2))
# SciPy 1.17 ends with a segmentation fault for the first, and for the second where 100,000 cells are nested.
HOSTILE = {
    "a type that does not exist": (array(6, (1, 1), element(5000, bytes(8))), "numbers of kind 5000"),
    "cells in cells": (nested(200), "cells at depth 8"),
    "more numbers than bytes": (array(6, (1 << 30, 1 << 30), doubles(1.0)), "1 numbers in an array"),
    "more cells than bytes": (array(1, (1 << 30, 1 << 30)), "cells at depth 0 in 0 bytes"),
    "more letters than bytes": (array(4, (1 << 30, 1 << 30), element(16, b"")), "0 letters"),
    "a size below zero": (array(6, (-1, -1), doubles(1.0)), r"shape \[-1, -1\]"),
    "an element beyond the end": (array(6, (1, 1), element(9, bytes(8), size=1 << 31)), "claims 2,147,483,648 bytes"),
    "indices of no row": (array(5, (2, 2), *INDICES, doubles(1.0, 2.0)), "indices must be < 2"),
    "more values than there are": (
        array(5, (2, 1), INDICES[0], element(5, struct.pack("<2i", 0, 9)), doubles(1.0)),
        "1 of 9 values",
    ),
    "an object": (array(3, (1, 1)), "class 3"),
    "a function": (array(16, (1, 1), element(14, nested(1))), "class 16"),
    "complex numbers": (array(6, (1, 1), doubles(1.0), doubles(2.0), flags=1 << 11), "complex"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_a_value_error(tmp_path, name):
    content, line = HOSTILE[name]
    with pytest.raises(ValueError, match=line):
        read_mat(write(tmp_path / "f.mat", content), ["x"])
    assert read_mat(tmp_path / "f.mat", ["y"]) == {}  # nobody asks for the array


def test_a_compressed_array_that_claims_too_much_is_not_unpacked(tmp_path):
    whole = array(6, (1, 1), doubles(1.0))
    path = write(tmp_path / "f.mat")
    for content, claimed in ((whole, 1 << 31), (whole, len(whole) + 8), (whole + bytes(1 << 20), len(whole))):
        path.write_bytes(path.read_bytes()[:128] + packed(content, claimed))
        with pytest.raises(ValueError, match="a compressed element"):
            read_mat(path, ["x"])
    path.write_bytes(path.read_bytes()[:128] + packed(whole, len(whole)))
    assert read_mat(path, ["x"])["x"] == 1.0


def test_a_file_with_any_byte_changed_is_read_or_refused(tmp_path):
    savemat(tmp_path / "f.mat", {"nested": VALUES["nested"], "text": VALUES["text"], "x": np.eye(2)})
    whole = (tmp_path / "f.mat").read_bytes()
    refused = 0
    for place in range(124, len(whole), 7):
        (tmp_path / "g.mat").write_bytes(whole[:place] + bytes([whole[place] ^ 0x95]) + whole[place + 1 :])
        try:
            read_mat(tmp_path / "g.mat", ["nested", "text", "x"])
        except (ValueError, NotImplementedError):
            refused += 1
    assert refused > 20
