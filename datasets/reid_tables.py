"""People's own pictures: a folder with one folder a person, or a CSV or Parquet table of paths and identities."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from datasets.reid_images import UNKNOWN_CAMERA, Listing
from models.errors import InputError

_SUFFIXES = {".jpg", ".jpeg", ".png"}
_CAMERA = re.compile(r"(?:^|_)c(\d+)(?:s\d+)?(?:_|\.)", re.IGNORECASE)
_SPLIT_WORDS = {"train": "train", "query": "query", "gallery": "gallery", "test": "gallery"}


def read_folder(root: Path, split: str) -> Listing:
    """A folder with one folder a person; `query` and `gallery` folders of that kind hold an evaluation's images.

    A camera is read from names like `x_c3_y.jpg`, where all images have one. Links to folders are not followed.
    """
    parts = {part for part in ("train", "query", "gallery") if (root / part).is_dir()}
    if {"query", "gallery"} <= parts:
        base = root / split if split in parts else root if split == "train" and "train" not in parts else None
        if base is None or base == root:
            raise InputError(f"{root}: it has query and gallery, but no folder {split}")
        return _folder(base, f"{root.name} {split}", root / "train")
    return _split_by_first(_folder(root, root.name, None), split)


def _folder(root: Path, name: str, _train: Path | None) -> Listing:
    found: list[tuple[str, Path]] = []
    for person in sorted(root.iterdir()):
        if not person.is_dir() or person.is_symlink() or person.name.startswith("."):
            continue
        for folder, _, files in os.walk(person):
            images = sorted(file for file in files if Path(file).suffix.lower() in _SUFFIXES and file[0] != ".")
            found += [(person.name, Path(folder) / file) for file in images]
    if not found:
        raise InputError(f"no images (jpg, png) in folders of {root}: give one folder a person, or a table")
    cameras = [_CAMERA.search(path.name) for _, path in found]
    numbers = [int(match[1]) for match in cameras] if all(cameras) else [UNKNOWN_CAMERA] * len(found)
    names = tuple(path.relative_to(root).as_posix() for _, path in found)
    return _listing(name, [path for _, path in found], [person for person, _ in found], numbers, names)


def read_table(path: Path, split: str) -> Listing:
    """A CSV or Parquet file with the columns path (from the table's folder, or absolute) and identity; camera and split
    are optional. Raises InputError naming the first row that cannot be used.
    """
    table = _read(path)
    for column in ("path", "identity"):
        if column not in table.column_names:
            raise InputError(f"{path} has no column {column!r}, but {', '.join(table.column_names)}: rename one")
    paths, people = (_words(table, column, path) for column in ("path", "identity"))
    cameras = _cameras(table, path)
    if not paths:
        raise InputError(f"{path} has no rows")
    duplicates = len(paths) - len(set(paths))
    listing = _listing(path.name, [path.parent / word for word in paths], people, cameras, tuple(paths))
    if duplicates:
        raise InputError(f"{path}: {duplicates} rows repeat a path: keep one row an image")
    if "split" not in table.column_names:
        return _split_by_first(listing, split)
    words = [word.strip().lower() for word in _words(table, "split", path)]
    for row, word in enumerate(words):
        if word not in _SPLIT_WORDS:
            raise InputError(f"{path}, row {row + 1}: split {word!r} is not train, query or gallery")
    mine = np.array([_SPLIT_WORDS[word] == split for word in words])
    if not mine.any():
        raise InputError(f"{path}: not one row has the split {split}")
    return listing.take(mine)


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            return pa.parquet.read_table(path)
        if path.suffix.lower() in (".csv", ".tsv"):
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            with pa.csv.open_csv(path, parse_options=pa.csv.ParseOptions(delimiter=delimiter)) as reader:
                columns = reader.schema.names
            as_text = pa.csv.ConvertOptions(  # identities keep their zeros
                column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True, null_values=[""]
            )
            options = pa.csv.ParseOptions(delimiter=delimiter)
            return pa.csv.read_csv(path, parse_options=options, convert_options=as_text)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}") from error
    raise InputError(f"{path} is no table: give .csv, .tsv or .parquet, or a folder")


def _words(table: pa.Table, column: str, path: Path) -> list[str]:
    words = [None if value is None else str(value) for value in table[column].to_pylist()]
    for row, word in enumerate(words):
        if word is None or not word.strip():
            raise InputError(f"{path}, row {row + 1}: {column} is empty")
    return words


def _cameras(table: pa.Table, path: Path) -> list[int]:
    if "camera" not in table.column_names:
        return [UNKNOWN_CAMERA] * table.num_rows
    numbers = []
    for row, value in enumerate(table["camera"].to_pylist()):
        try:
            numbers.append(UNKNOWN_CAMERA if value is None or value == "" else int(value))
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}, row {row + 1}: camera {value!r} is no whole number") from error
        if numbers[-1] < UNKNOWN_CAMERA:
            raise InputError(f"{path}, row {row + 1}: camera {value!r} is negative: leave it empty where not known")
    return numbers


def _listing(
    name: str, paths: Sequence[Path], people: Sequence[str], cameras: Sequence[int], names: tuple[str, ...]
) -> Listing:
    """Identities are numbered from 1 on in the order of the people's names."""
    numbers = {person: place for place, person in enumerate(sorted(set(people)), start=1)}
    identities = np.array([numbers[person] for person in people], np.int64)
    by_number = {place: person for person, place in numbers.items()}
    return Listing(name, tuple(paths), identities, np.array(cameras, np.int64), names, by_number)


def _split_by_first(listing: Listing, split: str) -> Listing:
    """Everything for training; the first image of everybody with two or more asks, and all others are the gallery."""
    if split == "train":
        return listing
    if split == "multi-query":
        raise InputError(f"{listing.name} has no images for multi-query")
    _, first, counts = np.unique(listing.identities, return_index=True, return_counts=True)
    asks = np.zeros(len(listing), bool)
    asks[first[counts >= 2]] = True
    if not asks.any():
        raise InputError(f"{listing.name}: nobody has two images, so that nobody can be looked for")
    note = f"{listing.name} says nothing of query and gallery: the first image of each person is the query"
    if not listing.has_cameras:
        note += "; cameras are not known, so that the protocol's rule about the query's own camera is left out"
    return listing.take(asks if split == "query" else ~asks).with_notes(note)
