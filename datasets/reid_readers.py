"""Images of people from whatever holds them: the field's data sets, folders, tables, runs of jobs/generate.py.

What a folder is, is seen by what it holds. Identities of listings are > 0 for people; the data set's own name of each
is kept beside it.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from datasets.image_tree import DISTRACTOR_IDENTITY, JUNK_IDENTITY
from datasets.reid_benchmarks import read_cuhk03, read_msmt17
from datasets.reid_images import UNKNOWN_CAMERA, Listing
from datasets.reid_runs import is_run, read_run
from datasets.reid_tables import read_folder, read_table
from models.errors import InputError

SPLITS = ("train", "query", "gallery", "multi-query")
TREE_FOLDERS = {
    "train": "bounding_box_train",
    "query": "query",
    "gallery": "bounding_box_test",
    "multi-query": "gt_bbox",
}
# Images and people as published: Zheng et al. 2015 (Market-1501), Ristani et al. 2016 and Zheng et al. 2017 (Duke).
MARKET = {"train": (12_936, 751), "query": (3_368, 750), "gallery": (19_732, None), "multi-query": (25_259, None)}
DUKE = {"train": (16_522, 702), "query": (2_228, 702), "gallery": (17_661, None)}

_MARKET_NAME = re.compile(r"(-1|\d+)_c(\d+)s(\d+)_(\d+)_(\d+)\.(?:jpg|jpeg|png)", re.IGNORECASE)
_DUKE_NAME = re.compile(r"(-1|\d+)_c(\d+)_f(\d+)\.(?:jpg|jpeg|png)", re.IGNORECASE)
_SUFFIXES = {".jpg", ".jpeg", ".png"}


def read_split(root: Path, split: str) -> Listing:
    """The images of one of SPLITS. Raises InputError where there are none, naming what was looked for."""
    root = Path(root)
    if split not in SPLITS:
        raise InputError(f"split {split!r} is not known: give one of {', '.join(SPLITS)}")
    return _reader(root)(root, split)


def has_split(root: Path, split: str) -> bool:
    """Whether `read_split` would find images."""
    try:
        return len(read_split(root, split)) > 0
    except InputError:
        return False


def _reader(root: Path) -> Callable[[Path, str], Listing]:
    if root.is_file():
        return read_table
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder or table")
    if is_run(root):
        return read_run
    if (root / "list_train.txt").is_file() or (root / "list_query.txt").is_file():
        return read_msmt17
    if (
        any((root / folder).is_dir() for folder in ("images_labeled", "images_detected"))
        or (root / "cuhk-03.mat").is_file()
    ):
        return read_cuhk03
    if any((root / folder).is_dir() for folder in ("bounding_box_train", "bounding_box_test")):
        return read_tree
    return read_folder


def read_tree(root: Path, split: str) -> Listing:
    """Market-1501, DukeMTMC-reID and whatever has their folders and names."""
    folder = root / TREE_FOLDERS[split]
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: {root.name} has no {split} images")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    matches = [_MARKET_NAME.fullmatch(path.name) or _DUKE_NAME.fullmatch(path.name) for path in paths]
    strangers = [path.name for path, match in zip(paths, matches, strict=True) if match is None]
    if strangers:
        raise InputError(
            f"{len(strangers)} of {len(paths)} images in {folder} are named neither PPPP_cCsS_FFFFFF_BB.jpg nor "
            f"PPPP_cC_fFFFFFFF.jpg, the first is {strangers[0]!r}: rename or remove them, or give a table"
        )
    if not paths:
        raise InputError(f"no images (jpg, png) in {folder}")
    identities = np.array([int(match[1]) for match in matches], np.int64)
    cameras = np.array([int(match[2]) for match in matches], np.int64)
    people = {identity: f"{identity:04d}" for identity in np.unique(identities).tolist() if identity > 0}
    duke = _DUKE_NAME.fullmatch(paths[0].name) is not None
    name = f"{root.name} {split}"
    note = check_counts(name, *(("DukeMTMC-reID", DUKE) if duke else ("Market-1501", MARKET)), split, identities)
    toy = (root / "toy_crowd.json").is_file()
    notes = () if toy or not note else (note,)
    names = tuple(f"{folder.name}/{path.name}" for path in paths)
    return Listing(name, tuple(paths), identities, cameras, names, people, notes)


def check_counts(
    name: str, published_name: str, published: dict[str, tuple[int, int | None]], split: str, identities: np.ndarray
) -> str:
    """One line where images or people are not those of the data set as published, "" where they are."""
    if split not in published:
        return ""
    images, people = published[split]
    found = len(set(identities.tolist()) - {JUNK_IDENTITY, DISTRACTOR_IDENTITY})
    if len(identities) == images and people in (None, found):
        return ""
    whole = f"{images:,} images" + (f" of {people:,} people" if people else "")
    return f"{name}: {len(identities):,} images of {found:,} people; {published_name} as published has {whole}"


def known_cameras(cameras: np.ndarray) -> bool:
    """Whether every camera is known."""
    return bool((cameras != UNKNOWN_CAMERA).all())
