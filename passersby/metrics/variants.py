"""What the variants of people are worth: whether they pass a detector, and what they keep of their person.

Every share is a mean over people with its 95% interval (`passersby/metrics/bootstrap.py`), as JSON data: value, low,
high, and the numbers of people and of images behind it.
"""

from typing import Any

import cv2
import numpy as np
import torch

from passersby.metrics.bootstrap import mean_interval
from passersby.metrics.colour_histogram import colour_histograms
from passersby.metrics.edges import edge_distances, edge_maps
from passersby.metrics.ssim import ssim

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
    share of edges that moved, 0..1, blind to colour (`passersby/metrics/edges.py`).
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
