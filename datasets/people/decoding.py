"""Decoding: one picture, or all pictures of a listing, from files and bytes to pixels.

`decode` reads pictures that this program stored. `decode_own_size` reads pictures of any origin and checks
their headers first; it puts transparent pictures on white, and reads the first of several pages. Every
function that brings a picture to a size begins with `decode_own_size`.
"""

import dataclasses
import io
import struct
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from datasets.people.listing import Content, Listing
from datasets.people.names import FORMATS_TEXT
from passersby.errors import InputError

# ---- The bytes of a picture.

MOST_BYTES = 64 << 20  # of one file, unpacked; no picture of a person is nearly so large
# What `zipfile` raises for damaged, encrypted or foreign archives and members.
BROKEN_ARCHIVE = (OSError, EOFError, KeyError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)


def read_bytes(content: Path | bytes) -> bytes:
    """Return the first MOST_BYTES + 1 bytes of a file: a longer file is not decoded, as it is no picture of
    a person. Encoded bytes are returned as they are. Raises OSError."""
    if isinstance(content, bytes):
        return content
    with content.open("rb") as file:
        return file.read(MOST_BYTES + 1)


class Reader:
    """Reads the bytes of a listing's images from files or from the listing's archive.

    Threads may share a reader. Nothing is unpacked to disk. Raises InputError where the zip file can no
    longer be opened.
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
        """The bytes of one image; None where it cannot be read, is damaged or is larger than `MOST_BYTES`.

        `content` as text is the name of a member of the archive; without an archive it is a path.
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

MOST_PIXELS = 1 << 26  # of one image: a small file can decode to gigabytes, so its header is read first
TRANSPARENT, PAGES = "transparent", "pages"
_REMARKS = {
    TRANSPARENT: "pictures with an alpha channel or a transparent colour are put on white",
    PAGES: "of pictures with several pages or frames the first is read",
}
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # Pillow's names of FORMATS_TEXT
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # tags of TIFF
_PNG_DEPTH = 24  # the byte of a PNG that says how many bits a channel has
# What Pillow raises for damaged and foreign files: its readers are Python, mostly without checks of their own.
_NO_PICTURE = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)
_NO_PICTURE += (RuntimeError, struct.error, zlib.error, Image.DecompressionBombError)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_FATAL)  # else unknown tags of TIFFs are lines on stderr


class DecodingError(ValueError):
    """The bytes are not the expected image. The fault belongs to one item and becomes data in its row."""


