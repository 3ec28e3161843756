"""Colour histograms of pictures of people: a description of the clothes that knows nothing of the pose.

CIELAB colours in soft bins, counted apart in three stripes (about head and shoulders, trunk, legs) of the central
columns, where a pedestrian stands and little background does. Horizontal stripes of colours come from D. Gray and
H. Tao, Viewpoint invariant pedestrian recognition with an ensemble of localized features, 2008.
"""

import itertools
import math

import cv2
import numpy as np

from passersby.errors import InputError

STRIPES = 3
COLUMNS = (0.35, 0.65)  # of the width: wider, the background decides; the toy crowd's people are found worse
BINS = (4, 8, 8)  # lightness, a, b: coarse, as light changes more from picture to picture than clothes do
CHROMA = 64.0  # the outermost bins of a and b stand at +-64, beyond nearly all that clothes and skin have
SIZE = STRIPES * BINS[0] * BINS[1] * BINS[2]


def colour_histograms(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, 3] uint8 RGB (sRGB) -> [N, 768] float32, each of length 1.

    Each pixel is shared out among the eight bins around its colour (trilinearly), so that no colour lies on an
    edge. The values are square roots of shares: the dot product of two histograms is their Bhattacharyya coefficient,
    1 for equal ones and 0 for those without a common bin. Raises InputError for another type or shape, and for images
    of less than 3 rows.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(f"colour histograms are of uint8 [N, H, W, 3], not of {images.dtype} {list(images.shape)}")
    height, width = images.shape[1:3]
    left, right = math.floor(width * COLUMNS[0]), math.ceil(width * COLUMNS[1])
    if height < STRIPES:
        raise InputError(f"colour histograms need 3 rows or more, not {height} x {width} pixels")
    stripe = (np.arange(height) * STRIPES // height).repeat(right - left)  # [H * columns] int64
    found = np.empty((len(images), SIZE), np.float32)
    for image, target in zip(images, found, strict=True):
        target[:] = _histogram(image[:, left:right], stripe)
    return found


def _histogram(image: np.ndarray, stripe: np.ndarray) -> np.ndarray:
    lab = cv2.cvtColor(np.ascontiguousarray(image, np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    place = (lab + (0, CHROMA, CHROMA)) / (100, 2 * CHROMA, 2 * CHROMA) * (np.array(BINS) - 1)
    place = place.clip(0, np.array(BINS) - 1)  # [pixels, 3] float64, in bins
    low = np.minimum(place.astype(np.int64), np.array(BINS) - 2)
    above = place - low  # 0..1: the share of the upper bin, on each axis
    counts = np.zeros(SIZE)
    for corner in itertools.product((0, 1), repeat=3):
        weights = np.where(corner, above, 1 - above).prod(1)
        index = np.ravel_multi_index((low + corner).T, BINS) + stripe * np.prod(BINS)
        counts += np.bincount(index, weights, minlength=SIZE)
    return np.sqrt(counts / counts.sum())


def nearest(histograms: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Index of the most alike histogram in `gallery` [G, 768] for each of `histograms` [N, 768]: [N] int64."""
    return (histograms @ gallery.T).argmax(1)
