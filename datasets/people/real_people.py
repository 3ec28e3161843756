"""Features of real people's pictures, and the real person that each person of a run shows.

The identity stage compares generated images with them.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from datasets.people.listing import Listing
from passersby.errors import InputError
from passersby.metrics.features import normalised

_SHOWN = 3  # the most names in a line


@dataclasses.dataclass(frozen=True)
class RealPeople:
    """M real pictures, as a network's features.

    features: [M, D] float32, rows of length 1. identities: [M] int64, above 0. persons: maps a run's person
    number to the identity of the real person that it shows, or to None where no picture shows that person;
    empty for runs of artificial people. name: the data set's name. pictures: [M] names of the pictures in the
    data set. people: maps an identity to the person's name in the data set. notes: lines for the user.
    """

    features: np.ndarray
    identities: np.ndarray
    persons: Mapping[int, int | None]
    name: str = ""
    pictures: tuple[str, ...] = ()
    people: Mapping[int, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.identities)

    def check(self, width: int) -> None:
        """Raises InputError unless the features have `width` values, as the network's features have."""
        if self.features.shape[1] != width:
            raise InputError(
                f"pictures of real people have {self.features.shape[1]} features, the network gives {width}: use one "
                "network for both"
            )


def real_people(listing: Listing, features: np.ndarray, names: Sequence[str] | None) -> RealPeople:
    """Join a listing and the features [M, D] of its images; the listing must not hold unreadable images.

    names: for runs from latents, the names that the data set gives the run's people, in the order of their
    numbers; `matched_names` matches them to the listing's people. None for artificial people. Junk and
    distractors show no person and are left out. Raises InputError for features that are not finite, where
    the number of features differs from that of the images, where the listing shows no person, and where it
    shows none of the run's people.
    """
    if len(features) != len(listing):
        raise InputError(f"{listing.name}: {len(features)} features of {len(listing)} images: give one for each image")
    is_person = listing.identities > 0
    if not is_person.any():
        raise InputError(f"{listing.name}: none of its {len(listing)} images is of a person who is known by name")
    features = normalised(np.asarray(features)[is_person], listing.name)
    listing = listing.take(is_person)
    persons: dict[int, int | None] = {}
    notes = []
    if names is not None:
        by_name = {name: identity for identity, name in listing.people.items()}
        matches = matched_names(names, by_name)
        persons = {person: by_name[matches[name]] if name in matches else None for person, name in enumerate(names)}
        missing = [name for name in names if name not in matches]
        shown = ", ".join(map(repr, missing[:_SHOWN])) + ", ..." * (len(missing) > _SHOWN)
        if missing and not matches:
            raise InputError(
                f"{listing.name}: none of the run's {len(missing):,} people ({shown}) is there: give with --real the "
                "data set that the latents were made of"
            )
        if missing:
            notes.append(
                f"{listing.name}: no picture of {len(missing):,} of the run's {len(names):,} people ({shown}): their "
                "variants have no identity_cosine"
            )
    return RealPeople(
        features, listing.identities, persons, listing.name, listing.names, dict(listing.people), tuple(notes)
    )


def matched_names(names: Iterable[str], real: Iterable[str]) -> dict[str, str]:
    """Map each name of `names` that belongs to a person of `real` to that person's name in `real`.

    Names are compared as text first. Where both are numbers, they are then compared by value: a run writes 2
    where a tree writes 0002.
    """
    real = set(real)
    by_value = collections.defaultdict(list)
    for name in real:
        if (value := _value(name)) is not None:
            by_value[value].append(name)
    matches = {}
    for name in dict.fromkeys(names):
        value = _value(name)
        same = [name] if name in real else by_value.get(value, []) if value is not None else []
        if len(same) == 1:  # where "7" and "007" are two real people, the match is unknown
            matches[name] = same[0]
    return matches


def _value(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdecimal() and len(name) < 19 else None
