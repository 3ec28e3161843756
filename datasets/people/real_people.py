"""Pictures of real people as features, and who of a run is who of them: what the identity stage compares with."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from datasets.people.listing import Listing
from passersby.errors import InputError
from passersby.metrics.features import normalised

_SHOWN = 3  # names in a line


@dataclasses.dataclass(frozen=True)
class RealPeople:
    """Real pictures, M of them, as a network sees them.

    features: [M, D] float32, rows of length 1. identities: [M] int64, above 0. persons: a run's person number -> the
    identity of the real person that it shows, None where there is no picture of him; empty for runs of artificial
    people. name: of the data set; pictures: [M] names of the pictures in it; people: identity -> what the data set
    calls him. notes: lines for the user.
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
        """InputError unless the features are of a network of so many values."""
        if self.features.shape[1] != width:
            raise InputError(
                f"pictures of real people have {self.features.shape[1]} features, the network gives {width}: use one "
                "network for both"
            )


def real_people(listing: Listing, features: np.ndarray, names: Sequence[str] | None) -> RealPeople:
    """The people of a listing and the features [M, D] of its images, one each; unreadable ones taken out of both.

    names: what the data set calls the run's people, in the order of their numbers (runs from latents), matched to those
    of the listing as `matched_names` does; None for artificial people. Junk and distractors are nobody, and left out.
    Raises InputError for features that are not finite or not one for each image, without any person, and where none of
    the run's people is there.
    """
    if len(features) != len(listing):
        raise InputError(f"{listing.name}: {len(features)} features of {len(listing)} images: give one for each image")
    kept = listing.identities > 0
    if not kept.any():
        raise InputError(f"{listing.name}: none of its {len(listing)} images is of a person who is known by name")
    features = normalised(np.asarray(features)[kept], listing.name)
    listing = listing.take(kept)
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
    """name -> the real person's, for those of `names` who are one of `real`.

    Names are compared as they are, then, where both are numbers, by value: a run writes 2 where a tree writes 0002.
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
        if len(same) == 1:  # of two real people "7" and "007", nobody knows which
            matches[name] = same[0]
    return matches


def _value(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdecimal() and len(name) < 19 else None
