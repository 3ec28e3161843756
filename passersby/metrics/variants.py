"""Measures of the variants of people: whether they pass a detector, and how much they look like their person.

Every share is a mean over people with its 95% interval (`passersby/metrics/bootstrap.py`), as JSON data: value,
low, high, the number of people and the number of images.
"""

import itertools
import math
from typing import Any

import cv2
import numpy as np
import torch

from passersby.errors import InputError
from passersby.metrics.bootstrap import mean_interval
from passersby.metrics.ssim import ssim

# ---- Edges: outline and pose of a person, whatever the colours.

# The standard deviations of two smoothings, as shares of the height.
NOISE = 1 / 128  # before the edges are computed
TOLERANCE = 2 / 128  # after: edges so far apart count as half the same


def edge_maps(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, 3] uint8 RGB -> [N, H, W] float32: where the edges are, each map with the sum 1.

    An edge is the gradient's magnitude (Sobel) of CIELAB's lightness, so hue and saturation do not count. The division
    by the sum removes the picture's contrast and brightness. An image without any edge has an even map. Raises
    InputError for another type or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(f"edge maps need uint8 [N, H, W, 3], not {images.dtype} {list(images.shape)}")
    maps = np.empty(images.shape[:3], np.float32)
    height = images.shape[1]
    for image, target in zip(images, maps, strict=True):
        lightness = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[:, :, 0]
        lightness = cv2.GaussianBlur(lightness, (0, 0), NOISE * height)
        across, down = cv2.Sobel(lightness, cv2.CV_32F, 1, 0), cv2.Sobel(lightness, cv2.CV_32F, 0, 1)
        edges = cv2.GaussianBlur(np.hypot(across, down), (0, 0), TOLERANCE * height)
        target[:] = edges + 1e-4  # lightness is 0..100: 1e-4 is invisible, but more than rounding
    return maps / maps.sum((1, 2), keepdims=True)


def edge_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Edge maps [N, H, W] in pairs (either N may be 1) -> [N] float32: 0 for the same edges, 1 for no common edge.

    This is the total variation distance: the share of the edges that would have to move.
    """
    return np.abs(a - b).sum((1, 2)) / 2


# ---- Colour histograms: the clothes of a person, whatever the pose.
#
# CIELAB colours in soft bins, counted apart in three stripes (about head and shoulders, trunk, legs) of the central
# columns, where a pedestrian stands and little background does. Horizontal stripes of colours come from D. Gray and
# H. Tao, Viewpoint invariant pedestrian recognition with an ensemble of localized features, 2008.

STRIPES = 3
COLUMNS = (
    0.35,
    0.65,
)  # of the width: with wider columns the background decides, and finds the toy crowd's people worse
BINS = (4, 8, 8)  # lightness, a, b: lightness is coarse, because light changes more between pictures than clothes do
CHROMA = 64.0  # the outermost bins of a and b are at +-64, beyond nearly all colours of clothes and skin
SIZE = STRIPES * BINS[0] * BINS[1] * BINS[2]


def colour_histograms(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, 3] uint8 RGB (sRGB) -> [N, 768] float32, each of length 1.

    Each pixel is divided among the eight bins around its colour (trilinearly), so no colour lies on the edge of a bin.
    The values are square roots of shares: the dot product of two histograms is their Bhattacharyya coefficient, 1 for
    equal histograms and 0 for histograms without a common bin. Raises InputError for another type or shape, and for
    images of less than 3 rows.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(f"colour histograms need uint8 [N, H, W, 3], not {images.dtype} {list(images.shape)}")
    height, width = images.shape[1:3]
    left, right = math.floor(width * COLUMNS[0]), math.ceil(width * COLUMNS[1])
    if height < STRIPES:
        raise InputError(f"colour histograms need 3 rows or more, not {height} x {width} pixels")
    stripe = (np.arange(height) * STRIPES // height).repeat(right - left)  # [H * columns] int64
    histograms = np.empty((len(images), SIZE), np.float32)
    for image, target in zip(images, histograms, strict=True):
        target[:] = _histogram(image[:, left:right], stripe)
    return histograms


def _histogram(image: np.ndarray, stripe: np.ndarray) -> np.ndarray:
    lab = cv2.cvtColor(np.ascontiguousarray(image, np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    position = (lab + (0, CHROMA, CHROMA)) / (100, 2 * CHROMA, 2 * CHROMA) * (np.array(BINS) - 1)
    position = position.clip(0, np.array(BINS) - 1)  # [pixels, 3] float64, in bins
    low = np.minimum(position.astype(np.int64), np.array(BINS) - 2)
    upper_share = position - low  # 0..1: the share of the upper bin, on each axis
    counts = np.zeros(SIZE)
    for corner in itertools.product((0, 1), repeat=3):
        weights = np.where(corner, upper_share, 1 - upper_share).prod(1)
        index = np.ravel_multi_index((low + corner).T, BINS) + stripe * np.prod(BINS)
        counts += np.bincount(index, weights, minlength=SIZE)
    return np.sqrt(counts / counts.sum())


def nearest(histograms: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Index of the most alike histogram in `gallery` [G, 768] for each of `histograms` [N, 768]: [N] int64."""
    return (histograms @ gallery.T).argmax(1)


