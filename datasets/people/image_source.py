"""The images of one GAN training, from a data set, folder or archive, divided into training and validation.

Listing opens no image. The images are divided by people. The network is never trained on the validation
people, so its pictures can be compared with people that it has not seen.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from datasets.people import any_folder, folders, market1501
from datasets.people.archives import LABELS_FILE, list_archive, list_labelled_folder
from datasets.people.decoding import Problem, Target, close_gaps, decode_bytes, decode_into, remarks
from datasets.people.layouts import training_root
from datasets.people.listing import TRAIN, Listing, identities_sha256, joined
from datasets.people.market1501 import toy_crowd_record
from datasets.people.readers import Reader, data_set, published_root, read_split
from datasets.reid.sources import people_sha256
from passersby.errors import InputError
from passersby.options import Json

VALIDATION_SHARE = 20  # one person in 20 is set aside where no number is given
MOST_VALIDATION_PEOPLE, MOST_VALIDATION_IMAGES = 50, 500
MOST_UNREADABLE = 0.1  # the largest share of all images


@dataclasses.dataclass(frozen=True)
class LabelledPeople:
    """The people whose identity labels a training may use.

    identities: their identities, ascending. draw: the seed that chose them (`Listing.drawn_people`); None where
    nobody was chosen, because all training people are labelled.
    """

    identities: tuple[int, ...]
    draw: int | None = None


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """The undecoded images of a training: the training images, and those of people set aside for validation.

    `root` is a folder or zip file that every worker sees; the images' names are relative to it.
    `fingerprint` is a hash over the names, sizes, labels and the split of the first listing. It shows
    whether a continued training has the data that it began with. `labelled` is given where a training uses
    identity labels.
    """

    root: Path
    kind: str  # "tree" | "data set" | "folder" | "zip"
    training: Listing
    validation: Listing
    left_out: Mapping[str, int]  # counts of junk, distractors, unreadable images and files of operating systems
    toy_crowd: dict[str, str | int | float] | None
    fingerprint: str
    labelled: LabelledPeople | None = None

    @property
    def record(self) -> dict[str, Json]:
        """The record of the data for the network's file, as plain JSON values. `identities` is None where unknown."""
        record: dict[str, Json] = {
            "name": self.root.name,
            "kind": self.kind,
            "split": "train",
            **self._counts(self.training),
            "validation": self._counts(self.validation),
            "left_out": dict(self.left_out),
            "fingerprint": self.fingerprint,
        }
        if self.labelled is not None:
            listing = self.training.of_people(self.labelled.identities)
            labelled = {"count": len(self.labelled.identities), "sha256": self._sha256(listing)}
            record["labelled"] = {**labelled, "draw": self.labelled.draw, "images": len(listing)}
        return record | ({"toy_crowd": self.toy_crowd} if self.toy_crowd is not None else {})

    def _counts(self, listing: Listing) -> dict[str, Json]:
        people = listing.known_people
        if people is None:
            return {"images": len(listing), "identities": None}
        return {"images": len(listing), "identities": {"count": len(people), "sha256": self._sha256(listing)}}

    def _sha256(self, listing: Listing) -> str:
        # Most readers number people by their order: only their names say whether two records mean the same people.
        named = self.kind == "data set"
        return people_sha256(listing.people.values()) if named else identities_sha256(listing.known_people or ())

    def __str__(self) -> str:
        return f"{_say(self.training)}; set aside for validation: {_say(self.validation)}"

    def without(self, unreadable: Collection[str]) -> "ImageSource":
        """The same source without the images of the names in `unreadable`."""
        names = set(unreadable)
        return dataclasses.replace(
            self,
            training=self.training.without(names),
            validation=self.validation.without(names),
            left_out={**self.left_out, **({"unreadable": len(names)} if names else {})},
        )


