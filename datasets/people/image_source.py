"""The images of one GAN training, from a tree, folder or archive, divided into those trained on and those set aside.

Listing opens no image. What is listed is divided by people: those set aside are never trained on, so that a network's
pictures can be compared with people that it has not seen.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from datasets.people.archives import list_archive, list_labelled_folder
from datasets.people.listing import LABELS_FILE, TRAIN_FOLDER, Item, Listing, is_tree, list_folder, list_tree
from datasets.people.market_tree import identities_sha256
from passersby.errors import InputError
from passersby.options import Json

TOY_RECORD = "toy_crowd.json"
VALIDATION_SHARE = 20  # one in so many, where the number is not given
MOST_VALIDATION_PEOPLE, MOST_VALIDATION_IMAGES = 50, 500
_MOST_RECORD_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """The images of a training, undecoded: those trained on, and those of people set aside for validation.

    `root` is a folder or zip file that every worker sees; `Reader(root)` reads an item's bytes. `fingerprint` is a
    hash over names, sizes, labels and the split, as listed at first: it tells whether a training goes on with the data
    that it began with.
    """

    root: Path
    kind: str  # "tree" | "folder" | "zip"
    training: tuple[Item, ...]
    validation: tuple[Item, ...]
    left_out: dict[str, int]  # how many junk, distractors, unreadable
    toy_crowd: dict[str, str | int | float] | None
    fingerprint: str

    @property
    def record(self) -> dict[str, Json]:
        """What a network's file says of its data, as plain JSON values. `identities` is None where unknown."""
        record: dict[str, Json] = {
            "name": self.root.name,
            "kind": self.kind,
            "split": "train",
            **_counts(self.training),
            "validation": _counts(self.validation),
            "left_out": self.left_out,
            "fingerprint": self.fingerprint,
        }
        return record | ({"toy_crowd": self.toy_crowd} if self.toy_crowd is not None else {})

    def __str__(self) -> str:
        return f"{_say(self.training)}; set aside for validation: {_say(self.validation)}"

    def without(self, unreadable: Collection[str]) -> "ImageSource":
        """The same source without the items of these names."""
        names = set(unreadable)
        return dataclasses.replace(
            self,
            training=tuple(item for item in self.training if item.name not in names),
            validation=tuple(item for item in self.validation if item.name not in names),
            left_out=self.left_out | ({"unreadable": len(names)} if names else {}),
        )


def open_images(path: Path, validation_people: int | None = None) -> ImageSource:
    """List what may be trained on. Opens no image.

    path: a Market-1501 tree, of which only bounding_box_train is ever listed; a zip file or folder with a
    dataset.json; or a folder of images (`list_tree`, `list_archive`, `list_folder` say how they are read).
    validation_people: how many are set aside, the last in ascending order; an image whose identity is unknown counts
    as a person. None: see `default_validation`. Raises InputError for paths that cannot be read or hold nothing to
    train on, and for what would bring people of a test into the training.
    """
    given = Path(path).expanduser()
    root = given.resolve()
    if root.name == TRAIN_FOLDER and is_tree(root.parent):
        root = root.parent
    if root.is_file():
        listing = list_archive(root)
    elif not root.is_dir():
        raise InputError(f"no folder or zip file {given}: give a Market-1501 tree, a folder of images or a zip file")
    elif is_tree(root):
        listing = list_tree(root)
    elif (root / LABELS_FILE).is_file():
        listing = list_labelled_folder(root)
    else:
        listing = list_folder(root)
    if not listing.items:
        raise InputError(f"{given} holds only junk (-1) and distractors (0000): there is nobody to train on")
    training, validation = _split(listing.items, validation_people)
    return ImageSource(
        root,
        listing.kind,
        training,
        validation,
        listing.left_out,
        _toy_record(listing),
        _fingerprint(training, validation),
    )


def default_validation(items: Sequence[Item]) -> int:
    """How many people are set aside where nobody says: one in twenty, of known people at most 50.

    Of fewer than twenty people, none. Where an identity is unknown: one in twenty images, at most 500.
    """
    people = _people(items)
    if people is None:
        return min(len(items) // VALIDATION_SHARE, MOST_VALIDATION_IMAGES)
    return min(len(people) // VALIDATION_SHARE, MOST_VALIDATION_PEOPLE)


def _split(items: tuple[Item, ...], count: int | None) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Training and validation items. A data set's numbers mean nothing, so the last are as good as any."""
    people = _people(items)
    everybody = list(range(len(items))) if people is None else people
    count = default_validation(items) if count is None else count
    if not 0 <= count < len(everybody):
        raise InputError(
            f"--validation-people {count}: the data hold {len(everybody)}; give 0 to {len(everybody) - 1}, so that "
            "somebody is left to train on"
        )
    aside = set(everybody[len(everybody) - count :])
    keys = everybody if people is None else [item.identity for item in items]
    marked = list(zip(items, (key in aside for key in keys), strict=True))
    return tuple(item for item, out in marked if not out), tuple(item for item, out in marked if out)


def _people(items: Iterable[Item]) -> list[int] | None:
    """The identities, ascending; None where one is unknown."""
    people = {item.identity for item in items}
    known = sorted(identity for identity in people if identity is not None)
    return known if len(known) == len(people) else None


def _counts(items: Sequence[Item]) -> dict[str, Json]:
    people = _people(items)
    known = None if people is None else {"count": len(people), "sha256": identities_sha256(people)}
    return {"images": len(items), "identities": known}


def _say(items: Sequence[Item]) -> str:
    people = _people(items)
    of = "" if people is None else f" of {len(people)} {'person' if len(people) == 1 else 'people'}"
    return f"{len(items)} image{'s' * (len(items) != 1)}{of}" if items else "none"


def _fingerprint(training: Sequence[Item], validation: Sequence[Item]) -> str:
    digest = hashlib.sha256()
    for part, items in (("training", training), ("validation", validation)):
        for item in items:
            line = [part, item.name, item.size, item.label]
            digest.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def _toy_record(listing: Listing) -> dict[str, str | int | float] | None:
    """The scalars of a toy crowd's record: versions and hashes, not the lists it may also hold."""
    path = listing.root / TOY_RECORD
    if listing.kind != "tree" or not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            values = json.loads(file.read(_MOST_RECORD_BYTES))
        return {key: value for key, value in values.items() if isinstance(value, str | int | float)}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is no JSON object: make the toy crowd again") from error
