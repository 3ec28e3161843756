"""The listing: pictures of people, none opened yet, of any origin and for any purpose.

Every reader returns a listing. Trainings, evaluation, inversion, calibration and scores take their pictures
from one. `Listing.training` alone decides which pictures a network may be trained on.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from datasets.people.names import DISTRACTOR_IDENTITY, JUNK_IDENTITY, printable_name
from passersby.errors import InputError

TRAIN, QUERY, GALLERY, MULTI_QUERY = "train", "query", "gallery", "multi-query"
SPLITS = (TRAIN, QUERY, GALLERY, MULTI_QUERY)
UNKNOWN_CAMERA = -1
UNKNOWN_PERSON = int(
    np.iinfo(np.int64).min
)  # no reader gives this number; -1 would not do, as folders may be called -5
CLUTTER = "system_files"  # the key in `left_out` of the number of files that operating systems left
NOBODY = {JUNK_IDENTITY: "junk", DISTRACTOR_IDENTITY: "distractors"}
_STAT_THREADS = 16  # sizes of files: network disks answer slowly and many at a time

Content = Path | str | bytes  # a file; the name of a member of the listing's archive; an encoded picture
Label = int | tuple[float, ...]  # a class number, or a vector


@dataclasses.dataclass(frozen=True)
class Listing:
    """Images of people, none opened yet: entry i of every field is image i.

    name: for messages ("market1501 query"). contents: files, encoded bytes, or members of the zip file
    `archive`. identities: [N] int64; a person's is > 0 in re-ID data, 0 is a distractor (in the gallery, and
    always a wrong answer), -1 is junk (never counted), UNKNOWN_PERSON is an unknown identity. cameras: [N]
    int64, UNKNOWN_CAMERA where a camera is unknown. names: the images' names, relative and unique. people:
    maps an identity to the person's name in the data set. In both, bytes that are not UTF-8 are written as
    \\xNN, so that any file can hold them; contents keep the files' own names. notes: lines for the user about
    missing or odd data. splits: the split of each image, "" where it is unknown. labels: each image's label
    from a dataset.json, None without one. sizes: [N] int64 bytes (of an archive's members unpacked) at the
    time of listing; None where they were not read. left_out: the numbers of junk images, distractors and
    files of operating systems that were taken out.
    """

    name: str
    contents: tuple[Content, ...]
    identities: np.ndarray
    cameras: np.ndarray
    names: tuple[str, ...]
    people: Mapping[int, str]
    notes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()  # () stands for N of ""
    labels: tuple[Label | None, ...] = ()  # () stands for N of None
    sizes: np.ndarray | None = None
    archive: Path | None = None
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        count = len(self.contents)
        object.__setattr__(self, "identities", np.asarray(self.identities, np.int64))
        object.__setattr__(self, "cameras", np.asarray(self.cameras, np.int64))
        object.__setattr__(self, "name", printable_name(self.name))
        object.__setattr__(self, "names", tuple(map(printable_name, self.names)))
        people = {identity: printable_name(name) for identity, name in self.people.items()}
        object.__setattr__(self, "people", people)
        object.__setattr__(self, "notes", tuple(map(printable_name, self.notes)))
        object.__setattr__(self, "splits", self.splits or ("",) * count)
        object.__setattr__(self, "labels", self.labels or (None,) * count)
        if self.sizes is not None:
            object.__setattr__(self, "sizes", np.asarray(self.sizes, np.int64))
        columns = (self.identities, self.cameras, self.names, self.splits, self.labels, self.sizes)
        lengths = {count, *(len(column) for column in columns if column is not None)}
        if len(lengths) != 1:
            raise ValueError(f"{self.name}: fields of different lengths {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def has_cameras(self) -> bool:
        """Whether the camera of every image is known, so that the protocol's camera rule can be applied."""
        return len(self) > 0 and bool((self.cameras != UNKNOWN_CAMERA).all())

    @property
    def known_people(self) -> list[int] | None:
        """The identities, ascending; None where the identity of any image is unknown."""
        identities = np.unique(self.identities).tolist()
        return None if UNKNOWN_PERSON in identities else identities

    @property
    def file_names(self) -> tuple[str, ...]:
        """`names` as the file system has them, with surrogates for bytes that are not UTF-8: for fingerprints."""
        return tuple(map(_file_name, self.names, self.contents))

    @functools.cached_property
    def files(self) -> tuple[Path | bytes, ...]:
        """The contents as files or encoded bytes. Raises ValueError for members of an archive, which need a Reader."""
        files = tuple(content for content in self.contents if not isinstance(content, str))
        if len(files) < len(self):
            raise ValueError(f"{self.name}: its images lie in {self.archive}, not in files")
        return files

    # ---- Selections of the images.

    def take(self, indices: Sequence[int] | np.ndarray) -> "Listing":
        """The images at these indices, in this order, or where a mask is true; `people` holds only their people."""
        indices = np.asarray(indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        indices = indices.astype(np.int64)
        chosen = self.identities[indices]
        remaining_people = set(np.unique(chosen).tolist())
        return dataclasses.replace(
            self,
            contents=tuple(self.contents[index] for index in indices),
            identities=chosen,
            cameras=self.cameras[indices],
            names=tuple(self.names[index] for index in indices),
            people={identity: name for identity, name in self.people.items() if identity in remaining_people},
            splits=tuple(self.splits[index] for index in indices),
            labels=tuple(self.labels[index] for index in indices),
            sizes=None if self.sizes is None else self.sizes[indices],
        )

    def of_people(self, identities: Iterable[int]) -> "Listing":
        """The images of these people."""
        return self.take(np.isin(self.identities, list(identities)))

    def without(self, names: Collection[str]) -> "Listing":
        """The images whose names are not in `names`."""
        return self.take(np.array([name not in names for name in self.names], bool))

    def people_only(self) -> "Listing":
        """The images without junk and distractors, which show no person to train on or to search for.

        `left_out` and a note give their numbers.
        """
        nobody = np.isin(self.identities, list(NOBODY))
        if not nobody.any():
            return self
        counts = {kind: int((self.identities == identity).sum()) for identity, kind in NOBODY.items()}
        left_out = {kind: count + self.left_out.get(kind, 0) for kind, count in sorted(counts.items()) if count}
        listing = dataclasses.replace(self.take(~nobody), left_out={**self.left_out, **left_out})
        return listing.with_notes(f"{self.name}: {int(nobody.sum()):,} junk images and distractors are left out")

    def training(self, generator_data: Path | None = None) -> "Listing":
        """The images that a network may be trained on. This rule alone keeps test people out of every training.

        All images must be of the split "train"; junk and distractors are left out. generator_data: given where
        the trained network makes pictures of people; it is the folder, zip file or table that lists the images.
        Re-ID networks are trained with such pictures and measured on test people, so
        `datasets.people.guard.refuse_test_people` checks the names and the location as well. Raises InputError
        for images that may not be trained on.
        """
        others = sorted(set(self.splits) - {TRAIN})
        if others:
            raise InputError(
                f"{self.name}: {sum(split != TRAIN for split in self.splits):,} of {len(self):,} images are not of the "
                f"split {TRAIN}, but of {', '.join(map(repr, others))}: train on images of {TRAIN} only"
            )
        if generator_data is not None:
            from datasets.people.guard import refuse_test_people  # the guard asks the readers, which make listings

            refuse_test_people(generator_data, self.names, self.contents)
        return self.people_only()

    def drawn_people(self, count: int, draw: int) -> list[int]:
        """The identities, ascending, of `count` people whom the seed `draw` chooses.

        The draw depends on the people's names in the data set alone (a name that is a number counts by its value), so
        every job and every reader draws the same people. It is nested: the first 20 people are among the first 60.
        Junk and distractors are nobody. Raises InputError, which names --labelled-people, where the listing does not
        have so many people of known identity.
        """
        names = {self.people.get(identity, str(identity)): identity for identity in self.named_people()}
        if not 1 <= count <= len(names):
            raise InputError(
                f"--labelled-people {count}: {self.name} has {len(names)} people of known identity: give fewer, or "
                "data that say who is who"
            )
        return sorted(names[name] for name in drawn_names(names, draw)[:count])

    def named_people(self) -> list[int]:
        """The identities, ascending, that name a person: not junk, distractors and unknown people."""
        return [i for i in np.unique(self.identities).tolist() if i not in NOBODY and i != UNKNOWN_PERSON]

    # ---- The same images with other fields.

    def of_split(self, split: str) -> "Listing":
        """The same images, all assigned to this split."""
        return dataclasses.replace(self, splits=(split,) * len(self))

    def with_notes(self, *notes: str) -> "Listing":
        """The same listing with added notes; empty notes are left out."""
        return dataclasses.replace(self, notes=(*self.notes, *(note for note in notes if note)))

    def with_sizes(self) -> "Listing":
        """The same listing with the sizes of all images; -1 where a file is missing, which will be unreadable."""
        return dataclasses.replace(self, sizes=self.file_sizes())

    def below(self, root: str | Path) -> "Listing":
        """The same images; files get absolute paths, and names relative to `root`, which are unique over
        splits. A file that does not lie below `root` keeps its name."""
        base = os.path.abspath(root)
        contents = tuple(Path(os.path.abspath(c)) if isinstance(c, Path) else c for c in self.contents)
        names = tuple(
            content.relative_to(base).as_posix() if isinstance(content, Path) and content.is_relative_to(base) else name
            for content, name in zip(contents, self.names, strict=True)
        )
        return dataclasses.replace(self, contents=contents, names=names)

    def fingerprint(self) -> str:
        """sha256, in hex, over the names, identities, cameras and sizes in bytes of all images, in their order.

        Opens no image, so 100,000 files take about two seconds. The hash does not change where a picture is
        replaced by another one of the same name and size.
        """
        digest = hashlib.sha256()
        rows = zip(
            self.file_names, self.identities.tolist(), self.cameras.tolist(), self.file_sizes().tolist(), strict=True
        )
        for name, identity, camera, size in rows:
            digest.update(f"{name}\0{identity}\0{camera}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def file_sizes(self) -> np.ndarray:
        """Bytes of each image, [N] int64: `sizes` where they were listed, otherwise the sizes at this moment."""
        if self.sizes is not None:
            return self.sizes
        with ThreadPoolExecutor(_STAT_THREADS) as pool:
            return np.fromiter(pool.map(_size, self.contents, chunksize=256), np.int64, len(self))


def joined(listings: Sequence[Listing]) -> Listing:
    """The images of several listings, one after the other. All must have the same archive, or none (ValueError)."""
    if len({listing.archive for listing in listings}) > 1:
        raise ValueError("listings of different archives cannot be joined")
    sizes = [listing.sizes for listing in listings if listing.sizes is not None]
    return Listing(
        name=" and ".join(dict.fromkeys(listing.name for listing in listings)),
        contents=tuple(content for listing in listings for content in listing.contents),
        identities=np.concatenate([listing.identities for listing in listings]),
        cameras=np.concatenate([listing.cameras for listing in listings]),
        names=tuple(name for listing in listings for name in listing.names),
        people={identity: name for listing in listings for identity, name in listing.people.items()},
        notes=tuple(note for listing in listings for note in listing.notes),
        splits=tuple(split for listing in listings for split in listing.splits),
        labels=tuple(label for listing in listings for label in listing.labels),
        sizes=np.concatenate(sizes) if len(sizes) == len(listings) else None,
        archive=listings[0].archive,
    )


def identities_sha256(people: Iterable[int]) -> str:
    """One hash for a set of identities: sha256 of the ascending numbers, one a line, as written in ASCII."""
    return hashlib.sha256("".join(f"{person}\n" for person in sorted(people)).encode()).hexdigest()


def _file_name(name: str, content: Content) -> str:
    if "\\x" not in name or not isinstance(content, Path):
        return name
    file_name = "/".join(content.parts[-1 - name.count("/") :])
    return file_name if printable_name(file_name) == name else name


def drawn_key(draw_seed: int, name: str) -> bytes:
    """The sort key that puts names into the order that a seed draws: the sha256 of seed and name.

    An item's key does not depend on other items, so the others keep their order where a filter removes an item.
    In a permutation of numbers it would depend on them.
    """
    return hashlib.sha256(f"{draw_seed}\n{name}".encode("utf-8", "surrogateescape")).digest()


def drawn_names(names: Iterable[str], draw_seed: int) -> list[str]:
    """People's names in the order that a seed draws. Names that are numbers count by their value, as 2 and 0002 are
    one person in two readers."""

    def key(name: str) -> tuple[bytes, str]:
        is_number = name.isascii() and name.isdecimal() and len(name) < 19
        return drawn_key(draw_seed, str(int(name)) if is_number else name), name

    return sorted(names, key=key)


def _size(content: Content) -> int:
    if isinstance(content, bytes):
        return len(content)
    try:
        return os.stat(content).st_size
    except OSError:
        return -1
