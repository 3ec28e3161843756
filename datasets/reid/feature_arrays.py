"""Arrays of features, identities and cameras, in all the forms in which other programs' files hold them, as NumPy's.

NumPy's arrays in a .pt are rebuilt here from plain data (`STAND_INS`): no constructor of NumPy is handed what a
file says.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch

from passersby.checkpoints import StandIn
from passersby.errors import InputError

MOST_DENSE = 1 << 33  # bytes of a sparse matrix when written out: a small file can claim any shape
_CODE = re.compile(r"[iufb](1|2|4|8|16)|O8?")  # of types of numbers, and of Python objects


# ---- NumPy's own pickles, inside a .pt.


class _Type:
    """Stands for numpy.dtype: a type of numbers, or of objects (`code` "O")."""

    def __init__(self, code: str, *_: Any):
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise ValueError(f"arrays of {str(code)[:20]!r} are not read")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")

    def read(self, data: bytes) -> np.ndarray:
        """The numbers in these bytes."""
        if self.code.startswith("O"):
            raise ValueError("an array of objects without a list of them")
        return np.frombuffer(data, np.dtype(self.order + self.code))


class _Array:
    """Stands for numpy.ndarray. `value`: an array of numbers; of objects the shape and the list of all elements."""

    value: np.ndarray | tuple[tuple[int, ...], list] | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        if isinstance(data, list):
            if len(data) != math.prod(shape):
                raise ValueError(f"an array of {shape} with {len(data)} elements")
            self.value = shape, data
        else:
            self.value = kind.read(data).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(kind: _Type, data: bytes) -> int | float | bool:
    return kind.read(data).reshape(1)[0].item()


STAND_INS: list[StandIn] = [(_Type, "numpy.dtype"), (_Array, "numpy.ndarray")]
for _package in ("core", "_core"):  # NumPy before and since 2.0
    STAND_INS += [(_reconstruct, f"numpy.{_package}.multiarray._reconstruct")]
    STAND_INS += [(_scalar, f"numpy.{_package}.multiarray.scalar")]


# ---- Every form as one array of numbers.


def as_array(value: object, name: str, file_size: int) -> np.ndarray:
    """A tensor, array, sparse matrix, or list of any of these, of numbers or of lists, as one NumPy array.

    Lists of rows are stacked, lists of matrices (batches) are joined. Numbers of types that NumPy lacks (bfloat16,
    float8, quantised) become float32. name: the array's name in the file. file_size [bytes]: a tensor that claims more
    is refused. Raises InputError, which names the array, for everything that is no such thing.
    """
    try:
        return _as_array(value, name, file_size)
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(f"{name} cannot be read ({reason}): save an array of numbers") from error


def _as_array(value: Any, name: str, file_size: int) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return _of_tensor(value, name, file_size)
    if scipy.sparse.issparse(value):
        _check_dense(value.shape, name)
        value.tocsc().check_format(full_check=True)  # a file's indices may point anywhere
        return value.toarray()
    shape: tuple[int, ...] | None = None
    if isinstance(value, _Array):
        value = value.value
        if isinstance(value, tuple):
            shape, value = value
    if isinstance(value, np.ndarray) and value.dtype == object:
        shape, value = value.shape, value.reshape(-1).tolist()
    if not isinstance(value, list | tuple):
        return np.asarray(value)
    if _holds_numbers(value):
        array = np.array(value)  # of lists of different lengths it raises ValueError
        return array if shape is None or array.ndim != 1 else array.reshape(shape)
    parts = [_as_array(part, name, file_size) for part in value]
    if shape is not None and all(part.size == 1 for part in parts):
        return np.array([part.item() for part in parts]).reshape(shape)
    return _joined(parts, name)


def _holds_numbers(value: Sequence) -> bool:
    """Whether a list holds plain numbers, or lists of them, by its first element. Then NumPy reads it whole."""
    while isinstance(value, list | tuple) and len(value):
        value = value[0]
    return isinstance(value, int | float | list | tuple)


def _joined(parts: Sequence[np.ndarray], name: str) -> np.ndarray:
    dimensions = {part.ndim for part in parts}
    if len(dimensions) != 1:
        raise InputError(f"{name} is a list of unlike things: save one array")
    if dimensions == {0} or (dimensions == {1} and len({len(part) for part in parts}) == 1):
        return np.stack(parts)
    return np.concatenate(parts)


def _of_tensor(tensor: torch.Tensor, name: str, file_size: int) -> np.ndarray:
    if tensor.is_nested:
        raise InputError(f"{name} is a nested tensor: save an ordinary one")
    if tensor.device.type != "cpu":  # `torch.load` has brought all others to the CPU
        raise InputError(f"{name} lies on the device {tensor.device.type!r}, so its values are not in the file")
    if tensor.layout != torch.strided:
        _check_dense(tensor.shape, name)
        tensor = tensor.to_dense()
    elif tensor.nbytes > file_size:
        raise InputError(f"{name} has {tensor.nbytes:,} bytes, more than the whole file")
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    try:
        return tensor.resolve_conj().resolve_neg().numpy()
    except TypeError:  # a type that NumPy lacks
        return tensor.float().numpy()


def _check_dense(shape: Sequence[int], name: str) -> None:
    if math.prod(shape) * 8 > MOST_DENSE:
        raise InputError(f"{name} is a sparse matrix {tuple(shape)}, too large to be written out: save fewer images")
