"""MAT-files of versions 4 and 5, whoever made them: every size is checked before it is used.

SciPy reads version 5 in compiled code that trusts the file: a type of data that does not exist, or cells inside cells
a hundred thousand times, end the process. So that version is read here (MathWorks, "MAT-File Level 5 File Format"):
numbers, text, sparse matrices and cells of these, as SciPy gives them. SciPy's code for version 4 is plain Python.
"""

import math
import os
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import scipy.sparse

HEADER = 128  # bytes of a file of version 5 before its first array
INFLATION = 1032  # zlib makes at most so many bytes of one
MOST_NESTED, MOST_CELLS, MOST_LETTERS, MOST_DIMENSIONS = 8, 1 << 24, 1 << 24, 32
MATRIX, COMPRESSED = 14, 15  # kinds of data with parts
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # kind -> dtype
TEXTS = {1: "ascii", 2: "ascii", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}  # kind -> encoding
CELL, CHARACTERS, SPARSE, OPAQUE = 1, 4, 5, 17  # classes of arrays; 6 to 15 are numbers
LEAST_NUMBER, GREATEST_NUMBER = 6, 15
NAME_BYTES = 1 << 10  # of an array's beginning, which holds its flags, dimensions and name

Array: TypeAlias = "np.ndarray | scipy.sparse.csc_array"


def read_mat(path: Path, names: Collection[str]) -> dict[str, Array]:
    """The arrays with these names, of those that the file holds.

    Numbers have the type with which they are stored. Text becomes an array of strings, one for each row; a cell array
    becomes an array of objects. Raises ValueError for a damaged file and for an array of another class, OSError for a
    file that cannot be read, MemoryError, and NotImplementedError for version 7.3, which is HDF5.
    """
    with path.open("rb") as file:
        head = file.read(HEADER)
        if b"\0" in head[:4]:
            return _version_4(path, names)
        if len(head) < HEADER:
            raise ValueError(f"it ends after {len(head)} bytes")
        order = "<" if head[126:127] == b"I" else ">"
        version = head[125 if order == "<" else 124]
        if version == 2:
            raise NotImplementedError("a MAT-file of version 7.3")
        if version != 1:
            raise ValueError(f"its version is {version}")
        left = os.fstat(file.fileno()).st_size - HEADER
        arrays: dict[str, Array] = {}
        while left:
            tag = file.read(8)
            if len(tag) < 8:
                raise ValueError(f"{len(tag)} bytes at its end belong to nothing")
            kind, size = struct.unpack(f"{order}2I", tag)
            left -= 8 + size
            if left < 0 or kind not in (MATRIX, COMPRESSED):
                raise ValueError(f"an element of kind {kind} claims {size:,} bytes")
            name, content = _wanted(file, kind, size, order, names)
            if content is not None:
                arrays[name] = _Reader(order).matrix(_Elements(content, order))
        return arrays


def _version_4(path: Path, names: Collection[str]) -> dict[str, Array]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(path, variable_names=list(names))
    except (MatReadError, TypeError, LookupError, AttributeError, EOFError, OverflowError, struct.error) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _wanted(file: BinaryIO, kind: int, size: int, order: str, names: Collection[str]) -> tuple[str, memoryview | None]:
    """An element's name and the bytes of its array; None for an array that nobody wants, which is not unpacked."""
    start = file.tell()
    data = file.read(size if kind == COMPRESSED else min(size, NAME_BYTES))
    unpacked = 0
    if kind == COMPRESSED:
        try:
            beginning = zlib.decompressobj().decompress(data, 8 + NAME_BYTES)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if len(beginning) < 8:
            raise ValueError("a compressed element without content")
        inner, unpacked = struct.unpack(f"{order}2I", beginning[:8])
        if inner != MATRIX or unpacked > INFLATION * size:
            raise ValueError(f"a compressed element of kind {inner} claims {unpacked:,} bytes of {size:,}")
        beginning = beginning[8:]
    else:
        beginning = data
    name = _name(_Elements(memoryview(beginning), order))
    if name not in names:
        file.seek(start + size)
        return name, None
    if kind == COMPRESSED:
        return name, memoryview(_inflated(data, unpacked))
    content = data + file.read(size - len(data))
    if len(content) < size:
        raise ValueError(f"{name} has {len(content):,} of {size:,} bytes")
    return name, memoryview(content)


def _inflated(data: bytes, size: int) -> bytes:
    """The array of a compressed element, `size` bytes without its tag."""
    try:
        inflater = zlib.decompressobj()
        content = inflater.decompress(data, 8 + size)
        rest = inflater.decompress(inflater.unconsumed_tail, 8)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(content) < 8 + size or len(rest) >= 8 or not inflater.eof:
        raise ValueError(f"a compressed element does not have {size:,} bytes")
    return content[8:]


def _name(elements: "_Elements") -> str:
    """The name of an array, "" where it has none."""
    if not elements.left:  # an empty array, without flags
        return ""
    flags, _ = elements.flags()
    if flags & 0xFF == OPAQUE:
        return ""
    elements.next()  # the dimensions
    return elements.next()[1].tobytes().decode("latin-1")


