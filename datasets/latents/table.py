"""Latents: the codes of real people's pictures, which jobs/invert.py writes and other jobs read.

The table has one row a picture. The file's metadata hold JSON under "about": the networks, options and data that
made it.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.people.listing import UNKNOWN_CAMERA
from datasets.storage.addresses import checked_address, explain, finds_credentials, open_store, shown
from passersby.errors import InputError
from passersby.options import Json
from passersby.restyle.refinement import person_code

LATENTS_FILE = "latents.parquet"
SCHEMA_VERSION = "1"
SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("person", pa.int64()),  # 0.. in the order of the identities
        ("identity", pa.int64()),
        ("name", pa.string()),  # the person's name in the data set
        ("path", pa.string()),  # relative to the data set
        ("camera", pa.int64()),  # null where not known
        ("split", pa.string()),
        ("w", pa.list_(pa.float32())),  # num_ws * w_dim values; null where the picture could not be inverted
        ("encoder_lpips", pa.float32()),  # after the encoder's last step; the values below are those of the final code
        ("l2", pa.float32()),
        ("lpips", pa.float32()),
        ("identity_cosine", pa.float32()),  # null where no identity network was given
        ("status", pa.string()),  # ok | error
        ("message", pa.string()),  # why there is an error; with status ok, what is peculiar about the picture
        ("delta", pa.string()),  # file of the person's change of the generator, below the folder; null without one
        ("delta_sha256", pa.string()),
    ]
)
# The columns that --refine who adds: null where w is null. The w of picture i is mapping(who, how_i) + offset.
WHO_SCHEMA = pa.schema(
    [
        *SCHEMA,
        ("who", pa.list_(pa.float32())),  # the first values of z, the same in all rows of a person
        ("how", pa.list_(pa.float32())),  # the other values of z
        ("offset", pa.list_(pa.float32())),  # w_dim values, the same in all rows of a person
    ]
)
_DELTA = re.compile(r"deltas/(\d{3})/person-(\d{6})\.safetensors")
_MOST = {"num_ws": 64, "w_dim": 4096, "height": 4096, "width": 4096}
_ADVICE = "give a folder that jobs/invert.py has written, or its latents.parquet"


def delta_name(person: int) -> str:
    """Name of a person's delta below the output: a folder for each 1000 people."""
    return f"deltas/{person // 1000:03d}/person-{person:06d}.safetensors"


class AboutGenerator(TypedDict):
    """The codes' generator: the name and sha256 of its file, the shape of a code, the size of its images."""

    file: NotRequired[str]
    sha256: str
    num_ws: int
    w_dim: int
    height: int
    width: int


class About(TypedDict):
    """The metadata of a table of latents that other jobs read. `read_latents` checks only those of the generator.

    The file holds more metadata for users: the encoder, the metric, the options.
    """

    generator: AboutGenerator
    data: NotRequired[Json]
    splits: NotRequired[Sequence[str]]
    test_people: NotRequired[Json]
    records: NotRequired[Json]
    encoder: NotRequired[Json]  # None where the codes were found without one


def has_encoder(about: About) -> bool:
    """Whether an encoder took part in finding the codes; True for a table that says nothing of it."""
    return "encoder" not in about or about["encoder"] is not None


