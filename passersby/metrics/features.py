"""Features of images before a comparison: checks, scaling to length 1, averages for multi-query.

The comparisons themselves are in ranking.py, reranking.py and verification.py.
"""

from typing import TypeAlias

import numpy as np
import torch

from passersby.errors import InputError

Array: TypeAlias = np.ndarray | torch.Tensor  # users give NumPy arrays, or tensors on any device
METRICS = ("cosine", "euclidean")
ROWS = 4096  # rows whose lengths are computed at a time, in float64


def feature_pair(query: Array, gallery: Array, metric: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [Q, D] and [G, D], both NumPy arrays or both tensors of one device -> float32 tensors on that device.

    With the metric "cosine" the rows are scaled to length 1; rows of zeros stay zero. Raises InputError for another
    metric, shape or type, for features that do not fit together, for features that are not finite (the message names
    the first row) and for features whose distances exceed float32.
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
        # The division is in float32: in float64 it would take the memory of two more galleries.
        query_unit, gallery_unit = (
            t / n.clamp_min(tiny).float()[:, None] for t, n in zip(tensors, lengths, strict=True)
        )
        return query_unit, gallery_unit
    longest = max(float(length.max()) for length in lengths)
    if longest > 1e18:
        raise InputError(
            f"a feature has length {longest:.3g}, whose square float32 cannot hold: scale all of them down"
        )
    return tensors[0], tensors[1]


def _float32(features: Array) -> torch.Tensor:
    if isinstance(features, torch.Tensor):
        return features.detach().float()
    with np.errstate(over="ignore"):  # float64 beyond float32 is reported as not finite
        features = np.ascontiguousarray(features, np.float32)
    # A copy where NumPy forbids writing: PyTorch warns of such memory, though nothing here writes to it.
    return torch.from_numpy(features if features.flags.writeable else features.copy())


def _lengths(features: torch.Tensor, name: str) -> torch.Tensor:
    """The lengths [N] float64 of features [N, D] float32. Raises InputError where a feature is not finite."""
    parts = features.split(ROWS)
    lengths = torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts])
    bad = (~lengths.isfinite()).nonzero()
    if len(bad):
        raise InputError(
            f"{name} features of image {int(bad[0])} are not finite, of {len(bad)} images in all (counted from 0): "
            "leave them out"
        )
    return lengths


def normalised(features: np.ndarray, name: str) -> np.ndarray:
    """Scale the rows of features [N, D] to length 1, float32; rows of zeros stay zero.

    Raises InputError where features are not finite.
    """
    features = np.asarray(features, np.float32)
    if features.ndim != 2:
        raise InputError(f"{name} features have shape {features.shape}: give [images, dimensions]")
    length = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    bad = int((~np.isfinite(length)).sum())
    if bad:
        raise InputError(f"{bad} of {len(features)} {name} images have features that are not finite: leave them out")
    return features / np.maximum(length, np.finfo(np.float32).tiny)[:, None].astype(np.float32)


def multi_query_features(
    query_features: np.ndarray,
    query_ids: np.ndarray,
    query_cameras: np.ndarray,
    multi_features: np.ndarray,
    multi_ids: np.ndarray,
    multi_cameras: np.ndarray,
) -> tuple[np.ndarray, int]:
    """For each query the mean of the multi-query features [M, D] of its identity and camera: [Q, D] float32.

    A query without such features keeps its own feature; the second result is the number of these queries. All images
    of a person by one camera so become one query (Zheng et al., Scalable Person Re-identification: A Benchmark, 2015).
    """
    features, alone = np.array(query_features, np.float32), 0
    keys, inverse = np.unique(np.stack([multi_ids, multi_cameras], 1), axis=0, return_inverse=True)
    sums = np.zeros((len(keys), features.shape[1]))
    np.add.at(sums, inverse.reshape(-1), multi_features)
    means = sums / np.bincount(inverse.reshape(-1), minlength=len(keys))[:, None]
    mean_index = {(int(identity), int(camera)): index for index, (identity, camera) in enumerate(keys)}
    for query, key in enumerate(zip(query_ids.tolist(), query_cameras.tolist(), strict=True)):
        if key in mean_index:
            features[query] = means[mean_index[key]]
        else:
            alone += 1
    return features, alone
