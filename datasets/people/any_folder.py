"""Reader of any folder of pictures: what a GAN is trained on need not be laid out as re-ID data are.

All pictures below the folder are for training. Names as in Market-1501 say whom they show, or sub-folders, or nothing
does. `of_names` serves whatever else has no layout: zip files, flat folders, sets that are scored.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.people.guard import refuse_held_out_place
from datasets.people.listing import NOBODY, TRAIN, UNKNOWN_CAMERA, UNKNOWN_PERSON, Content, Label, Listing
from datasets.people.names import is_image, parse_name
from passersby.errors import InputError

People = tuple[Sequence[int], Mapping[int, str]]  # identities of the images; what their people are called


def read(root: Path) -> Listing:
    """Every image below a folder, in the order of the names. Opens no image.

    Identities: those of the names where all of them read as Market-1501's do; else the first-level sub-folders,
    where every image lies in one (their numbers, or 1, 2, ... in the order of their names); else unknown. Raises
    InputError for folders that cannot be read, are links or hold no image.
    """
    sizes = image_sizes(root)
    names = sorted(sizes)
    contents = [root / name for name in names]
    return of_names(root, names, contents, people=_folder_people(names), sizes=sizes, split=TRAIN)


def image_sizes(root: Path) -> dict[str, int]:
    """Name below `root`, with /, and size in bytes of every image there.

    Raises InputError where a folder cannot be read, or is a link, which could hide a tree's held-out people.
    """
    folders, sizes = [root], {}
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            for entry in entries:
                path = Path(entry.path)
                name = path.relative_to(root).as_posix()
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                    folders.append(path)
                elif entry.is_symlink() and entry.is_dir():
                    raise InputError(f"{path} is a link to a folder: give that folder itself, or copy it")
                elif is_image(name) and entry.is_file():
                    if entry.is_symlink():
                        refuse_held_out_place(path.resolve())
                    sizes[name] = entry.stat().st_size
        except OSError as error:
            raise InputError(f"cannot read {folder}: {error.strerror or error}: check the path") from error
    return sizes


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
    """The images of these names and contents; whom they show is told by the names where all are Market-1501's.

    people: who they show otherwise; None: nobody knows. What a name calls junk or a distractor is that in any case.
    Raises InputError where there is no image.
    """
    if not names:
        raise InputError(f"no images (jpg, png) in {root}")
    said = [parse_name(name) for name in names]
    market = [image for image in said if image is not None]
    cameras = [UNKNOWN_CAMERA] * len(names)
    if len(market) == len(names):
        cameras = [image.camera for image in market]
        people = [image.identity for image in market], {image.identity: f"{image.identity:04d}" for image in market}
    identities, called = people or ([UNKNOWN_PERSON] * len(names), {})
    identities = [
        image.identity if image is not None and image.identity in NOBODY and identity not in NOBODY else identity
        for image, identity in zip(said, identities, strict=True)
    ]
    return Listing(
        name=root.name,
        contents=tuple(contents),
        identities=np.array(identities, np.int64),
        cameras=np.array(cameras, np.int64),
        names=tuple(names),
        people={identity: name for identity, name in called.items() if identity not in NOBODY},
        splits=(split,) * len(names),
        labels=tuple((labels or {}).get(name) for name in names),
        sizes=None if sizes is None else np.array([sizes[name] for name in names], np.int64),
        archive=archive,
    )


def _folder_people(names: Sequence[str]) -> People | None:
    """Every first-level folder is one person; None where an image lies in no folder."""
    if not all("/" in name for name in names):
        return None
    folders = [name.split("/")[0] for name in names]
    distinct = sorted(set(folders))
    numbers = {folder: number for folder in distinct if (number := _number(folder)) is not None}
    # 7 and 0007 would be one person, so then, as with any other names, the order numbers the folders.
    if len(set(numbers.values())) < len(distinct):
        numbers = {folder: place for place, folder in enumerate(distinct, start=1)}
    return [numbers[folder] for folder in folders], {number: folder for folder, number in numbers.items()}


def _number(text: str) -> int | None:
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdecimal() and len(digits) <= 18 else None
