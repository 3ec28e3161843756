"""Re-ranking by k-reciprocal neighbours: these distances also depend on whether two images have the same neighbours.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", 2017. All matrices except the nearest
neighbours are sparse: each image has some tens of neighbours among tens of thousands.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse

from passersby.errors import InputError
from passersby.metrics.features import feature_pair

# ---- Neighbours: images that are among each other's nearest, and the neighbours of such neighbours.

ROWS = 2048  # images at a time: the neighbours of their candidates, some 500 kB, fit a processor's cache


def reciprocal_neighbours(neighbours: np.ndarray, k1: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (image, neighbour) of the sets R*(image, k1) of Zhong et al., 2017, equation 3, as two int64 arrays.

    neighbours [N, k1 + 1 or more] int32: the nearest images of each image, the image itself first. The pairs come for
    some images at a time, in ascending order of image, then of neighbour, without repetition. Every image is a
    neighbour of itself.
    R(image) holds those of the image's k1 nearest that have the image among their own k1 nearest. R* adds the set
    R(neighbour, k1 / 2) of every such neighbour, if more than two thirds of this set are in R(image).
    """
    full = neighbours[:, : k1 + 1]
    half = neighbours[:, : round(k1 / 2) + 1]  # rounds half to even, as NumPy's around in the authors' program
    mutual, mutual_half = _mutual(full), _mutual(half)
    halves = np.where(mutual_half, half, -1)  # R(i, k1 / 2) in rows, -1 where not mutual
    sizes = mutual_half.sum(1)
    for start in range(0, len(full), ROWS):
        part = slice(start, start + ROWS)
        reciprocal = np.where(mutual[part], full[part], -1)  # [n, k1 + 1]: R(i)
        halves_of_neighbours = halves[full[part]]  # [n, k1 + 1, half]: R(j, k1 / 2) of its neighbours j
        inside = np.zeros(halves_of_neighbours.shape, bool)
        for member in reciprocal.T:
            inside |= halves_of_neighbours == member[:, None, None]
        inside &= halves_of_neighbours >= 0
        similar_neighbours = mutual[part] & (3 * inside.sum(2) > 2 * sizes[full[part]])
        halves_of_neighbours[~similar_neighbours] = -1
        members = np.concatenate([reciprocal, halves_of_neighbours.reshape(len(reciprocal), -1)], 1)
        members.sort(1)
        first = members >= 0
        first[:, 1:] &= members[:, 1:] != members[:, :-1]
        rows = first.nonzero()[0]
        yield rows + start, members[first].astype(np.int64)


def _mutual(neighbours: np.ndarray) -> np.ndarray:
    """neighbours [N, K] -> [N, K] bool: whether the image is among the neighbours of its neighbour."""
    mutual = np.empty(neighbours.shape, bool)
    for start in range(0, len(neighbours), ROWS):
        part = slice(start, start + ROWS)
        image = np.arange(start, start + len(neighbours[part]))[:, None, None]
        mutual[part] = (neighbours[neighbours[part]] == image).any(2)
    return mutual


# ---- Distances: of features, and of the sets of neighbours.

CHUNK_BYTES = 64 << 20  # an array of distances, or of pairs of features; memory holds a few such arrays at a time
TERMS = 1 << 18  # terms of sums at a time: they fit a processor's cache


