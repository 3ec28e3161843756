"""Shared by the readers of re-ID data: splits, numbers for names, derived queries and published counts."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.people.listing import GALLERY, MULTI_QUERY, QUERY, TRAIN, UNKNOWN_CAMERA, Listing
from datasets.people.names import JUNK_IDENTITY
from passersby.errors import InputError

DERIVED = frozenset({TRAIN, QUERY, GALLERY})  # the splits that `derived_split` makes from data without a split
_ALIKE = 0.1  # a larger relative difference in counts means another data set; a smaller one, missing images

# Published numbers of images and of people (without junk and distractors); None where the papers give no number.
PUBLISHED: Mapping[str, Mapping[str, tuple[int, int | None]]] = {
    "Market-1501": {
        TRAIN: (12_936, 751),
        QUERY: (3_368, 750),
        GALLERY: (19_732, 750),
        MULTI_QUERY: (25_259, None),
    },
    "DukeMTMC-reID": {TRAIN: (16_522, 702), QUERY: (2_228, 702), GALLERY: (17_661, 1_110)},
    "CUHK03-NP labeled": {TRAIN: (7_368, 767), QUERY: (1_400, 700), GALLERY: (5_328, 700)},
    "CUHK03-NP detected": {TRAIN: (7_365, 767), QUERY: (1_400, 700), GALLERY: (5_332, 700)},
    "MSMT17": {TRAIN: (32_621, 1_041), QUERY: (11_659, 3_060), GALLERY: (82_161, 3_060)},
}


def count_people(identities: np.ndarray) -> int:
    """The number of people, without junk and distractors."""
    return int((np.unique(identities) > 0).sum())


def published_note(listing: Listing, data_set: str, split: str) -> str:
    """A line for the user where a listing's counts differ from the published ones; empty otherwise."""
    if split not in PUBLISHED[data_set]:
        return ""
    images, people = PUBLISHED[data_set][split]
    image_count, people_count = len(listing), count_people(listing.identities)
    if image_count == images and people in (None, people_count):
        return ""
    published = "" if people is None else f" of {people:,} people"
    counts = f"{listing.name}: {image_count:,} images of {people_count:,} people, {data_set} has {images:,}{published}"
    if abs(image_count - images) > _ALIKE * images:
        return f"{counts}: so this is another data set, or a part of it"
    difference = images - image_count
    return counts + (f": {abs(difference):,} {'missing' if difference > 0 else 'too many'}" if difference else "")


def numbered(labels: Iterable[str]) -> dict[str, int]:
    """Map each label to an identity from 1 up, in the order of the labels.

    Numbers come first, ordered by value; other labels follow in alphabetical order. The label "-1" is junk,
    as in Market-1501.
    """
    people = sorted(set(labels) - {str(JUNK_IDENTITY)}, key=_by_value)
    return {label: number for number, label in enumerate(people, start=1)} | {str(JUNK_IDENTITY): JUNK_IDENTITY}


def _by_value(label: str) -> tuple[int, int, str]:
    is_number = label.isascii() and label.isdecimal() and len(label) < 19
    return (0, int(label), label) if is_number else (1, 0, label)


def names_of(identities: Iterable[int], labels: Iterable[str]) -> dict[int, str]:
    """The `people` of a listing: identity -> label, without junk and distractors."""
    return {identity: label for identity, label in zip(identities, labels, strict=True) if identity > 0}


def derived_split(everything: Listing, split: str) -> Listing:
    """Return one split of data that come without splits.

    "train" holds all images. "query" holds the first image of every person who has two or more images, and
    "gallery" holds all other images. Query and gallery get unknown cameras, as no rule says that two cameras
    must see a person. Raises InputError where nobody has two images, and for "multi-query".
    """
    if split == TRAIN:
        return everything
    if split not in DERIVED:
        raise InputError(f"{everything.name}: it has no split {split}: only train, query and gallery are made")
    seen = collections.Counter(everything.identities[everything.identities > 0].tolist())
    first: dict[int, int] = {}
    for index, identity in enumerate(everything.identities.tolist()):
        first.setdefault(identity, index)
    queries = {first[identity] for identity, count in seen.items() if count > 1}
    if not queries:
        raise InputError(
            f"{everything.name}: nobody of {len(seen)} people has two images, so there is nothing to find: "
            "give images of the same person"
        )
    indices = [index for index in range(len(everything)) if (index in queries) == (split == QUERY)]
    part = everything.take(indices)
    return dataclasses.replace(part, cameras=np.full(len(part), UNKNOWN_CAMERA)).with_notes(
        f"{everything.name}: no query and gallery are given, so the first image of each of {len(queries):,} people is "
        f"a query and the other {len(everything) - len(queries):,} images are the gallery; no camera rule"
    )


def missing_note(name: str, paths: Sequence[Path], names: Sequence[str], folder: Path) -> str:
    """A line with the number of listed files that are missing. Raises InputError where all are missing."""
    missing = [shown for path, shown in zip(paths, names, strict=True) if not path.is_file()]
    if paths and len(missing) == len(paths):
        raise InputError(f"{name}: none of the {len(paths):,} files listed is in {folder}, the first is {missing[0]!r}")
    if not missing:
        return ""
    return f"{name}: {len(missing):,} of {len(paths):,} files listed are not there, the first is {missing[0]!r}"


def clutter_note(name: str, count: int) -> str:
    """A line with the number of files that operating systems left beside images; empty where there are none."""
    return f"{name}: {count:,} files of operating systems (._*, Thumbs.db and the like) are left out" if count else ""


def cameras_note(listing: Listing) -> str:
    """A line for the user where the cameras of some images are known and of others not."""
    count = int((listing.cameras != UNKNOWN_CAMERA).sum())
    if count in (0, len(listing)):
        return ""
    return f"{listing.name}: the camera of {count:,} of {len(listing):,} images is known, so no camera rule is applied"


def unmatched_note(query: Listing, gallery: Listing) -> str:
    """A line with the number of the query's people whom no gallery image shows.

    Where cameras are known, only gallery images of another camera count.
    """
    unmatched = set(query.identities[~matched(query, gallery)].tolist())
    people = len(np.unique(query.identities))
    if not unmatched:
        return ""
    first = query.people.get(min(unmatched), str(min(unmatched)))
    with_cameras = query.has_cameras and gallery.has_cameras
    where = "have a query that the gallery shows by no other camera" if with_cameras else "are not in the gallery"
    return f"{query.name}: {len(unmatched):,} of {people:,} people {where}, the first is {first!r}"


def matched(query: Listing, gallery: Listing) -> np.ndarray:
    """Whether a gallery image shows the person of each query, bool [queries].

    Where cameras are known, only gallery images of another camera count.
    """
    with_cameras = query.has_cameras and gallery.has_cameras
    cameras_of: dict[int, set[int]] = {}
    for identity, camera in zip(gallery.identities.tolist(), gallery.cameras.tolist(), strict=True):
        cameras_of.setdefault(identity, set()).add(camera)
    return np.array(
        [
            bool(cameras_of.get(identity, set()) - ({camera} if with_cameras else set()))
            for identity, camera in zip(query.identities.tolist(), query.cameras.tolist(), strict=True)
        ],
        dtype=bool,
    )
