"""What the variants of people are worth: whether they pass a detector, and what they keep of their person.

Every share is a mean over people with its 95% interval (`passersby/metrics/sweep_statistics.py`), as JSON data: value,
low, high, and the numbers of people and of images behind it.
"""

import itertools
import math
from typing import Any

import cv2
import numpy as np
import torch

from passersby.errors import InputError
from passersby.metrics.ssim import ssim
from passersby.metrics.sweep_statistics import mean_interval

# ---- Edges: outline and pose of a person, whatever the colours.

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


# ---- Colour histograms: the clothes of a person, whatever the pose.
#
# CIELAB colours in soft bins, counted apart in three stripes (about head and shoulders, trunk, legs) of the central
# columns, where a pedestrian stands and little background does. Horizontal stripes of colours come from D. Gray and
# H. Tao, Viewpoint invariant pedestrian recognition with an ensemble of localized features, 2008.

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


# ---- Scores of people and their variants.

_PAIRS = 256  # compared at a time: SSIM takes a hundred times the memory of the images
_OTHERS = 5  # people that each is compared with


def share(values: np.ndarray, images: int | None = None) -> dict[str, Any]:
    """Values of people, [P] or [P, V], 0..1 (or a difference of such) -> their mean and its interval.

    images: behind the values, where each of them is already the mean of several.
    """
    value, low, high = mean_interval(values.reshape(len(values), -1).mean(1))
    return {"value": value, "low": low, "high": high, "people": len(values), "images": images or values.size}


def by_person(person: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of the values [N] of each person who has any, in the order of `person` [N] int64: [P] float64."""
    _, index = np.unique(person, return_inverse=True)
    return np.bincount(index, values) / np.bincount(index)


def measure_filter(scores: np.ndarray, threshold: float) -> dict[str, Any]:
    """Detector scores [P, V], base images first -> what passes of all, of base images, of each person's pictures."""
    passed = scores >= threshold
    of_person = passed.mean(1)
    return {
        "all": share(passed),
        "base": share(passed[:, :1]),
        "by_person": {
            "median": float(np.median(of_person)),
            "at_least_half": share(of_person >= 0.5),
            "none": share(of_person == 0),
        },
        "median_score": float(np.median(scores)),
    }


def measure_pose(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """How far pairs of images [N, H, W, 3] uint8 are apart, as means over the pairs.

    ssim_4095 and ssim_255: SSIM with these data ranges. absolute_difference: of values 0..255. edge_distance: the
    share of edges that moved, 0..1, blind to colour (`edge_distances`).
    """
    sums = {"ssim_4095": 0.0, "ssim_255": 0.0, "absolute_difference": 0.0, "edge_distance": 0.0}
    for start in range(0, len(first), _PAIRS):
        a, b = first[start : start + _PAIRS], second[start : start + _PAIRS]
        for data_range in (4095, 255):
            sums[f"ssim_{data_range}"] += float(ssim(torch.tensor(a), torch.tensor(b), data_range).sum())
        sums["absolute_difference"] += float(cv2.absdiff(a, b).mean()) * len(a)
        sums["edge_distance"] += float(edge_distances(edge_maps(a), edge_maps(b)).sum())
    return {name: total / len(first) for name, total in sums.items()}


def other_people(bases: np.ndarray) -> dict[str, float]:
    """`measure_pose` of base images [P, H, W, 3] with those of up to five other people each: the most to expect."""
    shifts = range(1, min(_OTHERS + 1, len(bases)))
    others = np.concatenate([np.roll(bases, shift, 0) for shift in shifts])
    return measure_pose(np.concatenate([bases] * len(shifts)), others)


def measure_mixing(
    images: np.ndarray, scores: np.ndarray, bases: np.ndarray, donors: np.ndarray, threshold: float
) -> dict[str, Any]:
    """What style mixing does to people.

    images [P, V, H, W, 3] uint8 and scores [P, V]: each person's base image, then variants. bases [B, H, W, 3]: the
    base images of at least these people, in their order. donors [D, V, H, W, 3]: of the first D people, behind a base
    image, the images that the variants' second codes give alone; D may be less or more than P.

    Returns filter, the share of variants that pass the detector, and filter_minus_base, what it is more than that of
    the people's base images; nearest_own, the share whose nearest base image by colour is their person's; of the first
    D people nearest_donor, the share that is nearer to its donor than to any base image, and own_before_donor, the
    share nearer to its own base image than to its donor; and `measure_pose` of variants with their base image.
    """
    variants, passed = images[:, 1:], scores >= threshold
    own = np.arange(len(images))
    some = own[: len(donors)]
    gallery, found = colour_histograms(bases), _histograms(variants)
    to_bases = found @ gallery.T  # [P, V - 1, B]
    to_donor = (found[some] * _histograms(donors[some, 1:])).sum(2)  # [D, V - 1]
    base = np.broadcast_to(images[:, :1], variants.shape)
    return {
        "people": len(images),
        "filter": share(passed[:, 1:]),
        "filter_minus_base": share(passed[:, 1:].mean(1) - passed[:, 0]),
        "nearest_own": share(to_bases.argmax(2) == own[:, None]),
        "nearest_donor": share(to_donor > to_bases[some].max(2)),
        "own_before_donor": share(to_bases[some, :, some] > to_donor),
        **measure_pose(*(part.reshape(-1, *part.shape[2:]) for part in (base, variants))),
    }


def _histograms(images: np.ndarray) -> np.ndarray:
    # [P, V, H, W, 3] -> [P, V, bins]
    return colour_histograms(images.reshape(-1, *images.shape[2:])).reshape(*images.shape[:2], -1)
