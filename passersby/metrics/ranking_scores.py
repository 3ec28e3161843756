"""At which ranks the matches of queries are, and what a ranking is worth by them."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from passersby.metrics.ranking_inputs import UNKNOWN_CAMERA, Labels


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
