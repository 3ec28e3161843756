"""The image files of a Market-1501 tree, listed by their names, and the bytes of any image back to pixels.

A tree is a folder with `bounding_box_train`, `query` and `bounding_box_test` (the gallery). Names read
`PPPP_cCsS_FFFFFF_BB.jpg`: identity (-1 junk, 0000 distractor), camera, sequence, frame, box (Zheng et al.,
"Scalable Person Re-identification: A Benchmark", ICCV 2015). `decode`, `header_size` and `resized` serve images of
every origin; `decode_files` decodes the files of a tree into one array.
"""

import dataclasses
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from passersby.errors import InputError

# ---- The bytes of one image, of whatever origin, back to pixels.

MOST_PIXELS = 1 << 26  # of one image: a small file can promise gigabytes, so its header is read before it is decoded


class DecodingError(ValueError):
    """Bytes that are not the image they should be: a fault of one item, which becomes data in its row."""


def decode(data: bytes, height: int | None = None, width: int | None = None) -> np.ndarray:
    """JPEG or PNG bytes -> [H, W, 3] uint8 RGB.

    Raises DecodingError when they are no image, or one of another size than `height` x `width` where given.
    """
    buffer = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if len(buffer) else None  # BGR
    except cv2.error as error:  # headers that promise more pixels than OpenCV takes
        raise DecodingError(f"the {len(data)} bytes stored cannot be decoded: {error.err}") from error
    if image is None:
        raise DecodingError(f"the {len(data)} bytes stored are not an image that can be decoded")
    if (height or image.shape[0], width or image.shape[1]) != image.shape[:2]:
        found = f"{image.shape[0]} x {image.shape[1]}"
        raise DecodingError(f"the image stored is {found}, not {height} x {width}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def header_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) as a JPEG's or PNG's header says; None for other bytes. Nothing is decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return height, width


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [height, width, 3]; the same array where it has that size already.

    Shrinking averages areas (INTER_AREA): anything that samples points would alias. Enlarging is bilinear.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


# ---- Trees: what the names of their files say, and the pixels of many files.

SPLIT_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
JUNK_IDENTITY = -1
DISTRACTOR_IDENTITY = 0

_NAME = re.compile(r"(-1|\d+)_c(\d+)s(\d+)_(\d+)_(\d+)\.(?:jpg|jpeg|png)", re.IGNORECASE)
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclasses.dataclass(frozen=True)
class TreeImage:
    """One file of a tree and what its name says."""

    path: Path
    identity: int
    camera: int
    sequence: int
    frame: int
    box: int


@dataclasses.dataclass(frozen=True)
class DecodedImages:
    """The readable images of a listing: `images[i]` is of `files[i]`; `unreadable` holds the other files."""

    images: np.ndarray  # [N, H, W, 3] uint8, RGB
    files: tuple[TreeImage, ...]
    unreadable: tuple[TreeImage, ...]


def parse_name(path: Path) -> TreeImage | None:
    """What a Market-1501 file name says; None where the name is not of that form."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    identity, camera, sequence, frame, box = (int(group) for group in match.groups())
    return TreeImage(path, identity, camera, sequence, frame, box)


def list_split(root: Path, split: str) -> list[TreeImage]:
    """The images of one split ("train", "query", "gallery") in the order of their names. Opens no image.

    Raises InputError where the folder is missing, holds no image, or holds images whose names say no
    identity: guessing identities would be silently wrong.
    """
    folder = Path(root) / SPLIT_FOLDERS[split]
    if not folder.is_dir():
        raise InputError(
            f"no folder {folder}: give the folder of a Market-1501 tree, which holds "
            f"{', '.join(SPLIT_FOLDERS.values())}"
        )
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
    parsed = [(path, parse_name(path)) for path in paths]
    strangers = [path.name for path, image in parsed if image is None]
    if strangers:
        raise InputError(
            f"{len(strangers)} of {len(paths)} images in {folder} are not named PPPP_cCsS_FFFFFF_BB.jpg, "
            f"the first is {strangers[0]!r}: rename or remove them"
        )
    if not paths:
        raise InputError(f"no images (jpg, png) in {folder}")
    return [image for _, image in parsed if image is not None]


def identities(files: Iterable[TreeImage]) -> list[int]:
    """The people in a listing, ascending, without junk (-1) and distractors (0)."""
    return sorted({file.identity for file in files} - {JUNK_IDENTITY, DISTRACTOR_IDENTITY})


def identities_sha256(people: Iterable[int]) -> str:
    """One hash for a set of identities: sha256 of the ascending numbers, one a line, as written in ASCII."""
    return hashlib.sha256("".join(f"{person}\n" for person in sorted(people)).encode()).hexdigest()


def read_image(path: Path, height: int, width: int) -> np.ndarray | None:
    """One image as uint8 RGB [height, width, 3], resized if need be; None where it cannot be read.

    Shrinking averages areas (INTER_AREA): anything that samples points would alias. Enlarging is bilinear.
    """
    data = np.fromfile(path, dtype=np.uint8)
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if bgr is None:
        return None
    return cv2.cvtColor(resized(bgr, height, width), cv2.COLOR_BGR2RGB)


def decode_files(files: Sequence[TreeImage], height: int, width: int, threads: int = 4) -> DecodedImages:
    """Decode a listing into one uint8 array [N, height, width, 3] RGB, in the listing's order.

    Unreadable files are left out of the array and listed. Raises InputError where not one image can be read.
    """
    with ThreadPoolExecutor(threads) as pool:  # OpenCV decodes without holding the interpreter's lock
        decoded = pool.map(lambda file: read_image(file.path, height, width), files)
        images = np.empty((len(files), height, width, 3), np.uint8)  # filled in place: half the memory of a list
        readable, unreadable = [], []
        for file, image in zip(files, decoded, strict=True):
            if image is None:
                unreadable.append(file)
                continue
            images[len(readable)] = image
            readable.append(file)
    if not readable:
        first = f", the first is {files[0].path}" if files else ""
        raise InputError(f"none of {len(files)} images can be read{first}")
    return DecodedImages(images[: len(readable)], tuple(readable), tuple(unreadable))
