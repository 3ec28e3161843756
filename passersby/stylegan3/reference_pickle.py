"""The reference implementation's network files (.pkl), read without running anything in them.

Such a file is a pickle of {G, D, G_ema, augment_pipe, training_set_kwargs}, of any protocol. Each network module is
stored as its source text and its state; only the state is read. The end of this file and `plain_data.py` list
the few names that occur, each with a function of ours; `pickle_machine.py` says why no other code can run.
"""

import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch

from passersby.checkpoints import STORAGE_MAGIC
from passersby.errors import InputError
from passersby.stylegan3.foreign_networks import PROGRAMS, TENSORFLOW, tensorflow_network
from passersby.stylegan3.pickle_machine import Buildable, PickleMachine, Stub, describe
from passersby.stylegan3.plain_data import PlainData

_STORAGE_VERSION = 1001
_PERSISTENCE_VERSION = 6
_NUMPY_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}
_MAX_DEPTH, _MAX_TENSORS = 12, 10_000  # of a module tree; real ones have 4 and about 120
_NOT_OURS = "not a StyleGAN3 network file"


@dataclasses.dataclass(eq=False)
class PersistentObject:
    """A network module of the file: its class name and its pickled attributes. Inert."""

    class_name: str
    state: dict[str, Any]

    def keywords(self) -> dict[str, Any]:
        """The keywords that its constructor got: plain numbers, texts and dicts of them."""
        keywords = self.state.get("_init_kwargs")
        if self.state.get("_init_args") or not isinstance(keywords, dict) or not _is_plain(keywords, 3):
            raise InputError(f"its {self.class_name} has no readable constructor keywords: {_NOT_OURS}")
        return keywords

    def tensors(self) -> dict[str, torch.Tensor]:
        """The parameters and persistent buffers of the module and its submodules, named as in a state dict."""
        named_tensors: dict[str, torch.Tensor] = {}
        _collect(self, "", 0, named_tensors)
        return named_tensors


def read_reference_pickle(stream: BinaryIO) -> dict[str, Any]:
    """Read a reference network file from `stream`, which can seek (a file, a memory map).

    Returns its dict: `PersistentObject` for each network, plain data for the rest. Raises `InputError` when
    the file is hostile, damaged or no StyleGAN3 network; the message does not name the file.
    """
    start = stream.tell()
    stream.seek(0, io.SEEK_END)
    size = stream.tell() - start
    stream.seek(start)
    data = PickleMachine(stream, known_names(size), others=PROGRAMS).load()
    if not isinstance(data, dict):
        raise InputError(f"a pickle of {describe(data)} instead of a dict with G_ema: {_NOT_OURS}")
    if not isinstance(data.get("G_ema"), PersistentObject):
        keys = ", ".join(describe(key) for key in list(data)[:6])
        raise InputError(f"a pickle without a network G_ema (its keys: {keys or 'none'}): {_NOT_OURS}")
    return data


def _is_plain(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and len(value) < 100 and all(_is_plain(item, depth - 1) for item in value.values())
    if isinstance(value, (list, tuple)):  # taps of a filter
        return depth > 0 and len(value) < 100 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, (str, int, float))


def _collect(module: PersistentObject, prefix: str, depth: int, named_tensors: dict[str, torch.Tensor]) -> None:
    groups = [module.state.get(name, {}) for name in ("_parameters", "_buffers", "_modules")]
    transient = module.state.get("_non_persistent_buffers_set", set())
    sensible = all(isinstance(group, dict) for group in groups) and isinstance(transient, set)
    if depth > _MAX_DEPTH or not sensible:
        raise InputError(f"its module tree makes no sense: {_NOT_OURS}")
    parameters, buffers, modules = groups
    for name, value in [*parameters.items(), *buffers.items()]:
        if value is None or name in transient:
            continue
        if not isinstance(value, torch.Tensor) or len(named_tensors) >= _MAX_TENSORS:
            raise InputError(f"{describe(name)} is no tensor, or there are too many of them: {_NOT_OURS}")
        named_tensors[prefix + str(name)] = value
    for name, child in modules.items():
        if isinstance(child, PersistentObject):
            _collect(child, f"{prefix}{name}.", depth + 1, named_tensors)
        elif child is not None:
            raise InputError(f"{describe(name)} is no network module: {_NOT_OURS}")


