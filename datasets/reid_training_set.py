"""The training set of a re-ID network: real people, artificial people, and generated pictures of the real ones.

Every source keeps its own share of the images; classes are the real people first, then the artificial ones, each named
after its run, so that a generated identity never is a real one and a saved network knows which class is whom.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.image_tree import identities_sha256
from datasets.reid_images import Listing, close_gaps, decode_into
from datasets.reid_readers import read_split
from models.errors import InputError

SOURCES = ("real", "people", "variants")
REAL, PEOPLE, VARIANTS = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class TrainingImages:
    """All images of a training, decoded, and what each shows.

    images: [N, H, W, 3] uint8 RGB, which may be shared and read-only. classes: [N] int64, places in `class_names`.
    sources: [N] int64 of REAL, PEOPLE, VARIANTS. cameras: [N] int64, UNKNOWN_CAMERA where not known. class_names: real
    people by their names in the data set, then artificial ones as "RUN/PERSON". record: what the set was made of.
    fingerprint: of all listings and options. validation_*: [V, H, W, 3] and [V], set aside and in no other field.
    """

    images: np.ndarray
    classes: np.ndarray
    sources: np.ndarray
    cameras: np.ndarray
    class_names: tuple[str, ...]
    real_classes: int
    record: dict
    fingerprint: str
    notes: tuple[str, ...]
    validation_images: np.ndarray
    validation_classes: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Part:
    """One listing and the class of each of its images."""

    source: int
    listing: Listing
    classes: np.ndarray


def load_training_images(
    real: Path,
    people: Sequence[Path],
    variants: Sequence[Path],
    height: int,
    width: int,
    *,
    validation: str = "images",
    most_people: int | None = None,
    most_variants: int | None = None,
    threads: int = 4,
) -> TrainingImages:
    """List and decode everything, once.

    real, people, variants: anything that `read_split` takes. validation "images": the first image of every real person
    with two or more is set aside, as layumi's prepare.py does; "none": nothing is. most_people takes the first so many
    artificial people in the order of the runs and of their identities, so that more hold all of less; most_variants the
    first so many images of each person. Unreadable images are left out and noted. Raises InputError for a source
    without images, and where not one person of `variants` is a real training person.
    """
    first = people_only(read_split(Path(real), "train"))
    known = sorted(first.people)
    class_of = {identity: place for place, identity in enumerate(known)}
    names = [first.people[identity] for identity in known]
    notes, parts = list(first.notes), [_Part(REAL, first, _looked_up(first, class_of))]
    left = most_people
    for path, name in zip(people, run_names(people), strict=True):
        listing = people_only(read_split(Path(path), "train"))
        chosen = sorted(listing.people)[: left if left is not None else None]
        if left is not None:
            left -= len(chosen)
        listing = listing.take(np.isin(listing.identities, chosen))
        numbers = {identity: len(names) + place for place, identity in enumerate(chosen)}
        names += [f"{name}/{listing.people[identity]}" for identity in chosen]
        parts.append(_Part(PEOPLE, listing, _looked_up(listing, numbers)))
        notes += listing.notes
    for path in variants:
        listing, strangers = _variants(people_only(read_split(Path(path), "train")), first, most_variants)
        parts.append(_Part(VARIANTS, listing, _looked_up(listing, class_of)))
        notes += [*listing.notes, *strangers]
    return _decoded(parts, tuple(names), len(known), notes, height, width, validation, threads, Path(real))


def people_only(listing: Listing) -> Listing:
    """Without junk and distractors. Raises InputError where nobody is left."""
    shown = listing.identities > 0
    if not shown.any():
        raise InputError(f"{listing.name}: not one of {len(listing)} images shows a person with an identity")
    return listing if shown.all() else listing.take(shown)


def run_names(paths: Sequence[Path]) -> list[str]:
    """A name for each folder or file: its last part, with a number where several have the same."""
    names = [Path(path).resolve().name for path in paths]
    return [
        name if names.count(name) == 1 else f"{name}#{names[: place + 1].count(name)}"
        for place, name in enumerate(names)
    ]


def bytes_needed(images: int, height: int, width: int) -> int:
    """Bytes of so many decoded images."""
    return images * height * width * 3


def _looked_up(listing: Listing, class_of: dict[int, int]) -> np.ndarray:
    return np.array([class_of[identity] for identity in listing.identities.tolist()], np.int64)


def _variants(listing: Listing, real: Listing, most: int | None) -> tuple[Listing, list[str]]:
    """Those of real people, by the name the data set gives them, at most so many of each; and a note on the others.

    Their identities become the real listing's.
    """
    by_name = {name: identity for identity, name in real.people.items()}
    by_number = {_number(name): identity for name, identity in by_name.items()}  # "1" is who "0001" is ...
    if len(by_number) < len(by_name):  # ... unless both are there
        by_number = {}
    mine = {identity: by_name.get(name, by_number.get(_number(name))) for identity, name in listing.people.items()}
    strangers = sorted(name for identity, name in listing.people.items() if mine[identity] is None)
    if len(strangers) == len(mine):
        raise InputError(
            f"{listing.name}: not one of its {len(mine)} people is a training person of {real.name}, the first is "
            f"{strangers[0]!r}: give generated pictures of its people, or give them as --people"
        )
    seen: dict[int, int] = {}
    kept = np.zeros(len(listing), bool)
    for place, identity in enumerate(listing.identities.tolist()):
        seen[identity] = seen.get(identity, 0) + 1
        kept[place] = mine[identity] is not None and (most is None or seen[identity] <= most)
    chosen = listing.take(kept)
    identities = np.array([mine[identity] for identity in chosen.identities.tolist()], np.int64)
    renamed = dataclasses.replace(
        chosen, identities=identities, people={mine[identity]: name for identity, name in chosen.people.items()}
    )
    if not strangers:
        return renamed, []
    who = f"{len(strangers)} people are no training people, the first is {strangers[0]!r}"
    return renamed, [f"{listing.name}: {who}: left out"]


def _number(name: str) -> str:
    return str(int(name)) if name.isdecimal() else name


def _decoded(parts, names, real_classes, notes, height, width, validation, threads, real: Path) -> TrainingImages:
    count = sum(len(part.listing) for part in parts)
    images, readable, start = np.empty((count, height, width, 3), np.uint8), [], 0
    for part in parts:
        found = decode_into(part.listing, images[start : start + len(part.listing)], threads)
        start += len(part.listing)
        readable.append(found)
        if not found.any() and len(found):
            raise InputError(f"{part.listing.name}: none of {len(found)} images can be read")
        if not found.all():
            bad = part.listing.names[int(np.argmin(found))]
            notes.append(f"{part.listing.name}: {(~found).sum()} images cannot be read, the first is {bad!r}: left out")
    kept = np.flatnonzero(np.concatenate(readable))
    close_gaps(images, kept)
    classes = np.concatenate([part.classes for part in parts])[kept]
    sources = np.concatenate([np.full(len(part.listing), part.source, np.int64) for part in parts])[kept]
    cameras = np.concatenate([part.listing.cameras for part in parts])[kept]
    images = images[: len(kept)]
    aside = _set_aside(classes, sources) if validation == "images" else np.zeros(len(classes), bool)
    record, fingerprint = _about(parts, readable, real, validation)
    validation_images = images[aside].copy()
    stay = np.flatnonzero(~aside)
    close_gaps(images, stay)
    return TrainingImages(
        images[: len(stay)], classes[stay], sources[stay], cameras[stay], names, real_classes, record, fingerprint,
        tuple(notes), validation_images, classes[aside],
    )  # fmt: skip


def _set_aside(classes: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """[N] bool: the first image of every real person with two or more."""
    real = np.flatnonzero(sources == REAL)
    _, first, counts = np.unique(classes[real], return_index=True, return_counts=True)
    aside = np.zeros(len(classes), bool)
    aside[real[first[counts >= 2]]] = True
    return aside


def _about(parts, readable, real: Path, validation: str) -> tuple[dict, str]:
    record, digest = {"name": real.resolve().name, "validation": validation}, hashlib.sha256(validation.encode())
    for part, found in zip(parts, readable, strict=True):
        listing = part.listing
        digest.update(f"{part.source}{listing.fingerprint()}{len(np.unique(part.classes))}".encode())
        entry = record.setdefault(SOURCES[part.source], {"images": 0, "people": 0, "from": []})
        entry["images"] += int(found.sum())
        entry["people"] += len(listing.people)
        entry["from"].append({"name": listing.name, "identities_sha256": identities_sha256(listing.people)})
    crowd = real / "toy_crowd.json"
    if crowd.is_file():
        values = json.loads(crowd.read_text())
        record["toy_crowd"] = {key: values.get(key) for key in ("version", "content_hash", "options")}
    return record, digest.hexdigest()
