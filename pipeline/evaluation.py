"""An evaluation of re-ID: features of query and gallery come from a network or a file, are made comparable, and ranked.

Also draws the queries that a sweep made better and worse.
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
from passersby.reid.onnx_network import LoadedOnnx
from pipeline.features import Workers, embeddings_of
from reporting.grid import encode_png
from reporting.reid.queries import Group, RankedImage, RankedList, retrieval_sheet
from reporting.sweep.page import QueryChanges

QUERY, GALLERY, MULTI_QUERY = "query", "gallery", "multi-query"
SINGLE, MULTI, RERANKED = "single query", "multi-query", "re-ranked"
RECORDED = {SINGLE: "single_query", MULTI: "multi_query", RERANKED: "reranked"}  # in files


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Images and their features by split: "query", "gallery", and "multi-query" where it is asked for.

    sets: features without junk; each image has a different name, and cameras count only where all are known. listings:
    images by split, from which pictures are drawn; may be empty. network, data: the record's plain JSON values. notes:
    lines for the user.
    """

    sets: Mapping[str, FeatureSet]
    listings: Mapping[str, Listing]
    network: Mapping[str, Json]
    data: Mapping[str, Json]
    notes: tuple[str, ...]

    @property
    def cameras(self) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        """The cameras of query and gallery; None and None where either set has images without a camera."""
        query, gallery = self.sets[QUERY], self.sets[GALLERY]
        both = query.has_cameras and gallery.has_cameras
        return (query.cameras, gallery.cameras) if both else (None, None)

    def picture(self, split: str, name: str) -> np.ndarray | None:
        """[H, W, 3] uint8 RGB of an image of `listings`, at its own size; None where it cannot be read."""
        index = self._index_of[split].get(name)
        return None if index is None else decode_at(self.listings[split], index)

    @functools.cached_property
    def _index_of(self) -> dict[str, dict[str, int]]:
        return {split: {name: i for i, name in enumerate(images.names)} for split, images in self.listings.items()}


def evaluated_by(loaded: LoadedReid | LoadedOnnx, root: Path, workers: Workers, multi_query: bool) -> Evaluated:
    """Features of the images of a data set by a network. Junk gets no features, because no ranking contains it.

    Unreadable images are left out and named in a note. Raises InputError where a split is missing, or where no image
    can be read.
    """
    splits = [QUERY, GALLERY] + [MULTI_QUERY] * multi_query
    everything = {split: read_split(root, split) for split in splits}
    listings = {split: listing.take(listing.identities >= 0) for split, listing in everything.items()}
    notes = [*loaded.notes, *(note for listing in everything.values() for note in listing.notes)]
    network = loaded.feature_network()
    contents = [content for listing in listings.values() for content in listing.files]
    # One pipeline for all splits: a Ray pool starts once.
    embeddings = embeddings_of(contents, network, workers, str(root))
    notes += embeddings.notes
    sets: dict[str, FeatureSet] = {}
    data: dict[str, Json] = {"folder": str(root)}
    first = 0
    for split, listing in listings.items():
        part = (embeddings.places >= first) & (embeddings.places < first + len(listing))
        readable = embeddings.places[part] - first
        first += len(listing)
        unreadable = sorted(set(range(len(listing))) - set(readable.tolist()))
        if unreadable:
            what = "images of the gallery are" if split == GALLERY else f"images of the {split} are"
            notes.append(
                f"{len(unreadable)} {what} unreadable and left out, the first is {listing.names[unreadable[0]]}"
            )
        data[split] = _counts(everything[split]) | {
            "unreadable": [listing.names[index] for index in unreadable],
            "fingerprint": everything[split].fingerprint(),
        }
        usable = listings[split] = listing.take(readable)
        sets[split] = FeatureSet(embeddings.features[part], usable.identities, usable.cameras, usable.names)
    about = {"sha256": loaded.sha256} | loaded.about | {"features": network.width, "record": loaded.record}
    return _comparable(Evaluated(sets, listings, about, data, tuple(notes)))


