"""Reader of any folder of pictures: data for training a GAN need no layout of re-ID data.

All pictures below the folder are for training. Their identities come from names as in Market-1501 or
DukeMTMC-reID, or from the sub-folders; otherwise they are unknown. `of_names` lists other data without a layout as
well: zip files, flat folders and sets that are scored.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.people.layouts import refuse_data_sets_inside, refuse_held_out_place
from datasets.people.listing import CLUTTER, NOBODY, TRAIN, UNKNOWN_CAMERA, UNKNOWN_PERSON, Content, Label, Listing
from datasets.people.names import SUFFIXES_TEXT, is_clutter, is_image, normal_name, parse_duke_name, parse_name
from datasets.people.splits import clutter_note
from passersby.errors import InputError

People = tuple[Sequence[int], Mapping[int, str]]  # the identities of the images; identity -> the person's name


def read(root: Path) -> Listing:
    """Every image below a folder, in the order of the names. Opens no image.

    Identities come from the names where all names have the form of Market-1501 or of DukeMTMC-reID. Otherwise
    they come from the first-level sub-folders, where every image lies in one: a sub-folder's number is the
    identity, or 1, 2, ... in the order of the sub-folders' names. Otherwise they are unknown. Raises InputError
    for folders that cannot be read, are links or hold no image, and for folders around a data set.
    """
    files = training_files(root)
    return files.listing(root, people=_folder_people(sorted(files.sizes)))


@dataclasses.dataclass(frozen=True)
class Files:
    """The files below a folder. sizes: maps the normal name (`normal_name`) of each image to its size in bytes.

    paths: maps the same names to the files. clutter: the number of files and folders of operating systems.
    """

    sizes: Mapping[str, int]
    paths: Mapping[str, Path]
    clutter: int

    def listing(self, root: Path, people: People | None = None, labels: Mapping[str, Label] | None = None) -> Listing:
        """The listing of these images, all for training, in the order of their names."""
        names = sorted(self.sizes)
        contents = [self.paths[name] for name in names]
        listing = of_names(root, names, contents, people=people, labels=labels, sizes=self.sizes, split=TRAIN)
        return without_clutter(listing, self.clutter)


def without_clutter(listing: Listing, count: int) -> Listing:
    """The listing, with the number of files of operating systems that were left out of it."""
    if not count:
        return listing
    listing = dataclasses.replace(listing, left_out={**listing.left_out, CLUTTER: count})
    return listing.with_notes(clutter_note(listing.name, count))


def training_files(root: Path) -> Files:
    """The files below a folder whose images are all to be trained on.

    Raises InputError where a folder cannot be read, or is a link: a link could hide a tree's held-out people.
    Raises it too where a data set with test people lies below the folder, or where two names differ only in
    their separators.
    """
    folders, clutter = [root], 0
    sizes: dict[str, int] = {}
    paths: dict[str, Path] = {}
    others: list[str] = []
    while folders:
        folder = folders.pop()
        try:
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                path = Path(entry.path)
                name = normal_name(path.relative_to(root).as_posix())
                if is_clutter(name):
                    clutter += 1
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_symlink() and entry.is_dir():
                    raise InputError(f"{path} is a link to a folder: give that folder itself, or copy it")
                elif is_image(name) and entry.is_file():
                    if entry.is_symlink():
                        refuse_held_out_place(path.resolve())
                    if name in sizes:
                        raise InputError(
                            f"{paths[name]} and {path} have one name, {name}: rename or remove one of them"
                        )
                    sizes[name], paths[name] = entry.stat().st_size, path
                else:
                    others.append(name)
        except OSError as error:
            raise InputError(f"cannot read {folder}: {error.strerror or error}: check the path") from error
    refuse_data_sets_inside(root, [*others, *sizes])
    return Files(sizes, paths, clutter)


def of_names(
    root: Path,
    names: Sequence[str],
    contents: Sequence[Content],
    *,
    people: People | None = None,
    labels: Mapping[str, Label] | None = None,
    sizes: Mapping[str, int] | None = None,
    archive: Path | None = None,
    split: str = "",
) -> Listing:
    """List the images of these names and contents. Identities come from the names where all have the form of
    Market-1501, or all that of DukeMTMC-reID.

    people: the identities otherwise, None where they are unknown. An image whose own name says junk or
    distractor is one in any case. Raises InputError where there is no image.
    """
    if not names:
        raise InputError(f"no images ({SUFFIXES_TEXT}) in {root}")
    parsed_names = [parse_name(name) for name in names]
    market = [image for image in parsed_names if image is not None]
    cameras = [UNKNOWN_CAMERA] * len(names)
    if len(market) == len(names):
        cameras = [image.camera for image in market]
        people = [image.identity for image in market], {image.identity: f"{image.identity:04d}" for image in market}
    duke = [numbers for numbers in map(parse_duke_name, names) if numbers is not None]
    if len(duke) == len(names):
        cameras = [camera for _, camera in duke]
        people = [identity for identity, _ in duke], {identity: f"{identity:04d}" for identity, _ in duke}
    identities, people_names = people or ([UNKNOWN_PERSON] * len(names), {})
    identities = [
        image.identity if image is not None and image.identity in NOBODY and identity not in NOBODY else identity
        for image, identity in zip(parsed_names, identities, strict=True)
    ]
    return Listing(
        name=root.name,
        contents=tuple(contents),
        identities=np.array(identities, np.int64),
        cameras=np.array(cameras, np.int64),
        names=tuple(names),
        people={identity: name for identity, name in people_names.items() if identity not in NOBODY},
        splits=(split,) * len(names),
        labels=tuple((labels or {}).get(name) for name in names),
        sizes=None if sizes is None else np.array([sizes[name] for name in names], np.int64),
        archive=archive,
    )


def _folder_people(names: Sequence[str]) -> People | None:
    """The people where every first-level folder is one person; None where an image lies in no folder."""
    if not all("/" in name for name in names):
        return None
    folders = [name.split("/")[0] for name in names]
    distinct = sorted(set(folders))
    numbers = {folder: number for folder in distinct if (number := _number(folder)) is not None}
    # 7 and 0007 would get one number. Then, as with names that are no numbers, folders are numbered by their order.
    if len(set(numbers.values())) < len(distinct):
        numbers = {folder: position for position, folder in enumerate(distinct, start=1)}
    return [numbers[folder] for folder in folders], {number: folder for folder, number in numbers.items()}


def _number(text: str) -> int | None:
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdecimal() and len(digits) <= 18 else None
