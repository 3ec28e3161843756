"""The guard keeps test people away from networks that make people. It checks names and locations of images.

Networks of this project make pictures for training re-identification, which is then measured on the query and
gallery people of a Market-1501 tree. No generator may ever see any of them. `Listing.training` calls the guard.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from datasets.people.names import DISTRACTOR_IDENTITY, JUNK_IDENTITY, SPLIT_FOLDERS, parse_name
from passersby.errors import InputError

TRAIN_FOLDER = SPLIT_FOLDERS["train"]
HELD_OUT_FOLDERS = (SPLIT_FOLDERS["query"], SPLIT_FOLDERS["gallery"], "gt_bbox")  # gt_bbox repeats all people


def is_tree(folder: Path) -> bool:
    """Whether a folder is the root of a Market-1501 tree."""
    return os.path.isdir(folder / TRAIN_FOLDER)  # unlike Path.is_dir, False where permission is missing


def refuse_test_people(path: Path, names: Sequence[str]) -> None:
    """Refuse a tree, folder or archive with these names (with /) where it brings test people into a training.

    Raises InputError where an identity of a tree's training images also stands in its query or gallery. Where
    `path` is no tree, raises it in three cases: `path` is a tree's held-out folder or lies in one; folders of a
    tree lie below `path`; a Market-1501 name gives an identity that a tree around or beside `path` holds out.
    """
    people = _people(names)
    if is_tree(path):
        if shared := sorted(people & held_out_people(path)):
            raise InputError(
                f"{len(shared)} identities of {path / TRAIN_FOLDER} also stand in query or bounding_box_test, the "
                f"first is {shared[0]:04d}: training on people of the test would spoil it; take them out of one of the "
                "folders"
            )
        return
    refuse_held_out_place(path)
    for name in names:
        inside = set(name.lower().split("/")[:-1]) & {TRAIN_FOLDER, *HELD_OUT_FOLDERS}
        if inside:
            raise InputError(
                f"{path} holds a folder {min(inside)} of a Market-1501 tree: give the tree's own folder (unpacked), "
                "of which only bounding_box_train is used, or rename that folder where it holds no people of a test"
            )
    for tree in _trees_near(path) if people else ():
        if shared := sorted(people & held_out_people(tree)):
            raise InputError(
                f"{path}: {len(shared)} identities also stand in query or bounding_box_test of {tree}, the first is "
                f"{shared[0]:04d}: leave them out, or keep the images away from that tree if they are other people"
            )


def refuse_held_out_place(path: Path) -> None:
    """Raises InputError where `path` (absolute, links resolved) is a tree's held-out folder or lies in one."""
    for folder in (path, *path.parents):
        if folder.name.lower() not in HELD_OUT_FOLDERS:
            continue
        in_tree = any(os.path.isdir(folder.parent / other) for other in (TRAIN_FOLDER, SPLIT_FOLDERS["gallery"]))
        if in_tree or folder.name.lower() != SPLIT_FOLDERS["query"]:
            raise InputError(
                f"{path} holds people of a test ({folder.name} of a Market-1501 tree): give {folder.parent}, of "
                "which only bounding_box_train is used"
            )


def held_out_people(tree: Path) -> set[int]:
    """Identities in the names of query and gallery, without junk and distractors. A missing folder adds none."""
    people = set()
    for folder in HELD_OUT_FOLDERS[:2]:
        try:
            people |= _people(os.listdir(tree / folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            why = error.strerror or error
            raise InputError(f"cannot tell whom {tree / folder} holds ({why}): make it readable") from error
    return people


def _people(names: Sequence[str]) -> set[int]:
    return {image.identity for image in map(parse_name, names) if image} - {JUNK_IDENTITY, DISTRACTOR_IDENTITY}


def _trees_near(path: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:  # a folder that may be entered but not listed
        names = []
    return [folder for folder in (*path.parents, *(path.parent / name for name in names)) if is_tree(folder)]
