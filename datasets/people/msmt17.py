"""Reader of MSMT17, V1 (train, test) and V2 (mask_train_v2, mask_test_v2), whose lists name the images.

list_train.txt, list_val.txt, list_query.txt and list_gallery.txt hold lines "0000/0000_000_01_0303morning_0008_0.jpg
0": path and identity; the third part of the name is the camera (Wei et al., "Person Transfer GAN to Bridge Domain
Gap for Person Re-Identification", CVPR 2018). The data set counts identities from 0, which means a distractor
elsewhere in this program. So identities count from 1 here, and `people` keeps the data set's own name. The
people of train and test are different, even where their numbers are the same. Lists may have been through Windows:
a byte order mark, UTF-16 and \\ in paths are read as meant.
"""

import codecs
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.people.listing import GALLERY, QUERY, TRAIN, Listing
from datasets.people.names import entry_of, files_below, normal_name
from datasets.people.splits import missing_note, published_note
from passersby.errors import InputError

LISTS = {TRAIN: ("list_train.txt", "list_val.txt"), QUERY: ("list_query.txt",), GALLERY: ("list_gallery.txt",)}
FOLDERS = {TRAIN: ("mask_train_v2", "train"), QUERY: ("mask_test_v2", "test"), GALLERY: ("mask_test_v2", "test")}
_LINE = re.compile(r"(\S.*?)\s+(\d{1,9})")
_NAME = re.compile(r"(?:.*/)?\d+_\d+_(\d+)_[^/]+", re.ASCII)


def holds(root: Path) -> bool:
    """Whether a folder is MSMT17: it has a list, or folders that only MSMT17_V2 has."""
    lists = (LISTS[split][0] for split in LISTS)
    return any(os.path.isfile(entry_of(root, name)) for name in lists) or any(
        os.path.isdir(entry_of(root, FOLDERS[split][0])) for split in LISTS
    )


def splits(root: Path) -> set[str]:
    """The splits whose list and folder of images exist."""
    return {
        split for split in LISTS
        if entry_of(root, LISTS[split][0]).is_file() and _folder(root, split) is not None
    }  # fmt: skip


def read(root: Path, split: str) -> Listing:
    """Return one split. "train" is train and val together: the published 32,621 images of 1,041 people.

    Raises InputError for a missing list or folder, and for a line of another form.
    """
    if split not in LISTS:
        raise InputError(f"{root}: MSMT17 has no split {split}: it has {', '.join(LISTS)}")
    folder = _folder(root, split)
    if folder is None:
        raise InputError(f"{root} has no folder {' or '.join(FOLDERS[split])}: unpack MSMT17 whole")
    entries = [entry for name in LISTS[split] for entry in _entries(entry_of(root, name), name != "list_val.txt")]
    if not entries:
        raise InputError(f"{root / LISTS[split][0]} lists no image: unpack MSMT17 whole")
    names = tuple(path for path, _, _ in entries)
    if len(set(names)) < len(names):
        raise InputError(f"{root}: the lists for {split} name an image twice: unpack MSMT17 whole")
    paths = tuple(folder / name for name in names)
    identities = [identity for _, identity, _ in entries]
    name = f"{root.name} (MSMT17) {split}"
    listing = Listing(
        name=name,
        contents=paths,
        identities=np.array(identities, np.int64),
        cameras=np.array([camera for _, _, camera in entries], np.int64),
        names=names,
        people={identity: f"{identity - 1:04d}" for identity in sorted(set(identities))},
    )
    return listing.with_notes(published_note(listing, "MSMT17", split), missing_note(name, paths, names, folder))


def held_out_names(root: Path) -> Iterator[str]:
    """The names of the pictures of query and gallery: those listed, or without a list those in the folder of the test.

    Raises InputError where a list cannot be read.
    """
    for split in (QUERY, GALLERY):
        entries = _entries(entry_of(root, LISTS[split][0]), needed=False)
        yield from (name for name, _, _ in entries)
        folder = None if entries else _folder(root, split)
        if folder is not None:
            yield from (name for _, names in files_below(folder) for name in names)


def _folder(root: Path, split: str) -> Path | None:
    folders = (entry_of(root, name) for name in FOLDERS[split])
    return next((folder for folder in folders if folder.is_dir()), None)


def _entries(path: Path, needed: bool) -> list[tuple[str, int, int]]:
    """(name, identity from 1, camera) of each line. A missing list is an error only where it is needed."""
    if not path.is_file():
        if needed:
            raise InputError(f"no file {path}: MSMT17 lists its images there")
        return []
    entries = []
    try:
        content = path.read_bytes()
        # Editors of Windows put a mark at the start, and a shell of Windows writes UTF-16.
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        lines = content.decode("utf-16" if wide else "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error}): unpack MSMT17 again") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        written = match[1].replace("\\", "/") if match else ""
        name = _NAME.fullmatch(normal_name(written))
        if match is None or name is None or ".." in written.split("/") or written.startswith("/"):
            raise InputError(
                f"{path}, line {number}: {line[:80]!r} is not '0000/0000_000_01_0303morning_0008_0.jpg 0': "
                "unpack MSMT17 again"
            )
        entries.append((normal_name(written), int(match[2]) + 1, int(name[1])))
    return entries
