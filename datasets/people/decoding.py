"""Image bytes to the pixels that a GAN is trained on: one size for all, and not stretched unless that is wanted."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import cv2
import numpy as np

from datasets.people.image_source import ImageSource
from datasets.people.listing import Item, Reader
from datasets.people.market_tree import MOST_PIXELS, DecodingError, decode, header_size, resized
from passersby.errors import InputError

MOST_UNREADABLE = 0.1  # of all images
_PIECE = 256  # images that a thread decodes in a row


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


@dataclasses.dataclass(frozen=True)
class LoadedImages:
    """A source without its unreadable images, and its pixels, uint8 [N, H, W, 3] RGB, in the listing's order."""

    source: ImageSource
    training: np.ndarray
    validation: np.ndarray
    unreadable: tuple[str, ...]


def load_images(source: ImageSource, target: Target, threads: int = 2) -> LoadedImages:
    """Decode every image of a source, once. Needs N * H * W * 3 bytes.

    Raises InputError where images do not have the target's size and may not be given it, and where more than one in
    ten, or all for training, cannot be read.
    """
    items = source.training + source.validation
    images, problems = decode_items(Reader(source.root), items, target, threads)
    unreadable = check_problems(items, problems, target)
    usable = source.without(unreadable)
    require_training(usable)
    count = len(usable.training)
    return LoadedImages(usable, images[:count], images[count:], unreadable)


def require_training(source: ImageSource) -> None:
    """Raises InputError where no readable image is left to train on."""
    if not source.training:
        raise InputError(f"not one training image of {source.root} can be read: make or fetch them again")


def decode_items(
    read: Callable[[str], bytes | None], items: Sequence[Item], target: Target, threads: int = 1
) -> tuple[np.ndarray, list[Problem | None]]:
    """The images without a problem, uint8 [n, H, W, 3] RGB in their order, and each item's problem or None."""
    images = np.empty((len(items), target.height, target.width, 3), np.uint8)  # filled in place: half of a list
    problems: list[Problem | None] = []

    def decode_piece(start: int) -> list[np.ndarray | Problem]:
        return [decode_bytes(read(item.name), target) for item in items[start : start + _PIECE]]

    done = 0
    with ThreadPoolExecutor(threads) as pool:  # OpenCV decodes without holding the interpreter's lock
        for results in pool.map(decode_piece, range(0, len(items), _PIECE)):
            for result in results:
                problems.append(result if isinstance(result, Problem) else None)
                if not isinstance(result, Problem):
                    images[done] = result
                    done += 1
    return images[:done], problems


def decode_bytes(data: bytes | None, target: Target) -> np.ndarray | Problem:
    """One JPEG or PNG file as uint8 RGB [H, W, 3] of the target's size, or why it cannot be that."""
    if not data or not _header_is_modest(data):
        return Problem("unreadable")
    try:
        image = decode(data)
    except DecodingError:
        return Problem("unreadable")
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


def check_problems(items: Sequence[Item], problems: Iterable[Problem | None], target: Target) -> tuple[str, ...]:
    """Names of the unreadable images, which are left out. Raises InputError as `load_images` does."""
    found = [(item.name, problem) for item, problem in zip(items, problems, strict=True) if problem]
    wanted = f"{target.height}x{target.width}"
    for kind in ("aspect", "small"):
        misfits = [(name, problem) for name, problem in found if problem.kind == kind]
        if not misfits:
            continue
        name, problem = misfits[0]
        ways = {
            "aspect": f"not of the aspect ratio of {wanted} (nothing is stretched): --fit crop takes their middle, "
            "pad repeats their edges, stretch changes their proportions",
            "small": f"smaller than {wanted}: give a smaller --height and --width, or --enlarge",
        }
        size = f"{problem.height}x{problem.width}"
        raise InputError(f"{len(misfits)} of {len(items)} images, the first is {name} ({size}), are {ways[kind]}")
    unreadable = tuple(name for name, _ in found)
    if len(unreadable) > MOST_UNREADABLE * len(items):
        raise InputError(
            f"{len(unreadable)} of {len(items)} images cannot be read, the first is {unreadable[0]}: more than one in "
            "ten; make or fetch them again"
        )
    return unreadable


def _header_is_modest(data: bytes) -> bool:
    size = header_size(data)
    return size is not None and size[0] * size[1] <= MOST_PIXELS


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