class _Elements:
    """Walks through the elements of an array: their kinds, and their bytes."""

    def __init__(self, content: memoryview, order: str):
        self.content, self.order, self.start = content, order, 0

    @property
    def left(self) -> int:
        """Bytes that are still to come."""
        return max(len(self.content) - self.start, 0)

    def next(self) -> tuple[int, memoryview]:
        """The next element: its kind and its bytes."""
        if self.left < 8:
            raise ValueError("an array lacks an element")
        kind, size = struct.unpack_from(f"{self.order}2I", self.content, self.start)
        first, padded = self.start + 8, -(-size // 8) * 8
        if kind >> 16:  # a small element: kind, size and up to four bytes are one tag
            kind, size = kind & 0xFFFF, kind >> 16
            first, padded = self.start + 4, 4
            if size > 4:
                raise ValueError(f"a small element claims {size:,} bytes")
        if first + size > len(self.content):
            raise ValueError(f"an element of kind {kind} claims {size:,} bytes of {self.left - 8:,}")
        self.start = first + padded
        return kind, self.content[first : first + size]

    def flags(self) -> tuple[int, int]:
        """Flags, whose last byte is the class, and room for numbers of a sparse matrix."""
        _, data = self.next()
        if len(data) != 8:
            raise ValueError("an array without flags")
        return struct.unpack(f"{self.order}2I", data)

    def dimensions(self) -> list[int]:
        """The array's shape."""
        kind, data = self.next()
        if kind not in (5, 6) or len(data) % 4 or not 2 <= len(data) // 4 <= MOST_DIMENSIONS:
            raise ValueError("an array without dimensions")
        shape = np.frombuffer(data, f"{self.order}i4").tolist()
        if min(shape) < 0:
            raise ValueError(f"an array of shape {shape}")
        return shape

    def numbers(self, truths: int | None = None) -> np.ndarray:
        """The next element as numbers [N], which own their memory.

        truths: the number of values of a logical sparse matrix, which MATLAB writes as bytes of any kind.
        """
        kind, data = self.next()
        if kind not in NUMBERS:
            raise ValueError(f"numbers of kind {kind}")
        code = np.dtype(self.order + NUMBERS[kind])
        code = np.dtype(bool) if code.itemsize > 1 and truths == len(data) else code
        return np.frombuffer(data, code, len(data) // code.itemsize).copy()


class _Reader:
    """Makes arrays of elements, and counts the cells."""

    def __init__(self, order: str):
        self.order, self.cells = order, 0

    def matrix(self, elements: _Elements, depth: int = 0) -> Array:
        """The array that the elements describe."""
        if not elements.left:
            return np.empty((1, 0))
        flags, _ = elements.flags()
        kind, is_logical, is_complex = flags & 0xFF, flags >> 9 & 1, flags >> 11 & 1
        if kind not in (CELL, CHARACTERS, SPARSE) and not LEAST_NUMBER <= kind <= GREATEST_NUMBER:
            raise ValueError(f"an array of class {kind}, which is none of numbers, text or cells")
        if is_complex:
            raise ValueError("complex numbers")
        shape = elements.dimensions()
        elements.next()  # the name
        if kind == CELL:
            return self._cell(elements, shape, depth)
        if kind == CHARACTERS:
            return _text(elements, shape)
        if kind == SPARSE:
            return _sparse(elements, shape, bool(is_logical))
        values = elements.numbers()
        if len(values) != math.prod(shape):
            raise ValueError(f"{len(values):,} numbers in an array of shape {shape}")
        return values.reshape(shape, order="F")

    def _cell(self, elements: _Elements, shape: list[int], depth: int) -> np.ndarray:
        count = math.prod(shape)
        self.cells += count
        if 8 * count > elements.left or self.cells > MOST_CELLS or depth >= MOST_NESTED:
            raise ValueError(f"{count:,} cells at depth {depth} in {elements.left:,} bytes")
        cells = np.empty(count, object)
        for index in range(count):
            kind, content = elements.next()
            if kind != MATRIX:
                raise ValueError(f"a cell of kind {kind}")
            cells[index] = self.matrix(_Elements(content, self.order), depth + 1)
        return cells.reshape(shape, order="F")


def _text(elements: _Elements, shape: list[int]) -> np.ndarray:
    kind, data = elements.next()
    if kind not in TEXTS:
        raise ValueError(f"text of kind {kind}")
    encoding = TEXTS[kind]
    if encoding in ("utf-16", "utf-32"):
        encoding += "-le" if elements.order == "<" else "-be"
    if len(data) > 4 * MOST_LETTERS:
        raise ValueError(f"a text of {len(data):,} bytes")
    letters = data.tobytes().decode(encoding, "replace")
    count = math.prod(shape)
    if len(letters) < count:
        raise ValueError(f"{len(letters):,} letters in a text of shape {shape}")
    if not count:
        return np.full(shape[:-1] if math.prod(shape[:-1]) <= 1 else 0, "")
    rows = np.array(list(letters[:count])).reshape(shape, order="F").reshape(-1, shape[-1])
    return np.array(["".join(row) for row in rows]).reshape(shape[:-1])


def _sparse(elements: _Elements, shape: list[int], is_logical: bool) -> scipy.sparse.csc_array:
    rows, starts = elements.numbers(), elements.numbers()
    if len(shape) != 2 or not {rows.dtype.kind, starts.dtype.kind} <= {"i", "u"} or len(starts) <= shape[1]:
        raise ValueError(f"a sparse matrix of shape {shape} with {len(starts):,} columns")
    starts = starts[: shape[1] + 1]
    rows, starts = rows.astype(np.int64), starts.astype(np.int64)
    count = int(starts[-1])
    values = elements.numbers(count if is_logical else None)
    if not 0 <= count <= min(len(rows), len(values)):
        raise ValueError(f"a sparse matrix with {len(values):,} of {count:,} values")
    matrix = scipy.sparse.csc_array((values[:count], rows[:count], starts), shape=tuple(shape))
    matrix.check_format(full_check=True)  # the file's indices may point anywhere
    return matrix
