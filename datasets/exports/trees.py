"""Exports as a tree of image files: a Market-1501 tree, or one folder a person, also for FiftyOne and Hugging Face.

The rules for names are those of three common tools, at the named revisions. This module contains none of their code.

- torchreid (KaiyangZhou/deep-person-reid f8cd150, torchreid/data/datasets/image/market1501.py) reads files `*.jpg` in
  bounding_box_train, query and bounding_box_test. All three must exist and hold an image. The first text in the *whole
  path* of the form digits (or -), `_c`, digit gives identity and camera. Identities are 0 to 1501, cameras 1 to 6.
- fast-reid (JDAI-CV/fast-reid c9bc3ce, fastreid/data/datasets/market1501.py) has the same pattern and bounds. Query and
  gallery must exist, and may be empty if nothing is evaluated.
- Person_reID_baseline_pytorch (layumi, 82ff40f, prepare.py and test.py) reads names that end in `jpg`. The text before
  the first _ is the person's folder. In tests the first four characters are the identity, and the character after the
  first `c` is the camera. The first image of each person is the validation set, so a person needs two images.
"""

import re
from collections.abc import Sequence

from datasets.exports.selection import ExportImages, Options, People, Piece, cameras_of
from datasets.people.names import SPLIT_FOLDERS
from datasets.storage.output import Output
from passersby.errors import InputError

COLUMNS = ["seed", "camera"]
LAST_IDENTITY, LAST_CAMERA = 1501, 6
LAST_FOUR_DIGITS = 9999
_FIRST_READ = re.compile(r"[-\d]+_c\d")  # what torchreid and fast-reid look for
EMPTY_NOTE = "README.txt"
IMAGE_FOLDERS = {"fiftyone": "data/", "huggingface": "train/"}  # of formats whose tools want the images in a folder


def market1501_names(piece: Piece) -> list[str]:
    """`bounding_box_train/PPPP_cCs1_FFFFFF_00.jpg` for each image: identity, camera, and the variant as frame.

    The sequence is always 1 and the box 00, because a generated image is the only image of its frame.
    """
    columns = [piece.table[name].to_pylist() for name in ("split", "identity", "camera", "variant")]
    return [
        f"{SPLIT_FOLDERS[split]}/{identity:04d}_c{camera}s1_{variant:06d}_00.jpg"
        for split, identity, camera, variant in zip(*columns, strict=True)
    ]


def folder_names(piece: Piece, people: People, suffix: str) -> list[str]:
    """`PPPP/PPPP_cCs1_FFFFFF_00.jpg` for each image: one folder for each person.

    All identities have as many digits as the largest one, and at least four. So the order of the folders' names, which
    torchvision's ImageFolder takes for its classes, is the order of the identities.
    """
    digits = max(4, len(str(people.identity.max())))
    columns = [piece.table[name].to_pylist() for name in ("identity", "camera", "variant")]
    return [
        f"{identity:0{digits}d}/{identity:0{digits}d}_c{camera}s1_{variant:06d}_00.{suffix}"
        for identity, camera, variant in zip(*columns, strict=True)
    ]


def image_names(piece: Piece, options: Options, people: People, suffix: str) -> list[str]:
    """The name of each image in a tree of this format, relative to the export's folder."""
    if options.format == "market1501":
        return market1501_names(piece)
    return [IMAGE_FOLDERS.get(options.format, "") + name for name in folder_names(piece, people, suffix)]


def write_images(out: Output, images: ExportImages, piece: Piece, names: Sequence[str], existing: set[str]) -> None:
    """Write the images of a piece that do not exist yet, each file atomically."""
    indices = [index for index, name in enumerate(names) if name not in existing]
    for index, content in zip(indices, images.read(piece, indices), strict=True):
        out.write(names[index], content)


def loader_notes(out: Output, options: Options, people: People, strict: bool) -> list[str]:
    """Notes for the user of a Market-1501 tree: lines for the screen.

    With `strict` the function raises InputError if torchreid and fast-reid would refuse the tree, or would read other
    identities from it.
    """
    count, most = int(people.exported.sum()), int(people.identity.max())
    cameras = cameras_of(options, people)
    notes = []
    if most > LAST_IDENTITY:
        notes.append(
            f"identities go up to {most}, and torchreid and fast-reid refuse more than {LAST_IDENTITY}: "
            + _identity_advice(options, count)
        )
    if max(cameras) > LAST_CAMERA or min(cameras) < 1:
        notes.append(
            f"cameras {min(cameras)} to {max(cameras)}: torchreid and fast-reid take 1 to {LAST_CAMERA}; give other "
            "--camera and --cameras"
        )
    match = _FIRST_READ.search(out.root_address)
    if match:
        notes.append(
            f"torchreid and fast-reid look for identities in the whole path, and would find {match[0]!r} in --out "
            f"{out.root_address}: choose another folder"
        )
    if notes and strict:
        raise InputError(f"{notes[0]} (or write it all the same with --no-loader-limits)")
    if most > LAST_FOUR_DIGITS:
        notes.append(f"identities above {LAST_FOUR_DIGITS} are cut to four digits by Person_reID_baseline_pytorch")
    single = int((people.images == 1).sum())
    if single:
        notes.append(
            f"{single:,} people have one image, and Person_reID_baseline_pytorch needs two of each: one to train on, "
            "one to validate"
        )
    if not options.test_people:
        notes.append(
            "query and bounding_box_test are empty: torchreid wants images there; copy a real test set in, or export "
            "again with --test-people"
        )
    return notes


def _identity_advice(options: Options, count: int) -> str:
    room = LAST_IDENTITY - (options.first_identity or 1) + 1
    if room < 1:
        return f"give a --first-identity of at most {LAST_IDENTITY}"
    if count <= room and not options.compact_ids:
        return "give --compact-ids"
    return f"give --people {room}" + " --compact-ids" * (not options.compact_ids)


def write_empty_notes(out: Output, options: Options) -> None:
    """Write a note into folders without images, so that they exist, also on object stores: loaders need all three."""
    for split in ("query", "gallery"):
        name = f"{SPLIT_FOLDERS[split]}/{EMPTY_NOTE}"
        if not options.test_people and not out.exists(name):
            out.write(name, b"No images: this export is a training set. Copy a real test set in to evaluate on it.\n")