# ---- stand-ins for the names in the file


def _persistent_object(meta: Any) -> PersistentObject:
    # `module_src`, the source text that the reference would execute, is dropped here.
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("state"), dict):
        raise InputError(f"a network object without class or state: {_NOT_OURS}")
    if meta.get("version") != _PERSISTENCE_VERSION:
        version = describe(meta.get("version"))
        raise InputError(f"network objects of version {version}: this reader knows {_PERSISTENCE_VERSION}")
    return PersistentObject(describe(meta.get("class_name")), meta["state"])


def _tensor(storage, offset, size, stride, requires_grad, hooks, metadata=None) -> torch.Tensor:
    del requires_grad, hooks, metadata  # matters of training
    numbers = [offset, *size, *stride]
    plain = len(numbers) < 20 and all(type(number) is int and 0 <= number < 2**48 for number in numbers)
    if not plain or not isinstance(storage, torch.Tensor):
        raise InputError("damaged: a tensor without storage or with an impossible shape")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # More elements than the storage has (a stride of 0) would let a small file fill the memory.
    if count > storage.numel() or (count > 0 and last >= storage.numel()):
        raise InputError(f"damaged: a tensor of {count} elements in a storage of {storage.numel()}")
    return storage.as_strided(size, stride, offset)


def _parameter(tensor, requires_grad, hooks) -> torch.Tensor:
    del requires_grad, hooks
    if not isinstance(tensor, torch.Tensor):
        raise InputError("damaged: a parameter that is no tensor")
    return tensor


class _Storages:
    """Reads tensor storages, `limit` bytes in all: a file that repeats one storage endlessly is refused."""

    def __init__(self, limit: int):
        self.limit = limit

    def read(self, data: Any) -> torch.Tensor:
        """The elements of one storage, as `_storage` reads them; their bytes count towards the limit."""
        storage = _storage(data)
        self.limit -= storage.nbytes
        if self.limit < 0:
            raise InputError(f"more bytes of tensors than the file has: {_NOT_OURS}")
        return storage


def _storage(data: Any) -> torch.Tensor:
    """The embedded stream of one torch storage -> its elements, [n], in the storage's type.

    The function that the file names runs an unrestricted `torch.load` on this stream, which would undo every
    other precaution; here the pickles in the stream go through the same machine, with the storage types as the only
    names.
    """
    if not isinstance(data, bytes) or not data.startswith(STORAGE_MAGIC):
        raise InputError(f"damaged: a tensor's storage is not in PyTorch's format, or {_NOT_OURS}")
    stream = io.BytesIO(data)
    stream.seek(len(STORAGE_MAGIC))
    version, system = PickleMachine(stream, {}).load(), PickleMachine(stream, {}).load()
    types = dict.fromkeys(_STORAGE_TYPES, _never)
    storage = PickleMachine(stream, types, persistent=_storage_identity).load()
    keys = PickleMachine(stream, {}).load()
    if version != _STORAGE_VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InputError("a tensor's storage has another version or byte order than this reader knows")
    if not isinstance(storage, _StorageIdentity) or keys != [storage.key]:
        raise InputError("damaged: a tensor's storage does not describe itself")
    start, size = stream.tell() + 8, storage.count * storage.dtype.itemsize
    announced = int.from_bytes(data[start - 8 : start], "little")
    if announced != storage.count or len(data) - start != size:
        raise InputError(f"damaged: a storage of {storage.count} elements with {len(data) - start} bytes")
    if size == 0:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(bytearray(memoryview(data)[start:]), dtype=storage.dtype)


@dataclasses.dataclass(eq=False)
class _StorageIdentity:
    dtype: torch.dtype
    key: str
    count: int


