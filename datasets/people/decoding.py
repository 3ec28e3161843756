"""Pictures from files and bytes to pixels: one, and all of a listing.

`decode` takes back what this program stored. `decode_own_size` takes pictures of whatever origin, by their headers
first; all that bring a picture to a size begin with it.
"""

import dataclasses
import io
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from datasets.people.listing import Content, Listing
from passersby.errors import InputError

# ---- The bytes of a picture.

MOST_BYTES = 64 << 20  # of one file, in an archive unpacked: nothing that is a person's picture comes near
# What `zipfile` raises for damaged, encrypted or foreign archives and members.
BROKEN_ARCHIVE = (OSError, EOFError, KeyError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)


def read_bytes(content: Path | bytes) -> bytes:
    """A file's first MOST_BYTES and one: a longer one cannot be decoded, and is no person's picture. Encoded bytes as
    they are. Raises OSError."""
    if isinstance(content, bytes):
        return content
    with content.open("rb") as file:
        return file.read(MOST_BYTES + 1)


class Reader:
    """Bytes of the contents of a listing, from files or from its archive; threads may share one. Nothing is unpacked.

    Raises InputError where the zip file itself cannot be opened any more.
    """

    def __init__(self, archive: Path | None = None):
        self._archive = None
        self._lock = threading.Lock()
        if archive is not None:
            try:
                self._archive = zipfile.ZipFile(archive)
            except BROKEN_ARCHIVE as error:
                raise InputError(f"cannot read {archive}: {error}: it was a zip file when it was listed") from error

    def __call__(self, content: Content) -> bytes | None:
        """The bytes of one image; None where it cannot be read, is damaged or larger than `MOST_BYTES`.

        Text is the name of the archive's member, or without an archive the path of a file.
        """
        try:
            if isinstance(content, bytes) or self._archive is None:
                data = read_bytes(Path(content) if isinstance(content, str) else content)
            else:
                # One thread at a time: members are short, and a ZipFile's own lock does not cover all of its state.
                with self._lock, self._archive.open(str(content)) as member:
                    data = member.read(MOST_BYTES + 1)
        except BROKEN_ARCHIVE:
            return None
        return data if len(data) <= MOST_BYTES else None


# ---- Bytes to pixels.

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


def decode_own_size(data: bytes) -> np.ndarray:
    """JPEG or PNG bytes of whatever origin -> uint8 [H, W, 3] RGB.

    Raises DecodingError for bytes that are no such image, or one of more than MOST_PIXELS by its header.
    """
    size = header_size(data)
    if size is None or len(data) > MOST_BYTES or size[0] * size[1] > MOST_PIXELS:
        raise DecodingError(f"the {len(data)} bytes stored are no JPEG or PNG image of a modest size")
    return decode(data)


# ---- Brought to a size.


def decode_scaled(data: bytes, height: int, width: int) -> np.ndarray:
    """JPEG or PNG bytes -> uint8 [height, width, 3] RGB, as `resized` does it. Errors as `decode_own_size`."""
    return resized(decode_own_size(data), height, width)


def decode_bicubic(data: bytes, height: int, width: int) -> np.ndarray:
    """JPEG or PNG bytes -> uint8 [height, width, 3] RGB: bicubic where enlarged, as the re-ID protocol says, and
    averaged over areas where shrunk, as points would alias. Errors as `decode_own_size`."""
    image = decode_own_size(data)
    smaller = (min(image.shape[0], height), min(image.shape[1], width))
    if image.shape[:2] != smaller:
        image = cv2.resize(image, (smaller[1], smaller[0]), interpolation=cv2.INTER_AREA)
    if smaller != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [height, width, 3]; the same array where it has that size already.

    Shrinking averages areas (INTER_AREA): anything that samples points would alias. Enlarging is bilinear.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


# ---- What a GAN is trained on: one size for all, and not stretched unless that is wanted.


@dataclasses.dataclass(frozen=True)
class Target:
    """The size that images must have [pixels], and what is done with those that do not.

    Images of the same aspect ratio (within one pixel of rounding) are shrunk by averaging areas. fit: of another
    aspect ratio, "exact" refuses them, "crop" takes their middle, "pad" repeats their edge rows or columns, and
    "stretch" changes their proportions, as is done for square networks. enlarge: smaller images are enlarged
    (bilinear) instead of refused.
    """

    height: int
    width: int
    fit: Literal["exact", "crop", "pad", "stretch"] = "exact"
    enlarge: bool = False


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why one image cannot be used, and its size [pixels] where it is the size."""

    kind: Literal["unreadable", "aspect", "small"]
    height: int = 0
    width: int = 0


UNREADABLE = Problem("unreadable")


def decode_bytes(data: bytes | None, target: Target) -> np.ndarray | Problem:
    """One JPEG or PNG file as uint8 RGB [H, W, 3] of the target's size, or why it cannot be that."""
    try:
        image = decode_own_size(data or b"")
    except DecodingError:
        return UNREADABLE
    height, width = image.shape[:2]
    if not _same_aspect(height, width, target):
        if target.fit == "exact":
            return Problem("aspect", height, width)
        if target.fit != "stretch":
            image = (_crop if target.fit == "crop" else _pad)(image, target)
        if image is None:
            return Problem("aspect", height, width)
    shrinks = image.shape[0] >= target.height and image.shape[1] >= target.width
    if not shrinks and not target.enlarge:
        return Problem("small", height, width)
    return resized(image, target.height, target.width)


