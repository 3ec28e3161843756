"""What a re-ID training is made of, listed: real people, artificial people, and variants of the real ones.

Here every person gets a name that no other has, and a generated picture either a new person or a real one. Nothing
is decoded.
"""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.people.listing import TRAIN, Listing, identities_sha256
from datasets.people.market1501 import toy_crowd_record
from datasets.people.readers import address, read_split
from datasets.people.real_people import matched_names
from datasets.reid import runs
from datasets.reid.runs import first
from passersby.errors import InputError
from passersby.options import Json

SOURCES = ("real", "people", "variants")
REAL, PEOPLE, VARIANTS = range(3)
_SHOWN = 3  # names in a line


@dataclasses.dataclass(frozen=True)
class Source:
    """The images of one data set or run: `kind` is REAL, PEOPLE or VARIANTS; persons[i] is image i's class name."""

    kind: int
    listing: Listing
    persons: tuple[str, ...]
    toy_crowd: Mapping[str, str | int | float] | None = None

    def __len__(self) -> int:
        return len(self.persons)

    @property
    def people(self) -> dict[str, None]:
        """Class names of its people, each once, in order."""
        return dict.fromkeys(self.persons)

    def record(self, unreadable: Sequence[str]) -> dict[str, Json]:
        """What a network's file says of it, as plain JSON values; `unreadable`: names of images left out."""
        people = self.listing.people
        toy = {} if self.toy_crowd is None else {"toy_crowd": dict(self.toy_crowd)}
        record: dict[str, Json] = {
            "name": self.listing.name,
            "images": len(self) - len(unreadable),
            "people": len(people),
            "sha256": people_sha256(people.values()),
            "unreadable": list(unreadable),
            "fingerprint": self.listing.fingerprint(),
        }
        return record | toy


def people_sha256(names: Iterable[str]) -> str:
    """One hash for a set of people. Where all are called by numbers it is `identities_sha256`, as in the records of
    generators, so that the same people are seen to be the same; otherwise sha256 of the names, sorted, one a line."""
    names = set(names)
    if all(name.isascii() and name.isdecimal() for name in names):
        return identities_sha256(int(name) for name in names)
    lines = "".join(f"{name}\n" for name in sorted(names))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def list_sources(
    real: str | Path,
    people: Sequence[str | Path] = (),
    variants: Sequence[str | Path] = (),
    most_people: int | None = None,
    most_variants: int | None = None,
    draw_seed: int | None = None,
    filters: Sequence[str] = (),
) -> list[Source]:
    """The sources of a training: first the real one, then artificial people, then variants, each in the order given.

    most_people: the first so many artificial people in that order, so that 20 people hold the 10 of a smaller
    training. most_variants: the first so many variants of each person. draw_seed: of each source not the first people
    or variants, but the first in the order that this seed draws (datasets/reid/runs.py): 20 people hold the 10 of the
    same seed. filters: thresholds for images of runs, in place of each run's own
    (`datasets.runs.verdicts.with_filters`). Raises InputError for data that cannot be read, a source given twice,
    filters of what is no run, and variants that show nobody of the real people.
    """
    _check(people, variants, most_people, most_variants)
    listing = read_split(real, TRAIN)
    sources = [Source(REAL, listing, _persons(listing), _toy_crowd(real))]
    taken = set(sources[0].people)
    left = most_people
    for root in people:
        if left == 0:
            break
        listing = _first_people(_read(root, left, False, draw_seed, filters), left, draw_seed)
        named = _named_apart(listing, address(root), taken)
        sources.append(Source(PEOPLE, listing, named, _toy_crowd(root)))
        taken.update(named)
        left = None if left is None else left - len(sources[-1].people)
    seen: collections.Counter[str] = collections.Counter()
    for root in variants:
        source = _matched(_read(root, None, True, None, filters), sources[REAL], _toy_crowd(root))
        source = _first_images(source, most_variants, seen, draw_seed)
        if len(source):
            sources.append(source)
    return sources


def bytes_needed(counts: Iterable[int], height: int, width: int) -> int:
    """Bytes of the pixels of so many images, decoded, uint8 RGB: what `load_training_images` allocates."""
    return sum(counts) * height * width * 3


