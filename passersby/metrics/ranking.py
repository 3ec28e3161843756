"""Ranking of a gallery by queries, and its scores: Rank-k, mean average precision in both forms, mINP.

The protocol of Market-1501 (Zheng et al., Scalable Person Re-identification: A Benchmark, 2015): junk (identity -1)
is in no ranking, distractors (0) are always wrong, and images of the query's identity by the query's camera are removed
for that query.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from passersby.errors import InputError
from passersby.metrics.features import Array, feature_pair

# ---- Labels of what is ranked, checked once.

JUNK = -1  # identity of images that are in no ranking; 0 is a distractor, people are above
UNKNOWN_CAMERA = -1


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


def checked_labels(
    query_ids: Array, gallery_ids: Array, query_cameras: Array | None = None, gallery_cameras: Array | None = None
) -> Labels:
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
    if query_cameras is None or gallery_cameras is None:
        cameras = [np.full(len(values), UNKNOWN_CAMERA) for values in ids]
    else:
        cameras = [_integers(query_cameras, "query cameras"), _integers(gallery_cameras, "gallery cameras")]
    for name, values, seen in zip(("query", "gallery"), ids, cameras, strict=True):
        if len(values) != len(seen):
            raise InputError(f"{len(values)} {name} identities and {len(seen)} {name} cameras: give one for each image")
    kept = np.flatnonzero(ids[1] != JUNK)
    if not len(kept):
        raise InputError(f"all {len(ids[1])} gallery images are junk (identity -1): give some that count")
    return Labels(ids[0], ids[1], cameras[0], cameras[1], kept)


def check_counts(labels: Labels, queries: int, gallery: int) -> None:
    """InputError unless there are as many labels."""
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


# ---- At which ranks the matches of queries are, and what a ranking is worth by them.


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Gallery images of the identities of some queries. Columns are places among the images that are not junk.

    columns [n, M] int64, padded with 0; match [n, M] bool: counts as found; removed [n, M] bool: same camera too.
    """

    columns: torch.Tensor
    match: torch.Tensor
    removed: torch.Tensor


class CandidateFinder:
    """Finds the candidates of queries by a gallery in the order of its identities."""

    def __init__(self, labels: Labels) -> None:
        identities = labels.gallery_ids[labels.kept]
        self.labels = labels
        self.cameras = labels.gallery_cameras[labels.kept]
        self.order = np.argsort(identities, kind="stable")
        self.identities = identities[self.order]

    def of(self, queries: slice, device: torch.device) -> Candidates:
        """Those of a slice of the queries."""
        identities, cameras = self.labels.query_ids[queries], self.labels.query_cameras[queries]
        first = np.searchsorted(self.identities, identities, "left")
        count = np.searchsorted(self.identities, identities, "right") - first
        count[identities <= 0] = 0  # junk and distractors have no match
        step = np.arange(count.max())
        inside = step < count[:, None]
        columns = np.where(inside, self.order[np.where(inside, first[:, None] + step, 0)], 0)
        same = inside & (self.cameras[columns] == cameras[:, None]) & (cameras[:, None] != UNKNOWN_CAMERA)
        return Candidates(*(torch.from_numpy(part).to(device) for part in (columns, inside & ~same, same)))


def remove_same_camera(scores: torch.Tensor, candidates: Candidates) -> None:
    """Sets the scores [n, G] of removed images to -inf, in place: behind all others, which are finite."""
    rows, place = candidates.removed.nonzero(as_tuple=True)
    scores[rows, candidates.columns[rows, place]] = -torch.inf


def match_ranks(scores: torch.Tensor, candidates: Candidates) -> torch.Tensor:
    """Ranks [n, M] int64 of the matches by descending scores [n, G], from 0, ascending; G where there is none.

    Equal scores rank in the order of the gallery. Values are sorted without their places: the rank of a match is the
    number of larger scores. With places (argsort) it takes ten times as long, and counting directly, match by match,
    takes longer from a dozen matches on.
    """
    size = scores.shape[1]
    if not candidates.columns.shape[1]:
        return torch.full((len(scores), 1), size, device=scores.device)
    own = scores.gather(1, candidates.columns)
    ascending = _sorted(scores)
    below_or_equal = torch.searchsorted(ascending, own, right=True)
    equal = below_or_equal - torch.searchsorted(ascending, own)
    ranks = size - below_or_equal
    tied = ((equal > 1) & candidates.match).any(1).nonzero()[:, 0]
    if len(tied):  # only here do places matter
        order = torch.sort(scores[tied], dim=1, descending=True, stable=True).indices
        place = torch.empty_like(order)
        place.scatter_(1, order, torch.arange(size, device=order.device).expand_as(order))
        ranks[tied] = place.gather(1, candidates.columns[tied])
    return ranks.masked_fill(~candidates.match, size).sort(1).values


