"""Rules about the names of files and folders: which file is an image, and which person a Market-1501 name gives.

Names are relative to a data set's folder or to an archive, and are written with /. All rules about names
stand here, so that listings, the guard against test people, and labels read the same name in the same way.
"""

import dataclasses
import os
import re
from pathlib import PurePath

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # what `decoding` reads
FORMATS_TEXT = "JPEG, PNG, WebP, BMP or TIFF"
SUFFIXES_TEXT = "jpg, png, webp, bmp, tif"
SPLIT_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}  # of Market-1501
JUNK_IDENTITY = -1
DISTRACTOR_IDENTITY = 0

# At most 18 digits: more do not fit into the int64 of a listing.
_NUMBER = r"(\d{1,18})"
_PERSON = r"(-1|\d{1,18})"
_SUFFIX = rf"(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})"
_MARKET = re.compile(rf"{_PERSON}_c{_NUMBER}s{_NUMBER}_{_NUMBER}_{_NUMBER}{_SUFFIX}", re.IGNORECASE)
_DUKE = re.compile(rf"{_PERSON}_c{_NUMBER}_f(\d+){_SUFFIX}", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class MarketName:
    """The parts of a Market-1501 name: identity (-1 junk, 0 distractor), camera, sequence, frame, box."""

    identity: int
    camera: int
    sequence: int
    frame: int
    box: int


def slashed(name: str) -> str:
    """The name with / in place of the \\ that Windows writes."""
    return name.replace("\\", "/")


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image, and neither hidden nor in a hidden folder (._x.jpg, __MACOSX/x.jpg).

    Readers that choose their folders themselves pass only the last part of a name.
    """
    *folders, file = name.split("/")
    if file.startswith(".") or not file.lower().endswith(IMAGE_SUFFIXES):
        return False
    return not any(folder.startswith(".") or folder == "__MACOSX" for folder in folders)


def parse_name(name: str | PurePath) -> MarketName | None:
    """The parts of a name of the form PPPP_cCsS_FFFFFF_BB.jpg, in any folder; None for another name."""
    match = _MARKET.fullmatch(_file(name))
    return None if match is None else MarketName(*map(int, match.groups()))


def parse_duke_name(name: str | PurePath) -> tuple[int, int] | None:
    """(identity, camera) of a name of the form PPPP_cC_fFFFFFFF.jpg; None for another name."""
    match = _DUKE.fullmatch(_file(name))
    return None if match is None else (int(match[1]), int(match[2]))


def _file(name: str | PurePath) -> str:
    return os.fspath(name).rpartition("/")[2]