def evaluated_file(path: Path, root: Path | None, multi_query: bool) -> Evaluated:
    """Features from a file. `root`: the data set whose images are drawn; names, or else their order, identify them.

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
        indices = _indices(sets[split], listing)
        if indices is None:
            notes.append(f"no pictures: the {split} images of {root} are not those of {path.name}")
            continue
        listings[split] = listing.take(indices)
        if not sets[split].names:
            sets[split] = dataclasses.replace(sets[split], names=listings[split].names)
    named = {}
    for split, images in sets.items():
        names = images.names or tuple(f"{split} {number}" for number in range(len(images)))
        named[split] = dataclasses.replace(images, names=names).without_junk()
    data = {split: _counts(images) for split, images in sets.items()} | dict(content.record.get("data", {}))
    about = {"file": path.name, "kind": content.kind, **content.record.get("network", {})}
    about["features"] = int(content.query.features.shape[1])
    return _comparable(Evaluated(named, listings, about, data, tuple(notes)))


def _indices(images: FeatureSet, listing: Listing) -> np.ndarray | None:
    """Index in the listing of each image: by its name, or without names by an equal order; None where neither fits."""
    if images.names:
        index_of = {name: index for index, name in enumerate(listing.names)}
        indices = [index_of.get(name) for name in images.names]
        return None if None in indices else np.array(indices, np.int64)
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


def _comparable(evaluated: Evaluated) -> Evaluated:
    """Check that features are finite and of one length, take out queries of distractors, and note missing cameras."""
    sets, notes = dict(evaluated.sets), list(evaluated.notes)
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
    return dataclasses.replace(evaluated, sets=sets, notes=tuple(notes))


def rank_all(evaluated: Evaluated, metric: str, rerank: bool, top: int) -> tuple[dict[str, Ranking], tuple[str, ...]]:
    """Rankings by name: single query, and where asked for multi-query and re-ranked; and notes for the user."""
    query, gallery = evaluated.sets[QUERY], evaluated.sets[GALLERY]
    identities_and_cameras = (query.identities, gallery.identities, *evaluated.cameras)
    rankings = {
        SINGLE: evaluate_ranking(query.features, gallery.features, *identities_and_cameras, metric=metric, top=top)
    }
    notes = []
    if MULTI_QUERY in evaluated.sets:
        multi = evaluated.sets[MULTI_QUERY]
        features, alone = multi_query_features(
            query.features, query.identities, query.cameras, multi.features, multi.identities, multi.cameras
        )
        if alone:
            notes.append(f"{alone} of {len(query)} queries have no multi-query images: they ask by themselves")
        rankings[MULTI] = evaluate_ranking(features, gallery.features, *identities_and_cameras, metric=metric, top=top)
    if rerank:
        distances = k_reciprocal_distances(query.features, gallery.features, metric=metric)
        rankings[RERANKED] = rank_distances(distances, *identities_and_cameras, top=top)
    return rankings, tuple(notes)


def top_similarities(evaluated: Evaluated, ranking: Ranking) -> np.ndarray:
    """Cosine similarities [Q, top] float32 of each query and its top images, whichever ranking; nan where it has -1."""
    query, gallery = (normalised(evaluated.sets[split].features, split) for split in (QUERY, GALLERY))
    similarities = np.full(ranking.top_places.shape, np.nan, np.float32)
    for row, indices in enumerate(ranking.top_places):
        similarities[row, indices >= 0] = gallery[indices[indices >= 0]] @ query[row]
    return similarities


def write_queries(path: str | Path, evaluated: Evaluated, rankings: Mapping[str, Ranking]) -> None:
    """Write a Parquet file with one row for each ranking and query; the caller renames the file when it is whole.

    Columns: ranking, name, identity, camera (null: not known), average_precision, average_precision_trapezoid,
    inverse_negative_penalty, first_hit (from 0), matches; and for the first images of the ranking top_names,
    top_identities and top_similarities (cosine). Without a match the scores and first_hit are null.
    """
    query, gallery = evaluated.sets[QUERY], evaluated.sets[GALLERY]
    names = np.array(gallery.names, object)
    tables = []
    for name, ranking in rankings.items():
        top_images = [row[row >= 0] for row in ranking.top_places]
        similarities = top_similarities(evaluated, ranking)
        without = ranking.first_hit < 0
        columns = {
            "ranking": pa.array([RECORDED[name]] * len(query)),
            "name": pa.array(query.names, pa.string()),
            "identity": pa.array(query.identities, pa.int64()),
            "camera": pa.array(query.cameras, pa.int64(), mask=query.cameras == UNKNOWN_CAMERA),
            "first_hit": pa.array(ranking.first_hit, pa.int64(), mask=without),
            "matches": pa.array(ranking.matches, pa.int64()),
            "top_names": pa.array([names[row].tolist() for row in top_images], pa.list_(pa.string())),
            "top_identities": pa.array([gallery.identities[row].tolist() for row in top_images], pa.list_(pa.int64())),
            "top_similarities": pa.array(
                [values[: len(row)].tolist() for values, row in zip(similarities, top_images, strict=True)],
                pa.list_(pa.float32()),
            ),
        }
        for score in ("average_precision", "average_precision_trapezoid", "inverse_negative_penalty"):
            columns[score] = pa.array(getattr(ranking, score), pa.float64(), mask=without)
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), path)


# ---- A picture of the queries that a sweep made better and worse, each with the ranked images of two networks.


def changed_queries_sheet(
    data: Path, networks: Mapping[int, Path], table: pa.Table, changed: QueryChanges, top: int
) -> tuple[bytes | None, list[str]]:
    """A PNG of the changed queries: for each the gallery as ranked by a network of level 0 and one of the other level.

    This process computes it, on a GPU where there is one. networks: level -> file. table: the trials. Where data or
    networks are no longer those of the trials, the result is None and a note.
    """
    workers = Workers.chosen("auto", here=True)
    try:
        evaluated = {level: evaluated_by(load_reid(path), data, workers, False) for level, path in networks.items()}
    except InputError as error:
        return None, [f"No pictures of queries: {error}."]
    identities = evaluated[0].sets[QUERY].identities
    if identities.tolist() != table["query_identity"][0].as_py():
        return None, ["No pictures of queries: the test set is not the one that the sweep ranked."]
    ranked = {level: _Lists(images, top) for level, images in evaluated.items()}
    groups = []
    for heading, queries in (("Got better", changed.better), ("Got worse", changed.worse)):
        lists = []
        for query in queries.tolist():
            for level, precision in ((0, changed.before[query]), (changed.level, changed.after[query])):
                label = (f"level {level}", f"person {identities[query]}", f"average precision {100 * precision:.1f}")
                lists.append(ranked[level].of(query, label))
        if lists:
            groups.append(Group(heading, lists))
    if not groups:
        return None, ["No query's ranking changed."]
    subtitle = ("average precision: mean over seeds; pictures: one network of each level, the first seed",)
    sheet = retrieval_sheet(groups, title=f"Level 0 and level {changed.level}", subtitle=subtitle, columns=top)
    return encode_png(sheet), []


class _Lists:
    """The ranked lists of one network."""

    def __init__(self, evaluated: Evaluated, top: int):
        self.evaluated = evaluated
        self.ranking = rank_all(evaluated, "cosine", False, top)[0][SINGLE]
        self.similarities = top_similarities(evaluated, self.ranking)

    def of(self, number: int, label: tuple[str, ...]) -> RankedList:
        """The ranked list of one query."""
        query, gallery = self.evaluated.sets[QUERY], self.evaluated.sets[GALLERY]
        ranked = self.ranking.top_places[number]
        same = gallery.identities[np.maximum(ranked, 0)] == query.identities[number]
        pictures = [
            RankedImage(self.evaluated.picture(GALLERY, gallery.names[image]), float(similarity), bool(right))
            for image, similarity, right in zip(ranked, self.similarities[number], same, strict=True)
            if image >= 0
        ]
        return RankedList(label, self.evaluated.picture(QUERY, query.names[number]), pictures)