def k_reciprocal_distances(
    query_features: np.ndarray | torch.Tensor,
    gallery_features: np.ndarray | torch.Tensor,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    *,
    metric: str = "cosine",
) -> Iterator[np.ndarray]:
    """Re-ranked distances of queries [Q, D] to the gallery [G, D], as blocks [n, G] float32 for the queries in turn.

    `rank_distances` takes these blocks; np.concatenate(list(...)) is the matrix. A distance is
    (1 - lambda_value) (Jaccard distance of the encodings) + lambda_value (d / largest d of the query)^2, where d is
    already a *squared* Euclidean distance, as in the authors' program and its descendants. With the metric "cosine" the
    features are scaled to length 1 first. k1: the number of nearest neighbours that must be mutual. k2: the number of
    neighbours whose encodings are averaged; 1 averages nothing. Both are cut to the number of images. An image comes
    first among its own neighbours; the order of other exact ties is not defined.

    Take junk (identity -1) out of the gallery first: otherwise junk becomes part of the neighbourhoods and changes the
    result. Features are arrays or tensors. The tensors' device computes the distances, the CPU the neighbourhoods.
    Memory: the features twice, some CHUNK_BYTES, and a few kilobytes an image. Raises InputError, before the first
    block, as `feature_pair` does and for parameters out of range.

    >>> import numpy, passersby
    >>> gallery = numpy.eye(6, 4, dtype=numpy.float32) + 0.1  # features [G, D] of a network
    >>> distances = numpy.concatenate(list(passersby.k_reciprocal_distances(gallery[:2], gallery, k1=2, k2=1)))
    >>> distances.shape, distances.argmin(1).tolist()
    ((2, 6), [0, 1])
    """
    for name, value in (("k1", k1), ("k2", k2)):
        if value < 1:
            raise InputError(f"{name} {value}: give 1 neighbour or more")
    if not 0 <= lambda_value <= 1:
        raise InputError(f"lambda_value {lambda_value}: give the share of the old distance, 0 to 1")
    query, gallery = feature_pair(query_features, gallery_features, metric)
    queries, features = len(query), torch.cat([query, gallery])
    del query, gallery
    squares = features.square().sum(1)
    neighbours, furthest = _nearest(features, squares, max(k1 + 1, k2))
    encoding = _encoded(features, furthest, neighbours, k1)
    encoding = _averaged(encoding, neighbours[:, :k2])
    return _blocks(features, squares, furthest[:queries], encoding, lambda_value)


