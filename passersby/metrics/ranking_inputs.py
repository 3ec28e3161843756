"""What is ranked: features and labels, checked once and brought into one form."""

import dataclasses
from typing import Any

import numpy as np
import torch

from passersby.errors import InputError

JUNK = -1  # identity of images that are in no ranking; 0 is a distractor, people are above
UNKNOWN_CAMERA = -1
METRICS = ("cosine", "euclidean")
ROWS = 4096  # whose lengths are taken at a time, in float64


def feature_pair(query: Any, gallery: Any, metric: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [Q, D] and [G, D], both NumPy arrays or both tensors of one device -> float32 tensors on that device.

    metric "cosine": of length 1, rows of zeros stay. Raises InputError for another metric, shape or type, for features
    that do not fit together, that are not finite (naming the first row) or whose distances exceed float32.
    """
    if metric not in METRICS:
        raise InputError(f"metric {metric!r}: use {' or '.join(METRICS)}")
    pair = {"query": query, "gallery": gallery}
    kinds = []
    for name, features in pair.items():
        if features.ndim != 2:
            raise InputError(f"{name} features have shape {list(features.shape)}: give [images, dimensions]")
        if not len(features):
            raise InputError(f"{name} features have shape {list(features.shape)}: give one image or more")
        device = features.device if isinstance(features, torch.Tensor) else "array"
        kinds.append(f"{str(features.dtype).removeprefix('torch.')} ({device})")
    if kinds[0] != kinds[1]:
        raise InputError(f"query features are {kinds[0]} and gallery features {kinds[1]}: give both in one form")
    if query.shape[1] != gallery.shape[1]:
        raise InputError(f"{query.shape[1]} features of queries and {gallery.shape[1]} of the gallery: use one network")
    if not kinds[0].startswith(("float", "bfloat", "int", "uint")):
        raise InputError(f"features are {kinds[0]}: give real numbers")
    tensors = [_float32(features) for features in pair.values()]
    lengths = [_lengths(tensor, name) for tensor, name in zip(tensors, pair, strict=True)]
    if metric == "cosine":
        tiny = torch.finfo(torch.float32).tiny
        # Not in float64 in between: that would be the gallery twice more.
        return tuple(t / n.clamp_min(tiny).float()[:, None] for t, n in zip(tensors, lengths, strict=True))
    longest = max(float(length.max()) for length in lengths)
    if longest > 1e18:
        raise InputError(
            f"a feature has length {longest:.3g}, whose square float32 cannot hold: scale all of them down"
        )
    return tuple(tensors)


def _float32(features: Any) -> torch.Tensor:
    if isinstance(features, torch.Tensor):
        return features.detach().float()
    with np.errstate(over="ignore"):  # float64 beyond float32 is reported as not finite
        features = np.ascontiguousarray(features, np.float32)
    # A copy where NumPy forbids writing: PyTorch warns of such memory, though nothing here writes to it.
    return torch.from_numpy(features if features.flags.writeable else features.copy())


def _lengths(features: torch.Tensor, name: str) -> torch.Tensor:
    """[N] float64: of features [N, D] float32. InputError where one is not finite."""
    parts = features.split(ROWS)
    lengths = torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts])
    bad = (~lengths.isfinite()).nonzero()
    if len(bad):
        raise InputError(
            f"{name} features of image {int(bad[0])} are not finite, of {len(bad)} images in all (counted from 0): "
            "leave them out"
        )
    return lengths


@dataclasses.dataclass(frozen=True)
class Labels:
    """Identities [Q], [G] and cameras [Q], [G] of queries and gallery, int64. Cameras are all unknown where not given.

    kept: places [K] int64 of the gallery images that are not junk.
    """

    query_ids: np.ndarray
    gallery_ids: np.ndarray
    query_cameras: np.ndarray
    gallery_cameras: np.ndarray
    kept: np.ndarray


def checked_labels(query_ids: Any, gallery_ids: Any, query_cameras: Any = None, gallery_cameras: Any = None) -> Labels:
    """Labels of arrays or tensors. Raises InputError for other types and lengths, and where nothing can be ranked."""
    if (query_cameras is None) != (gallery_cameras is None):
        given, missing = ("gallery", "query") if query_cameras is None else ("query", "gallery")
        raise InputError(f"{given} cameras are given and {missing} cameras are not: give both or neither")
    ids = [_integers(query_ids, "query identities"), _integers(gallery_ids, "gallery identities")]
    for name, values in zip(("query", "gallery"), ids, strict=True):
        if not len(values):
            raise InputError(f"no {name} identities: give one image or more")
        if values.min() < JUNK:
            raise InputError(
                f"{name} identity {values.min()} of image {values.argmin()}: people are above 0, distractors 0, junk -1"
            )
    if query_cameras is None:
        cameras = [np.full(len(values), UNKNOWN_CAMERA) for values in ids]
    else:
        cameras = [_integers(query_cameras, "query cameras"), _integers(gallery_cameras, "gallery cameras")]
    for name, values, seen in zip(("query", "gallery"), ids, cameras, strict=True):
        if len(values) != len(seen):
            raise InputError(f"{len(values)} {name} identities and {len(seen)} {name} cameras: give one for each image")
    kept = np.flatnonzero(ids[1] != JUNK)
    if not len(kept):
        raise InputError(f"all {len(ids[1])} gallery images are junk (identity -1): give some that count")
    return Labels(*ids, *cameras, kept)


def check_counts(labels: Labels, queries: int, gallery: int) -> None:
    """InputError unless there are as many labels."""
    for name, ids, images in (("query", labels.query_ids, queries), ("gallery", labels.gallery_ids, gallery)):
        if len(ids) != images:
            raise InputError(f"{images} {name} images and {len(ids)} {name} identities: give one for each image")


def _integers(values: Any, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.cpu().numpy()
    values = np.asarray(values)
    if values.ndim != 1 or (values.dtype.kind not in "iu" and len(values)):
        raise InputError(f"{name} are {values.dtype} {list(values.shape)}: give whole numbers, one an image")
    return values.astype(np.int64)