@dataclasses.dataclass(frozen=True, eq=False)
class Latents:
    """The N pictures of P people that could be inverted; row i of every field is picture i.

    codes: [N, num_ws, w_dim] float32. persons: [N] int64, 0 to P - 1 without gaps, ascending. People without an
    inverted picture are left out, and the others are numbered again. identities: [N] int64, as in the data set.
    cameras: [N] int64, UNKNOWN_CAMERA where a camera is unknown. paths: relative to the data set. names: person
    -> the person's name in the data set. deltas: person -> (file below `folder`, its sha256), for the people
    who have a delta. about: the file's metadata (generator, encoder, metric, refine, splits, test_people, ...).
    folder: the address of the folder that holds the file. sha256: the file's. whos: [P, n] float32 and offsets:
    [P, w_dim] float32, each person's who and offset; None in a table without them.
    """

    codes: np.ndarray
    persons: np.ndarray
    identities: np.ndarray
    cameras: np.ndarray
    paths: tuple[str, ...]
    names: Mapping[int, str]
    deltas: Mapping[int, tuple[str, str]]
    about: About
    folder: str = dataclasses.field(repr=False)  # may hold credentials
    sha256: str
    whos: np.ndarray | None = None
    offsets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def people(self) -> int:
        """The number of people."""
        return len(self.names)

    def pictures_of(self, person: int) -> np.ndarray:
        """The rows of a person's pictures, ascending."""
        first, last = np.searchsorted(self.persons, [person, person + 1])
        return np.arange(first, last)

    @functools.cached_property
    def _person_codes(self) -> np.ndarray:
        return np.stack([person_code(self.codes[self.pictures_of(person)]) for person in range(self.people)])

    def person_codes(self) -> np.ndarray:
        """Each person's code, [P, num_ws, w_dim] float32: the robust mean over the pictures
        (passersby/restyle/refinement.py)."""
        return self._person_codes

    def medoid(self, person: int) -> int:
        """The row of the person's picture whose code is nearest to the person's code, or the first such row."""
        rows = self.pictures_of(person)
        differences = self.codes[rows].astype(np.float64) - self.person_codes()[person]
        return int(rows[np.square(differences).sum((1, 2)).argmin()])

    def delta(self, person: int) -> bytes | None:
        """The content of a person's delta, checked by its sha256; None for a person without one.

        Raises InputError where the file is missing or has another sha256.
        """
        if person not in self.deltas:
            return None
        name, sha256 = self.deltas[person]
        content = _read(self.folder, name)
        if content is None or hashlib.sha256(content).hexdigest() != sha256:
            state = "is missing" if content is None else "is not the file that latents.parquet names"
            raise InputError(
                f"--latents: {shown(self.folder, name)} {state}: copy the folder again, whole, or invert again"
            )
        return content


def read_latents(address: str | os.PathLike) -> Latents:
    """Read the latents at a path or URI, of latents.parquet or of the folder that holds it.

    Raises InputError, which names the address, for a file that is missing, damaged or of another kind, for codes
    that are not finite or have another shape than the metadata say, and for a table without people.
    """
    folder, name = _locate(os.fspath(address))
    where, content = shown(folder, name), _read(folder, name)
    if content is None:
        raise InputError(f"--latents {where}: there is no such file: {_ADVICE}")
    try:
        parquet = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        about = _about(parquet.schema_arrow, where)
        table = parquet.read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"--latents {where} is damaged ({reason}): {_ADVICE}") from error
    table = table.filter(pc.call_function("equal", [table["status"], "ok"]).fill_null(False)).combine_chunks()
    if not table.num_rows:
        raise InputError(f"--latents {where}: there is nobody in it: not one picture could be inverted")
    shape = about["generator"]["num_ws"], about["generator"]["w_dim"]
    codes = _codes(table, shape, where)
    return _assemble(table, codes, about, folder, where, hashlib.sha256(content).hexdigest())


def _assemble(table: pa.Table, codes: np.ndarray, about: About, folder: str, where: str, sha256: str) -> Latents:
    for column in ("person", "identity", "name", "path"):
        if table[column].null_count:
            raise InputError(f"--latents {where}: {column} is empty in some rows: {_ADVICE}")
    numbers = table["person"].to_numpy()
    order = np.argsort(numbers, kind="stable")
    table, codes, numbers = table.take(order), codes[order], numbers[order]
    _, persons = np.unique(numbers, return_inverse=True)
    identities, labels = table["identity"].to_numpy(), table["name"].to_pylist()
    files = list(zip(table["delta"].to_pylist(), table["delta_sha256"].to_pylist(), strict=True))
    names: dict[int, str] = {}
    deltas: dict[int, tuple[str, str]] = {}
    values_of_person: dict[int, tuple[int, str, str | None, str | None]] = {}
    for person, identity, label, (file, digest) in zip(
        persons.tolist(), identities.tolist(), labels, files, strict=True
    ):
        if values_of_person.setdefault(person, (identity, label, file, digest)) != (identity, label, file, digest):
            raise InputError(f"--latents {where}: the rows of person {label!r} contradict each other: {_ADVICE}")
        names[person] = label
        if file is not None:
            if not _DELTA.fullmatch(file) or not digest:  # never a path out of the folder
                raise InputError(f"--latents {where}: {file[:80]!r} is no name of a delta: {_ADVICE}")
            deltas[person] = (file, digest)
    cameras = table["camera"].fill_null(UNKNOWN_CAMERA).to_numpy()
    paths = tuple(table["path"].to_pylist())
    whos = offsets = None
    if "who" in table.column_names:
        whos = _of_people(table, "who", persons, None, where)
        offsets = _of_people(table, "offset", persons, codes.shape[2], where)
    return Latents(codes, persons, identities, cameras, paths, names, deltas, about, folder, sha256, whos, offsets)