def _check(
    people: Sequence[str | Path], variants: Sequence[str | Path], most_people: int | None, most_variants: int | None
) -> None:
    for option, roots in (("--people", people), ("--variants", variants)):
        counts = collections.Counter(_one_way(root) for root in roots)
        twice = next((root for root, count in counts.items() if count > 1), None)
        if twice is not None:
            raise InputError(f"{option} {twice} is given twice: give it once")
    for option, value in (("--most-people", most_people), ("--most-variants", most_variants)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value}: must be 1 or more; leave {option[7:]} out to train on none")


def _one_way(root: str | Path) -> str:
    where = address(root)
    return where if isinstance(where, str) else os.path.realpath(where)


def _read(
    root: str | Path, most_people: int | None, latent_only: bool, draw_seed: int | None, filters: Sequence[str]
) -> Listing:
    where = address(root)
    if runs.holds(where):
        return runs.read_run(where, most_people, None, latent_only, draw_seed, filters)
    if filters:
        raise InputError(
            f"--filters {filters[0]}: {root} is no run of jobs/generate.py, and has no scores to filter by"
        )
    return read_split(root, TRAIN)


def _toy_crowd(root: str | Path) -> dict[str, str | int | float] | None:
    where = address(root)
    return toy_crowd_record(where) if isinstance(where, Path) else None


def _persons(listing: Listing) -> tuple[str, ...]:
    return tuple(listing.people[identity] for identity in listing.identities.tolist())


def _first_people(listing: Listing, most: int | None, draw_seed: int | None) -> Listing:
    if most is None:
        return listing
    people = dict.fromkeys(listing.identities.tolist())
    return listing.of_people(first(people, listing.people.__getitem__, most, draw_seed))


def _named_apart(listing: Listing, root: str | Path, taken: set[str]) -> tuple[str, ...]:
    """NAME/PERSON for each image, where NAME is the folder's, with #2 and so on if that would name somebody else."""
    name = os.path.basename(os.path.abspath(root)) if isinstance(root, Path) else root.rstrip("/").rpartition("/")[2]
    persons, label, number = _persons(listing), name, 2
    while any(f"{label}/{person}" in taken for person in set(persons)):
        label, number = f"{name}#{number}", number + 1
    return tuple(f"{label}/{person}" for person in persons)


def _matched(listing: Listing, real: Source, toy: Mapping[str, str | int | float] | None) -> Source:
    """The variants that show a real person, under that person's name (`datasets.people.real_people.matched_names`)."""
    matches = matched_names(_persons(listing), real.people)
    strangers = [person for person in dict.fromkeys(_persons(listing)) if person not in matches]
    shown = ", ".join(map(repr, strangers[:_SHOWN])) + ", ..." * (len(strangers) > _SHOWN)
    if not matches:
        raise InputError(
            f"{listing.name}: none of its {len(strangers):,} people ({shown}) is a person of {real.listing.name}: give "
            "variants of the people trained on, or new people with --people"
        )
    if strangers:
        known = np.array([person in matches for person in _persons(listing)])
        listing = listing.take(known).with_notes(
            f"{listing.name}: {int((~known).sum()):,} variants of {len(strangers):,} people who are not in "
            f"{real.listing.name} are left out: {shown}"
        )
    return Source(VARIANTS, listing, tuple(matches[person] for person in _persons(listing)), toy)


def _first_images(source: Source, most: int | None, seen: collections.Counter[str], draw_seed: int | None) -> Source:
    """At most `most` images of each person, those of earlier sources (`seen`, which is kept up) counted."""
    if most is None:
        return source
    places = collections.defaultdict(list)
    for place, person in enumerate(source.persons):
        places[person].append(place)
    kept = []
    for person, its in places.items():
        kept += first(its, source.listing.names.__getitem__, max(most - seen[person], 0), draw_seed)
        seen[person] += len(its)
    kept.sort()
    return Source(
        source.kind, source.listing.take(kept), tuple(source.persons[place] for place in kept), source.toy_crowd
    )