def open_images(
    path: Path, validation_people: int | None = None, labelled: tuple[int | None, int] | None = None
) -> ImageSource:
    """List the images that a network may be trained on. Opens no image.

    path: a data set that the re-ID readers know (`datasets.people.readers.data_set`), of which only the split
    "train" is ever listed; a zip file or folder with a dataset.json (`list_archive`); or a folder of images
    (`any_folder.read`). validation_people: the number of people set aside; they are the last ones in ascending
    order of identity, and an image whose identity is unknown counts as a person. None stands for
    `default_validation`. labelled: given where the training uses identity labels, as (count, draw): those of so many
    people whom the seed `draw` chooses, none of whom is set aside; with the count None those of all training people.
    Raises InputError for a path that cannot be read or holds no image to train on, for data that would bring people
    of a test into the training, and for labels that the data do not have.
    """
    path = Path(path).expanduser()
    root = published_root(training_root(path.resolve()))
    data = data_set(root)
    if data is not None:
        kind, listing = "tree" if data.reader is market1501 else "data set", _list_data_set(root, data.reader)
    elif root.is_file():
        kind, listing = "zip", list_archive(root)
    elif not root.is_dir():
        raise InputError(f"no folder or zip file {path}: give a data set for re-ID, a folder of images or a zip file")
    elif (root / LABELS_FILE).is_file():
        kind, listing = "folder", list_labelled_folder(root)
    else:
        kind, listing = "folder", any_folder.read(root)
    listing = listing.training(generator_data=root)
    if not len(listing):
        raise InputError(f"{path} holds only junk (-1) and distractors (0000): there is nobody to train on")
    count, draw = labelled or (None, 0)
    drawn = None if count is None else listing.drawn_people(count, draw)
    training, validation = _divided(listing, validation_people, drawn or ())
    people = None
    if labelled is not None:
        identities = training.named_people() if drawn is None else drawn
        people = LabelledPeople(tuple(identities), None if drawn is None else draw)
    toy_crowd = toy_crowd_record(root) if kind == "tree" else None
    return ImageSource(
        root, kind, training, validation, listing.left_out, toy_crowd, _fingerprint(training, validation), people
    )


def _list_data_set(root: Path, reader: Reader[Path]) -> Listing:
    """The training images of a data set or table, named below its folder. Raises InputError as `read_split` does,
    and for a file of a tree that cannot be read."""
    flat = folders.flat_training_folder(root) if reader is folders else None
    try:
        # A network that makes people needs no identities, so pictures that lie in no person's folder will do.
        listing = read_split(root, TRAIN) if flat is None else any_folder.read(flat)
        listing = listing.below(root.parent if root.is_file() else root).with_sizes()
    except OSError as error:
        raise InputError(f"cannot read {root}: {error.strerror or error}: check the path") from error
    missing = np.flatnonzero(listing.file_sizes() < 0)
    for index in missing if reader is market1501 else ():
        path = listing.contents[index]
        try:
            os.stat(path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}: check the file") from error
    return listing


