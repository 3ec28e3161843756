"""How different two pictures are in where their edges lie, whatever the colours: outline and pose."""

import cv2
import numpy as np

from passersby.errors import InputError

NOISE = 1 / 128  # standard deviation, of the height, of the smoothing before edges are taken
TOLERANCE = 2 / 128  # and of that after: edges so far apart count as half the same


def edge_maps(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, 3] uint8 RGB -> [N, H, W] float32: where the edges are, each map with the sum 1.

    The gradient's magnitude (Sobel) of CIELAB's lightness: hue and saturation do not count, and the picture's contrast
    and brightness fall out with the sum. An image without any edge has an even map. Raises InputError for another type
    or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(f"edges are taken of uint8 [N, H, W, 3], not of {images.dtype} {list(images.shape)}")
    maps = np.empty(images.shape[:3], np.float32)
    height = images.shape[1]
    for image, target in zip(images, maps, strict=True):
        lightness = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[:, :, 0]
        lightness = cv2.GaussianBlur(lightness, (0, 0), NOISE * height)
        across, down = cv2.Sobel(lightness, cv2.CV_32F, 1, 0), cv2.Sobel(lightness, cv2.CV_32F, 0, 1)
        edges = cv2.GaussianBlur(np.hypot(across, down), (0, 0), TOLERANCE * height)
        target[:] = edges + 1e-4  # of a lightness of 100: far below what is seen, above the rounding of floats
    return maps / maps.sum((1, 2), keepdims=True)


def edge_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Edge maps [N, H, W] in pairs (either N may be 1) -> [N] float32: 0 for the same edges, 1 for none in common.

    The total variation distance, the share of the edges that would have to move.
    """
    return np.abs(a - b).sum((1, 2)) / 2
