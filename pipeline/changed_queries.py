"""Queries that a sweep made better and worse, with what its networks found for them before and after."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from passersby.errors import InputError
from passersby.reid.checkpoint import load_reid
from pipeline.evaluation import GALLERY, QUERY, SINGLE, Evaluated, evaluated_by, rank_all, top_similarities
from pipeline.features import Workers
from reporting.grid import encode_png
from reporting.reid.queries import Found, Group, Ranked, retrieval_sheet
from reporting.sweep.page import Changed


def changed_queries_sheet(
    data: Path, networks: Mapping[int, Path], table: pa.Table, changed: Changed, top: int
) -> tuple[bytes | None, list[str]]:
    """A PNG of the changed queries, each as one network of level 0 and one of the other level rank the gallery.

    Computed in this process, on a GPU where there is one. networks: level -> file. table: the trials. Where data or
    networks are not those of the trials any more there is no picture, but a note.
    """
    workers = Workers.chosen("auto", here=True)
    try:
        found = {level: evaluated_by(load_reid(path), data, workers, False) for level, path in networks.items()}
    except InputError as error:
        return None, [f"No pictures of queries: {error}."]
    identities = found[0].sets[QUERY].identities
    if identities.tolist() != table["query_identity"][0].as_py():
        return None, ["No pictures of queries: the test set is not the one that the sweep ranked."]
    ranked = {level: _Lists(one, top) for level, one in found.items()}
    groups = []
    for heading, places in (("Got better", changed.better), ("Got worse", changed.worse)):
        lists = []
        for place in places.tolist():
            for level, precision in ((0, changed.before[place]), (changed.level, changed.after[place])):
                label = (f"level {level}", f"person {identities[place]}", f"average precision {100 * precision:.1f}")
                lists.append(ranked[level].of(place, label))
        if lists:
            groups.append(Group(heading, lists))
    if not groups:
        return None, ["No query's ranking changed."]
    subtitle = ("average precision: mean over seeds; pictures: one network of each level, the first seed",)
    sheet = retrieval_sheet(groups, title=f"Level 0 and level {changed.level}", subtitle=subtitle, columns=top)
    return encode_png(sheet), []


class _Lists:
    """What one network finds."""

    def __init__(self, found: Evaluated, top: int):
        self.found = found
        self.ranking = rank_all(found, "cosine", False, top)[0][SINGLE]
        self.similarities = top_similarities(found, self.ranking)

    def of(self, place: int, label: tuple[str, ...]) -> Ranked:
        """The ranked list of one query."""
        query, gallery = self.found.sets[QUERY], self.found.sets[GALLERY]
        places = self.ranking.top_places[place]
        same = gallery.identities[np.maximum(places, 0)] == query.identities[place]
        pictures = [
            Found(self.found.picture(GALLERY, gallery.names[other]), float(similarity), bool(right))
            for other, similarity, right in zip(places, self.similarities[place], same, strict=True)
            if other >= 0
        ]
        return Ranked(label, self.found.picture(QUERY, query.names[place]), pictures)
