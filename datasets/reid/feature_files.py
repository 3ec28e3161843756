"""Files of re-identification features: this program's Parquet, layumi's pytorch_result.mat, torchreid's arrays.

No code in a file is run: `datasets.storage.mat_file` reads MAT-files, .npz is read without pickles, .pt by
`passersby.checkpoints`.
"""

import dataclasses
import io
import json
import re
import struct
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from datasets.people.listing import UNKNOWN_CAMERA
from datasets.storage.mat_file import Array, read_mat
from passersby.errors import InputError
from passersby.options import Json

SPLITS = ("query", "gallery", "multi-query")
METADATA_KEY = b"passersby_features"
ROWS = 8192  # rows of a row group, which are converted at a time
LAYUMI = {"query": "query_{}", "gallery": "gallery_{}", "multi-query": "mquery_{}"}
LAYUMI_PARTS, LAYUMI_MULTI = ("f", "label", "cam"), "multi_query.mat"
_MAT4_NAME = re.compile(rb"[A-Za-z]\w{0,62}\x00")
_READ = "Parquet, a MAT-file of layumi's test.py, and .npz, .pt and .safetensors with qf, gf, q_pids, g_pids are read"
TORCHREID = {"query": ("qf", "q_pids", "q_camids"), "gallery": ("gf", "g_pids", "g_camids")}


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of the images of one split; entry i of every field is image i.

    features: [N, D] float32. identities: [N] int64 (> 0 a person, 0 a distractor, -1 junk). cameras: [N] int64,
    UNKNOWN_CAMERA where a camera is unknown. names: the images' names, empty where the file has no names.
    """

    features: np.ndarray
    identities: np.ndarray
    cameras: np.ndarray
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.features)

    @property
    def has_cameras(self) -> bool:
        """Whether the camera of every image is known."""
        return bool((self.cameras != UNKNOWN_CAMERA).all())

    def without_junk(self) -> "FeatureSet":
        """The same set without the images of identity -1, which no ranking contains."""
        indices = np.flatnonzero(self.identities >= 0)
        return self if len(indices) == len(self) else self.take(indices)

    def take(self, indices: np.ndarray) -> "FeatureSet":
        """The images at these indices, in this order."""
        names = tuple(self.names[index] for index in indices) if self.names else ()
        return FeatureSet(self.features[indices], self.identities[indices], self.cameras[indices], names)


class Record(TypedDict, total=False):
    """The record of how a file was made: the network, and the images of each split."""

    network: Mapping[str, Json]
    data: Mapping[str, Json]


@dataclasses.dataclass(frozen=True)
class FeatureFile:
    """The content of a file of features. kind: "passersby" | "layumi" | "torchreid". record: how it was made."""

    kind: str
    query: FeatureSet
    gallery: FeatureSet
    multi_query: FeatureSet | None = None
    record: Record = dataclasses.field(default_factory=Record)


def write_features(path: str | Path, sets: Mapping[str, FeatureSet], record: Record) -> None:
    """Write the set of each split ("query", "gallery", "multi-query") to one Parquet file. The caller renames it.

    Columns: split, name, identity int64, camera int64 (null: not known), feature list<float32>. The record is kept
    as JSON in the schema's metadata.
    """
    schema = pa.schema(
        [
            ("split", pa.string()),
            ("name", pa.string()),
            ("identity", pa.int64()),
            ("camera", pa.int64()),
            ("feature", pa.list_(pa.float32())),
        ],
        {METADATA_KEY: json.dumps(record)},
    )
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=["split"],  # pyright: ignore[reportArgumentType]  # pyarrow has no stubs: columns by name too
    ) as writer:
        for split, images in sets.items():
            for start in range(0, len(images), ROWS):
                part = slice(start, start + ROWS)
                features = np.ascontiguousarray(images.features[part], np.float32)
                cameras, count = images.cameras[part], len(features)
                names = images.names[part] or [None] * count
                offsets = np.arange(count + 1, dtype=np.int32) * features.shape[1]
                columns = [
                    pa.array([split] * count),
                    pa.array(names, pa.string()),
                    pa.array(images.identities[part], pa.int64()),
                    pa.array(cameras, pa.int64(), mask=cameras == UNKNOWN_CAMERA),
                    pa.ListArray.from_arrays(pa.array(offsets), pa.array(features.ravel())),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def read_features(path: Path) -> FeatureFile:
    """Read a file of one of the three kinds. Its first bytes and its keys show the kind.

    The arrays may be of any type of numbers, tensors, sparse, or lists (`feature_arrays.as_array`).

    layumi's multi-query features are read from multi_query.mat beside the file where the file does not hold them.
    Raises InputError for a file that is missing, damaged, of another kind, or without queries or gallery.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(128)
    except OSError as error:
        raise InputError(f"features {path}: {error.strerror or error}: check the path") from error
    try:
        if head.startswith(b"PAR1"):
            return _parquet(path)
        if head.startswith(b"MATLAB") or _is_mat4(head):
            return _layumi(path)
        return _torchreid(path)
    except InputError as error:
        raise InputError(f"features {path}: {error}") from error


