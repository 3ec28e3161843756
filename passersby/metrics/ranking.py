"""Ranking of a gallery by queries, and its scores: Rank-k, mean average precision in both forms, mINP.

The ranking follows the protocol of Market-1501 (Zheng et al., Scalable Person Re-identification: A Benchmark, 2015):
junk (identity -1) is in no ranking, distractors (0) are always wrong, and images of the query's identity by the query's
camera are removed for that query.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from passersby.errors import InputError
from passersby.metrics.features import Array, feature_pair

# ---- The labels of queries and gallery, checked once.

JUNK = -1  # identity of images that are in no ranking; distractors have 0, people have numbers above 0
UNKNOWN_CAMERA = -1


@dataclasses.dataclass(frozen=True)
class Labels:
    """Identities [Q], [G] and cameras [Q], [G] of queries and gallery, int64. Without cameras all are UNKNOWN_CAMERA.

    gallery_indices: indices [K] int64 of the gallery images that are not junk.
    """

    query_ids: np.ndarray
    gallery_ids: np.ndarray
    query_cameras: np.ndarray
    gallery_cameras: np.ndarray
    gallery_indices: np.ndarray


def checked_labels(
    query_ids: Array, gallery_ids: Array, query_cameras: Array | None = None, gallery_cameras: Array | None = None
) -> Labels:
    """Make labels of arrays or tensors. Raises InputError for wrong types and lengths, and without images to rank."""
    if (query_cameras is None) != (gallery_cameras is None):
        present, absent = ("gallery", "query") if query_cameras is None else ("query", "gallery")
        raise InputError(f"{present} cameras are given and {absent} cameras are not: give both or neither")
    ids = [_integers(query_ids, "query identities"), _integers(gallery_ids, "gallery identities")]
    for name, values in zip(("query", "gallery"), ids, strict=True):
        if not len(values):
            raise InputError(f"no {name} identities: give one image or more")
        if values.min() < JUNK:
            raise InputError(
                f"{name} identity {values.min()} of image {values.argmin()}: people are above 0, distractors 0, junk -1"
            )
    if query_cameras is None or gallery_cameras is None:
        cameras = [np.full(len(values), UNKNOWN_CAMERA) for values in ids]
    else:
        cameras = [_integers(query_cameras, "query cameras"), _integers(gallery_cameras, "gallery cameras")]
    for name, values, camera_values in zip(("query", "gallery"), ids, cameras, strict=True):
        if len(values) != len(camera_values):
            counts = f"{len(values)} {name} identities and {len(camera_values)} {name} cameras"
            raise InputError(f"{counts}: give one for each image")
    indices = np.flatnonzero(ids[1] != JUNK)
    if not len(indices):
        raise InputError(f"all {len(ids[1])} gallery images are junk (identity -1): give some that count")
    return Labels(ids[0], ids[1], cameras[0], cameras[1], indices)


def check_counts(labels: Labels, queries: int, gallery: int) -> None:
    """Raise InputError unless there is one label for each image."""
    for name, ids, images in (("query", labels.query_ids, queries), ("gallery", labels.gallery_ids, gallery)):
        if len(ids) != images:
            raise InputError(f"{images} {name} images and {len(ids)} {name} identities: give one for each image")


def _integers(values: Array, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.cpu().numpy()
    values = np.asarray(values)
    if values.ndim != 1 or (values.dtype.kind not in "iu" and len(values)):
        raise InputError(f"{name} are {values.dtype} {list(values.shape)}: give whole numbers, one an image")
    return values.astype(np.int64)


# ---- The ranks of the matches of queries, and the scores that follow from these ranks.


@dataclasses.dataclass(frozen=True)
class Candidates:
    """For n queries, the M gallery images of the query's identity.

    columns [n, M] int64: indices among the gallery images that are not junk, padded with 0. match [n, M] bool: the
    image counts as a match. removed [n, M] bool: the image is removed, because it is by the query's camera.
    """

    columns: torch.Tensor
    match: torch.Tensor
    removed: torch.Tensor


class CandidateFinder:
    """Finds the candidates of queries in a gallery that is sorted by identity."""

    def __init__(self, labels: Labels) -> None:
        identities = labels.gallery_ids[labels.gallery_indices]
        self.labels = labels
        self.cameras = labels.gallery_cameras[labels.gallery_indices]
        self.order = np.argsort(identities, kind="stable")
        self.identities = identities[self.order]

    def of(self, queries: slice, device: torch.device) -> Candidates:
        """The candidates of a slice of the queries."""
        identities, cameras = self.labels.query_ids[queries], self.labels.query_cameras[queries]
        first = np.searchsorted(self.identities, identities, "left")
        count = np.searchsorted(self.identities, identities, "right") - first
        count[identities <= 0] = 0  # junk and distractors have no match
        step = np.arange(count.max())
        inside = step < count[:, None]
        columns = np.where(inside, self.order[np.where(inside, first[:, None] + step, 0)], 0)
        same_camera = inside & (self.cameras[columns] == cameras[:, None]) & (cameras[:, None] != UNKNOWN_CAMERA)
        parts = (columns, inside & ~same_camera, same_camera)
        return Candidates(*(torch.from_numpy(part).to(device) for part in parts))


def remove_same_camera(scores: torch.Tensor, candidates: Candidates) -> None:
    """Set the scores [n, G] of removed images to -inf, in place. They rank last, because other scores are finite."""
    rows, entries = candidates.removed.nonzero(as_tuple=True)
    scores[rows, candidates.columns[rows, entries]] = -torch.inf


def match_ranks(scores: torch.Tensor, candidates: Candidates) -> torch.Tensor:
    """The ranks [n, M] int64 of the matches by descending scores [n, G], from 0, in ascending order; G for no match.

    Equal scores rank in the order of the gallery. The function sorts the scores without their columns, because the rank
    of a match is the number of larger scores. An argsort takes ten times as long. Counting the larger scores of each
    match takes longer from a dozen matches on.
    """
    size = scores.shape[1]
    if not candidates.columns.shape[1]:
        return torch.full((len(scores), 1), size, device=scores.device)
    candidate_scores = scores.gather(1, candidates.columns)
    ascending = _sorted(scores)
    below_or_equal = torch.searchsorted(ascending, candidate_scores, right=True)
    equal = below_or_equal - torch.searchsorted(ascending, candidate_scores)
    ranks = size - below_or_equal
    tied = ((equal > 1) & candidates.match).any(1).nonzero()[:, 0]
    if len(tied):  # only ties need the order of the columns
        order = torch.sort(scores[tied], dim=1, descending=True, stable=True).indices
        positions = torch.empty_like(order)
        positions.scatter_(1, order, torch.arange(size, device=order.device).expand_as(order))
        ranks[tied] = positions.gather(1, candidates.columns[tied])
    return ranks.masked_fill(~candidates.match, size).sort(1).values


def _sorted(scores: torch.Tensor) -> torch.Tensor:
    """Sort each row in ascending order. On a CPU NumPy does it: its vector instructions are 25 times as fast."""
    if scores.device.type != "cpu":
        return scores.sort(1).values
    result = scores.numpy().copy()
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda rows: rows.sort(1), np.array_split(result, threads)))
    return torch.from_numpy(result)


def precisions(ranks: torch.Tensor, size: int) -> dict[str, torch.Tensor]:
    """Scores of queries by the ranks [n, M] of their matches, each [n], float64 or int64. A rank >= `size` is no match.

    average_precision: mean over hits of (k + 1) / (r + 1), k the hit's number and r its rank, both from 0.
    average_precision_trapezoid: mean over hits of (k / r + (k + 1) / (r + 1)) / 2, the first term 1 at r = 0 (the
    official program of Market-1501, Zheng et al., Scalable Person Re-identification, 2015).
    inverse_negative_penalty: the number of matches / the ranks needed to find all (Ye et al., Deep Learning for Person
    Re-identification, 2020).
    first_hit: the rank of the first match. matches: the number of matches.
    Without a match the three scores are nan and first_hit is -1.
    """
    hit = ranks < size
    matches = hit.sum(1)
    number = torch.arange(ranks.shape[1], dtype=torch.float64, device=ranks.device)
    rank = ranks.double()
    after = (number + 1) / (rank + 1)
    before = torch.where(ranks == 0, 1.0, number / rank.clamp_min(1))
    last = rank.masked_fill(~hit, -1).amax(1)
    return {
        "average_precision": after.masked_fill(~hit, 0).sum(1) / matches,
        "average_precision_trapezoid": ((before + after) / 2).masked_fill(~hit, 0).sum(1) / matches,
        "inverse_negative_penalty": matches / (last + 1),
        "first_hit": torch.where(matches > 0, ranks[:, 0], -1),
        "matches": matches,
    }


def best_columns(scores: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns [n, top] int64 of the highest scores [n, G] and these scores, descending; -1 and nan beyond the last.

    Equal scores are in the order of the columns, which torch.topk does not promise.
    """
    columns = torch.full((len(scores), top), -1, device=scores.device)
    values = torch.full((len(scores), top), torch.nan, dtype=scores.dtype, device=scores.device)
    if not top:
        return columns, values
    least = scores.topk(min(top, scores.shape[1]), dim=1).values[:, -1:]
    rows, column = ((scores >= least) & (scores > -torch.inf)).nonzero(as_tuple=True)
    score = scores[rows, column]
    order = score.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]  # by row, then score, then column
    starts = torch.searchsorted(rows, torch.arange(len(scores), device=rows.device))
    position = torch.arange(len(rows), device=rows.device) - starts[rows]  # rows are ascending already
    listed = position < top
    rows, position, order = rows[listed], position[listed], order[listed]
    columns[rows, position] = column[order]
    values[rows, position] = score[order]
    return columns, values