# ---- Colour spread: how far the colour of a region differs inside a person, and how far between people.
#
# The edges of a picture show its background, the torso shows the clothes. Real people are seen by many cameras: their
# edges differ more inside a person than between people, and their torsos less.

REGIONS = {  # rows and columns, as shares of height and width
    "edges": ((0, 1 / 3), ((0, 1 / 6), (5 / 6, 1))),
    "torso": ((0.28, 0.48), ((0.38, 0.62),)),
}


def region_colours(images: np.ndarray, region: str) -> np.ndarray:
    """Images [..., H, W, 3] uint8 RGB -> [..., 3] float64: the mean colour, 0..1, of "edges" or "torso".

    The edges are the outer sixth on each side of the top third. The torso is rows 28-48%, columns 38-62%. A share of
    the size is rounded to whole pixels, at least one. Raises InputError for another type or shape.
    """
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3:
        raise InputError(f"colours of regions need uint8 [..., H, W, 3], not {images.dtype} {list(images.shape)}")
    rows, columns = REGIONS[region]
    height, width = images.shape[-3:-1]
    row = _pixels(rows, height)
    part = np.concatenate([images[..., row, _pixels(share, width), :] for share in columns], axis=-2)
    return part.mean((-3, -2)) / 255


def _pixels(shares: tuple[float, float], size: int) -> slice:
    first, last = (round(share * size) for share in shares)
    first = min(first, size - 1)
    return slice(first, max(last, first + 1))


def colour_spread(colours: np.ndarray) -> dict[str, float]:
    """Mean colours [P, V, 3] of V pictures of each of P people -> their spread, as JSON data.

    within: the standard deviation over a person's pictures, as a mean over channels and people. between: the standard
    deviation, over people, of the mean of a person's pictures, as a mean over channels. ratio: within / between, 0
    where all people are alike.
    """
    within = float(colours.std(1).mean())
    between = float(colours.mean(1).std(0).mean())
    return {"within": within, "between": between, "ratio": within / between if between else 0.0}


# ---- Scores of people and their variants.

_PAIRS = 256  # pairs compared at a time: SSIM takes a hundred times the memory of the images
_OTHERS = 5  # other people that each person is compared with


def share(values: np.ndarray, images: int | None = None) -> dict[str, Any]:
    """Values of people, [P] or [P, V], 0..1 (or differences of such values) -> their mean and its interval.

    images: the number of images, where each value is already the mean of several images.
    """
    value, low, high = mean_interval(values.reshape(len(values), -1).mean(1))
    return {"value": value, "low": low, "high": high, "people": len(values), "images": images or values.size}