def _storage_identity(identity: Any) -> _StorageIdentity:
    if not isinstance(identity, tuple) or len(identity) != 6 or identity[0] != "storage":
        raise InputError("damaged: a tensor's storage does not describe itself")
    _, kind, key, _, count, view = identity
    plain = isinstance(kind, Stub) and isinstance(key, str) and type(count) is int and count >= 0
    if not plain or view is not None:
        raise InputError("damaged: a tensor's storage does not describe itself")
    return _StorageIdentity(_STORAGE_TYPES[kind.name], key, count)


class _NumpyType(Buildable):
    """A numpy dtype of plain numbers: '<f8' and the like. Types of Python objects are refused."""

    def __init__(self, code: Any, *flags: Any):
        del flags
        if not isinstance(code, str) or code not in _NUMPY_CODES:
            raise InputError(f"numpy.dtype({describe(code)}) is no type of numbers: refused, nothing was run")
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        """The state that numpy pickles: (version, byte order, ...); only structured types use the other items."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|"):
            raise InputError("damaged: a numpy type without byte order")
        if any(part is not None for part in state[2:5]):
            raise InputError("a structured numpy type: refused, nothing was run")
        self.dtype = self.dtype.newbyteorder(state[1])


class _NumpyArray(Buildable):
    """A numpy array. The network does not need its values, which are dropped."""

    def __init__(self, *arguments: Any):
        if len(arguments) != 3 or not isinstance(arguments[0], Stub) or arguments[0].name != "numpy.ndarray":
            raise InputError("damaged: a numpy array of an unknown class")

    def build(self, state: Any) -> None:
        """(version, shape, type, order, bytes); objects in place of bytes are refused."""
        shaped = isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _NumpyType)
        if not shaped or not isinstance(state[4], (bytes, str)):  # Python 2 writes bytes as a text
            raise InputError("a numpy array that does not hold plain numbers: refused, nothing was run")


def _numpy_from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> None:
    # Protocol 5 writes the arrays of whole memory so. The network does not need their values, which are dropped.
    del shape, order
    if not isinstance(kind, _NumpyType) or not isinstance(data, (bytes, bytearray)):
        raise InputError("a numpy array that does not hold plain numbers: refused, nothing was run")


def _numpy_scalar(kind: Any, data: Any) -> int | float | bool | complex:
    data = data.encode("latin-1") if isinstance(data, str) else data  # Python 2 writes bytes as a text
    if not isinstance(kind, _NumpyType) or not isinstance(data, bytes) or len(data) != kind.dtype.itemsize:
        raise InputError("damaged: a numpy number without type or bytes")
    return np.frombuffer(data, kind.dtype)[0].item()


def _never(*arguments: Any) -> Any:
    # For names that a network file passes to a function but never calls.
    del arguments
    raise InputError(f"the pickle constructs a bare array or storage: {_NOT_OURS}")


_STORAGE_TYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.DoubleStorage": torch.float64,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ShortStorage": torch.int16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.BoolStorage": torch.bool,
}

# What torch and numpy write; `known_names` adds plain data and storages. numpy 2 has moved its modules.
NAMES = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "numpy.ndarray": _never,
    "numpy.dtype": _NumpyType,
    **{f"torch.{kind}": _never for kind in ("float16", "float32", "float64", "bfloat16", "uint8", "int64", "bool")},
    **dict.fromkeys(TENSORFLOW, tensorflow_network),
}
for _package in ("numpy.core", "numpy._core"):
    NAMES[f"{_package}.multiarray._reconstruct"] = _NumpyArray
    NAMES[f"{_package}.multiarray.scalar"] = _numpy_scalar
    NAMES[f"{_package}.numeric._frombuffer"] = _numpy_from_buffer


def known_names(size: int) -> dict[str, Callable[..., Any]]:
    """The names that may occur in a network file of `size` bytes, and what stands for them here."""
    # A value may be made in several steps: the text of some bytes, the bytes, the bytearray.
    return NAMES | PlainData(4 * size).names() | {"torch.storage._load_from_bytes": _Storages(size).read}
