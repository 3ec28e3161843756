"""Rules about the names of files and folders: which file is an image, and which person a published name gives.

Names are relative to a data set's folder or to an archive, and are written with /. All rules about names
stand here, so that listings, the guard against test people, and labels read the same name in the same way.
"""

import dataclasses
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from passersby.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # what `decoding` reads
FORMATS_TEXT = "JPEG, PNG, WebP, BMP or TIFF"
SUFFIXES_TEXT = "jpg, png, webp, bmp, tif"
SPLIT_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}  # of Market-1501
JUNK_IDENTITY = -1
DISTRACTOR_IDENTITY = 0

# What operating systems and network disks leave beside people's files; hidden names (._x.jpg, .DS_Store) are as well.
_CLUTTER = frozenset({
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "#recycle",
    "$recycle.bin", "system volume information", "lost+found",
})  # fmt: skip

# Names of 24 pictures of the official Market-1501 end in .jpg.jpg.
_ENDING = rf"(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})+"
# At most 18 digits: more do not fit into the int64 of a listing.
_NUMBER = r"(\d{1,18})"
_PERSON = r"(-1|\d{1,18})"
_MARKET = re.compile(rf"{_PERSON}_c{_NUMBER}s{_NUMBER}_{_NUMBER}_{_NUMBER}{_ENDING}", re.IGNORECASE | re.ASCII)
_DUKE = re.compile(rf"{_PERSON}_c{_NUMBER}_f(\d+){_ENDING}", re.IGNORECASE | re.ASCII)
_CUHK03_TREE = re.compile(rf"(\d{{4}})_c(\d)_\d{{1,3}}{_ENDING}", re.IGNORECASE | re.ASCII)
_TREE = re.compile(rf"{_PERSON}_c(\d{{1,9}})(?!\d).*{_ENDING}", re.IGNORECASE | re.ASCII | re.DOTALL)
_MSMT17 = re.compile(rf"(\d{{4}}_\d{{3}}_\d{{2}}_\d{{4}}[a-z]+_\d{{4}}_\w+?){_ENDING}", re.IGNORECASE | re.ASCII)
_CUHK03 = re.compile(rf"(\d_\d{{3}})_[12]_\d{{2}}{_ENDING}", re.IGNORECASE | re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class MarketName:
    """The parts of a Market-1501 name: identity (-1 junk, 0 distractor), camera, sequence, frame, box."""

    identity: int
    camera: int
    sequence: int
    frame: int
    box: int


def normal_name(name: str) -> str:
    """The name with / in place of the \\ that Windows writes, and without ./ and a / at its start."""
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def printable_name(name: str) -> str:
    """The name for people and for files of text: bytes that are not UTF-8 are written as \\xNN."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_clutter(name: str) -> bool:
    """Whether an operating system left a file or folder (._x.jpg, Thumbs.db, __MACOSX/x.jpg), or the name is hidden."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part.lower() in _CLUTTER for part in name.split("/")
    )


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image, and not `is_clutter`.

    Readers that choose their folders themselves pass only the last part of a name.
    """
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_clutter(name)


def files_below(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) for a folder and all folders below it; links to folders are not followed.

    Raises InputError where one of them cannot be listed: what it holds would be missing in silence.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read {error.filename}: {error.strerror or error}: check the path") from error

    for place, _, names in os.walk(folder, onerror=refuse):
        yield place, names


def entry_of(folder: Path, name: str) -> Path:
    """`folder / name`; where that does not exist, the one entry that has this name in other letter case."""
    path = folder / name
    if os.path.lexists(path):
        return path
    try:
        others = [entry for entry in os.listdir(folder) if entry.lower() == name.lower()]
    except OSError:
        return path
    return folder / others[0] if len(others) == 1 else path


def parse_name(name: str | PurePath) -> MarketName | None:
    """The parts of a name of the form PPPP_cCsS_FFFFFF_BB.jpg, in any folder; None for another name."""
    match = _MARKET.fullmatch(_file(name))
    return None if match is None else MarketName(*map(int, match.groups()))


def parse_duke_name(name: str | PurePath) -> tuple[int, int] | None:
    """(identity, camera) of a name of the form PPPP_cC_fFFFFFFF.jpg; None for another name."""
    match = _DUKE.fullmatch(_file(name))
    return None if match is None else (int(match[1]), int(match[2]))


def parse_cuhk03_tree_name(name: str | PurePath) -> tuple[int, int] | None:
    """(identity, camera) of a name of the form PPPP_cC_N.png, as CUHK03-NP has in its trees; None for another name."""
    match = _CUHK03_TREE.fullmatch(_file(name))
    return None if match is None else (int(match[1]), int(match[2]))


def parse_tree_name(name: str | PurePath) -> tuple[int, int] | None:
    """(identity, camera) of an image's name that starts with PPPP_cC, for folders of a tree; None for another name.

    torchreid and fast-reid read the folders of Market-1501, DukeMTMC-reID and of the many data sets in their
    layout in this way. Elsewhere the rule would guess: 1_c2.jpg is also image 1 of a person in a folder.
    """
    match = _TREE.fullmatch(_file(name))
    return None if match is None else (int(match[1]), int(match[2]))


def person_key(name: str | PurePath) -> tuple[str, int | str] | None:
    """The data set whose form a name has, and the person there; None for other names, junk and distractors.

    MSMT17 numbers the people of train and test both from 0, so its key is the picture itself, without suffix.
    """
    file = _file(name)
    image = parse_name(file)
    if image is not None:
        return ("Market-1501", image.identity) if image.identity > DISTRACTOR_IDENTITY else None
    for data_set, parse in (("DukeMTMC-reID", parse_duke_name), ("CUHK03-NP", parse_cuhk03_tree_name)):
        if (numbers := parse(file)) is not None:
            return data_set, numbers[0]
    for data_set, pattern in (("MSMT17", _MSMT17), ("CUHK03", _CUHK03)):
        if (match := pattern.fullmatch(file)) is not None:
            return data_set, match[1].lower()
    return None


def _file(name: str | PurePath) -> str:
    return os.fspath(name).rpartition("/")[2]
