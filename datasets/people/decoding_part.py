"""Stored image bytes back to pixels."""

import io

import cv2
import numpy as np
from PIL import Image

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