def _is_mat4(head: bytes) -> bool:
    """Whether a file starts as a MAT-file of version 4: a header of five numbers, and the first array's name."""
    for order in "<>" if len(head) > 20 else "":
        kind, rows, columns, imaginary, length = struct.unpack(f"{order}5i", head[:20])
        known = 0 <= kind < 5000 and kind % 10 < 3 and kind // 10 % 10 < 6 and kind // 100 % 10 == 0
        if known and min(rows, columns) >= 0 and imaginary in (0, 1) and 1 < length <= 64:
            return _MAT4_NAME.fullmatch(head[20 : 20 + length]) is not None
    return False


def _parquet(path: Path) -> FeatureFile:
    try:
        column_names = set(pq.read_schema(path).names)
        _require(column_names, ("split", "name", "identity", "feature"))
        columns = ["split", "name", "identity", "feature", *({"camera"} & column_names)]
        table = pq.read_table(path, columns=columns, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot be read ({error}): fetch it again") from error
    record = _record((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    splits = np.array(table["split"].to_pylist(), object)
    strange = sorted({str(split) for split in splits} - set(SPLITS))
    if strange:
        raise InputError(f"there is a split {strange[0]!r}: use {', '.join(SPLITS)}")
    sets = {}
    for split in SPLITS:
        part = table.filter(pa.array(splits == split))
        if len(part):
            sets[split] = _of_table(split, part)
    _require(sets)
    return FeatureFile("passersby", sets["query"], sets["gallery"], sets.get("multi-query"), record)


def _record(text: bytes) -> Record:
    try:
        record: Record = json.loads(text)
    except ValueError as error:
        raise InputError(f"its record is no JSON ({error}): write the file again") from error
    if not isinstance(record, dict) or not all(isinstance(record.get(part, {}), dict) for part in ("network", "data")):
        raise InputError("its record is not what jobs/evaluate_reid.py writes: write the file again")
    return record


def _of_table(split: str, part: pa.Table) -> FeatureSet:
    column = part["feature"]
    lengths = set(pc.call_function("list_value_length", [column]).unique().to_pylist())
    if len(lengths) != 1 or None in lengths:
        raise InputError(f"the {split} features have lengths {sorted(map(str, lengths))[:3]}: all need the same")
    values = np.asarray(column.combine_chunks().flatten(), np.float32).reshape(len(part), lengths.pop())
    names = part["name"].to_pylist()
    unknown = np.full(len(part), UNKNOWN_CAMERA)
    cameras = pc.fill_null(part["camera"], UNKNOWN_CAMERA) if "camera" in part.column_names else unknown
    return _checked(split, values, part["identity"], cameras, () if None in names else tuple(map(str, names)))


def _layumi(path: Path) -> FeatureFile:
    array_names = [form.format(part) for form in LAYUMI.values() for part in LAYUMI_PARTS]

    def load(file: Path) -> dict[str, Array]:
        try:
            return read_mat(file, array_names)
        except NotImplementedError as error:
            raise InputError(
                "a MAT-file of version 7.3 (HDF5), which is not read: save it with scipy.io.savemat, or in MATLAB with "
                "'-v7'"
            ) from error
        except (ValueError, OSError, MemoryError) as error:
            raise InputError(f"the MAT-file is damaged ({error}): fetch it again") from error

    arrays = load(path)
    beside = path.with_name(LAYUMI_MULTI)
    if "mquery_f" not in arrays and beside != path and beside.is_file():
        arrays |= load(beside)
    sets = {}
    for split, form in LAYUMI.items():
        keys = [form.format(part) for part in LAYUMI_PARTS]
        if keys[0] in arrays:
            sets[split] = _of_arrays(split, arrays, keys, path.stat().st_size)
    _require(sets)
    return FeatureFile("layumi", sets["query"], sets["gallery"], sets.get("multi-query"))


def _torchreid(path: Path) -> FeatureFile:
    """Read an .npz, a .safetensors, or a .pt that torch.save wrote."""
    from passersby.checkpoints import file_kind, read_safetensors  # they import PyTorch, which takes seconds

    with path.open("rb") as file:
        is_npz = file.read(4) == b"PK\x03\x04" and not _is_torch(path)
        kind = "npz" if is_npz else file_kind(file, _READ)
    readers = {"npz": _of_npz, "safetensors": lambda path: read_safetensors(path)[0], "state_dict": _of_torch}
    arrays = readers[kind](path)
    _require(arrays, [keys[0] for keys in TORCHREID.values()])
    size = path.stat().st_size
    sets = {split: _of_arrays(split, arrays, keys, size) for split, keys in TORCHREID.items()}
    return FeatureFile("torchreid", sets["query"], sets["gallery"])


def _is_torch(path: Path) -> bool:
    from datasets.people.decoding import BROKEN_ARCHIVE

    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except BROKEN_ARCHIVE as error:
        raise InputError(f"the file is damaged ({error}): fetch it again") from error


def _of_npz(path: Path) -> dict[str, np.ndarray]:
    from datasets.people.decoding import BROKEN_ARCHIVE

    array_names = {key for keys in TORCHREID.values() for key in keys}
    arrays, name = {}, "its list"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            for name in array_names & set(archive.files):
                arrays[name] = archive[name]
    except (*BROKEN_ARCHIVE, MemoryError) as error:
        reason = str(error)
        if "allow_pickle" in reason:
            reason = "Python objects, a pickle whose code could do anything"
        raise InputError(f"the .npz cannot be read ({name}: {reason}): save plain arrays of numbers") from error
    return arrays


def _of_torch(path: Path) -> Mapping[str, object]:
    from datasets.reid.feature_arrays import STAND_INS
    from passersby.checkpoints import read_state

    problem = "the .pt holds more than arrays and numbers, nothing of it was run"
    content = read_state(path, STAND_INS, problem, "save a dict of tensors")
    if not isinstance(content, dict):
        raise InputError(f"the .pt holds a {type(content).__name__}: save a dict of tensors")
    return content


def _require(names: Collection[str], keys: Sequence[str] = ("query", "gallery")) -> None:
    missing = [key for key in keys if key not in names]
    if missing:
        names_text = ", ".join(sorted(map(str, names)))[:80] or "nothing known"
        raise InputError(f"there is no {' and no '.join(missing)} in it (found: {names_text}): add them")


def _of_arrays(split: str, arrays: Mapping[str, object], keys: Sequence[str], file_size: int) -> FeatureSet:
    """A set from three arrays, tensors or lists. Without the third one, cameras are unknown."""
    from datasets.reid.feature_arrays import as_array

    _require(arrays, keys[:2])
    features, identities = (as_array(arrays[key], key, file_size) for key in keys[:2])
    if features.dtype.kind not in "fiu" or features.ndim != 2:
        raise InputError(f"{keys[0]} is {features.dtype} {features.shape}: features are numbers [images, dimensions]")
    has_cameras = keys[2] in arrays
    cameras = as_array(arrays[keys[2]], keys[2], file_size) if has_cameras else np.full(len(features), UNKNOWN_CAMERA)
    return _checked(split, features.astype(np.float32), identities, cameras, ())


def _checked(
    split: str, features: np.ndarray, identities: ArrayLike, cameras: ArrayLike, names: tuple[str, ...]
) -> FeatureSet:
    identities = _whole_numbers(split, "identities", identities, len(features))
    cameras = _whole_numbers(split, "cameras", cameras, len(features))
    if names and len(set(names)) != len(names):
        raise InputError(f"names of the {split} are not unique: name each image differently")
    return FeatureSet(features, identities, cameras, names)


def _whole_numbers(split: str, name: str, values: ArrayLike, count: int) -> np.ndarray:
    """The values as [count] int64. Raises InputError for numbers that are not whole, and for another count."""
    array = np.asarray(values).reshape(-1)  # MAT-files hold a vector as [1, N]
    if array.dtype.kind not in "iuf" or not np.array_equal(array, np.round(array)) or (abs(array) > 2.0**62).any():
        raise InputError(f"the {split} {name} are not whole numbers ({array.dtype}): number them")
    if len(array) != count:
        raise InputError(f"{count} {split} features, but {len(array)} {name}: give one for each")
    return array.astype(np.int64)