def _nearest(features: torch.Tensor, squares: torch.Tensor, count: int) -> tuple[np.ndarray, torch.Tensor]:
    """The nearest `count` images [N, count] int32 of every image, the image itself first; the largest squared
    distance [N] of every image.

    The product of two sets of images is computed once and serves both sets.
    """
    count = min(count, len(features))
    size = max(1, math.isqrt(CHUNK_BYTES // 4))
    # x y - |y|^2 / 2 = (|x|^2 - d) / 2 has the order of the distances and needs no extra pass.
    half = squares * -0.5
    closest = torch.full((len(features), count), -torch.inf, device=features.device)
    neighbours = torch.zeros((len(features), count), dtype=torch.int32, device=features.device)
    farthest = torch.full_like(squares, torch.inf)  # the least closeness

    def look(rows: slice, closeness: torch.Tensor, first: int) -> None:
        farthest[rows] = torch.minimum(farthest[rows], closeness.amin(1))
        if rows.start == first:
            closeness.fill_diagonal_(torch.inf)  # despite rounding, an image is the nearest of itself
        block = closeness.topk(min(count, closeness.shape[1]), dim=1)
        best = torch.cat([closest[rows], block.values], 1).topk(count, dim=1)
        columns = torch.cat([neighbours[rows], block.indices.int() + first], 1)
        closest[rows], neighbours[rows] = best.values, columns.gather(1, best.indices)

    for start in range(0, len(features), size):
        rows = slice(start, min(start + size, len(features)))
        for begin in range(start, len(features), size):
            columns = slice(begin, min(begin + size, len(features)))
            products = features[rows] @ features[columns].T  # [n, m] float32
            if begin > start:
                look(columns, products.T + half[rows], start)
            look(rows, products.add_(half[columns]), begin)
    furthest = squares - 2 * farthest
    # The distances of identical images are rounding errors around 0: ratios of these would be arbitrary or infinite.
    least = (squares * 1e-6).clamp_min_(torch.finfo(torch.float32).tiny)
    return neighbours.cpu().numpy(), torch.maximum(furthest, least)


def _encoded(features: torch.Tensor, furthest: torch.Tensor, neighbours: np.ndarray, k1: int) -> sparse.csr_array:
    """[N, N] float32, each row with the sum 1: how near each image is to its k-reciprocal neighbours."""
    columns, counts, values = [], [], []
    pairs = max(1, CHUNK_BYTES // (4 * features.shape[1]))
    for rows, partners in reciprocal_neighbours(neighbours, k1):
        rows_on_device, partners_on_device = (torch.from_numpy(part).to(features.device) for part in (rows, partners))
        weights = torch.empty(len(rows), device=features.device)
        for start in range(0, len(rows), pairs):
            part = slice(start, start + pairs)
            difference = features[rows_on_device[part]].sub_(features[partners_on_device[part]])
            weights[part] = torch.linalg.vector_norm(difference, dim=1).square_()
        weights = (weights / furthest[rows_on_device]).square_().neg_().exp_().cpu().numpy()
        per_row = np.unique(rows, return_counts=True)[1]  # every image is its own neighbour: no row is missing
        starts = np.cumsum(per_row) - per_row
        values.append(weights / np.add.reduceat(weights, starts).repeat(per_row))
        columns.append(partners.astype(np.int32))
        counts.append(per_row)
    ends = np.concatenate([[0], *counts]).cumsum()
    shape = (len(neighbours), len(neighbours))
    return sparse.csr_array((np.concatenate(values), np.concatenate(columns), ends), shape=shape)


def _averaged(encoding: sparse.csr_array, neighbours: np.ndarray) -> sparse.csr_array:
    """The mean of the encodings of each image's neighbours [N, k2], which include the image itself."""
    count = neighbours.shape[1]
    if count == 1:
        return encoding
    shares = np.full(neighbours.size, 1 / count, np.float32)
    ends = np.arange(len(neighbours) + 1) * count
    return sparse.csr_array((shares, neighbours.ravel(), ends), shape=encoding.shape) @ encoding


def _blocks(
    features: torch.Tensor,
    squares: torch.Tensor,
    furthest: torch.Tensor,
    encoding: sparse.csr_array,
    lambda_value: float,
) -> Iterator[np.ndarray]:
    """The distances of the queries, which come first in features [Q + G, D] and are as many as `furthest` [Q]."""
    queries = len(furthest)
    ours, theirs = encoding[:queries], encoding[queries:].tocsc()
    del encoding
    size = len(squares) - queries
    rows = _rows(size)
    for start in range(0, queries, rows):
        part = slice(start, min(start + rows, queries))
        d = torch.addmm(squares[queries:], features[part], features[queries:].T, alpha=-2)
        d.add_(squares[part, None]).clamp_min_(0).div_(furthest[part, None]).square_().mul_(lambda_value)
        shared = _shared(ours[part], theirs, size)  # s; Jaccard distance = 1 - s / (2 - s)
        shared /= 2 - shared
        np.subtract(1, shared, out=shared)
        shared *= 1 - lambda_value
        shared += d.cpu().numpy()
        yield shared


def _shared(ours: sparse.csr_array, theirs: sparse.csc_array, size: int) -> np.ndarray:
    """[n, G] float32: for each pair of encodings the sum of the smaller entries.

    ours: [n, N], stored by rows. theirs: [G, N], stored by columns. size: G.
    """
    queries = len(ours.indptr) - 1
    total = np.zeros(queries * size, np.float32)
    row = np.repeat(np.arange(queries), np.diff(ours.indptr))
    first = theirs.indptr[ours.indices].astype(np.int64)
    length = theirs.indptr[ours.indices + 1] - first
    terms = np.cumsum(length)  # the number of terms of all entries up to each; a part has about TERMS
    start = 0
    while start < len(length):
        before = terms[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(terms, before + TERMS, "right")))
        part = slice(start, stop)
        count = length[part]
        # The indices of all entries of each column, one after the other: first, first + 1, ..., first + count - 1.
        entries = np.arange(count.sum()) + np.repeat(first[part] - (np.cumsum(count) - count), count)
        lesser = np.minimum(theirs.data[entries], np.repeat(ours.data[part], count))
        np.add.at(total, theirs.indices[entries] + np.repeat(row[part] * size, count), lesser)
        start = stop
    return total.reshape(-1, size)


def _rows(columns: int) -> int:
    return max(1, CHUNK_BYTES // (4 * columns))