def _of_people(table: pa.Table, name: str, persons: np.ndarray, size: int | None, where: str) -> np.ndarray:
    """Each person's vector [P, size] of a column whose rows are equal within a person; size: None for any one size."""
    column = table[name].combine_chunks()
    lengths = pc.call_function("list_value_length", [column]).fill_null(0).to_numpy()
    size = int(lengths[0]) if size is None else size
    wrong = np.flatnonzero((lengths != size) | (lengths == 0))
    if len(wrong):
        path = table["path"][int(wrong[0])].as_py()
        raise InputError(f"--latents {where}: {name} of {path!r} has {lengths[wrong[0]]} values, not {size}: {_ADVICE}")
    flat = column.flatten()
    values = flat.to_numpy(zero_copy_only=False).reshape(len(persons), size)
    if flat.null_count or not np.isfinite(values).all():
        raise InputError(f"--latents {where}: {name} holds values that are not finite: {_ADVICE}")
    _, firsts = np.unique(persons, return_index=True)
    different = np.flatnonzero((values != values[firsts][persons]).any(1))
    if len(different):
        path = table["path"][int(different[0])].as_py()
        raise InputError(f"--latents {where}: {name} of {path!r} is not that of the person's other rows: {_ADVICE}")
    return values[firsts]


def _codes(table: pa.Table, shape: tuple[int, int], where: str) -> np.ndarray:
    column = table["w"].combine_chunks()
    values = shape[0] * shape[1]
    lengths = pc.call_function("list_value_length", [column]).fill_null(0).to_numpy()
    wrong = np.flatnonzero(lengths != values)
    if len(wrong):
        path = table["path"][int(wrong[0])].as_py()
        raise InputError(
            f"--latents {where}: w of {path!r} has {lengths[wrong[0]]} values, not {shape[0]} x {shape[1]}: {_ADVICE}"
        )
    flat = column.flatten()
    codes = flat.to_numpy(zero_copy_only=False).reshape(-1, *shape)
    if flat.null_count or not np.isfinite(codes).all():
        broken = np.flatnonzero(~np.isfinite(codes).all((1, 2)))
        path = table["path"][int(broken[0])].as_py()
        raise InputError(f"--latents {where}: w of {path!r} is not finite: {_ADVICE}")
    return codes


def _about(schema: pa.Schema, where: str) -> About:
    metadata = schema.metadata or {}
    version = metadata.get(b"schema_version", b"none").decode()
    if b"about" not in metadata or not (schema.equals(SCHEMA) or schema.equals(WHO_SCHEMA)):
        raise InputError(f"--latents {where} is no table of latents: {_ADVICE}")
    if version != SCHEMA_VERSION:
        raise InputError(f"--latents {where} has schema version {version}, not {SCHEMA_VERSION}: invert again")
    try:
        about = json.loads(metadata[b"about"])
        generator = about["generator"]
        sizes = {name: generator[name] for name in _MOST}
        text = isinstance(generator["sha256"], str)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"--latents {where}: its metadata are damaged ({error!r:.80}): {_ADVICE}") from error
    odd = [name for name, size in sizes.items() if type(size) is not int or not 1 <= size <= _MOST[name]]
    if odd or not text:
        raise InputError(f"--latents {where}: its metadata give no {(odd or ['sha256'])[0]} of a generator: {_ADVICE}")
    return about


def _locate(text: str) -> tuple[str, str]:
    """(folder, file name) of the address of a table, or of its folder."""
    if not text.strip():
        raise InputError(f"--latents is empty: {_ADVICE}")
    text = checked_address(text, "--latents")
    remote = "://" in text
    location, sign, query = text.partition("?") if remote else (os.path.abspath(Path(text).expanduser()), "", "")
    name = LATENTS_FILE
    if location.endswith(".parquet"):
        location, _, name = location.rpartition("/")
    return f"{location}{sign}{query}", name


def _read(folder: str, name: str) -> bytes | None:
    """The content of a file below a folder; None where the file does not exist."""
    files, root = open_store(folder or "/", "--latents")
    try:
        with files.open_input_stream(f"{root}/{name}") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"--latents {shown(folder, name)}: {explain(error, finds_credentials(folder))}") from error
