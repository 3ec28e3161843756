"""The pictures to invert: their listing in the order of people, and the rows for workers."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.latents.plan import InversionUnit
from datasets.people.listing import SPLITS, TRAIN, Listing, joined
from datasets.people.readers import address, read_split
from passersby.errors import InputError


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The pictures of people, person by person in the order of identities, without junk and distractors.

    starts[p] is the index of person p's first picture in `listing`; the last of its P + 1 entries is the
    number of pictures. fingerprint: of all listed pictures, including those that `most` has left out. name:
    the data set's name.
    """

    name: str
    listing: Listing
    starts: np.ndarray
    fingerprint: str

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of pictures of each person."""
        return tuple(np.diff(self.starts).tolist())

    def names(self, people: int) -> list[str]:
        """The names of the first `people` people in the data set, in order."""
        return [self.listing.people[int(self.listing.identities[self.starts[p]])] for p in range(people)]

    def row(self, unit: InversionUnit) -> dict[str, int | list[int] | list[str] | list[bytes]]:
        """A unit as a Ray Data row: scalars, and lists with one entry a picture. A picture is a `file` (an absolute
        path as bytes, which need not be UTF-8) or its `content`."""
        first, end = self.starts[unit.first_person], self.starts[unit.first_person + unit.people]
        persons = np.repeat(np.arange(unit.people), np.diff(self.starts)[unit.first_person :][: unit.people])
        listing = self.listing
        contents = listing.files[first:end]
        files = all(isinstance(content, Path) for content in contents)
        identities = listing.identities[first:end].tolist()
        return {
            "unit": unit.unit,
            "person": (persons + unit.first_person).tolist(),
            "identity": identities,
            "name": [listing.people[identity] for identity in identities],
            "path": list(listing.names[first:end]),
            "camera": listing.cameras[first:end].tolist(),
            "split": list(listing.splits[first:end]),
            ("file" if files else "content"): [os.fsencode(c) if isinstance(c, Path) else c for c in contents],
        }


def list_pictures(
    root: str | Path, splits: Sequence[str], allow_test_people: bool = False, most: int | None = None
) -> Pictures:
    """List the pictures of people of some splits. Opens no picture.

    most: the most pictures of one person; they are spread evenly over all in the order of their names, and so
    over cameras. Raises InputError for data that cannot be read and for other splits than "train" without
    `allow_test_people`. Raises it for training and test people together too: some data sets number both from
    1, and a record names only one of the two kinds.
    """
    check_splits(splits, allow_test_people)
    where = address(root)
    base = where.parent if isinstance(where, Path) and where.is_file() else where
    everything = joined([read_split(root, split).people_only().below(base) for split in splits])
    if not allow_test_people:
        everything = everything.training()
    if len(set(everything.names)) != len(everything):
        raise InputError(f"{root}: the same picture is in two of the splits: give one of them")
    identities = everything.identities
    order = np.argsort(identities, kind="stable")
    _, starts = np.unique(identities[order], return_index=True)
    if most is not None:
        order = np.concatenate([_spread(indices, most) for indices in np.split(order, starts[1:])])
        _, starts = np.unique(identities[order], return_index=True)
    listing = everything.take(order)
    name = os.path.basename(os.path.abspath(where)) if isinstance(where, Path) else where.rstrip("/").rpartition("/")[2]
    fingerprint = everything.fingerprint()
    return Pictures(name, listing, np.append(starts, len(order)), fingerprint)


def check_splits(splits: Sequence[str], allow_test_people: bool) -> None:
    """Raises InputError for unknown splits, for a split given twice, and for people who may not be inverted."""
    if not splits or len(set(splits)) != len(splits) or set(splits) - set(SPLITS):
        raise InputError(f"--splits {' '.join(splits) or 'nothing'}: give some of {', '.join(SPLITS)}, each once")
    others = [split for split in splits if split != TRAIN]
    if others and not allow_test_people:
        raise InputError(
            f"--splits {' '.join(splits)}: {others[0]} shows people that re-ID networks are tested with, and pictures "
            "made of them must not be trained on: leave it out, or add --allow-test-people, which the record will say"
        )
    if others and TRAIN in splits:
        raise InputError(
            f"--splits {' '.join(splits)}: training and test people stay apart: invert them into two --out folders"
        )


def _spread(indices: np.ndarray, most: int) -> np.ndarray:
    if len(indices) <= most:
        return indices
    return indices[np.linspace(0, len(indices) - 1, most).round().astype(np.int64)]
