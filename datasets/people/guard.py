"""The guard keeps test people away from networks that make people. It checks names and locations of images.

Networks of this project make pictures for training re-identification, which is then measured on the query and
gallery people of a data set. No generator may ever see any of them. `Listing.training` calls the guard. It
knows the split of each data set from that data set's reader.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from datasets.people import cuhk03, folders, layouts, market1501, msmt17
from datasets.people.layouts import Layout, layout_of, refuse_data_sets_inside, refuse_held_out_place
from datasets.people.listing import Content
from datasets.people.names import DISTRACTOR_IDENTITY, parse_tree_name, person_key
from passersby.errors import InputError

Key = tuple[str, int | str]  # a data set, and the person (MSMT17: the picture) there
_HELD_OUT: Mapping[str, Callable[[Path], Iterator[str]]] = {
    layouts.MARKET1501: market1501.held_out_names,
    layouts.MSMT17: msmt17.held_out_names,
    layouts.CUHK03: cuhk03.held_out_names,
    layouts.FOLDERS: folders.held_out_names,
}


def refuse_test_people(path: Path, names: Sequence[str], contents: Sequence[Content] = ()) -> None:
    """Refuse data (a data set, folder, archive or table) whose images would bring test people into a training.

    names: of the images, relative to `path`, with /. contents: the images; the folders of files are checked. Raises
    InputError where a person of a data set's training images is also in its test. Where `path` is no data set,
    raises it in three cases: an image or `path` lies in a folder of test people; folders of a data set lie below
    `path`; a name gives a person or picture that is in the test of a data set around or beside `path` or around an
    image.
    """
    layout = layout_of(path)
    if layout is not None:
        key = _tree_key if layout.name == layouts.MARKET1501 else person_key
        _refuse_shared(path, _keys(names, key), path, layout, key)
        return
    parents = {content.parent for content in contents if isinstance(content, Path)}
    for place in (path, *parents):
        refuse_held_out_place(place)
    if not _outside(path, contents):
        refuse_data_sets_inside(path, names)
    keys = _keys(names, person_key)
    for folder in _near(path, parents) if keys else ():
        layout = layout_of(folder)
        if layout is not None:
            _refuse_shared(path, keys, folder, layout, person_key)


def _refuse_shared(path: Path, keys: set[Key], folder: Path, layout: Layout, key: Callable[[str], Key | None]) -> None:
    shared = sorted(keys & _keys(_HELD_OUT[layout.name](folder), key))
    if not shared:
        return
    first = f"{shared[0][1]:04d}" if isinstance(shared[0][1], int) else shared[0][1]
    what = "pictures" if shared[0][0] == layouts.MSMT17 else "identities"
    test = "query or bounding_box_test" if layout.name == layouts.MARKET1501 else "the test"
    if path == folder:
        raise InputError(
            f"{len(shared)} {what} of the training images of {path} also stand in {test}, the first is {first}: "
            "training on people of the test would spoil it; take them out of one of the two"
        )
    raise InputError(
        f"{path}: {len(shared)} {what} also stand in {test} of {folder}, the first is {first}: leave them out, or keep "
        "the images away from that data set if they are other people"
    )


def _keys(names: Iterable[str], key: Callable[[str], Key | None]) -> set[Key]:
    return {value for value in map(key, names) if value is not None}


def _tree_key(name: str) -> Key | None:
    """Of a tree in the layout of Market-1501 whoever has a number: its names need not have a published form."""
    numbers = parse_tree_name(name)
    return None if numbers is None or numbers[0] <= DISTRACTOR_IDENTITY else ("", numbers[0])


def _outside(path: Path, contents: Sequence[Content]) -> bool:
    """Whether the images lie where they want to, as those of a table do."""
    return path.is_file() and any(isinstance(content, Path) for content in contents)


def _near(path: Path, parents: Iterable[Path]) -> list[Path]:
    """Folders around `path` and around images, and those beside `path`."""
    try:
        beside = sorted(path.parent.iterdir())
    except OSError:  # a folder that may be entered but not listed
        beside = []
    around = (above for place in (path, *parents) for above in (place, *place.parents))
    return list(dict.fromkeys([*(folder for folder in around if folder != path), *beside]))
