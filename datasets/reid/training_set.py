"""The images that a re-ID network is trained on, decoded once into one array, with their classes."""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.people.decoding import close_gaps, decode_bicubic, decode_into, remarks
from datasets.people.names import FORMATS_TEXT
from datasets.reid.sources import (
    EVERYBODY,
    FURTHER,
    GENERATED,
    LATER,
    PEOPLE,
    REAL,
    SINGLES,
    SOURCES,
    VARIANTS,
    Labelled,
    Source,
    bytes_needed,
    list_donors,
    list_sources,
)
from passersby.errors import InputError
from passersby.options import Json

__all__ = ["FURTHER", "GENERATED", "PEOPLE", "REAL", "SINGLES", "SOURCES", "VARIANTS", "TrainingImages"]
__all__ += ["bytes_needed", "load_training_images"]

VALIDATION = ("none", "images")
_SHOWN = 5  # the most names of unreadable images in a line; the record has all


@dataclasses.dataclass(frozen=True)
class TrainingImages:
    """The N images to train on, image i in every field, and the V images set aside for validation.

    images: [N, H, W, 3] uint8 RGB, may be read-only shared memory. classes: [N] int64, 0..len(class_names)-1.
    sources: [N] int64, indices of SOURCES. cameras: [N] int64, -1 where a camera is unknown. class_names:
    first `real_classes` real people, under their names in the data set, then artificial people as "RUN/PERSON".
    Classes of single pictures, "single/NAME", stand between them and count as real people.
    record: the sources of the images, as plain JSON values. fingerprint: sha256 in hex; equal fingerprints mean
    the same images in the same order. notes: lines for the user. validation_images: [V, H, W, 3] uint8, of real
    people, never among `images`. validation_classes: [V]. donors: [D, H, W, 3] uint8, the pictures that give
    surroundings and colours; None where nothing takes any.
    """

    images: np.ndarray
    classes: np.ndarray
    sources: np.ndarray
    cameras: np.ndarray
    class_names: tuple[str, ...]
    real_classes: int
    record: dict[str, Json]
    fingerprint: str
    notes: tuple[str, ...]
    validation_images: np.ndarray
    validation_classes: np.ndarray
    donors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.classes)


def load_training_images(
    real: str | Path,
    people: Sequence[str | Path] = (),
    variants: Sequence[str | Path] = (),
    height: int = 256,
    width: int = 128,
    *,
    validation: str = "images",
    most_people: int | None = None,
    most_variants: int | None = None,
    draw_seed: int | None = None,
    filters: Sequence[str] = (),
    labelled: Labelled = EVERYBODY,
    donors: Sequence[str | Path] | None = None,
    most_donors: int = 4000,
    threads: int = 4,
    check_memory: Callable[[int], None] | None = None,
) -> TrainingImages:
    """List the sources (`list_sources` says how) and decode them in parallel.

    validation: with "images", the first readable image of every real person with two or more is set aside and
    never trained on, as in layumi's prepare.py; with "none", no image is set aside. donors: where surroundings and
    colours come from (`list_donors`), None where they are not needed. check_memory: called with
    the bytes of the pixels before any image is decoded. Unreadable images are left out and listed in notes and
    record. People without a readable image are left out too. Raises InputError where `list_sources` does, and
    where none of a source's images can be read.
    """
    if validation not in VALIDATION:
        raise InputError(f"--validation {validation}: give one of {', '.join(VALIDATION)}")
    if height < 1 or width < 1:
        raise InputError(f"--height {height} --width {width}: both must be 1 or more")
    sources = list_sources(real, people, variants, most_people, most_variants, draw_seed, filters, labelled)
    donor_sources = [] if donors is None else list_donors(real, labelled, donors, most_donors)
    if check_memory is not None:
        check_memory(bytes_needed([len(source) for source in [*sources, *donor_sources]], height, width))
    peculiar: Counter[str] = Counter()
    images, readable = _decode(sources, height, width, threads, peculiar)
    counts = [len(source) for source in sources]
    kinds = np.repeat([source.kind for source in sources], counts).astype(np.int64)
    cameras = np.concatenate([source.listing.cameras for source in sources])
    names = [person for source in sources for person in source.persons]
    classes, class_names, real_classes = _classes(names, kinds, readable)
    indices, validation_indices = _split(classes, kinds, readable, validation)
    validation_images, validation_classes = images[validation_indices], classes[validation_indices]  # copies
    lost = _names_of_lost(sources, readable)
    record = _record(sources, lost, kinds[indices], validation, len(validation_indices))
    donor_images = None
    if donor_sources:
        donor_images, record["donors"] = _donors(donor_sources, height, width, threads, peculiar)
    return TrainingImages(
        images=_kept(images, indices),
        classes=classes[indices],
        sources=kinds[indices],
        cameras=cameras[indices],
        class_names=class_names,
        real_classes=real_classes,
        record=record,
        fingerprint=_fingerprint(record, height, width, class_names),
        notes=(*_notes(sources, lost, names, readable, classes), *remarks(peculiar)),
        validation_images=validation_images,
        validation_classes=validation_classes,
        donors=donor_images,
    )