def decode(data: bytes, height: int | None = None, width: int | None = None) -> np.ndarray:
    """JPEG or PNG bytes -> [H, W, 3] uint8 RGB.

    Raises DecodingError when the bytes are no image, or when the image has another size than a given
    `height` x `width`.
    """
    buffer = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if len(buffer) else None  # BGR
    except cv2.error as error:  # the header says more pixels than OpenCV accepts
        raise DecodingError(f"the {len(data)} bytes stored cannot be decoded: {error.err}") from error
    if image is None:
        raise DecodingError(f"the {len(data)} bytes stored are not an image that can be decoded")
    if (height or image.shape[0], width or image.shape[1]) != image.shape[:2]:
        size = f"{image.shape[0]} x {image.shape[1]}"
        raise DecodingError(f"the image stored is {size}, not {height} x {width}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of a picture says: its size [pixels], and which of TRANSPARENT and PAGES hold for it."""

    height: int
    width: int
    peculiarities: tuple[str, ...] = ()


def read_header(data: bytes) -> Header | None:
    """The header of a JPEG, PNG, WebP, BMP or TIFF; None for other bytes, and for huge tiles. Decodes nothing."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
            # A decoder keeps a whole tile in memory, however small the picture is.
            if int(tags.get(_TILE_WIDTH, 1)) * int(tags.get(_TILE_HEIGHT, 1)) > MOST_PIXELS:
                return None
            kinds = {TRANSPARENT: image.has_transparency_data, PAGES: _has_pages(image)}
    except _NO_PICTURE:
        return None
    return Header(height, width, tuple(kind for kind, holds in kinds.items() if holds))


def _has_pages(image: Image.Image) -> bool:
    """Whether there is a second page or frame, which the opened image then shows."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1
    try:
        image.seek(1)  # `n_frames` would read the headers of all pages, of which a file can hold millions
    except _NO_PICTURE:
        return False
    return True


def peculiarities(data: bytes) -> tuple[str, ...]:
    """Which of TRANSPARENT and PAGES hold for a picture; `remarks` says for people what is done about them."""
    if data.startswith(b"\xff\xd8"):  # a JPEG, as most pictures are, has neither
        return ()
    header = read_header(data)
    return () if header is None else header.peculiarities


def remarks(counts: Mapping[str, int], name: str = "") -> list[str]:
    """Lines for the user about peculiar pictures. counts: number of pictures of each kind. name: of the data."""
    start = f"{name}: " if name else ""
    return [f"{start}{text}: {counts[kind]:,}" for kind, text in _REMARKS.items() if counts.get(kind)]


def decode_own_size(data: bytes) -> np.ndarray:
    """JPEG, PNG, WebP, BMP or TIFF bytes of any origin -> uint8 [H, W, 3] RGB, the first page of several.

    A picture with transparency is put on white, as colours below a transparent pixel mean nothing. Raises
    DecodingError for other bytes, for more than MOST_BYTES, and for more than MOST_PIXELS by the header.
    """
    header = read_header(data)
    if header is None or len(data) > MOST_BYTES or header.height * header.width > MOST_PIXELS:
        raise DecodingError(f"the {len(data)} bytes stored are no {FORMATS_TEXT} image of a modest size")
    on_white = _on_white(data) if TRANSPARENT in header.peculiarities else None
    return decode(data) if on_white is None else on_white


def _on_white(data: bytes) -> np.ndarray | None:
    """A picture with transparency on white, uint8 [H, W, 3] RGB; None where each of its pixels is opaque."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            key = image.info.get("transparency") if data.startswith(b"\x89PNG") and data[_PNG_DEPTH] == 16 else None
            pixels = image.convert("RGBA") if key is None else _keyed(data, key)
            pixels.info["exif"] = image.info.get("exif", b"") if image.format != "TIFF" else b""  # Pillow turns TIFFs
            low, high = pixels.getchannel("A").getextrema()
            if low == 255 or (high == 0 and image.format == "BMP"):  # many programs leave a BMP's alpha at 0
                return None
            white = Image.new("RGB", pixels.size, "white")
            white.paste(pixels, mask=pixels.getchannel("A"))
            white.info["exif"] = pixels.info["exif"]
            return np.array(ImageOps.exif_transpose(white))
    except _NO_PICTURE as error:
        raise DecodingError(f"the {len(data)} bytes stored cannot be decoded: {error}") from error


def _keyed(data: bytes, key: int | tuple[int, ...]) -> Image.Image:
    """A PNG of 16 bits a channel whose colour `key` is transparent. Pillow would compare the key with 8 bits."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # uint16, grey or BGR(A)
    if pixels is None:
        raise ValueError("damaged")
    colours = np.atleast_3d(pixels)[:, :, 2::-1] if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, 2)
    alpha = np.where((colours == np.array(key)).all(2), 0, 255)
    return Image.fromarray(np.dstack([colours // 256, alpha]).astype(np.uint8))


# ---- Brought to a size.


def decode_scaled(data: bytes, height: int, width: int) -> np.ndarray:
    """A picture's bytes -> uint8 [height, width, 3] RGB, as `resized` does it. Errors as `decode_own_size`."""
    return resized(decode_own_size(data), height, width)


def decode_bicubic(data: bytes, height: int, width: int) -> np.ndarray:
    """A picture's bytes -> uint8 [height, width, 3] RGB. Errors as `decode_own_size`.

    Enlarging is bicubic, as the re-ID protocol says. Shrinking averages areas, as sampled points would alias.
    """
    image = decode_own_size(data)
    smaller = (min(image.shape[0], height), min(image.shape[1], width))
    if image.shape[:2] != smaller:
        image = cv2.resize(image, (smaller[1], smaller[0]), interpolation=cv2.INTER_AREA)
    if smaller != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [height, width, 3]; the same array where it has that size already.

    Shrinking averages areas (INTER_AREA), as sampled points would alias. Enlarging is bilinear.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


# ---- Images for training a GAN: all have one size, and none is stretched unless the user asks for it.


@dataclasses.dataclass(frozen=True)
class Target:
    """The size that images must have [pixels], and how images of other sizes are treated.

    Images of the same aspect ratio (within one pixel of rounding) are shrunk by averaging areas. fit: for
    images of another aspect ratio, "exact" refuses them, "crop" takes their middle, "pad" repeats their edge
    rows or columns, and "stretch" changes their proportions, as is usual for square networks. enlarge:
    smaller images are enlarged (bilinear) instead of refused.
    """

    height: int
    width: int
    fit: Literal["exact", "crop", "pad", "stretch"] = "exact"
    enlarge: bool = False


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why one image cannot be used. The size [pixels] is set where the size is the reason."""

    kind: Literal["unreadable", "aspect", "small"]
    height: int = 0
    width: int = 0


UNREADABLE = Problem("unreadable")


def decode_bytes(data: bytes | None, target: Target) -> np.ndarray | Problem:
    """One picture's file as uint8 RGB [H, W, 3] of the target's size, or the problem that prevents it."""
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
    """The padded image; None where it would have more than `MOST_PIXELS`: such an image is a line, no picture."""
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

_PIECE = 256  # the most images of one task of a thread


def decode_listing(
    listing: Listing,
    height: int,
    width: int,
    threads: int = 4,
    decode_one: Callable[[bytes, int, int], np.ndarray] = decode_bicubic,
    peculiar: Counter[str] | None = None,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Decode a listing to (images [M, height, width, 3] uint8 RGB, indices [M] int64, names of the unreadable).

    images[i] is the listing's image indices[i]. Unreadable images are left out: they are missing, damaged, of
    another format, or have more than MOST_PIXELS by their header. `peculiar` is as for `decode_into`. Raises
    InputError where none of the images can be read.
    """
    images = np.empty((len(listing), height, width, 3), np.uint8)
    problems = decode_into(listing, images, lambda data: decode_one(data, height, width), threads, peculiar)
    indices = np.flatnonzero([problem is None for problem in problems])
    if not len(indices):
        first = f", the first is {listing.names[0]!r}" if len(listing) else ""
        raise InputError(f"{listing.name}: none of {len(listing)} images can be read{first}: give {FORMATS_TEXT} files")
    close_gaps(images, indices)
    unreadable = tuple(name for name, problem in zip(listing.names, problems, strict=True) if problem is not None)
    return images[: len(indices)], indices, unreadable


def decode_into(
    listing: Listing,
    images: np.ndarray,
    decode_one: Callable[[bytes], np.ndarray | Problem],
    threads: int = 4,
    peculiar: Counter[str] | None = None,
) -> list[Problem | None]:
    """Decode image i into images[i] ([N, H, W, 3] uint8 RGB, may be shared memory): each image's problem or None.

    decode_one: takes bytes, returns [H, W, 3] or a Problem, or raises DecodingError. Where image i has a
    problem, the content of images[i] is undefined. peculiar: the `peculiarities` of decoded images are added.
    """
    read, lock = Reader(listing.archive), threading.Lock()
    size = max(1, min(_PIECE, len(listing) // (4 * threads)))

    def decode_index(index: int) -> Problem | None:
        data = read(listing.contents[index])
        try:
            image = UNREADABLE if data is None else decode_one(data)
        except DecodingError:
            image = UNREADABLE
        if isinstance(image, Problem):
            return image
        images[index] = image
        if peculiar is not None and data and (kinds := peculiarities(data)):
            with lock:
                peculiar.update(kinds)
        return None

    def decode_piece(start: int) -> list[Problem | None]:
        return [decode_index(index) for index in range(start, min(start + size, len(listing)))]

    with ThreadPoolExecutor(threads) as pool:  # OpenCV decodes without holding the interpreter's lock
        return [problem for problems in pool.map(decode_piece, range(0, len(listing), size)) for problem in problems]


def decode_at(listing: Listing, index: int) -> np.ndarray | None:
    """One image of a listing at its own size, [H, W, 3] uint8 RGB; None where it cannot be read."""
    data = Reader(listing.archive)(listing.contents[index])
    try:
        return None if data is None else decode_own_size(data)
    except DecodingError:
        return None


def close_gaps(images: np.ndarray, indices: np.ndarray) -> None:
    """Move images[indices[i]] to images[i] within the same array, as a copy would double the memory.

    `indices` must ascend.
    """
    for target, index in enumerate(indices.tolist()):
        if target != index:
            images[target] = images[index]
