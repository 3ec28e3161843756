"""Layouts of the published data sets: what the names in a folder say of training and test people in it.

Nothing but names is looked at, in any letter case, so the rules hold for folders and for members of an archive
alike. The readers list the pictures; the guard against test people asks for the layouts of folders around them.
"""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from datasets.people.names import SPLIT_FOLDERS, is_clutter
from passersby.errors import InputError

MARKET1501, MSMT17, CUHK03, FOLDERS = "Market-1501", "MSMT17", "CUHK03", "train and test folders"
TRAIN_FOLDERS = ("train_all", "train")
# Folders of these names hold people of a test whatever lies beside them.
_ALWAYS_HELD_OUT = frozenset({SPLIT_FOLDERS["gallery"], "gt_bbox", "mask_test_v2"})  # gt_bbox repeats all people
_TRAINING_FOLDERS = frozenset({SPLIT_FOLDERS["train"], "mask_train_v2", "train"})
_TEST_FOLDERS = frozenset({"query", "gallery", "multi-query", "multi_query", "gt_bbox", "test"})
# Folders that only a data set has: a folder or an archive around one is refused.
_OF_DATA_SETS = _ALWAYS_HELD_OUT | {
    SPLIT_FOLDERS["train"], "query", "mask_train_v2", "images_labeled", "images_detected",
}  # fmt: skip
# Names of the folder that an archive of a data set unpacks to; torchreid and fast-reid look into them, in this order.
PUBLISHED_FOLDERS = ("market-1501-v15.09.15", "dukemtmc-reid", "msmt17_v1", "msmt17_v2")


@dataclasses.dataclass(frozen=True)
class Layout:
    """signs: a folder has the layout where it holds all names of one of these sets, which are in lower case.

    held_out: the sub-folders that hold people of the test; CUHK03 has none, as its split stands in a file.
    """

    name: str
    signs: tuple[frozenset[str], ...]
    held_out: frozenset[str] = frozenset()


def _each(*names: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset({name}) for name in names)


LAYOUTS = (
    Layout(
        MARKET1501,
        _each(SPLIT_FOLDERS["train"], SPLIT_FOLDERS["gallery"]),
        frozenset({SPLIT_FOLDERS["query"], SPLIT_FOLDERS["gallery"], "gt_bbox"}),
    ),
    Layout(
        MSMT17,
        _each("list_train.txt", "list_query.txt", "list_gallery.txt", "mask_train_v2", "mask_test_v2"),
        frozenset({"mask_test_v2", "test"}),
    ),
    Layout(CUHK03, _each("images_labeled", "images_detected", "cuhk-03.mat")),
    Layout(
        FOLDERS,
        (
            frozenset({"query", "gallery"}),
            *(frozenset({train, test}) for train in TRAIN_FOLDERS for test in sorted(_TEST_FOLDERS)),
        ),
        _TEST_FOLDERS,
    ),
)


def layout_of_names(names: Iterable[str]) -> Layout | None:
    """The layout of a folder that holds these files and folders; None where they are those of no data set."""
    lower = {name.lower() for name in names}
    return next((layout for layout in LAYOUTS if any(sign <= lower for sign in layout.signs)), None)


def layout_of(folder: Path) -> Layout | None:
    """The layout of a folder; None for no data set, for no folder, and where the folder cannot be listed."""
    try:
        return layout_of_names(os.listdir(folder))
    except OSError:
        return None


def refuse_held_out_place(path: Path) -> None:
    """Raises InputError where `path` (absolute, links resolved) is a folder of test people or lies in one.

    Folders called test, query or gallery beside one called train count where `path` is such a folder or the folder
    of a person in it: deeper down they may well be those of something else.
    """
    for depth, folder in enumerate((path, *path.parents)):
        name = folder.name.lower()
        if name not in _TEST_FOLDERS | _ALWAYS_HELD_OUT:
            continue
        layout = layout_of(folder.parent)
        in_layout = layout is not None and name in layout.held_out and (layout.name != FOLDERS or depth < 2)
        if name in _ALWAYS_HELD_OUT or in_layout:
            kind = layout or layout_of_names([name]) or LAYOUTS[0]
            raise InputError(
                f"{path} holds people of a test ({folder.name} of a data set, {kind.name}): give {folder.parent}, of "
                "which only the training pictures are used"
            )


def training_root(folder: Path) -> Path:
    """The data set's folder where `folder` is the training folder of Market-1501 or MSMT17; otherwise `folder`."""
    layout = layout_of(folder.parent) if folder.name.lower() in _TRAINING_FOLDERS else None
    return folder.parent if layout is not None and layout.name in (MARKET1501, MSMT17) else folder


def refuse_data_sets_inside(path: Path, names: Iterable[str]) -> None:
    """Refuse a folder or archive with these files (names with /) where it holds a data set with people of a test.

    Raises InputError, which names the folder of the data set.
    """
    children: dict[str, set[str]] = defaultdict(set)  # of each folder: its folders, and files that only data sets have
    seen: set[str] = set()
    for name in names:
        folder, _, file = name.rpartition("/")
        if is_clutter(name):
            continue
        if file.lower().startswith(("list_", "cuhk-03")):
            children[folder].add(file)
        while folder and folder not in seen:
            seen.add(folder)
            parent, _, child = folder.rpartition("/")
            children[parent].add(child)
            folder = parent
    for folder in sorted(children):
        layout = layout_of_names(children[folder])
        signs = {sign for sign in children[folder] if sign.lower() in _OF_DATA_SETS | _TEST_FOLDERS}
        if layout is None and not any(sign.lower() in _OF_DATA_SETS for sign in signs):
            continue
        what = f"{min(signs or children[folder])} of a data set with people of a test ({(layout or LAYOUTS[0]).name})"
        where = f" in {folder}" if folder else ""
        raise InputError(
            f"{path} holds {what}{where}: give the data set's own folder (unpacked), of which only the training "
            "pictures are used, or rename these folders where they hold nobody of a test"
        )