def _sorted(scores: torch.Tensor) -> torch.Tensor:
    """Rows in ascending order. On CPUs by NumPy, which sorts values alone with vector instructions, 25x as fast."""
    if scores.device.type != "cpu":
        return scores.sort(1).values
    result = scores.numpy().copy()
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda rows: rows.sort(1), np.array_split(result, threads)))
    return torch.from_numpy(result)


def precisions(ranks: torch.Tensor, size: int) -> dict[str, torch.Tensor]:
    """Scores of queries by the ranks [n, M] of their matches (`size` or more: none), each [n], float64 or int64.

    average_precision: mean over hits of (k + 1) / (r + 1), k the hit's number and r its rank, both from 0.
    average_precision_trapezoid: mean over hits of (k / r + (k + 1) / (r + 1)) / 2, the first term 1 at r = 0 (the
    official program of Market-1501, Zheng et al., Scalable Person Re-identification, 2015).
    inverse_negative_penalty: matches / ranks needed to find all (Ye et al., Deep Learning for Person
    Re-identification, 2020). All nan without a match; first_hit -1. matches: how many.
    """
    hit = ranks < size
    matches = hit.sum(1)
    number = torch.arange(ranks.shape[1], dtype=torch.float64, device=ranks.device)
    rank = ranks.double()
    here = (number + 1) / (rank + 1)
    before = torch.where(ranks == 0, 1.0, number / rank.clamp_min(1))
    last = rank.masked_fill(~hit, -1).amax(1)
    return {
        "average_precision": here.masked_fill(~hit, 0).sum(1) / matches,
        "average_precision_trapezoid": ((before + here) / 2).masked_fill(~hit, 0).sum(1) / matches,
        "inverse_negative_penalty": matches / (last + 1),
        "first_hit": torch.where(matches > 0, ranks[:, 0], -1),
        "matches": matches,
    }