# ---- Rankings by features and by distances.

CMC_RANKS = 50
RANKS = (1, 5, 10, 20)
CHUNK_BYTES = 32 << 20  # the float32 scores of a chunk; the computation needs several times as much memory


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Scores 0..1 of a ranking: means over the `valid` queries, which have a match; nan without valid queries.

    rank1 ... rank20: share of queries with a match among the first 1 ... 20 images. mAP: mean average precision as
    most papers report it. mAP_trapezoid: as the official program of Market-1501 computes it; never above mAP. mINP:
    mean inverse negative penalty.
    all_queries: these seven scores by name, as means over all `queries`: a query without a match counts 0.
    cmc [50] float64: share of valid queries with a match at this rank or before.
    For each query, [Q]: average_precision, average_precision_trapezoid, inverse_negative_penalty float64 (nan without a
    match), first_hit int64 (rank of the first match, from 0; -1 without a match) and matches int64 (their number).
    top_places [Q, top] int64: indices of gallery images, the most similar first, without junk and removed images; -1
    beyond the last. top_similarities float32: the cosines or negative distances of these images; nan beyond the last.
    """

    rank1: float
    rank5: float
    rank10: float
    rank20: float
    mAP: float  # noqa: N815 - the field's own term
    mAP_trapezoid: float  # noqa: N815
    mINP: float  # noqa: N815
    all_queries: dict[str, float]
    cmc: np.ndarray
    queries: int
    valid: int
    average_precision: np.ndarray
    average_precision_trapezoid: np.ndarray
    inverse_negative_penalty: np.ndarray
    first_hit: np.ndarray
    matches: np.ndarray
    top_places: np.ndarray
    top_similarities: np.ndarray


def evaluate_ranking(
    query_features: Array,
    gallery_features: Array,
    query_ids: Array,
    gallery_ids: Array,
    query_cameras: Array | None = None,
    gallery_cameras: Array | None = None,
    *,
    metric: str = "cosine",
    chunk: int | None = None,
    top: int = 0,
) -> Ranking:
    """Rank gallery features [G, D] for query features [Q, D] by "cosine" similarity or "euclidean" distance.

    Features are NumPy arrays or tensors; tensors are ranked on their device. All computations are in float32.
    Identities [Q], [G]: people have numbers from 1 on, distractors 0, junk -1; a query of 0 or -1 has no match.
    Cameras [Q], [G]: None or -1 where the camera is not known. Then nothing is removed for the camera: if the gallery
    has the query's own picture, the caller must take it out. Equal similarities rank in the order of the gallery.
    chunk: queries at a time, by default as many as CHUNK_BYTES allows. Further memory holds one more copy of the
    features. top: the number of images in `top_places` of each query.
    Raises InputError without queries or gallery, for features that are not finite, and for arguments that do not fit
    together. No match at all is a result: valid is 0 and the scores are nan.

    >>> import numpy, passersby
    >>> query, gallery = numpy.eye(2), numpy.array([[1, 0], [0.9, 0.1], [0, 1]])
    >>> ranking = passersby.evaluate_ranking(query, gallery, numpy.array([1, 2]), numpy.array([1, 2, 1]))
    >>> ranking.rank1, ranking.mAP
    (0.5, 0.6666666666666666)
    """
    query, gallery = feature_pair(query_features, gallery_features, metric)
    labels = checked_labels(query_ids, gallery_ids, query_cameras, gallery_cameras)
    check_counts(labels, len(query), len(gallery))
    if len(labels.gallery_indices) < len(gallery):
        gallery = gallery[torch.from_numpy(labels.gallery_indices).to(gallery.device)]
    rows = _rows(chunk, len(gallery))
    if metric == "cosine":
        return _ranking((part @ gallery.T for part in query.split(rows)), labels, top)
    # |q - g|^2 = |q|^2 - 2 (q g - |g|^2 / 2): the bracket ranks as the distance does, and needs no extra pass.
    half = gallery.square().sum(1).div_(-2)
    ranking = _ranking((torch.addmm(half, part, gallery.T) for part in query.split(rows)), labels, top)
    squared = query.square().sum(1).cpu().numpy()[:, None] - 2 * ranking.top_similarities
    return dataclasses.replace(ranking, top_similarities=-np.sqrt(squared.clip(0)))


def rank_distances(
    distances: Array | Iterable[Array],
    query_ids: Array,
    gallery_ids: Array,
    query_cameras: Array | None = None,
    gallery_cameras: Array | None = None,
    *,
    chunk: int | None = None,
    top: int = 0,
) -> Ranking:
    """Rank by distances [Q, G], the smallest first, or by an iterable of blocks [n, G] of distances, query by query.

    The other arguments and the result are those of `evaluate_ranking`. Memory holds one block at a time. Raises
    InputError also for distances that are not finite; the message names the first query.
    """
    labels = checked_labels(query_ids, gallery_ids, query_cameras, gallery_cameras)
    blocks = [distances] if isinstance(distances, np.ndarray | torch.Tensor) else distances
    return _ranking(_scores_of(blocks, labels, chunk), labels, top)


def _scores_of(blocks: Iterable[Array], labels: Labels, chunk: int | None) -> Iterator[torch.Tensor]:
    start = 0
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != len(labels.gallery_ids):
            raise InputError(f"distances {list(block.shape)} of {len(labels.gallery_ids)} gallery images: give [Q, G]")
        for first in range(0, len(block), _rows(chunk, block.shape[1])):
            part = torch.as_tensor(block[first : first + _rows(chunk, block.shape[1])])
            part = part if part.dtype == torch.float64 else part.float()
            indices = torch.from_numpy(labels.gallery_indices).to(part.device)
            scores = part.index_select(1, indices).neg_()  # a copy, because removed images are marked in it
            bad = (~scores.isfinite()).any(1).nonzero()
            if len(bad):
                raise InputError(f"distances of query {start + int(bad[0])} (from 0) are not finite: leave it out")
            yield scores
            start += len(scores)
    check_counts(labels, start, len(labels.gallery_ids))


def _rows(chunk: int | None, columns: int) -> int:
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk {chunk}: give 1 query or more")
    return chunk or max(1, CHUNK_BYTES // (4 * columns))


def _ranking(chunks: Iterable[torch.Tensor], labels: Labels, top: int) -> Ranking:
    """The ranking by chunks of finite scores [n, G without junk], query by query. It overwrites the scores."""
    finder, parts, start = CandidateFinder(labels), [], 0
    for scores in chunks:
        if start + len(scores) > len(labels.query_ids):
            check_counts(labels, start + len(scores), len(labels.gallery_ids))
        candidates = finder.of(slice(start, start + len(scores)), scores.device)
        remove_same_camera(scores, candidates)
        columns, values = best_columns(scores, top)
        part = precisions(match_ranks(scores, candidates), scores.shape[1])
        part |= {"top_places": columns, "top_similarities": values.float()}
        parts.append({name: value.cpu().numpy() for name, value in part.items()})
        start += len(scores)
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    positions = arrays["top_places"]
    arrays["top_places"] = np.where(positions < 0, -1, labels.gallery_indices[positions])
    return _summed_up(arrays)


def _summed_up(arrays: dict[str, np.ndarray]) -> Ranking:
    """The ranking of arrays [Q] with one entry for each query: it adds the means."""
    matched = arrays["matches"] > 0
    queries, valid = len(matched), int(matched.sum())
    first = np.sort(arrays["first_hit"][matched])
    counts = np.searchsorted(first, np.arange(CMC_RANKS), "right")
    sums = {f"rank{rank}": float(counts[rank - 1]) for rank in RANKS}
    sums["mAP"] = float(arrays["average_precision"][matched].sum())
    sums["mAP_trapezoid"] = float(arrays["average_precision_trapezoid"][matched].sum())
    sums["mINP"] = float(arrays["inverse_negative_penalty"][matched].sum())
    means = {name: value / valid if valid else np.nan for name, value in sums.items()}
    return Ranking(
        rank1=means["rank1"],
        rank5=means["rank5"],
        rank10=means["rank10"],
        rank20=means["rank20"],
        mAP=means["mAP"],
        mAP_trapezoid=means["mAP_trapezoid"],
        mINP=means["mINP"],
        all_queries={name: value / queries for name, value in sums.items()},
        cmc=counts / valid if valid else np.full(CMC_RANKS, np.nan),
        queries=queries,
        valid=valid,
        average_precision=arrays["average_precision"],
        average_precision_trapezoid=arrays["average_precision_trapezoid"],
        inverse_negative_penalty=arrays["inverse_negative_penalty"],
        first_hit=arrays["first_hit"],
        matches=arrays["matches"],
        top_places=arrays["top_places"],
        top_similarities=arrays["top_similarities"],
    )
