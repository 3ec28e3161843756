"""Reader of re-ID data in a CSV or Parquet table with columns path and identity, and optionally camera and split."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from datasets.people.listing import GALLERY, MULTI_QUERY, SPLITS, UNKNOWN_CAMERA, Listing
from datasets.people.names import is_clutter
from datasets.people.splits import DERIVED, cameras_note, clutter_note, derived_split, missing_note, names_of, numbered
from passersby.errors import InputError

CSV_SUFFIXES, PARQUET_SUFFIXES = (".csv", ".tsv", ".txt"), (".parquet", ".pq")
NEEDED, OPTIONAL = ("path", "identity"), ("camera", "split")
_ALIASES = {"test": GALLERY, "multi_query": MULTI_QUERY, "gt_bbox": MULTI_QUERY}


def holds(root: Path) -> bool:
    """Whether the name of `root` is that of a table, and `root` is no folder."""
    return root.suffix.lower() in (*CSV_SUFFIXES, *PARQUET_SUFFIXES) and not root.is_dir()


def splits(root: Path) -> set[str]:
    """The splits in the column `split`; without that column, those that `derived_split` makes."""
    columns = _columns(root)
    return set(DERIVED) if "split" not in columns else {_split(value) for value in columns["split"]} & set(SPLITS)


def read(root: Path, split: str) -> Listing:
    """Return the rows whose column `split` has this value; without that column see `splits.derived_split`.

    Paths are absolute, or relative to the table's folder. identities: numbers given to the values of the
    column `identity`, the same in all splits; "-1" is junk. camera: a whole number; empty or -1 where it is
    unknown. Rows of one file count once, however its path is written (p.jpg, ./p.jpg, ../x/p.jpg), and \\ in a
    path is read as /. Raises InputError, which names the row, for a missing identity or path,
    for a camera that is no number, and for two rows that give one image two identities or cameras.
    """
    columns = _columns(root)
    count = len(columns["path"])
    if not count:
        raise InputError(f"{root} has no rows: one for each image is needed")
    all_names, all_labels = (_filled(root, column, columns[column]) for column in NEEDED)
    all_names = [_local_name(root, name) for name in all_names]
    cameras = [_camera(root, row, value) for row, value in enumerate(columns.get("camera", [None] * count))]
    numbers = numbered(all_labels)
    rows, notes = list(range(count)), []
    if "split" in columns:
        row_splits = [_split(value) for value in columns["split"]]
        rows = [row for row in rows if row_splits[row] == split]
        if not rows:
            column_splits = ", ".join(sorted(set(row_splits))) or "nothing"
            raise InputError(f"{root}: no row's split is {split!r}; the column split says {column_splits}")
        if unused := sorted(set(row_splits) - set(SPLITS)):
            unused_rows = sum(value not in SPLITS for value in row_splits)
            notes.append(
                f"{root.name}: {unused_rows:,} rows are not used, their split is {', '.join(map(repr, unused))}"
            )
    images = [row for row in rows if not _is_clutter(all_names[row])]
    notes.append(clutter_note(root.name, len(rows) - len(images)))
    rows, repeated = _once(root, all_names, all_labels, cameras, images)
    if repeated:
        notes.append(f"{root.name}: {repeated:,} rows repeat an earlier one and are left out")
    names = tuple(all_names[row] for row in rows)
    labels = [all_labels[row] for row in rows]
    identities = [numbers[label] for label in labels]
    paths = tuple(root.parent / name for name in names)
    name = f"{root.name} {split}" if "split" in columns else root.name
    listing = Listing(
        name=name,
        contents=paths,
        identities=np.array(identities, np.int64),
        cameras=np.array([cameras[row] for row in rows], np.int64),
        names=names,
        people=names_of(identities, labels),
    ).with_notes(*notes, missing_note(name, paths, names, root.parent))
    listing = listing.with_notes(cameras_note(listing))
    return listing if "split" in columns else derived_split(listing, split)


def _filled(root: Path, column: str, values: Sequence[str | None]) -> list[str]:
    """The values of a required column. Raises InputError for the first row without a value."""
    filled = []
    for row, value in enumerate(values):
        if not value:
            raise InputError(f"{root}, row {row + 1}: {column} is empty: fill it in, or remove the row")
        filled.append(value)
    return filled


def _local_name(root: Path, name: str) -> str:
    """The name of a file with / in place of the \\ that Windows writes, unless a file's own name has the \\."""
    return name if "\\" not in name or (root.parent / name).is_file() else name.replace("\\", "/")


