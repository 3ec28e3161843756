"""Stored image bytes back to pixels."""

import cv2
import numpy as np


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
