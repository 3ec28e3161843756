"""Network files, read without running their contents: kind, tensors, and the record in files of our own.

Safetensors hold nothing but numbers, `torch.load` reads plain data alone, and neither reads a pickle:
passersby/stylegan3/pickle_machine.py reads the reference's. The code of each kind of network knows
its names and shapes.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch

from passersby.errors import InputError
from passersby.files import write_atomically

Tensors = dict[str, torch.Tensor]
StandIn = Callable | tuple[Callable, str]  # a function of ours, and the name that it stands for in a file

STORAGE_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how PyTorch's format before 1.6 starts
# Pickles of protocols 2 to 5 begin with their protocol, those of 0 and 1 with a container or a name.
_PICKLE = re.compile(rb"\x80[\x02-\x05]|[}\]][q(r.]|\([dlt](?:p\d|[VSIFLNc(.])|\(?c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n")
COUNTER = "num_batches_tracked"  # of batch normalisation; older files lack it, and nothing here needs it
_OTHERS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file, also that of MATLAB's version 7.3: save it in another form"),
    (b"version https://git-lfs", "a git-lfs pointer: the file itself was not fetched"),
    (b"PAR1", "a Parquet file"),
    (b"\x08", "an ONNX network or another protocol buffer"),
    (b"\x93NUMPY", "a numpy array"),
)
# What torch.load raises on damaged files: its reader is partly Python without checks of its own.
_DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError)
_DAMAGE += (AttributeError, IndexError, AssertionError)
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and AveragedModel, and of torch.compile
_STATE_DICTS = ".pth, .pth.tar and .safetensors are read"


@contextlib.contextmanager
def named(what: str, path: str | os.PathLike) -> Iterator[None]:
    """An OSError or InputError inside becomes one InputError that starts with `what` and the path."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} {path}: {error.strerror or error}: check the path") from error
    except InputError as error:
        raise InputError(f"{what} {path}: {error}") from error


# ---- Which kind of file it is.


def file_kind(data: BinaryIO, way_out: str = _STATE_DICTS, pickles: bool = False) -> str:
    """ "safetensors", "state_dict" or, if `pickles`, "pickle", from the contents of a seekable file, left at its start.

    Raises `InputError` that describes another kind of file and ends with `way_out`; the message has no file name.
    """
    data.seek(0)
    head = data.read(512)
    data.seek(0)
    if head.startswith(STORAGE_MAGIC):  # torch.save before PyTorch 1.6: also a pickle, so tested first
        return "state_dict"
    if head.startswith(b"PK\x03\x04"):
        _check_archive(data)
        return "state_dict"
    # Before the pickles: a length of 640 bytes, say, looks like the protocol 2 of a pickle.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27:
        return "safetensors"
    if _PICKLE.match(head):
        if pickles:
            return "pickle"
        raise InputError(f"a plain pickle, whose code could do anything, is not read: {way_out}")
    if head[257:262] == b"ustar":
        raise InputError(
            f"a tar archive, also the form of PyTorch's very first files: unpack it, or save it anew; {way_out}"
        )
    kind = next((name for magic, name in _OTHERS if head.startswith(magic)), None)
    if kind is None and head.lstrip().startswith(b"<"):
        kind = "an HTML or XML page: did the download fail?"
    raise InputError(f"{kind or f'a file that starts with {head[:8]!r}'}: {way_out}")


def is_safetensors(path: Path, way_out: str = _STATE_DICTS) -> bool:
    """Whether a network file is a .safetensors; else it is a state dict. Raises InputError as `file_kind` does."""
    with path.open("rb") as file:
        return file_kind(file, way_out) == "safetensors"


def _check_archive(data: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(data) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"a damaged or truncated .pt file ({error}): fetch it again") from error
    data.seek(0)
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise InputError("a zip archive that is no .pt file of PyTorch")
    # PyTorch stores without compression; an archive that unpacks to more is made to fill the memory.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError("a compressed archive: PyTorch's .pt files are not compressed")


