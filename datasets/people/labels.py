"""Labels that condition a GAN: one row of float32 for each training image, and the meaning of the columns."""

import dataclasses
from typing import Literal

import cv2
import numpy as np
from scipy.cluster.vq import ClusterError, kmeans2

from datasets.people.image_source import ImageSource
from datasets.people.listing import UNKNOWN_CAMERA, Listing
from passersby.errors import InputError
from passersby.options import Json

STRIPES, BINS = 3, (8, 8, 8)  # head, trunk, legs; L, a, b
FEATURES = STRIPES * sum(BINS)
_STARTS, _ATTEMPTS = 4, 20  # k-means takes the best of 4 starts without an empty cluster, and tries at most 20


@dataclasses.dataclass(frozen=True)
class Labels:
    """`rows` [N, c_dim] float32, in the order of the training images; `meaning` is for the network's record."""

    rows: np.ndarray
    meaning: dict[str, Json]


def labels(
    source: ImageSource,
    kind: Literal["none", "camera", "cluster", "dataset"],
    *,
    features: np.ndarray | None = None,
    clusters: int = 0,
    seed: int = 0,
) -> Labels:
    """Labels of the training images.

    "none": no columns. "camera": one column a camera, ascending. "dataset": the labels of dataset.json: class
    numbers become one column for each class up to the largest, vectors stay as they are. "cluster": people
    (images, where identities are unknown) of similar colours share one of `clusters` columns; this kind needs
    `features`, the `colour_features` of the training images. Raises InputError where an image has no camera
    or label, and where there are fewer people of distinct colours than clusters.
    """
    listing = source.training
    if kind == "none":
        return Labels(np.zeros((len(listing), 0), np.float32), {"kind": "none"})
    if kind == "camera":
        return _camera_labels(source)
    if kind == "dataset":
        return _dataset_labels(source)
    if features is None or len(features) != len(listing):
        raise ValueError("clusters need the features of every training image")
    return _cluster_labels(listing, features, clusters, seed)


def colour_features(images: np.ndarray) -> np.ndarray:
    """Colour histograms of three stripes, top to bottom: uint8 [N, H, W, 3] RGB -> float32 [N, 72].

    Only the middle half of the columns counts: the rest of a person's picture is mostly background. Each
    stripe has 8 bins for each of L, a, b. A bin holds the square root of its share of the stripe's pixels.
    So the Euclidean distance of two images is the Hellinger distance of their histograms times the root of 2.
    """
    features = np.empty((len(images), FEATURES), np.float32)
    for index, image in enumerate(images):
        margin = image.shape[1] // 4
        lab = cv2.cvtColor(np.ascontiguousarray(image[:, margin : image.shape[1] - margin]), cv2.COLOR_RGB2LAB)
        parts = [
            cv2.calcHist([stripe], [channel], None, [bins], [0, 256]).ravel() / stripe[..., 0].size
            for stripe in np.array_split(lab, STRIPES)
            for channel, bins in enumerate(BINS)
        ]
        features[index] = np.sqrt(np.concatenate(parts))
    return features


def _camera_labels(source: ImageSource) -> Labels:
    listing = source.training
    unknown = np.flatnonzero(listing.cameras == UNKNOWN_CAMERA)
    if len(unknown):
        raise InputError(
            f'labels by "camera": {len(unknown)} of {len(listing)} images of {source.root} say no camera, the '
            f"first is {listing.names[unknown[0]]}: all names must read PPPP_cCsS_FFFFFF_BB.jpg; or choose other labels"
        )
    cameras, columns = np.unique(listing.cameras, return_inverse=True)
    counts = np.bincount(columns)
    meaning = {"kind": "camera", "cameras": cameras.tolist(), "images": counts.tolist()}
    return Labels(_one_hot(columns, len(cameras)), meaning)


def _dataset_labels(source: ImageSource) -> Labels:
    listing = source.training
    missing = [name for name, label in zip(listing.names, listing.labels, strict=True) if label is None]
    if missing:
        raise InputError(
            f'labels by "dataset": {len(missing)} of {len(listing)} images of {source.root} have no label in '
            f"a dataset.json, the first is {missing[0]}: add them, or choose other labels"
        )
    if isinstance(listing.labels[0], tuple):
        rows = np.array(listing.labels, np.float32)
        return Labels(rows, {"kind": "dataset", "vectors": rows.shape[1]})
    # People set aside count as well: the number of columns must not depend on who is set aside.
    everybody = [label for label in listing.labels + source.validation.labels if isinstance(label, int)]
    classes = np.array(listing.labels)
    count = max(everybody) + 1
    meaning = {"kind": "dataset", "classes": count, "images": np.bincount(classes, minlength=count).tolist()}
    return Labels(_one_hot(classes, count), meaning)


def _cluster_labels(listing: Listing, features: np.ndarray, clusters: int, seed: int) -> Labels:
    is_known = listing.known_people is not None
    people, person_of = np.unique(listing.identities if is_known else np.arange(len(listing)), return_inverse=True)
    sums = np.zeros((len(people), features.shape[1]))
    np.add.at(sums, person_of, features)  # in the listing's order, so that the sums are the same bits each time
    means = sums / np.bincount(person_of)[:, None]
    cluster_of = cluster(means, clusters, seed)
    rows = _one_hot(cluster_of[person_of], clusters)
    meaning = {
        "kind": "cluster",
        "of": "people" if is_known else "images",
        "seed": seed,
        "sizes": np.bincount(cluster_of, minlength=clusters).tolist(),
        "images": np.bincount(cluster_of[person_of], minlength=clusters).tolist(),
    }
    return Labels(rows, meaning)


def cluster(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Cluster float [N, F] by k-means with k-means++ starts: int [N], each point's cluster.

    Clusters are numbered in the order of their first points, and none is empty. The result is the tightest
    of four starts, and the same for the same points and seed. Raises InputError where there are fewer
    distinct points than clusters, and where every start leaves a cluster empty.
    """
    distinct = len(np.unique(points, axis=0))
    if not 1 <= clusters <= distinct:
        raise InputError(f"{clusters} clusters of {distinct} people of distinct colours: give 1 to {distinct}")
    results = []
    for attempt in range(_ATTEMPTS):
        random = np.random.default_rng([seed, attempt])
        try:
            centres, cluster_of = kmeans2(points, clusters, iter=50, minit="++", missing="raise", rng=random)
        except ClusterError:
            continue
        if len(np.unique(cluster_of)) == clusters:
            results.append((float(((points - centres[cluster_of]) ** 2).sum()), attempt, cluster_of))
        if len(results) == _STARTS:
            break
    if not results:
        raise InputError(f"{clusters} clusters: {_ATTEMPTS} starts left one empty each time; give fewer")
    _, _, cluster_of = min(results, key=lambda result: result[:2])
    _, first, numbers = np.unique(cluster_of, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers]


def _one_hot(columns: np.ndarray, count: int) -> np.ndarray:
    rows = np.zeros((len(columns), count), np.float32)
    rows[np.arange(len(columns)), columns] = 1
    return rows
