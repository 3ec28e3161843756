"""What a GAN may be trained on: the undecoded images of a tree or folder, and the guard that keeps test people out.

Networks of this project make pictures for training re-identification, which is then measured on the query and
gallery people of a Market-1501 tree: none of them may ever be seen by a generator. So of a tree only
`bounding_box_train` is listed, and other folders are refused where they are, hold or repeat held-out people.

Listings of re-ID data, which say of every image whom it shows, are others: datasets/people/labelled_images.py.
"""

import dataclasses
import os
import struct
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets.people.market_tree import (
    DISTRACTOR_IDENTITY,
    JUNK_IDENTITY,
    SPLIT_FOLDERS,
    TreeImage,
    list_split,
    parse_name,
)
from passersby.errors import InputError

# ---- One image, a listing of images, and reading the bytes of one.

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABELS_FILE = "dataset.json"
MOST_IMAGE_BYTES = 64 << 20  # of one file, in an archive unpacked: nothing that is a person's picture comes near
# What `zipfile` raises for damaged, encrypted or foreign archives and members.
BROKEN_ARCHIVE = (OSError, EOFError, KeyError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)

Label = int | tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One image: its name below the source, with /, and what is known without opening it."""

    name: str
    size: int  # bytes; in an archive unpacked
    identity: int | None = None
    camera: int | None = None
    label: Label | None = None  # of dataset.json


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a GAN may be trained on, in the order of the names, and how much was left out and why."""

    kind: str  # "tree" | "folder" | "zip"
    root: Path
    items: tuple[Item, ...]
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)


def is_image(name: str) -> bool:
    """Whether a name with / is an image's: by its suffix, and hidden in no way (._x.jpg, __MACOSX/x.jpg)."""
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and parts[-1].lower().endswith(IMAGE_SUFFIXES)


class Reader:
    """Bytes of images below a folder or in a zip file, by name; threads may share one. Nothing is unpacked.

    Raises InputError where the zip file itself cannot be opened any more.
    """

    def __init__(self, root: Path):
        self._root = Path(root)
        self._archive = None
        self._lock = threading.Lock()
        if self._root.is_file():
            try:
                self._archive = zipfile.ZipFile(self._root)
            except BROKEN_ARCHIVE as error:
                raise InputError(f"cannot read {self._root}: {error}: it was a zip file when it was listed") from error

    def __call__(self, name: str) -> bytes | None:
        """The bytes of one image; None where it cannot be read, is damaged or larger than `MOST_IMAGE_BYTES`."""
        try:
            if self._archive is None:
                with open(self._root / name, "rb") as file:
                    data = file.read(MOST_IMAGE_BYTES + 1)
            else:
                # One thread at a time: members are short, and a ZipFile's own lock does not cover all of its state.
                with self._lock, self._archive.open(name) as member:
                    data = member.read(MOST_IMAGE_BYTES + 1)
        except BROKEN_ARCHIVE:
            return None
        return data if len(data) <= MOST_IMAGE_BYTES else None


# ---- Listing a tree or a folder, and the guard.

TRAIN_FOLDER = SPLIT_FOLDERS["train"]
HELD_OUT_FOLDERS = (SPLIT_FOLDERS["query"], SPLIT_FOLDERS["gallery"], "gt_bbox")  # gt_bbox repeats all people
_NEVER = {JUNK_IDENTITY: "junk", DISTRACTOR_IDENTITY: "distractors"}


def is_tree(folder: Path) -> bool:
    """Whether a folder is the root of a Market-1501 tree."""
    return os.path.isdir(folder / TRAIN_FOLDER)  # unlike Path.is_dir, False where it may not be looked at


def list_tree(root: Path) -> Listing:
    """The training people of a Market-1501 tree. Opens no image.

    Raises InputError as `list_split` does, and where a training identity also stands in query or gallery.
    """
    try:
        files = list_split(root, "train")
    except OSError as error:
        raise InputError(f"cannot read {root}: {error.strerror or error}: check the path") from error
    kept = [file for file in files if file.identity not in _NEVER]
    shared = sorted({file.identity for file in kept} & held_out_people(root))
    if shared:
        raise InputError(
            f"{len(shared)} identities of {root / TRAIN_FOLDER} also stand in query or bounding_box_test, the first "
            f"is {shared[0]:04d}: training on people of the test would spoil it; take them out of one of the folders"
        )
    items = [Item(f"{TRAIN_FOLDER}/{file.path.name}", _size(file.path), file.identity, file.camera) for file in kept]
    return Listing("tree", root, tuple(items), _count_never(file.identity for file in files))


def list_folder(root: Path) -> Listing:
    """Every image below a folder that is no tree, in the order of the names. Opens no image.

    Identities: those of the names where all of them read as Market-1501's do; else the first-level sub-folders,
    where every image lies in one (their numbers, or 1, 2, ... in the order of their names); else unknown. Raises
    InputError for what `guard` refuses, and for folders that cannot be read or hold no image.
    """
    sizes = list_images(root)
    if not sizes:
        raise InputError(f"no images (jpg, png) in {root}")
    names = sorted(sizes)
    guard(root, names)
    if said := market_names(names):
        items = [Item(name, sizes[name], said[name].identity, said[name].camera) for name in names]
    else:
        people = folder_identities(names)
        items = [Item(name, sizes[name], people.get(name)) for name in names]
    return without_junk("folder", root, items)