# ---- Its tensors.


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata. Raises InputError for a damaged file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            return tensors, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise InputError(f"damaged .safetensors file ({str(error)[:100]}): fetch it again") from error


def read_state(
    path: Path,
    stand_ins: Sequence[StandIn] = (),
    problem: str = "no plain state dict, nothing of it was run",
    way_out: str = "fetch it again, or save it anew",
) -> Any:
    """What `torch.save` put into a file: tensors and plain data, on the CPU.

    `stand_ins` are functions of ours that may be called for the names in the file. Raises InputError for other
    contents and for damage; its message starts with `problem`, and ends with `way_out` unless that is empty.
    """
    try:
        # The invariants: a file's sparse tensors may have indices outside their shape.
        checks = torch.sparse.check_sparse_tensor_invariants()
        with torch.serialization.safe_globals(list(stand_ins)), checks:
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        if "GLOBAL" in reason:  # PyTorch's own refusal is a page long: the name is what matters
            reason = "it refers to " + reason.partition("GLOBAL ")[2].partition(" was not")[0]
        raise InputError(f"{problem} ({reason[:120]})" + (f": {way_out}" if way_out else "")) from error


def read_tensors(path: Path) -> Tensors:
    """The state dict of a `.pth` or `.safetensors`, without wrappers: plain names and tensors.

    Of a dict with "state_dict" in it that entry is read, or with "model" as in fast-reid's. Prefixes of DataParallel,
    AveragedModel and torch.compile are removed. Raises InputError for a file that holds anything else than plain data,
    or more tensors than bytes.
    """
    state = read_safetensors(path)[0] if is_safetensors(path) else read_state(path, _NUMPY)
    for name in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not state or not all(isinstance(name, str) for name in state):
        raise InputError(f"it holds a {type(state).__name__}, not a state dict")
    state = {name: value for name, value in state.items() if name != "n_averaged"}  # of AveragedModel
    for wrapper in _WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return only_tensors(state, path)


def only_tensors(state: Mapping[str, Any], path: Path) -> Tensors:
    """`state` itself, checked: tensors alone, which are not larger than their file."""
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"its {name[:80]} is a {type(value).__name__}, not a tensor: not a state dict")
        check_plain(name, value)
    check_size(sum(tensor.nbytes for tensor in state.values()), path.stat().st_size)
    return dict(state)


def check_plain(name: str, tensor: torch.Tensor) -> None:
    """Raise InputError if a tensor of a file is no plain array of numbers, for example without values, on "meta"."""
    kinds = {"nested": tensor.is_nested, "sparse": tensor.layout != torch.strided, "quantised": tensor.is_quantized}
    kinds[f"on the device {tensor.device.type!r}"] = tensor.device.type != "cpu"
    if kind := next((kind for kind, holds in kinds.items() if holds), None):
        raise InputError(f"its {name[:80]} is {kind}: save plain tensors of numbers")


def check_size(claimed: int, file_size: int) -> None:
    """Raise InputError if the weights have more bytes than their file: strides of 0 make that possible."""
    if claimed > file_size:
        raise InputError(f"{claimed:,} bytes of weights are more than the whole file")