def by_person(person: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of the values [N] of each person who has any, in the order of `person` [N] int64: [P] float64."""
    _, index = np.unique(person, return_inverse=True)
    return np.bincount(index, values) / np.bincount(index)


def measure_filter(scores: np.ndarray, threshold: float) -> dict[str, Any]:
    """Detector scores [P, V], base images first -> shares that pass: of all, of base images, of a person's pictures."""
    passes = scores >= threshold
    person_shares = passes.mean(1)
    return {
        "all": share(passes),
        "base": share(passes[:, :1]),
        "by_person": {
            "median": float(np.median(person_shares)),
            "at_least_half": share(person_shares >= 0.5),
            "none": share(person_shares == 0),
        },
        "median_score": float(np.median(scores)),
    }


def measure_pose(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """The differences of pairs of images [N, H, W, 3] uint8, as means over the pairs.

    ssim_4095 and ssim_255: SSIM with these data ranges. absolute_difference: of values 0..255. edge_distance: the
    share of edges that moved, 0..1, whatever their colour (`edge_distances`).
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
    """`measure_pose` of base images [P, H, W, 3] with the base images of up to five other people: an upper limit."""
    return measure_pose(np.concatenate([bases] * _others(bases)), _neighbours(bases))


def others_edge_distance(bases: np.ndarray) -> float:
    """The edge distance of `other_people` alone, which takes a hundredth of the time."""
    maps = edge_maps(bases)
    return float(edge_distances(np.concatenate([maps] * _others(maps)), _neighbours(maps)).mean())


def _others(values: np.ndarray) -> int:
    return min(_OTHERS, len(values) - 1)


def _neighbours(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.roll(values, shift, 0) for shift in range(1, _others(values) + 1)])


def measure_variants(images: np.ndarray, gallery: np.ndarray) -> dict[str, Any]:
    """Measure what variants keep of their person and change in the pose, whatever made them.

    images [P, V, H, W, 3] uint8: each person's base image, then the variants. gallery [G, 768]: `colour_histograms` of
    one picture each of G people, of whom the first P are these people.

    Returns as JSON data: nearest_own, the share of variants whose nearest picture of the gallery by colour is their
    person's; edge_distance, the mean over variants of the share of edges that moved from the base image; and the
    `colour_spread` of every region, under the region's name.
    """
    people, variants = len(images), images[:, 1:]
    person = np.arange(people).repeat(variants.shape[1])
    flat = variants.reshape(-1, *variants.shape[2:])
    own = nearest(colour_histograms(flat), gallery) == person
    moved = edge_distances(edge_maps(images[:, 0])[person], edge_maps(flat))
    spreads = {region: colour_spread(region_colours(images, region)) for region in REGIONS}
    return {"nearest_own": share(own.reshape(people, -1)), "edge_distance": float(moved.mean()), **spreads}


def measure_mixing(
    images: np.ndarray, scores: np.ndarray, bases: np.ndarray, donors: np.ndarray, threshold: float
) -> dict[str, Any]:
    """Measure what style mixing does to people.

    images [P, V, H, W, 3] uint8 and scores [P, V]: each person's base image, then the variants. bases [B, H, W, 3]: the
    base images of at least these people, in their order. donors [D, V, H, W, 3]: for the first D people, a base image
    and then the images that the variants' second codes alone give; D may be less or more than P.

    Returns these shares of variants:
    filter: variants that pass the detector; filter_minus_base: this share minus that of the people's base images.
    nearest_own: variants whose nearest base image by colour is their person's.
    nearest_donor (of the first D people): variants that are nearer to their donor than to any base image.
    own_before_donor (of the first D people): variants that are nearer to their own base image than to their donor.
    It also returns `measure_pose` of variants with their base image.
    """
    variants, passes = images[:, 1:], scores >= threshold
    people = np.arange(len(images))
    donor_people = people[: len(donors)]
    gallery, histograms = colour_histograms(bases), _histograms(variants)
    to_bases = histograms @ gallery.T  # [P, V - 1, B]
    to_donor = (histograms[donor_people] * _histograms(donors[donor_people, 1:])).sum(2)  # [D, V - 1]
    base = np.broadcast_to(images[:, :1], variants.shape)
    return {
        "people": len(images),
        "filter": share(passes[:, 1:]),
        "filter_minus_base": share(passes[:, 1:].mean(1) - passes[:, 0]),
        "nearest_own": share(to_bases.argmax(2) == people[:, None]),
        "nearest_donor": share(to_donor > to_bases[donor_people].max(2)),
        "own_before_donor": share(to_bases[donor_people, :, donor_people] > to_donor),
        **measure_pose(*(part.reshape(-1, *part.shape[2:]) for part in (base, variants))),
    }


def _histograms(images: np.ndarray) -> np.ndarray:
    # [P, V, H, W, 3] -> [P, V, bins]
    return colour_histograms(images.reshape(-1, *images.shape[2:])).reshape(*images.shape[:2], -1)