def default_validation(listing: Listing) -> int:
    """The number of people set aside where the user gives none: one in twenty known people, at most 50.

    Of fewer than twenty people, nobody is set aside. Where an identity is unknown, one in twenty images is
    set aside, at most 500.
    """
    people = listing.known_people
    if people is None:
        return min(len(listing) // VALIDATION_SHARE, MOST_VALIDATION_IMAGES)
    return min(len(people) // VALIDATION_SHARE, MOST_VALIDATION_PEOPLE)


def _divided(listing: Listing, count: int | None, labelled: Collection[int]) -> tuple[Listing, Listing]:
    """Training and validation images; the last people are set aside, as identities have no meaning.

    Nobody of `labelled` is set aside: so few labels must not get fewer.
    """
    people = listing.known_people
    keys = np.arange(len(listing)) if people is None else listing.identities
    others = np.unique(keys) if people is None else np.setdiff1d(keys, list(labelled))
    most = len(others) if labelled else len(others) - 1
    count = min(default_validation(listing), most) if count is None else count
    if not 0 <= count <= most:
        whom = f"{len(others)} without a label" if labelled else f"{len(others)}"
        raise InputError(
            f"--validation-people {count}: the data hold {whom}; give 0 to {most}, so that somebody is left to train on"
        )
    is_validation = np.isin(keys, others[len(others) - count :])
    return listing.take(~is_validation), listing.take(is_validation)


def _say(listing: Listing) -> str:
    people = listing.known_people
    people_text = "" if people is None else f" of {len(people)} {'person' if len(people) == 1 else 'people'}"
    return f"{len(listing)} image{'s' * (len(listing) != 1)}{people_text}" if len(listing) else "none"


def _fingerprint(training: Listing, validation: Listing) -> str:
    digest = hashlib.sha256()
    for part, listing in (("training", training), ("validation", validation)):
        for name, size, label in zip(listing.file_names, listing.file_sizes().tolist(), listing.labels, strict=True):
            digest.update(json.dumps([part, name, size, label], separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


# ---- The decoded images.


@dataclasses.dataclass(frozen=True)
class LoadedImages:
    """A source without its unreadable images, and the pixels of its images, uint8 [N, H, W, 3] RGB, in the
    listing's order. remarks: lines for the user about peculiar pictures."""

    source: ImageSource
    training: np.ndarray
    validation: np.ndarray
    unreadable: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def load_images(source: ImageSource, target: Target, threads: int = 2) -> LoadedImages:
    """Decode every image of a source, once. Needs N * H * W * 3 bytes.

    Raises InputError where an image does not have the target's size and may not be brought to it. Raises it
    too where more than one image in ten cannot be read, or none of the training images can.
    """
    everything = joined([source.training, source.validation])
    peculiar: Counter[str] = Counter()
    images, problems = decode_target(everything, target, threads, peculiar)
    unreadable = check_problems(everything, problems, target)
    usable = source.without(unreadable)
    require_training(usable)
    count = len(usable.training)
    return LoadedImages(usable, images[:count], images[count:], unreadable, tuple(remarks(peculiar)))


def require_training(source: ImageSource) -> None:
    """Raises InputError where no readable image is left to train on."""
    if not len(source.training):
        raise InputError(f"not one training image of {source.root} can be read: make or fetch them again")


def decode_target(
    listing: Listing, target: Target, threads: int = 1, peculiar: Counter[str] | None = None
) -> tuple[np.ndarray, list[Problem | None]]:
    """Return the images without a problem, uint8 [n, H, W, 3] RGB in the listing's order, and each image's problem
    or None. `peculiar` is as for `decode_into`."""
    images = np.empty((len(listing), target.height, target.width, 3), np.uint8)
    problems = decode_into(listing, images, functools.partial(decode_bytes, target=target), threads, peculiar)
    indices = np.flatnonzero([problem is None for problem in problems])
    close_gaps(images, indices)
    return images[: len(indices)], problems


def check_problems(listing: Listing, problems: Iterable[Problem | None], target: Target) -> tuple[str, ...]:
    """Names of the unreadable images, which are left out. Raises InputError as `load_images` does."""
    faulty = [(name, problem) for name, problem in zip(listing.names, problems, strict=True) if problem]
    target_size = f"{target.height}x{target.width}"
    for kind in ("aspect", "small"):
        misfits = [(name, problem) for name, problem in faulty if problem.kind == kind]
        if not misfits:
            continue
        name, problem = misfits[0]
        ways = {
            "aspect": f"not of the aspect ratio of {target_size} (nothing is stretched): --fit crop takes their "
            "middle, pad repeats their edges, stretch changes their proportions",
            "small": f"smaller than {target_size}: give a smaller --height and --width, or --enlarge",
        }
        size = f"{problem.height}x{problem.width}"
        raise InputError(f"{len(misfits)} of {len(listing)} images, the first is {name} ({size}), are {ways[kind]}")
    unreadable = tuple(name for name, _ in faulty)
    if len(unreadable) > MOST_UNREADABLE * len(listing):
        raise InputError(
            f"{len(unreadable)} of {len(listing)} images cannot be read, the first is {unreadable[0]}: more than "
            "one in ten; make or fetch them again"
        )
    return unreadable