def without_junk(kind: str, root: Path, items: Sequence[Item]) -> Listing:
    """A listing of these items without junk and distractors, whether told by the identity or by the name."""
    said = [item.identity if item.identity in _NEVER else _named(item.name) for item in items]
    kept = tuple(item for item, identity in zip(items, said, strict=True) if identity not in _NEVER)
    return Listing(kind, root, kept, _count_never(said))


def market_names(names: Sequence[str]) -> dict[str, TreeImage] | None:
    """What every name (with /) says, where all of them read as Market-1501's do; else None."""
    parsed = {name: image for name in names if (image := _parse(name)) is not None}
    return parsed if all(name in parsed for name in names) else None


def folder_identities(names: Sequence[str]) -> dict[str, int]:
    """An identity for every name whose first-level folder is one person; {} where an image lies in no folder."""
    if not all("/" in name for name in names):
        return {}
    folders = {name: name.split("/")[0] for name in names}
    distinct = sorted(set(folders.values()))
    numbers = {folder: number for folder in distinct if (number := _number(folder)) is not None}
    # 7 and 0007 would be one person, so then, as with any other names, the order numbers the folders.
    if len(set(numbers.values())) < len(distinct):
        numbers = {folder: place for place, folder in enumerate(distinct, start=1)}
    return {name: numbers[folder] for name, folder in folders.items()}


def guard(path: Path, names: Sequence[str]) -> None:
    """Refuse a folder or archive of these names (with /) that brings people of a test into a training.

    Raises InputError where `path` is a held-out folder of a tree or lies in one, where such folders lie below it,
    and where a Market-1501 name gives an identity that a tree around or beside `path` holds out.
    """
    refuse_held_out_place(path)
    for name in names:
        inside = set(name.lower().split("/")[:-1]) & {TRAIN_FOLDER, *HELD_OUT_FOLDERS}
        if inside:
            raise InputError(
                f"{path} holds a folder {min(inside)} of a Market-1501 tree: give the tree's own folder (unpacked), "
                "of which only bounding_box_train is used, or rename that folder where it holds no people of a test"
            )
    people = {image.identity for image in map(_parse, names) if image} - set(_NEVER)
    if not people:
        return
    for tree in _trees_near(path):
        shared = sorted(people & held_out_people(tree))
        if shared:
            raise InputError(
                f"{path}: {len(shared)} identities also stand in query or bounding_box_test of {tree}, the first is "
                f"{shared[0]:04d}: leave them out, or keep the images away from that tree if they are other people"
            )


def refuse_held_out_place(path: Path) -> None:
    """Raises InputError where `path` (absolute, links resolved) is a tree's held-out folder or lies in one."""
    for folder in (path, *path.parents):
        if folder.name.lower() not in HELD_OUT_FOLDERS:
            continue
        beside = any(os.path.isdir(folder.parent / other) for other in (TRAIN_FOLDER, SPLIT_FOLDERS["gallery"]))
        if beside or folder.name.lower() != SPLIT_FOLDERS["query"]:
            raise InputError(
                f"{path} holds people of a test ({folder.name} of a Market-1501 tree): give {folder.parent}, of "
                "which only bounding_box_train is used"
            )


def held_out_people(tree: Path) -> set[int]:
    """Identities in the names of query and gallery, without junk and distractors; of folders that are there."""
    people = set()
    for folder in HELD_OUT_FOLDERS[:2]:
        try:
            names = os.listdir(tree / folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            why = error.strerror or error
            raise InputError(f"cannot tell whom {tree / folder} holds ({why}): make it readable") from error
        people |= {image.identity for image in map(_parse, names) if image}
    return people - set(_NEVER)


def _trees_near(path: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:  # a folder that may be entered but not listed
        names = []
    return [folder for folder in (*path.parents, *(path.parent / name for name in names)) if is_tree(folder)]


def list_images(root: Path) -> dict[str, int]:
    """Name below `root`, with /, and size in bytes of every image there.

    Raises InputError where a folder cannot be read, or is a link, which could hide a tree's held-out people.
    """
    folders, sizes = [root], {}
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            for entry in entries:
                path = Path(entry.path)
                name = path.relative_to(root).as_posix()
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                    folders.append(path)
                elif entry.is_symlink() and entry.is_dir():
                    raise InputError(f"{path} is a link to a folder: give that folder itself, or copy it")
                elif is_image(name) and entry.is_file():
                    if entry.is_symlink():
                        refuse_held_out_place(path.resolve())
                    sizes[name] = entry.stat().st_size
        except OSError as error:
            raise InputError(f"cannot read {folder}: {error.strerror or error}: check the path") from error
    return sizes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}: check the file") from error


def _parse(name: str) -> TreeImage | None:
    return parse_name(Path(name))


def _named(name: str) -> int | None:
    image = _parse(name)
    return image.identity if image else None


def _number(text: str) -> int | None:
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdecimal() and len(digits) <= 18 else None


def _count_never(said: Iterable[int | None]) -> dict[str, int]:
    counts = Counter(_NEVER[identity] for identity in said if identity in _NEVER)
    return dict(sorted(counts.items()))