def _is_clutter(name: str) -> bool:
    """Whether a row names a file that an operating system left. Folders are the user's choice, hidden ones too."""
    *folders, file = name.split("/")
    return is_clutter(file) or "__MACOSX" in folders


def _once(
    root: Path, names: Sequence[str], labels: Sequence[str], cameras: Sequence[int], rows: list[int]
) -> tuple[list[int], int]:
    """The rows that repeat no earlier row, and the number of rows that do."""
    first: dict[str, int] = {}
    base = os.path.abspath(root.parent)
    for row in rows:
        path = names[row]
        earlier = first.setdefault(os.path.normpath(os.path.join(base, path)), row)
        same = labels[earlier] == labels[row] and cameras[earlier] == cameras[row]
        if not same:
            raise InputError(
                f"{root}: rows {earlier + 1} and {row + 1} say different things of {path!r}: keep the one that is right"
            )
    return sorted(first.values()), len(rows) - len(first)


def _split(value: str | None) -> str:
    text = (value or "").strip().lower()
    return _ALIASES.get(text, text)


def _camera(root: Path, row: int, value: str | None) -> int:
    text = (value or "").strip()
    if not text or text == str(UNKNOWN_CAMERA):
        return UNKNOWN_CAMERA
    whole = text.removesuffix(".0")  # a column of whole numbers with gaps, as pandas writes it
    if not (whole.isascii() and whole.isdecimal() and len(whole) < 10):
        raise InputError(f"{root}, row {row + 1}: camera {text!r} is no whole number: leave it empty where not known")
    return int(whole)


def _columns(root: Path) -> dict[str, list[str | None]]:
    """Map the name of each known column to its values as text, None where a value is empty."""
    if not root.is_file():
        raise InputError(f"no file {root}: check the path")
    try:
        parquet = root.suffix.lower() in PARQUET_SUFFIXES
        table = _read_parquet(root) if parquet else _read_csv(root)
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{root} is no table that can be read ({reason}): give CSV in UTF-8, or Parquet") from error
    return {name: [_text(value) for value in table[name].to_pylist()] for name in table.column_names}


def _text(value: str | None) -> str | None:
    return None if value is None else value.strip() or None


def _known(root: Path, header: Sequence[str]) -> dict[str, str]:
    """Map a column's name in the table to its name here. Raises InputError where a column is missing or double."""
    names = [(name, name.strip().lower()) for name in header]
    known_columns = [(name, clean) for name, clean in names if clean in (*NEEDED, *OPTIONAL)]
    columns = [clean for _, clean in known_columns]
    for column in NEEDED:
        if column not in columns:
            raise InputError(f"{root} has no column {column!r}, but {', '.join(header)}: rename one")
    if len(columns) > len(set(columns)):
        raise InputError(f"{root} has two columns of one name among {', '.join(header)}: remove one")
    return dict(known_columns)


def _read_csv(root: Path) -> pa.Table:
    with root.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
    delimiter = max(",;\t", key=first.count)  # spreadsheets of many countries write semicolons
    header = next(csv.reader([first], delimiter=delimiter), [])
    renames = _known(root, header)
    table = pyarrow.csv.read_csv(
        root,
        read_options=pyarrow.csv.ReadOptions(column_names=header, skip_rows=1),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
        # Read as text: as numbers "0002" would become 2, and "007" and "7" the same person.
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(renames), column_types=dict.fromkeys(renames, pa.string()), strings_can_be_null=True,
            null_values=[""], quoted_strings_can_be_null=True,
        ),
    )  # fmt: skip
    return table.rename_columns([renames[name] for name in table.column_names])


def _read_parquet(root: Path) -> pa.Table:
    file = pq.ParquetFile(root)
    renames = _known(root, file.schema_arrow.names)
    table = file.read(columns=list(renames))
    columns = {}
    for name in table.column_names:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_floating(column.type):  # whole numbers with gaps, as pandas writes them
            filled = pc.call_function("if_else", [pc.call_function("is_nan", [column]), None, column])
            column = pc.cast(filled, pa.int64())
        columns[renames[name]] = column.cast(pa.string())
    return pa.table(columns)
