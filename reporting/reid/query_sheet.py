"""The best, median and worst queries of a ranking, with what was found for them, as one picture."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from datasets.reid.feature_files import FeatureSet
from passersby.metrics.ranking import Ranking
from reporting.reid.queries import Found, Group, Ranked, retrieval_sheet

EACH = 4  # queries of each kind


@dataclasses.dataclass(frozen=True)
class Places:
    """Places of queries [EACH or fewer] int64 each; no query is in two of them."""

    best: np.ndarray
    median: np.ndarray
    worst: np.ndarray


def chosen_queries(average_precision: np.ndarray, matches: np.ndarray, each: int = EACH) -> Places:
    """Of the queries with a match, those of the highest, middle and lowest average precision [Q] (nan without a match).

    Among equal ones those with more matches [Q] are the more telling, then the earlier; of a few queries each is shown
    once.
    """
    valid = np.flatnonzero(np.isfinite(average_precision))
    order = valid[np.lexsort((valid, -matches[valid], -average_precision[valid]))]  # the best first
    lowest = valid[np.lexsort((valid, -matches[valid], average_precision[valid]))]
    best = order[: min(each, -(-len(order) // 3))]
    worst = np.array([place for place in lowest if place not in best][: min(each, len(order) // 3)], np.int64)
    rest = np.array([place for place in order if place not in best and place not in worst], np.int64)
    start = max(0, (len(rest) - each) // 2)
    return Places(best, rest[start : start + each], worst[::-1])


def query_sheet(
    ranking: Ranking,
    similarities: np.ndarray,
    query: FeatureSet,
    gallery: FeatureSet,
    picture: Callable[[str, str], np.ndarray | None],
    people: Mapping[int, str],
    title: str,
) -> np.ndarray:
    """Best, median and worst queries with their top places; [H, W, 3] uint8 RGB.

    similarities: [Q, top] of `ranking.top_places`, which count in `gallery`. picture: from a split ("query" |
    "gallery") and a name to [H, W, 3] uint8 RGB, or None where it cannot be read. people: what identities are called.
    Raises ValueError where no query has a match.
    """

    def ranked(place: int) -> Ranked:
        found = [
            Found(picture("gallery", gallery.names[other]), float(similarity), bool(same))
            for other, similarity, same in zip(
                ranking.top_places[place],
                similarities[place],
                gallery.identities[ranking.top_places[place]] == query.identities[place],
                strict=True,
            )
            if other >= 0
        ]
        identity = int(query.identities[place])
        camera = f" · camera {query.cameras[place]}" if query.has_cameras else ""
        count, first = int(ranking.matches[place]), int(ranking.first_hit[place])
        label = (
            f"person {people.get(identity, identity)}{camera}",
            f"average precision {100 * ranking.average_precision[place]:.1f}",
            f"{count} {'match' if count == 1 else 'matches'}, first at {first + 1}",
        )
        return Ranked(label, picture("query", query.names[place]), found)

    places = chosen_queries(ranking.average_precision, ranking.matches)
    headings = {"best": "Best queries", "median": "Median queries", "worst": "Worst queries"}
    groups = [
        Group(heading, [ranked(int(place)) for place in getattr(places, name)])
        for name, heading in headings.items()
        if len(getattr(places, name))
    ]
    about = "by average precision; junk and images of the same person by the same camera are taken out"
    if not query.has_cameras:
        about = "by average precision"
    top = ranking.top_places.shape[1]
    return retrieval_sheet(groups, title=title, subtitle=(f"{about}; below each its cosine similarity",), columns=top)
