"""The sources of a re-ID training: listings of real people, artificial people, and variants of the real people.

Every person gets a unique name here. Every generated picture is assigned to a new person or to a real one. Where a
training may use the labels of some real people only, pictures of the others are unlabelled. Some of these may still be
trained on: further people with their labels, for comparison, and single pictures, each of which is a class of its own.
No image is decoded.
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

SOURCES = ("real", "people", "variants", "further", "singles")
REAL, PEOPLE, VARIANTS, FURTHER, SINGLES = range(5)
GENERATED = (PEOPLE, VARIANTS)  # the other sources are real pictures
LATER = (FURTHER, SINGLES)  # records of trainings without these sources do not name them
SINGLE = "single"  # classes of single pictures are named "single/NAME"
_SHOWN = 3  # the most names in a line


@dataclasses.dataclass(frozen=True)
class Source:
    """The images of one data set or run: `kind` is an index of SOURCES; persons[i] is image i's class name.

    draw: the seed that chose the people whose labels are used (`Listing.drawn_people`); None where all are used.
    after: the number of people before these in that draw. pool: the listing from which some pictures were chosen, None
    where all were.
    """

    kind: int
    listing: Listing
    persons: tuple[str, ...]
    toy_crowd: Mapping[str, str | int | float] | None = None
    draw: int | None = None
    after: int = 0
    pool: Listing | None = None

    def __len__(self) -> int:
        return len(self.persons)

    @property
    def people(self) -> dict[str, None]:
        """The class names of the source's people, each once, in order."""
        return dict.fromkeys(self.persons)

    def record(self, unreadable: Sequence[str]) -> dict[str, Json]:
        """The source's record for a network's file, as plain JSON values. unreadable: names of images left out."""
        people = self.listing.people
        toy = {} if self.toy_crowd is None else {"toy_crowd": dict(self.toy_crowd)}
        images, sha256 = len(self) - len(unreadable), people_sha256(people.values())
        record: dict[str, Json] = {
            "name": self.listing.name,
            "images": images,
            "people": len(people),
            "sha256": sha256,
            "unreadable": list(unreadable),
            "fingerprint": self.listing.fingerprint(),
        }
        if self.draw is not None:  # in the form of a generator's record
            drawn = {"count": len(people), "sha256": sha256, "draw": self.draw, "images": images}
            record["labelled"] = drawn | ({"after": self.after} if self.after else {})
        if self.pool is not None:
            everybody = self.pool.people.values()
            record["of"] = {"people": len(self.pool.people), "sha256": people_sha256(everybody)}
        return record | toy


