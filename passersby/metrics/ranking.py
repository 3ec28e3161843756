"""Ranking of a gallery by queries, and its scores: Rank-k, mean average precision in both forms, mINP.

The protocol of Market-1501 (Zheng et al., Scalable Person Re-identification: A Benchmark, 2015): junk (identity -1)
is in no ranking, distractors (0) are always wrong, and images of the query's identity by the query's camera are removed
for that query.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from passersby.errors import InputError
from passersby.metrics.ranking_inputs import Labels, check_counts, checked_labels, feature_pair
from passersby.metrics.ranking_scores import (
    CandidateFinder,
    best_columns,
    match_ranks,
    precisions,
    remove_same_camera,
)

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
    query_features: np.ndarray | torch.Tensor,
    gallery_features: np.ndarray | torch.Tensor,
    query_ids: np.ndarray | torch.Tensor,
    gallery_ids: np.ndarray | torch.Tensor,
    query_cameras: np.ndarray | torch.Tensor | None = None,
    gallery_cameras: np.ndarray | torch.Tensor | None = None,
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
    distances: np.ndarray | torch.Tensor | Iterable[np.ndarray | torch.Tensor],
    query_ids: np.ndarray | torch.Tensor,
    gallery_ids: np.ndarray | torch.Tensor,
    query_cameras: np.ndarray | torch.Tensor | None = None,
    gallery_cameras: np.ndarray | torch.Tensor | None = None,
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


def _scores_of(
    blocks: Iterable[np.ndarray | torch.Tensor], labels: Labels, chunk: int | None
) -> Iterator[torch.Tensor]:
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
    return Ranking(
        **{name: value / valid if valid else np.nan for name, value in sums.items()},
        all_queries={name: value / queries for name, value in sums.items()},
        cmc=counts / valid if valid else np.full(CMC_RANKS, np.nan),
        queries=queries,
        valid=valid,
        **every,
    )
