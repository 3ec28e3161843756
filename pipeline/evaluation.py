"""An evaluation of re-ID: features of query and gallery, by a network or out of a file, made comparable and ranked.

Also the queries that a sweep made better and worse, as a picture.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.people.decoding import decode_at
from datasets.people.listing import UNKNOWN_CAMERA, Listing
from datasets.people.readers import read_split
from datasets.reid.feature_files import FeatureSet, read_features
from passersby.errors import InputError
from passersby.metrics.features import multi_query_features, normalised
from passersby.metrics.ranking import Ranking, evaluate_ranking, rank_distances
from passersby.metrics.reranking import k_reciprocal_distances
from passersby.options import Json
from passersby.reid.checkpoint import LoadedReid, load_reid
from passersby.reid.network import FeatureNetwork
from pipeline.features import Workers, embeddings_of
from reporting.grid import encode_png
from reporting.reid.queries import Group, RankedImage, RankedList, retrieval_sheet
from reporting.sweep.page import QueryChanges

QUERY, GALLERY, MULTI_QUERY = "query", "gallery", "multi-query"
SINGLE, MULTI, RERANKED = "single query", "multi-query", "re-ranked"
RECORDED = {SINGLE: "single_query", MULTI: "multi_query", RERANKED: "reranked"}  # in files


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Images and their features by split: "query", "gallery", and "multi-query" where that is asked for.

    sets: without junk, every image with a name of its own, cameras only where they are known of all. listings: images
    by split, for pictures; may be empty. network, data: for the record, plain JSON values. notes: for the user.
    """

    sets: Mapping[str, FeatureSet]
    listings: Mapping[str, Listing]
    network: Mapping[str, Json]
    data: Mapping[str, Json]
    notes: tuple[str, ...]

    @property
    def cameras(self) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        """Of query and gallery, or None and None where not known."""
        query, gallery = self.sets[QUERY], self.sets[GALLERY]
        known = query.has_cameras and gallery.has_cameras
        return (query.cameras, gallery.cameras) if known else (None, None)

    def picture(self, split: str, name: str) -> np.ndarray | None:
        """[H, W, 3] uint8 RGB of an image of `listings`, at its own size; None where it cannot be read."""
        place = self._places[split].get(name)
        return None if place is None else decode_at(self.listings[split], place)

    @functools.cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        return {split: {name: i for i, name in enumerate(images.names)} for split, images in self.listings.items()}


def evaluated_by(loaded: LoadedReid, root: Path, workers: Workers, multi_query: bool) -> Evaluated:
    """Features of the images of a data set by a network. Junk is not looked at: it is in no ranking.

    Unreadable images are left out, and said. Raises InputError where a split is missing or not one can be read.
    """
    splits = [QUERY, GALLERY] + [MULTI_QUERY] * multi_query
    everything = {split: read_split(root, split) for split in splits}
    listings = {split: listing.take(listing.identities >= 0) for split, listing in everything.items()}
    notes = [*loaded.notes, *(note for listing in everything.values() for note in listing.notes)]
    network = FeatureNetwork(loaded.network, loaded.sha256)
    contents = [content for listing in listings.values() for content in listing.files]
    # One pipeline for all splits: a Ray pool starts once.
    found = embeddings_of(contents, network, workers, str(root))
    sets: dict[str, FeatureSet] = {}
    data: dict[str, Json] = {"folder": str(root)}
    first = 0
    for split, listing in listings.items():
        part = (found.places >= first) & (found.places < first + len(listing))
        places = found.places[part] - first
        first += len(listing)
        lost = sorted(set(range(len(listing))) - set(places.tolist()))
        if lost:
            what = "images of the gallery are" if split == GALLERY else f"images of the {split} are"
            notes.append(f"{len(lost)} {what} unreadable and left out, the first is {listing.names[lost[0]]}")
        data[split] = _counts(everything[split]) | {
            "unreadable": [listing.names[place] for place in lost],
            "fingerprint": everything[split].fingerprint(),
        }
        kept = listings[split] = listing.take(places)
        sets[split] = FeatureSet(found.features[part], kept.identities, kept.cameras, kept.names)
    config = loaded.network.config
    about = {"sha256": loaded.sha256, "kind": loaded.kind, "backbone": config.backbone, "neck": config.neck}
    about |= {"height": config.height, "width": config.width, "features": network.width, "record": loaded.record}
    return _comparable(Evaluated(sets, listings, about, data, tuple(notes)))