def _decode(
    sources: Sequence[Source], height: int, width: int, threads: int, peculiar: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """All images [N, H, W, 3] uint8, and whether each could be read [N] bool; counts what is `peculiar`.

    Raises InputError where none of a source could be read.
    """
    images = np.empty((sum(map(len, sources)), height, width, 3), np.uint8)
    decode_one = functools.partial(decode_bicubic, height=height, width=width)
    results, start = [], 0
    for source in sources:
        problems = decode_into(source.listing, images[start : start + len(source)], decode_one, threads, peculiar)
        readable = np.array([problem is None for problem in problems], bool)
        start += len(source)
        if not readable.any():
            raise InputError(
                f"{source.listing.name}: none of its {len(source):,} images can be read, the first is "
                f"{source.listing.names[0]!r}: give {FORMATS_TEXT} files"
            )
        results.append(readable)
    return images, np.concatenate(results)


def _donors(
    sources: Sequence[Source], height: int, width: int, threads: int, peculiar: Counter[str]
) -> tuple[np.ndarray, list[Json]]:
    """The readable pictures that give surroundings and colours [D, H, W, 3] uint8, and the records of their sources."""
    images, readable = _decode(sources, height, width, threads, peculiar)
    lost = _names_of_lost(sources, readable)
    records: list[Json] = [source.record(names) for source, names in zip(sources, lost, strict=True)]
    return _kept(images, np.flatnonzero(readable)), records


def _kept(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The images at ascending indices, in the memory of all images."""
    close_gaps(images, indices)
    return images[: len(indices)]


def _classes(names: Sequence[str], kinds: np.ndarray, readable: np.ndarray) -> tuple[np.ndarray, tuple[str, ...], int]:
    """Classes of the images [N] int64, class names in the images' order, real people first, number of real people.

    The class of an image of nobody with a class, such as a variant of a real person without any readable real image,
    is -1.
    """
    of_kind = [
        dict.fromkeys(names[index] for index in np.flatnonzero(readable & (kinds == kind)).tolist())
        for kind in (REAL, FURTHER, SINGLES, PEOPLE)
    ]
    class_names = tuple(name for kind in of_kind for name in kind)
    numbers = {name: number for number, name in enumerate(class_names)}
    classes = np.array([numbers.get(name, -1) for name in names], np.int64)
    return classes, class_names, sum(map(len, of_kind[:-1]))


def _split(
    classes: np.ndarray, kinds: np.ndarray, readable: np.ndarray, validation: str
) -> tuple[np.ndarray, list[int]]:
    """Ascending indices of the images to train on, and of those that `validation` sets aside."""
    set_aside = _first_of_each(classes, readable & (kinds == REAL)) if validation == "images" else []
    is_trained = readable & (classes >= 0)
    is_trained[set_aside] = False
    return np.flatnonzero(is_trained), set_aside


def _first_of_each(classes: np.ndarray, candidates: np.ndarray) -> list[int]:
    """Ascending indices of the first candidate of every class that has two or more candidates."""
    indices = np.flatnonzero(candidates)
    _, first, counts = np.unique(classes[indices], return_index=True, return_counts=True)
    return np.sort(indices[first[counts > 1]]).tolist()


def _names_of_lost(sources: Sequence[Source], readable: np.ndarray) -> list[list[str]]:
    unreadable, start = [], 0
    for source in sources:
        is_readable = readable[start : start + len(source)]
        unreadable.append([source.listing.names[index] for index in np.flatnonzero(~is_readable)])
        start += len(source)
    return unreadable


def _record(
    sources: Sequence[Source],
    unreadable: Sequence[Sequence[str]],
    kinds: np.ndarray,
    validation: str,
    validation_images: int,
) -> dict[str, Json]:
    records = [source.record(names) for source, names in zip(sources, unreadable, strict=True)]
    record: dict[str, Json] = {
        name: [entry for source, entry in zip(sources, records, strict=True) if source.kind == kind]
        for kind, name in enumerate(SOURCES)
    }
    for kind in LATER:
        if not record[SOURCES[kind]]:
            del record[SOURCES[kind]]
    toy: dict[str, Json] = {} if sources[0].toy_crowd is None else {"toy_crowd": dict(sources[0].toy_crowd)}
    trained = {name: int((kinds == kind).sum()) for kind, name in enumerate(SOURCES) if name in record}
    return record | {"trained": trained, "validation": {"kind": validation, "images": validation_images}} | toy


def _fingerprint(record: Mapping[str, Json], height: int, width: int, class_names: Sequence[str]) -> str:
    content = [record, height, width, list(class_names)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _notes(
    sources: Sequence[Source],
    lost: Sequence[Sequence[str]],
    names: Sequence[str],
    readable: np.ndarray,
    classes: np.ndarray,
) -> tuple[str, ...]:
    notes = [note for source in sources for note in source.listing.notes]
    for source, unreadable in zip(sources, lost, strict=True):
        if unreadable:
            shown = ", ".join(map(repr, unreadable[:_SHOWN])) + ", ..." * (len(unreadable) > _SHOWN)
            notes.append(
                f"{source.listing.name}: {len(unreadable):,} of {len(source):,} images cannot be read and are left "
                f"out: {shown}"
            )
    people_left_out = dict.fromkeys(names[index] for index in np.flatnonzero(classes < 0).tolist())
    if people_left_out:
        variants = int((readable & (classes < 0)).sum())
        also = f", and {variants:,} variants of them" if variants else ""
        notes.append(
            f"{len(people_left_out):,} people have no image that can be read and are left out{also}, the first is "
            f"{next(iter(people_left_out))!r}"
        )
    return tuple(dict.fromkeys(notes))
