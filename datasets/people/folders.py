"""Reader of re-ID data in a folder of people: one sub-folder each, with an optional camera in the file names (_c3).

Sub-folders `train`, `query`, `gallery` and `multi-query`, each with one sub-folder a person, are the splits, as in
layumi's Person_reID_baseline_pytorch, in any letter case. Where both exist, `train_all` is read and `train` is
not; `val` and `test` are never read. Where no such sub-folder exists, all images are for training, and
`splits.derived_split` makes query and gallery from them.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.people.layouts import TRAIN_FOLDERS
from datasets.people.listing import CLUTTER, GALLERY, MULTI_QUERY, QUERY, TRAIN, UNKNOWN_CAMERA, Listing
from datasets.people.names import DISTRACTOR_IDENTITY, FORMATS_TEXT, SUFFIXES_TEXT, is_clutter, is_image, parse_name
from datasets.people.splits import DERIVED, cameras_note, clutter_note, derived_split, names_of, numbered
from passersby.errors import InputError

SPLIT_NAMES = {
    TRAIN: TRAIN_FOLDERS,
    QUERY: ("query",),
    GALLERY: ("gallery",),
    MULTI_QUERY: ("multi-query", "multi_query", "gt_bbox"),
}
_OTHER_SPLITS = {"val", "test"}  # names of splits that are not read, and no names of people
# Matches _c3, c3_ and Market's _c3s1. No letter may follow the digits: "_c4ab" is part of a hash.
_CAMERA = re.compile(r"(?:^|_)c(\d{1,9})(?:s\d+)?(?=[_.\-]|$)", re.IGNORECASE)
_OTHER_IMAGES = (".gif", ".heic", ".avif")


def holds(root: Path) -> bool:
    """Whether `root` is a folder. `readers` asks this reader last, as any folder may hold people."""
    return root.is_dir()


def flat_training_folder(root: Path) -> Path | None:
    """The sub-folder of the training images where it has no sub-folders, so that nobody knows who they show."""
    name = (_split_folders(root) or {}).get(TRAIN)
    if name is None or _folders(root / name) or not any(map(is_image, os.listdir(root / name))):
        return None
    return root / name


def splits(root: Path) -> set[str]:
    """The splits that have sub-folders; without any, those that `derived_split` makes."""
    split_folders = _split_folders(root)
    if split_folders is None:
        return set(DERIVED)
    return set(split_folders) | ({TRAIN} if _beside(root) else set())


def read(root: Path, split: str) -> Listing:
    """Return one split. Links out of the folder and links to folders are not followed; a note counts them.

    identities: numbers given to the sub-folders' names, the same in all splits. A sub-folder "-1"
    holds junk. A sub-folder "0000" holds distractors where its files are named as in Market-1501.
    Raises InputError where the split has no image of a person.
    """
    split_folders = _split_folders(root)
    if split_folders is None:
        return derived_split(_listing(root, _folders(root), f"{root.name}", ""), split)
    if split == TRAIN and TRAIN not in split_folders:
        folders, prefix = _beside(root), ""
    elif split in split_folders:
        prefix = split_folders[split]
        folders = _folders(root / prefix)
    else:
        folders, prefix = [], ""
    if not folders:
        raise InputError(
            f"{root} has no people for {split}: it has {', '.join(sorted(split_folders.values()))}; make a "
            f"folder {split}/ with one sub-folder a person"
        )
    return _listing(root, folders, f"{root.name} {split}", prefix)


def held_out_names(root: Path) -> Iterator[str]:
    """The names of all files of query, gallery and multi-query. Raises InputError for folders that cannot be read."""
    split_folders = _split_folders(root) or {}
    for split in (QUERY, GALLERY, MULTI_QUERY):
        if split in split_folders:
            yield from (entry.name for entry, _ in _files(root / split_folders[split], root.resolve()))


def _listing(root: Path, folders: list[str], name: str, prefix: str) -> Listing:
    base = root / prefix
    label_numbers = numbered(_all_people(root))
    clutter = sum(map(is_clutter, os.listdir(base)))
    paths, labels, outside, others, empty = [], [], 0, 0, 0
    for folder in folders:
        before = len(paths)
        for entry, leaves in _files(base / folder, root.resolve()):
            if is_clutter(os.path.relpath(entry.path, base)):
                clutter += 1
            elif leaves:
                outside += 1
            elif is_image(entry.name):
                paths.append(Path(entry.path))
                labels.append(folder)
            elif entry.name.lower().endswith(_OTHER_IMAGES):
                others += 1
        empty += len(paths) == before
    loose_names = list(filter(is_image, os.listdir(base)))
    loose = len(loose_names)
    if not paths:
        where = f"{loose} images lie directly in it" if loose else f"no images ({SUFFIXES_TEXT}) in it"
        if flat := next((name for name in loose_names if "\\" in name), None):
            raise InputError(
                f"{base}: a tool has unpacked folders into names of files, such as {flat!r}: unpack the archive again "
                "with a tool that makes folders of \\ (7z, bsdtar)"
            )
        raise InputError(f"{base}: {where}: make one sub-folder a person, or give a table with path and identity")
    order = sorted(range(len(paths)), key=lambda index: (label_numbers[labels[index]], str(paths[index])))
    paths, labels = [paths[index] for index in order], [labels[index] for index in order]
    identities = [_special(path, label, label_numbers[label]) for path, label in zip(paths, labels, strict=True)]
    listing = Listing(
        name=name,
        contents=tuple(paths),
        identities=np.array(identities, np.int64),
        cameras=np.array([_camera(path.name) for path in paths], np.int64),
        names=tuple(path.relative_to(base).as_posix() for path in paths),
        people=names_of(identities, labels),
        left_out={CLUTTER: clutter} if clutter else {},
    )
    counts = (
        (empty, "sub-folders hold no images"),
        (loose, "images lie in no sub-folder, so nobody knows who they show: left out"),
        (others, f"images are not {FORMATS_TEXT}: left out"),
        (outside, "links to folders, or out of the folder, are not followed"),
    )
    remarks = "; ".join(f"{count:,} {what}" for count, what in counts if count)
    return listing.with_notes(
        f"{name}: {remarks}" if remarks else "", clutter_note(name, clutter), cameras_note(listing)
    )


def _special(path: Path, label: str, identity: int) -> int:
    """The identity of an image: DISTRACTOR_IDENTITY for a distractor as layumi's prepare.py copies it
    (0000/0000_c1s1_000001_00.jpg). In other data a sub-folder "0000" is a person."""
    image = parse_name(path) if label == "0000" else None
    return DISTRACTOR_IDENTITY if image is not None and image.identity == DISTRACTOR_IDENTITY else identity


def _camera(name: str) -> int:
    match = _CAMERA.search(Path(name).stem)
    return UNKNOWN_CAMERA if match is None else int(match[1])


def _files(folder: Path, root: Path) -> Iterator[tuple[os.DirEntry[str], bool]]:
    """Files and links below a folder, as (entry, whether the entry is a link that is not followed)."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror or error}: check the path") from error
    for entry in entries:
        if entry.is_symlink():
            target = Path(entry.path).resolve()
            yield entry, target.is_dir() or not target.is_relative_to(root)
        elif entry.is_dir():
            yield from _files(Path(entry.path), root)
        else:
            yield entry, False


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not is_clutter(e.name))
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror or error}: check the path") from error


def _split_folders(root: Path) -> dict[str, str] | None:
    """Map each split to its sub-folder. None where the sub-folders are people."""
    folders = {name.lower(): name for name in _folders(root)}
    choices = {split: next((n for n in names if n in folders), None) for split, names in SPLIT_NAMES.items()}
    split_folders = {split: folders[name] for split, name in choices.items() if name is not None}
    # Beside `train`, any other split's name shows that `train` is no person.
    others = (set(split_folders) - {TRAIN}) or (_OTHER_SPLITS & set(folders))
    if {QUERY, GALLERY} <= set(split_folders) or (TRAIN in split_folders and (others or not _beside(root))):
        return split_folders
    return None


def _beside(root: Path) -> list[str]:
    """Sub-folders whose names are not names of splits. Beside query and gallery they are training people."""
    split_names = {name for names in SPLIT_NAMES.values() for name in names} | _OTHER_SPLITS
    return [name for name in _folders(root) if name.lower() not in split_names]


def _all_people(root: Path) -> set[str]:
    split_folders = _split_folders(root)
    if split_folders is None:
        return set(_folders(root))
    return set(_beside(root)).union(*(_folders(root / name) for name in split_folders.values()))