def evaluated_file(path: Path, root: Path | None, multi_query: bool) -> Evaluated:
    """Features that lie in a file; `root`: the images, for pictures, found by their names, or by their order.

    Raises InputError for a file that cannot be read, or has no multi-query features where these are asked for.
    """
    content = read_features(path)
    sets = {QUERY: content.query, GALLERY: content.gallery}
    if multi_query:
        if content.multi_query is None:
            raise InputError(f"--multi-query: {path} has no features of multi-query images: leave the option out")
        sets[MULTI_QUERY] = content.multi_query
    listings, notes = {}, []
    for split in (QUERY, GALLERY):
        if root is None:
            break
        listing = read_split(root, split)
        places = _places(sets[split], listing)
        if places is None:
            notes.append(f"no pictures: the {split} images of {root} are not those of {path.name}")
            continue
        listings[split] = listing.take(places)
        if not sets[split].names:
            sets[split] = dataclasses.replace(sets[split], names=listings[split].names)
    named = {}
    for split, images in sets.items():
        names = images.names or tuple(f"{split} {place}" for place in range(len(images)))
        named[split] = dataclasses.replace(images, names=names).without_junk()
    data = {split: _counts(images) for split, images in sets.items()} | dict(content.record.get("data", {}))
    about = {"file": path.name, "kind": content.kind, **content.record.get("network", {})}
    about["features"] = int(content.query.features.shape[1])
    return _comparable(Evaluated(named, listings, about, data, tuple(notes)))


def _places(images: FeatureSet, listing: Listing) -> np.ndarray | None:
    """Where the images stand in the listing, by names or, without them, by an equal order; None where neither fits."""
    if images.names:
        place_of = {name: place for place, name in enumerate(listing.names)}
        known = [place_of.get(name) for name in images.names]
        return None if None in known else np.array(known, np.int64)
    same = np.array_equal(images.identities, listing.identities)
    return np.arange(len(listing)) if same else None


def _counts(images: Listing | FeatureSet) -> dict[str, int]:
    identities = images.identities
    return {
        "images": len(identities),
        "people": len(np.unique(identities[identities > 0])),
        "distractors": int((identities == 0).sum()),
        "junk": int((identities < 0).sum()),
        "cameras": len(np.unique(images.cameras)) if images.has_cameras else 0,
    }


def _comparable(found: Evaluated) -> Evaluated:
    """Checked: queries that show a person, features that are finite and of one length, cameras of all or of none."""
    sets, notes = dict(found.sets), list(found.notes)
    people = np.flatnonzero(sets[QUERY].identities > 0)
    if len(people) < len(sets[QUERY]):
        notes.append(f"{len(sets[QUERY]) - len(people)} queries are distractors, who match nobody: left out")
        sets[QUERY] = sets[QUERY].take(people)
    if not len(people) or not len(sets[GALLERY]):
        raise InputError(f"there are {len(people)} queries of people and {len(sets[GALLERY])} images in the gallery")
    widths = {split: images.features.shape[1] for split, images in sets.items()}
    if len(set(widths.values())) > 1:
        raise InputError(f"features of different lengths, {widths}: compute all by one network")
    for split, images in sets.items():
        normalised(images.features, split)  # raises where they are not finite
        unknown = int((images.cameras == UNKNOWN_CAMERA).sum())
        if 0 < unknown < len(images):
            notes.append(f"{unknown} of {len(images)} {split} images have no camera: ranked as if none had")
    if not sets[QUERY].has_cameras or not sets[GALLERY].has_cameras:
        notes.append("without cameras: images of the query's own camera count, and make every score look better")
    return dataclasses.replace(found, sets=sets, notes=tuple(notes))


