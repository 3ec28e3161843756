"""What readers of re-ID data share: splits, numbers for names, queries where none are given, published counts."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.people.listing import GALLERY, MULTI_QUERY, QUERY, TRAIN, UNKNOWN_CAMERA, Listing
from datasets.people.names import JUNK_IDENTITY
from passersby.errors import InputError

DERIVED = frozenset({TRAIN, QUERY, GALLERY})  # of data without a split: see `derived_split`
_ALIKE = 0.1  # counts that differ by less are of the data set itself, with images missing; otherwise of another one

# Images, and people without junk and distractors, as published; None where the papers say nothing.
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
    """How many people, without junk and distractors."""
    return int((np.unique(identities) > 0).sum())


def published_note(listing: Listing, data_set: str, split: str) -> str:
    """A line where a listing's counts are not the published ones; empty where they are, or nothing is published."""
    if split not in PUBLISHED[data_set]:
        return ""
    images, people = PUBLISHED[data_set][split]
    found, persons = len(listing), count_people(listing.identities)
    if found == images and people in (None, persons):
        return ""
    of = "" if people is None else f" of {people:,} people"
    counts = f"{listing.name}: {found:,} images of {persons:,} people, {data_set} has {images:,}{of}"
    if abs(found - images) > _ALIKE * images:
        return f"{counts}: so this is another data set, or a part of it"
    difference = images - found
    return counts + (f": {abs(difference):,} {'missing' if difference > 0 else 'too many'}" if difference else "")


def numbered(labels: Iterable[str]) -> dict[str, int]:
    """label -> identity, 1 and up in the order of the labels (numbers by value, before the others).

    The label "-1" is junk, as in Market-1501.
    """
    people = sorted(set(labels) - {str(JUNK_IDENTITY)}, key=_by_value)
    return {label: place for place, label in enumerate(people, start=1)} | {str(JUNK_IDENTITY): JUNK_IDENTITY}


def _by_value(label: str) -> tuple[int, int, str]:
    is_number = label.isascii() and label.isdecimal() and len(label) < 19
    return (0, int(label), label) if is_number else (1, 0, label)


def names_of(identities: Iterable[int], labels: Iterable[str]) -> dict[int, str]:
    """`people` of a listing: identity -> label, without junk and distractors."""
    return {identity: label for identity, label in zip(identities, labels, strict=True) if identity > 0}


def derived_split(everything: Listing, split: str) -> Listing:
    """A split of data that has none. "train": everything. The first image of every person with two or more is a
    query, all other images are the gallery; cameras are left out there, as no rule says that two must see a person.

    Raises InputError where nobody has two images, and for "multi-query".
    """
    if split == TRAIN:
        return everything
    if split not in DERIVED:
        raise InputError(f"{everything.name}: it has no split {split}: only train, query and gallery are made")
    seen = collections.Counter(everything.identities[everything.identities > 0].tolist())
    first: dict[int, int] = {}
    for place, identity in enumerate(everything.identities.tolist()):
        first.setdefault(identity, place)
    queries = {first[identity] for identity, count in seen.items() if count > 1}
    if not queries:
        raise InputError(
            f"{everything.name}: nobody of {len(seen)} people has two images, so there is nothing to find: "
            "give images of the same person"
        )
    chosen = [place for place in range(len(everything)) if (place in queries) == (split == QUERY)]
    part = everything.take(chosen)
    return dataclasses.replace(part, cameras=np.full(len(part), UNKNOWN_CAMERA)).with_notes(
        f"{everything.name}: no query and gallery are given, so the first image of each of {len(queries):,} people is "
        f"a query and the other {len(everything) - len(queries):,} images are the gallery; no camera rule"
    )


def missing_note(name: str, paths: Sequence[Path], names: Sequence[str], folder: Path) -> str:
    """A line that says how many of the files listed are not there. Raises InputError where not one is."""
    missing = [shown for path, shown in zip(paths, names, strict=True) if not path.is_file()]
    if paths and len(missing) == len(paths):
        raise InputError(f"{name}: none of the {len(paths):,} files listed is in {folder}, the first is {missing[0]!r}")
    if not missing:
        return ""
    return f"{name}: {len(missing):,} of {len(paths):,} files listed are not there, the first is {missing[0]!r}"


def cameras_note(listing: Listing) -> str:
    """A line where the cameras of some images are known, and not of all."""
    known = int((listing.cameras != UNKNOWN_CAMERA).sum())
    if known in (0, len(listing)):
        return ""
    return f"{listing.name}: the camera of {known:,} of {len(listing):,} images is known, so no camera rule is applied"


def unmatched_note(query: Listing, gallery: Listing) -> str:
    """A line that names the people of the query whom no image of the gallery shows (seen by another camera)."""
    with_cameras = query.has_cameras and gallery.has_cameras
    seen: dict[int, set[int]] = {}
    for identity, camera in zip(gallery.identities.tolist(), gallery.cameras.tolist(), strict=True):
        seen.setdefault(identity, set()).add(camera)
    lost, people = set(), set()
    for identity, camera in zip(query.identities.tolist(), query.cameras.tolist(), strict=True):
        people.add(identity)
        if not (seen.get(identity, set()) - ({camera} if with_cameras else set())):
            lost.add(identity)
    if not lost:
        return ""
    first = query.people.get(min(lost), str(min(lost)))
    where = "have a query that the gallery shows by no other camera" if with_cameras else "are not in the gallery"
    return f"{query.name}: {len(lost):,} of {len(people):,} people {where}, the first is {first!r}"