def fitted(
    tensors: Tensors, expected: Tensors, what: str = "such a network", prefix: str = "", part: str = ""
) -> Tensors:
    """`tensors` in the types of `expected`, contiguous: the same names (without counters), the same shapes, all finite.

    Raises InputError for the first tensor that differs. The message names the tensor with `prefix` before it, the
    `part` of the file that holds it, and `what`: the network that has the expected tensors.
    """
    start = f"{part}: tensor {prefix}" if part else f"tensor {prefix}"
    unknown = sorted(tensors.keys() - expected.keys())
    if unknown:
        raise InputError(f"{start}{unknown[0][:80]} is not one of {what}: damaged, or another structure")
    fitting = {}
    for name, example in expected.items():
        if name not in tensors and name.endswith(COUNTER):
            fitting[name] = torch.zeros((), dtype=torch.int64)
            continue
        if name not in tensors:
            raise InputError(f"{start}{name} is missing, which {what} has")
        tensor = tensors[name]
        if tensor.shape != example.shape:
            shapes = f"{tuple(tensor.shape)}, that of {what} {tuple(example.shape)}"
            raise InputError(f"{start}{name} has shape {shapes}")
        fitting[name] = tensor.contiguous().to(example.dtype)  # before the check, which knows no float8
        if example.is_floating_point() and not (tensor.is_floating_point() and torch.isfinite(fitting[name]).all()):
            raise InputError(f"{start}{name} holds values that are no finite numbers: did the training diverge?")
    return fitting


class _IgnoredType:
    """Stands for numpy.dtype in a checkpoint: its scores are NumPy numbers, which nothing here reads."""

    def __init__(self, *arguments: Any):
        del arguments

    def __setstate__(self, state: Any) -> None:
        del state


def _ignored_number(*arguments: Any) -> None:
    del arguments


# Allowing NumPy's own constructors would let a file hand them whatever it likes.
_NUMPY: list[StandIn] = [(_IgnoredType, "numpy.dtype")]
_NUMPY += [(_ignored_number, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")]


# ---- Our own files: a `.safetensors` whose metadata has one record, JSON, under the key of its kind.


@dataclasses.dataclass(frozen=True)
class OwnKind:
    """One kind of our files: the key of its record, its noun, the job that makes it, and the version of the record.

    `needs`: names in a record -> types of their values. `lacks`: the same names in words.
    """

    key: str
    noun: str
    maker: str
    needs: Mapping[str, type]
    lacks: str
    version: int = 1


GENERATOR = OwnKind(
    "passersby",
    "generator network",
    "jobs/train_gan.py",
    {"generator": object, "discriminator": object, "record": dict},
    "the configuration or the record",
)
REID = OwnKind(
    "passersby-reid",
    "re-identification network",
    "jobs/train_reid.py",
    {"config": dict, "class_names": list, "record": dict},
    "the configuration, the classes or the record",
)
ENCODER = OwnKind(
    "passersby-encoder",
    "encoder",
    "jobs/train_encoder.py",
    {"config": dict, "generator": dict, "record": dict},
    "the configuration, the generator or the record",
)
_KINDS = (GENERATOR, REID, ENCODER)


def save_own(path: str | os.PathLike, kind: OwnKind, tensors: Mapping[str, torch.Tensor], record: dict) -> None:
    """Write tensors and `record` (plain JSON data) atomically. Raises InputError when the file cannot be written."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"format_version": kind.version} | record, sort_keys=True, allow_nan=False)
    write_atomically(path, safetensors.torch.save(stored, {kind.key: text}))


def read_own(path: Path, kind: OwnKind) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and record. Raises InputError for another program's file, a damaged one, and one of a newer version."""
    tensors, metadata = read_safetensors(path)
    if kind.key not in metadata:
        listed = ", ".join(name[:40] for name in sorted(tensors)[:3]) or "no tensors"
        other = next((f"a {kind.noun} of this program" for kind in _KINDS if kind.key in metadata), None)
        other = other or f"another program's ({listed})"
        raise InputError(f"a .safetensors file that is no {kind.noun}: {other}; {kind.maker} makes such files")
    try:
        record = json.loads(metadata[kind.key])
    except (ValueError, RecursionError) as error:
        raise InputError(f"its metadata is no JSON ({str(error)[:80]}): the file is damaged") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != kind.version:
        raise InputError(f"format version {str(version)[:20]}; this program reads version {kind.version}")
    if not all(name in record and isinstance(record[name], needed) for name, needed in kind.needs.items()):
        raise InputError(f"its metadata lacks {kind.lacks}: the file is damaged")
    return tensors, record