def rank_all(found: Evaluated, metric: str, rerank: bool, top: int) -> tuple[dict[str, Ranking], tuple[str, ...]]:
    """Rankings by name: single query, and what is asked for of multi-query and re-ranked; and notes for the user."""
    query, gallery = found.sets[QUERY], found.sets[GALLERY]
    who = (query.identities, gallery.identities, *found.cameras)
    rankings = {SINGLE: evaluate_ranking(query.features, gallery.features, *who, metric=metric, top=top)}
    notes = []
    if MULTI_QUERY in found.sets:
        multi = found.sets[MULTI_QUERY]
        features, alone = multi_query_features(
            query.features, query.identities, query.cameras, multi.features, multi.identities, multi.cameras
        )
        if alone:
            notes.append(f"{alone} of {len(query)} queries have no multi-query images: they ask by themselves")
        rankings[MULTI] = evaluate_ranking(features, gallery.features, *who, metric=metric, top=top)
    if rerank:
        distances = k_reciprocal_distances(query.features, gallery.features, metric=metric)
        rankings[RERANKED] = rank_distances(distances, *who, top=top)
    return rankings, tuple(notes)


def top_similarities(found: Evaluated, ranking: Ranking) -> np.ndarray:
    """Cosine similarities [Q, top] float32 of the queries with their top places, whatever ranked them; nan at -1."""
    query, gallery = (normalised(found.sets[split].features, split) for split in (QUERY, GALLERY))
    similarities = np.full(ranking.top_places.shape, np.nan, np.float32)
    for row, places in enumerate(ranking.top_places):
        similarities[row, places >= 0] = gallery[places[places >= 0]] @ query[row]
    return similarities


def write_queries(path: str | Path, found: Evaluated, rankings: Mapping[str, Ranking]) -> None:
    """Write a Parquet file of a row for each ranking and query; the caller renames it when whole.

    Columns: ranking, name, identity, camera (null: not known), average_precision, average_precision_trapezoid,
    inverse_negative_penalty (null without a match), first_hit (from 0; null), matches, and of the first places
    top_names, top_identities and top_similarities (cosine).
    """
    query, gallery = found.sets[QUERY], found.sets[GALLERY]
    names = np.array(gallery.names, object)
    tables = []
    for name, ranking in rankings.items():
        places = [row[row >= 0] for row in ranking.top_places]
        similarities = top_similarities(found, ranking)
        without = ranking.first_hit < 0
        columns = {
            "ranking": pa.array([RECORDED[name]] * len(query)),
            "name": pa.array(query.names, pa.string()),
            "identity": pa.array(query.identities, pa.int64()),
            "camera": pa.array(query.cameras, pa.int64(), mask=query.cameras == UNKNOWN_CAMERA),
            "first_hit": pa.array(ranking.first_hit, pa.int64(), mask=without),
            "matches": pa.array(ranking.matches, pa.int64()),
            "top_names": pa.array([names[row].tolist() for row in places], pa.list_(pa.string())),
            "top_identities": pa.array([gallery.identities[row].tolist() for row in places], pa.list_(pa.int64())),
            "top_similarities": pa.array(
                [values[: len(row)].tolist() for values, row in zip(similarities, places, strict=True)],
                pa.list_(pa.float32()),
            ),
        }
        for score in ("average_precision", "average_precision_trapezoid", "inverse_negative_penalty"):
            columns[score] = pa.array(getattr(ranking, score), pa.float64(), mask=without)
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), path)


# ---- Queries that a sweep made better and worse: a picture of what its networks found for them.


def changed_queries_sheet(
    data: Path, networks: Mapping[int, Path], table: pa.Table, changed: QueryChanges, top: int
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

    def of(self, place: int, label: tuple[str, ...]) -> RankedList:
        """The ranked list of one query."""
        query, gallery = self.found.sets[QUERY], self.found.sets[GALLERY]
        places = self.ranking.top_places[place]
        same = gallery.identities[np.maximum(places, 0)] == query.identities[place]
        pictures = [
            RankedImage(self.found.picture(GALLERY, gallery.names[other]), float(similarity), bool(right))
            for other, similarity, right in zip(places, self.similarities[place], same, strict=True)
            if other >= 0
        ]
        return RankedList(label, self.found.picture(QUERY, query.names[place]), pictures)