def best_columns(scores: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns [n, top] int64 of the highest scores [n, G] and those scores, descending; -1 and nan where none is left.

    Equal scores in the order of the columns: torch.topk alone promises none.
    """
    columns = torch.full((len(scores), top), -1, device=scores.device)
    values = torch.full((len(scores), top), torch.nan, dtype=scores.dtype, device=scores.device)
    if not top:
        return columns, values
    least = scores.topk(min(top, scores.shape[1]), dim=1).values[:, -1:]
    rows, found = ((scores >= least) & (scores > -torch.inf)).nonzero(as_tuple=True)
    score = scores[rows, found]
    order = score.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]  # by row, then score, then column
    starts = torch.searchsorted(rows, torch.arange(len(scores), device=rows.device))
    place = torch.arange(len(rows), device=rows.device) - starts[rows]  # rows are ascending already
    kept = place < top
    rows, place, order = rows[kept], place[kept], order[kept]
    columns[rows, place] = found[order]
    values[rows, place] = score[order]
    return columns, values


# ---- Rankings by features and by distances.

CMC_RANKS = 50
RANKS = (1, 5, 10, 20)
CHUNK_BYTES = 32 << 20  # of float32 scores held at a time; several times this much is needed at once


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Scores 0..1 of a ranking. Means over the `valid` queries, those with a match: nan where there is none.

    rank1 ... rank20: share of queries with a match among the first so many. mAP: mean average precision as most report
    it; mAP_trapezoid: as the official program of Market-1501, never above it. mINP: mean inverse negative penalty.
    all_queries: the same seven by name, divided by all `queries`, where one without a match counts 0.
    cmc [50] float64: share of valid queries with a match at this rank or before.
    Of each query, [Q]: average_precision, average_precision_trapezoid, inverse_negative_penalty float64 (nan without a
    match), first_hit int64 (rank of the first match, from 0; -1 without) and matches int64 (how many).
    top_places [Q, top] int64: gallery images from the most alike on, without junk and removed ones, -1 where none is
    left; top_similarities float32: of these, cosines or minus distances, nan where none is left.
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

    Features are NumPy arrays or tensors, which are ranked on their device, in float32. Identities [Q], [G]: people from
    1 on, 0 distractors, -1 junk; a query of 0 or -1 has no match. Cameras [Q], [G]: None or -1 where not known, where
    nothing is removed for the camera: a query's own picture, if the gallery has it, is for the caller to take out.
    Equal similarities rank in the order of the gallery. chunk: queries at a time, by default as CHUNK_BYTES allows;
    memory beyond that is the features of queries and gallery once more. top: how many places to list for each query.
    Raises InputError for no queries or gallery, features that are not finite, and what does not fit together. No match
    at all is a result: valid 0 and scores nan.

    >>> import numpy, passersby
    >>> query, gallery = numpy.eye(2), numpy.array([[1, 0], [0.9, 0.1], [0, 1]])
    >>> ranking = passersby.evaluate_ranking(query, gallery, numpy.array([1, 2]), numpy.array([1, 2, 1]))
    >>> ranking.rank1, ranking.mAP
    (0.5, 0.6666666666666666)
    """
    query, gallery = feature_pair(query_features, gallery_features, metric)
    labels = checked_labels(query_ids, gallery_ids, query_cameras, gallery_cameras)
    check_counts(labels, len(query), len(gallery))
    if len(labels.kept) < len(gallery):
        gallery = gallery[torch.from_numpy(labels.kept).to(gallery.device)]
    rows = _rows(chunk, len(gallery))
    if metric == "cosine":
        return _ranking((part @ gallery.T for part in query.split(rows)), labels, top)
    # |q - g|^2 = |q|^2 - 2 (q g - |g|^2 / 2): the bracket ranks as the distance does, and costs no pass of its own.
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
    """Rank by given distances [Q, G], the smallest first, or by blocks [n, G] of them for the queries in turn.

    The rest is as in `evaluate_ranking`. Of blocks, one is held at a time. Raises InputError also for distances that
    are not finite, naming the first query.
    """
    labels = checked_labels(query_ids, gallery_ids, query_cameras, gallery_cameras)
    blocks = [distances] if isinstance(distances, np.ndarray | torch.Tensor) else distances
    return _ranking(_scores_of(blocks, labels, chunk), labels, top)


def _scores_of(blocks: Iterable[Array], labels: Labels, chunk: int | None) -> Iterator[torch.Tensor]:
    start = 0
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != len(labels.gallery_ids):
            raise InputError(f"distances {list(block.shape)} of {len(labels.gallery_ids)} gallery images: give [Q, G]")
        for place in range(0, len(block), _rows(chunk, block.shape[1])):
            part = torch.as_tensor(block[place : place + _rows(chunk, block.shape[1])])
            part = part if part.dtype == torch.float64 else part.float()
            kept = torch.from_numpy(labels.kept).to(part.device)
            scores = part.index_select(1, kept).neg_()  # a copy: removed images are marked in it
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
    """The ranking by scores [n, G without junk] of the queries in turn, all finite, which are changed."""
    finder, found, start = CandidateFinder(labels), [], 0
    for scores in chunks:
        if start + len(scores) > len(labels.query_ids):
            check_counts(labels, start + len(scores), len(labels.gallery_ids))
        candidates = finder.of(slice(start, start + len(scores)), scores.device)
        remove_same_camera(scores, candidates)
        columns, values = best_columns(scores, top)
        part = precisions(match_ranks(scores, candidates), scores.shape[1])
        part |= {"top_places": columns, "top_similarities": values.float()}
        found.append({name: value.cpu().numpy() for name, value in part.items()})
        start += len(scores)
    every = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    places = every["top_places"]
    every["top_places"] = np.where(places < 0, -1, labels.kept[places])
    return _summed_up(every)


def _summed_up(every: dict[str, np.ndarray]) -> Ranking:
    """The means of arrays of each query."""
    matched = every["matches"] > 0
    queries, valid = len(matched), int(matched.sum())
    first = np.sort(every["first_hit"][matched])
    counts = np.searchsorted(first, np.arange(CMC_RANKS), "right")
    sums = {f"rank{rank}": float(counts[rank - 1]) for rank in RANKS}
    sums["mAP"] = float(every["average_precision"][matched].sum())
    sums["mAP_trapezoid"] = float(every["average_precision_trapezoid"][matched].sum())
    sums["mINP"] = float(every["inverse_negative_penalty"][matched].sum())
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
        average_precision=every["average_precision"],
        average_precision_trapezoid=every["average_precision_trapezoid"],
        inverse_negative_penalty=every["inverse_negative_penalty"],
        first_hit=every["first_hit"],
        matches=every["matches"],
        top_places=every["top_places"],
        top_similarities=every["top_similarities"],
    )
