"""Reads a split of any re-ID data by its path, and chooses the reader for it."""

import dataclasses
import os
import urllib.parse
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from datasets.people import cuhk03, folders, market1501, msmt17, tables
from datasets.people.layouts import FOLDERS, MARKET1501, PUBLISHED_FOLDERS, layout_of, refuse_held_out_place
from datasets.people.listing import GALLERY, QUERY, SPLITS, TRAIN, Listing
from datasets.people.names import entry_of, is_clutter
from datasets.people.splits import unmatched_note
from datasets.reid import runs
from datasets.storage.addresses import checked_address
from passersby.errors import InputError

Root = TypeVar("Root")
AnyRoot = TypeVar("AnyRoot", contravariant=True)


class Reader(Protocol[AnyRoot]):
    """A reader of one kind of data, which is a module. root: a folder or table; for a run also a URI, as text."""

    def holds(self, root: AnyRoot) -> bool:
        """Whether the data at `root` are of this kind."""
        ...

    def splits(self, root: AnyRoot) -> set[str]:
        """The splits that the data have."""
        ...

    def read(self, root: AnyRoot, split: str) -> Listing:
        """The listing of one split."""
        ...


# The order matters: `folders` is last, as it takes any folder.
_KINDS: tuple[Reader[Path], ...] = (tables, market1501, msmt17, cuhk03, folders)
_FOLDERS_OF_TREES = frozenset(market1501.FOLDERS.values())


@dataclasses.dataclass(frozen=True)
class _Data(Generic[Root]):
    """The location of data, and their reader."""

    root: Root
    reader: Reader[Root]

    def splits(self) -> set[str]:
        return self.reader.splits(self.root)

    def read(self, split: str) -> Listing:
        return self.reader.read(self.root, split).of_split(split)


def read_split(root: str | Path, split: str) -> Listing:
    """One split - "train", "query", "gallery" or "multi-query" - of any data that this program reads.

    A Market-1501 or toy crowd tree, DukeMTMC-reID, CUHK03 (new protocol), MSMT17, a CSV or Parquet table, a run of
    jobs/generate.py (also by URI) or a folder with one sub-folder a person. Opens no image but those of a run.
    Train and query hold no junk and no distractors. Notes name missing and odd data. Raises InputError where
    the split does not exist or shows nobody.
    """
    if split not in SPLITS:
        raise InputError(f"no split {split!r}: it is one of {', '.join(SPLITS)}")
    data = _data(root)
    if split == TRAIN and data.reader is folders and isinstance(data.root, Path):
        refuse_held_out_place(data.root)
    listing = data.read(split)
    if split in (TRAIN, QUERY):
        listing = listing.training() if split == TRAIN else listing.people_only()
        if not len(listing):
            raise InputError(f"{listing.name}: there is nobody, only junk (-1) and distractors: give images of people")
    if split == QUERY and GALLERY in data.splits():
        listing = listing.with_notes(unmatched_note(listing, data.read(GALLERY)))
    return listing


def address(root: str | Path) -> str | Path:
    """Return a path as Path, also that of file://, and another URI as text in its usual form.

    Raises InputError for an address that means no place.
    """
    text = checked_address(os.fspath(root))
    if text.startswith("file:///"):
        return Path(urllib.parse.unquote(text.removeprefix("file://")))
    return text if "://" in text else Path(text).expanduser()


def full_path(root: Path) -> Path:
    """A path that holds in every folder; the address of a store stays as pathlib has it."""
    where = address(root)
    return root if isinstance(where, str) else where.resolve()


def data_set(root: Path) -> _Data[Path] | None:
    """The data set at `root` whose people of training and test are known; None for other data.

    A table counts in any case: its rows say who is to be trained on. Raises InputError for a damaged table.
    """
    where = published_root(root)
    kind = next((kind for kind in _KINDS[:-1] if kind.holds(where)), None)
    layout = layout_of(where) if kind is None else None
    if layout is not None and layout.name == FOLDERS:
        kind = folders
    return None if kind is None else _Data(where, kind)


def published_root(root: Path) -> Path:
    """The folder below `root` that the archive of a published data set unpacks to; `root` where there is none.

    torchreid and fast-reid look for these names in a data set's folder, and archives of MSMT17_V2 hold theirs twice.
    """
    for _ in range(2):
        if layout_of(root) is not None:
            return root
        inside = (entry_of(root, name) for name in PUBLISHED_FOLDERS)
        root = next((folder for folder in inside if os.path.isdir(folder)), root)
    return root


def _data(root: str | Path) -> _Data[Path] | _Data[str | Path]:
    where = address(root)
    if runs.holds(where):
        return _Data(where, runs)
    if isinstance(where, str):
        raise InputError(f"{where}: no run of jobs/generate.py lies there: other data are read from folders only")
    where = Path(os.path.abspath(where))  # "." has no name; links stay as they are
    if not where.exists():
        raise InputError(f"{root}: there is no such folder or table: check the path")
    where = published_root(where)
    kind = next((kind for kind in _KINDS if kind.holds(where)), None)
    if kind is None:
        raise InputError(f"{root} is a file, and no table (.csv, .parquet): give one, or a folder")
    if kind is folders:
        _refuse_one_level_off(where)
    return _Data(where, kind)


def _refuse_one_level_off(root: Path) -> None:
    """Refuse a folder one level above or below a data set: its sub-folders would be read as people."""
    above = layout_of(root.parent)
    if root.name.lower() in _FOLDERS_OF_TREES and above is not None and above.name == MARKET1501:
        raise InputError(f"{root} is one split of a data set: give {root.parent}")
    for folder in sorted(root.iterdir()):
        layout = None if is_clutter(folder.name) else layout_of(folder)
        if layout is not None or runs.holds(folder):
            raise InputError(f"{root} holds the data set {folder.name}: give {folder}")