def people_sha256(names: Iterable[str]) -> str:
    """One hash for a set of people.

    Where all names are numbers it is `identities_sha256`, as in the records of generators, so that the same
    people have the same hash. Otherwise it is the sha256 of the names, sorted, one a line.
    """
    names = set(names)
    if all(name.isascii() and name.isdecimal() for name in names):
        return identities_sha256(int(name) for name in names)
    lines = "".join(f"{name}\n" for name in sorted(names))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Whose labels a training may use: `people` of the real people, chosen by the seed `draw` (None: all of them).

    further: the number of people after these in the draw, who are trained on as well, as a source of their own.
    singles: the number of pictures of all other people, each a class of its own; the same seed draws them.
    """

    people: int | None = None
    draw: int = 0
    further: int = 0
    singles: int = 0


EVERYBODY = Labelled()


def list_sources(
    real: str | Path,
    people: Sequence[str | Path] = (),
    variants: Sequence[str | Path] = (),
    most_people: int | None = None,
    most_variants: int | None = None,
    draw_seed: int | None = None,
    filters: Sequence[str] = (),
    labelled: Labelled = EVERYBODY,
) -> list[Source]:
    """List the sources of a training: the real data, then artificial people, then variants, in the order given.

    labelled: whose labels the training may use. Sources of further people and of single pictures follow the first.

    most_people: take only this many artificial people, the first ones in that order. So the 20 people of one
    training include the 10 people of a smaller one. most_variants: take only the first this many variants of
    each person. draw_seed: take the people or variants of each source in the order that this seed draws, not
    in their own order (datasets/reid/runs.py). With the same seed, 20 people include the 10 people too.
    filters: thresholds for the images of runs, in place of each run's own (`datasets.runs.verdicts.with_filters`).
    Raises InputError for data that cannot be read, for a source given twice, for filters of data that are no
    run, and for variants that show none of the real people.
    """
    _check(people, variants, most_people, most_variants)
    sources = _real_sources(real, labelled)
    taken = {person for source in sources for person in source.people}
    remaining = most_people
    for root in people:
        if remaining == 0:
            break
        listing = _first_people(_read(root, remaining, False, draw_seed, filters), remaining, draw_seed)
        named = _named_apart(listing, address(root), taken)
        sources.append(Source(PEOPLE, listing, named, _toy_crowd(root)))
        taken.update(named)
        remaining = None if remaining is None else remaining - len(sources[-1].people)
    seen: collections.Counter[str] = collections.Counter()
    for root in variants:  # of labelled people: who is on a variant is a label too
        source = _matched(_read(root, None, True, None, filters), sources[REAL], _toy_crowd(root))
        source = _first_images(source, most_variants, seen, draw_seed)
        if len(source):
            sources.append(source)
    return sources


def list_donors(real: str | Path, labelled: Labelled, roots: Sequence[str | Path], most: int) -> list[Source]:
    """The pictures that give surroundings and colours: at most `most`, drawn by the seed of the labels.

    roots: runs, folders or tables; by default the training pictures of all people beside the `labelled.people`, further
    people included, so that trainings with and without these have the same donors. Where everybody is labelled, all
    training pictures. Raises InputError as `list_sources` does.
    """
    if roots:
        pools = [(_read(root, None, False, None, ()), _toy_crowd(root)) for root in roots]
        listings = [pool for pool, _ in pools]
    else:
        pools = [(read_split(real, TRAIN), _toy_crowd(real))]
        listings = [_without_labelled(pools[0][0], labelled)]
    keys = [(number, index) for number, listing in enumerate(listings) for index in range(len(listing))]
    chosen = first(keys, lambda key: f"{key[0]}/{listings[key[0]].names[key[1]]}", most, labelled.draw)
    sources = []
    for number, (pool, toy) in enumerate(pools):
        listing = listings[number].take(sorted(index for place, index in chosen if place == number))
        if len(listing):
            sources.append(Source(REAL, listing, _persons(listing), toy, pool=pool))
    return sources


def _without_labelled(listing: Listing, labelled: Labelled) -> Listing:
    if labelled.people is None:
        return listing
    others = listing.take(~np.isin(listing.identities, listing.drawn_people(labelled.people, labelled.draw)))
    return others if len(others) else listing


def _real_sources(real: str | Path, labelled: Labelled) -> list[Source]:
    listing, toy, count = read_split(real, TRAIN), _toy_crowd(real), labelled.people
    if count is None:
        return [Source(REAL, listing, _persons(listing), toy)]
    drawn = listing.drawn_people(count, labelled.draw)
    known = len(listing.named_people())
    if count + labelled.further > known:
        raise InputError(
            f"--further-people {labelled.further}: {listing.name} has {known - count} people beside the {count} of "
            "--labelled-people: give fewer"
        )
    both = listing.drawn_people(count + labelled.further, labelled.draw)
    parts = [(REAL, listing.of_people(drawn), 0)]
    if labelled.further:
        parts.append((FURTHER, listing.of_people(sorted(set(both) - set(drawn))), count))
    sources = [Source(kind, part, _persons(part), toy, labelled.draw, after, listing) for kind, part, after in parts]
    if labelled.singles:
        rest = listing.take(~np.isin(listing.identities, both))
        if labelled.singles > len(rest):
            raise InputError(
                f"--single-pictures {labelled.singles}: {listing.name} has {len(rest)} pictures of people without a "
                "label: give fewer"
            )
        chosen = first(range(len(rest)), rest.names.__getitem__, labelled.singles, labelled.draw)
        rest = rest.take(sorted(chosen))
        sources.append(Source(SINGLES, rest, tuple(f"{SINGLE}/{name}" for name in rest.names), toy, pool=listing))
    return sources


def bytes_needed(counts: Iterable[int], height: int, width: int) -> int:
    """The bytes of the decoded pixels, uint8 RGB, of all `counts` images, which `load_training_images` allocates."""
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
    """NAME/PERSON for each image. NAME is the folder's name, with #2 and so on where NAME/PERSON is taken."""
    name = os.path.basename(os.path.abspath(root)) if isinstance(root, Path) else root.rstrip("/").rpartition("/")[2]
    persons, label, number = _persons(listing), name, 2
    while any(f"{label}/{person}" in taken for person in set(persons)):
        label, number = f"{name}#{number}", number + 1
    return tuple(f"{label}/{person}" for person in persons)


def _matched(listing: Listing, real: Source, toy: Mapping[str, str | int | float] | None) -> Source:
    """The variants that show a real person, with that person's name (`datasets.people.real_people.matched_names`)."""
    matches = matched_names(_persons(listing), real.people)
    strangers = [person for person in dict.fromkeys(_persons(listing)) if person not in matches]
    shown = ", ".join(map(repr, strangers[:_SHOWN])) + ", ..." * (len(strangers) > _SHOWN)
    if not matches:
        raise InputError(
            f"{listing.name}: none of its {len(strangers):,} people ({shown}) is a person of {real.listing.name}: give "
            "variants of the people trained on, or new people with --people"
        )
    if strangers:
        is_matched = np.array([person in matches for person in _persons(listing)])
        listing = listing.take(is_matched).with_notes(
            f"{listing.name}: {int((~is_matched).sum()):,} variants of {len(strangers):,} people who are not in "
            f"{real.listing.name} are left out: {shown}"
        )
    return Source(VARIANTS, listing, tuple(matches[person] for person in _persons(listing)), toy)


def _first_images(source: Source, most: int | None, seen: collections.Counter[str], draw_seed: int | None) -> Source:
    """At most `most` images of each person, including the images of earlier sources.

    seen: the number of images of each person in earlier sources; this function adds those of `source`.
    """
    if most is None:
        return source
    indices_of_person = collections.defaultdict(list)
    for index, person in enumerate(source.persons):
        indices_of_person[person].append(index)
    chosen = []
    for person, indices in indices_of_person.items():
        chosen += first(indices, source.listing.names.__getitem__, max(most - seen[person], 0), draw_seed)
        seen[person] += len(indices)
    chosen.sort()
    return Source(
        source.kind, source.listing.take(chosen), tuple(source.persons[index] for index in chosen), source.toy_crowd
    )