def _same_aspect(height: int, width: int, target: Target) -> bool:
    """Whether the image is the target scaled, each side within one pixel of rounding."""
    return abs(width * target.height - height * target.width) <= max(target.height, target.width)


def _crop(image: np.ndarray, target: Target) -> np.ndarray:
    height, width = image.shape[:2]
    wide = width * target.height > height * target.width
    new_height = height if wide else max(1, round(width * target.height / target.width))
    new_width = max(1, round(height * target.width / target.height)) if wide else width
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return image[top : top + new_height, left : left + new_width]


def _pad(image: np.ndarray, target: Target) -> np.ndarray | None:
    """None where padding would make the image larger than `MOST_PIXELS`: it is a line rather than a picture."""
    height, width = image.shape[:2]
    wide = width * target.height > height * target.width
    new_height = round(width * target.height / target.width) if wide else height
    new_width = width if wide else round(height * target.width / target.height)
    if new_height * new_width > MOST_PIXELS:
        return None
    top, left = (new_height - height) // 2, (new_width - width) // 2
    bottom, right = new_height - height - top, new_width - width - left
    return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_REPLICATE)


# ---- All pictures of a listing.

_PIECE = 256  # at most so many images are one task of a thread


def decode_listing(
    listing: Listing,
    height: int,
    width: int,
    threads: int = 4,
    decode_one: Callable[[bytes, int, int], np.ndarray] = decode_bicubic,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Pixels of a listing: (images [M, height, width, 3] uint8 RGB, places [M] int64, names of the unreadable).

    images[i] is of the listing's image places[i]; the unreadable - missing, damaged, neither JPEG nor PNG, of more
    than MOST_PIXELS by its header - are left out. Raises InputError where not one of the images can be read.
    """
    images = np.empty((len(listing), height, width, 3), np.uint8)
    problems = decode_into(listing, images, lambda data: decode_one(data, height, width), threads)
    places = np.flatnonzero([problem is None for problem in problems])
    if not len(places):
        first = f", the first is {listing.names[0]!r}" if len(listing) else ""
        raise InputError(f"{listing.name}: none of {len(listing)} images can be read{first}: give JPEG or PNG files")
    close_gaps(images, places)
    unreadable = tuple(name for name, problem in zip(listing.names, problems, strict=True) if problem is not None)
    return images[: len(places)], places, unreadable


def decode_into(
    listing: Listing, images: np.ndarray, decode_one: Callable[[bytes], np.ndarray | Problem], threads: int = 4
) -> list[Problem | None]:
    """Decode image i into images[i] ([N, H, W, 3] uint8 RGB, may be shared memory): each image's problem or None.

    decode_one: bytes -> [H, W, 3], a Problem or a DecodingError. What stands at the places of images with a problem is
    undefined.
    """
    read = Reader(listing.archive)
    size = max(1, min(_PIECE, len(listing) // (4 * threads)))

    def one(place: int) -> Problem | None:
        data = read(listing.contents[place])
        try:
            image = UNREADABLE if data is None else decode_one(data)
        except DecodingError:
            image = UNREADABLE
        if isinstance(image, Problem):
            return image
        images[place] = image
        return None

    def piece(start: int) -> list[Problem | None]:
        return [one(place) for place in range(start, min(start + size, len(listing)))]

    with ThreadPoolExecutor(threads) as pool:  # OpenCV decodes without holding the interpreter's lock
        return [problem for problems in pool.map(piece, range(0, len(listing), size)) for problem in problems]


def decode_at(listing: Listing, place: int) -> np.ndarray | None:
    """One image of a listing at its own size, [H, W, 3] uint8 RGB; None where it cannot be read."""
    data = Reader(listing.archive)(listing.contents[place])
    try:
        return None if data is None else decode_own_size(data)
    except DecodingError:
        return None


def close_gaps(images: np.ndarray, places: np.ndarray) -> None:
    """Move images[places[i]] to images[i], in place: a copy of all would take the memory twice. places ascend."""
    for target, place in enumerate(places.tolist()):
        if target != place:
            images[target] = images[place]
