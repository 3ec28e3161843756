"""What the names of files and folders say: whether a file is an image, and whom a Market-1501 name shows.

Names lie below a data set's folder or in an archive, and are written with /. All rules about names stand here, so that
listings, the guard against people of a test, and labels see the same name alike.
"""

import dataclasses
import os
import re
from pathlib import PurePath

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
SPLIT_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}  # of Market-1501
JUNK_IDENTITY = -1
DISTRACTOR_IDENTITY = 0

# At most 18 digits: more do not fit into the int64 of a listing.
_NUMBER = r"(\d{1,18})"
_PERSON = r"(-1|\d{1,18})"
_MARKET = re.compile(rf"{_PERSON}_c{_NUMBER}s{_NUMBER}_{_NUMBER}_{_NUMBER}\.(?:jpg|jpeg|png)", re.IGNORECASE)
_DUKE = re.compile(rf"{_PERSON}_c{_NUMBER}_f(\d+)\.(?:jpg|jpeg|png)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class MarketName:
    """What a Market-1501 name says: identity (-1 junk, 0 distractor), camera, sequence, frame, box."""

    identity: int
    camera: int
    sequence: int
    frame: int
    box: int


def slashed(name: str) -> str:
    """A name with /, where Windows may have written it."""
    return name.replace("\\", "/")


def is_image(name: str) -> bool:
    """Whether a file is an image by its name, and is hidden in no way (._x.jpg, __MACOSX/x.jpg).

    Readers that choose their folders themselves give the last part of a name alone.
    """
    *folders, file = name.split("/")
    if file.startswith(".") or not file.lower().endswith(IMAGE_SUFFIXES):
        return False
    return not any(folder.startswith(".") or folder == "__MACOSX" for folder in folders)


def parse_name(name: str | PurePath) -> MarketName | None:
    """What a name of the form PPPP_cCsS_FFFFFF_BB.jpg says, in whatever folder; None for another name."""
    match = _MARKET.fullmatch(_file(name))
    return None if match is None else MarketName(*map(int, match.groups()))


def parse_duke_name(name: str | PurePath) -> tuple[int, int] | None:
    """(identity, camera) of a name of the form PPPP_cC_fFFFFFFF.jpg; None for another name."""
    match = _DUKE.fullmatch(_file(name))
    return None if match is None else (int(match[1]), int(match[2]))


def _file(name: str | PurePath) -> str:
    return os.fspath(name).rpartition("/")[2]
