"""Reader of zip files, and of folders with a dataset.json, as the reference StyleGAN3's tool writes them.

`dataset.json` holds `{"labels": [[name, class number or list of numbers], ...]}`; its labels may be null.
Archives are read in place, member by member. Nothing is unpacked to disk, and the sizes in an archive's list
of members are checked first.
"""

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.people.any_folder import of_names, training_files, without_clutter
from datasets.people.decoding import BROKEN_ARCHIVE, MOST_BYTES
from datasets.people.layouts import refuse_data_sets_inside
from datasets.people.listing import TRAIN, Label, Listing
from datasets.people.names import is_clutter, is_image, normal_name
from passersby.errors import InputError
from passersby.options import Json

LABELS_FILE = "dataset.json"
MOST_MEMBERS = 5_000_000
MOST_LABELS_BYTES = 256 << 20
MOST_CLASSES = 16_384  # each label becomes a row of as many float32
# Compression hardly shrinks pictures. An archive whose unpacked size is beyond both limits (a zip bomb) is refused.
MOST_TOTAL_BYTES, MOST_GROWTH = 1 << 30, 100
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def list_archive(path: Path) -> Listing:
    """List every image of a zip file, in the order of the names, with its label. Decodes no image.

    Names are `normal_name`s: archives of Windows hold \\, and others ./ before each name. The labels are those
    of the dataset.json at the top, or in the one top folder that has one. Identities and cameras come from the
    names where all names have the form of Market-1501 or of DukeMTMC-reID. Otherwise they are unknown: the
    sub-folders of such files only keep folders small. Raises InputError for a file that is no zip file, is
    encrypted, is packed otherwise than stored or deflated, is too large unpacked, holds a name twice or holds no
    image, for a damaged dataset.json, and for an archive of a data set with test people.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                (normal_name(member.filename), member)
                for member in archive.infolist()
                if not member.filename.endswith(("/", "\\"))
            ]
            labels_name = _labels_name([name for name, _ in members])
            fault = _fault(members, labels_name, path.stat().st_size)
            file = next((member for name, member in members if name == labels_name), None)
            text = archive.read(file) if file is not None and not fault else None
    except BROKEN_ARCHIVE as error:
        why = str(error) or type(error).__name__
        raise InputError(f"cannot read {path} as a zip file ({why}): make it or fetch it again") from error
    if fault:
        raise InputError(f"{path}: {fault}")
    refuse_data_sets_inside(path, [name for name, _ in members])
    images = {name: member for name, member in members if is_image(name)}
    names = sorted(images)
    labels = {} if text is None else _labels_of(parse_labels(text, path), names, labels_name or "")
    sizes = {name: member.file_size for name, member in images.items()}
    contents = [images[name].filename for name in names]
    listing = of_names(path, names, contents, labels=labels, sizes=sizes, archive=path, split=TRAIN)
    return without_clutter(listing, sum(is_clutter(name) for name, _ in members))


def list_labelled_folder(root: Path) -> Listing:
    """Every image below a folder that holds a dataset.json, as `list_archive` lists a zip file."""
    path = root / LABELS_FILE
    try:
        if path.stat().st_size > MOST_LABELS_BYTES:
            raise InputError(f"{path} is larger than {MOST_LABELS_BYTES >> 20} MiB: shorten it")
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}: check the file") from error
    files = training_files(root)
    return files.listing(root, labels=_labels_of(parse_labels(text, root), sorted(files.sizes), LABELS_FILE))


def _labels_name(names: Sequence[str]) -> str | None:
    """The name of the file of labels: at the top, or in the only folder that has one. None where there is none."""
    candidates = [name for name in names if name.lower().rpartition("/")[2] == LABELS_FILE and not is_clutter(name)]
    at_the_top = [name for name in candidates if "/" not in name]
    return next(iter(at_the_top or (candidates if len(candidates) == 1 else [])), None)


def _labels_of(labels: Mapping[str, Label], names: Sequence[str], labels_name: str) -> dict[str, Label]:
    """Map the images' names to their labels, whose names may be relative to the folder of the file of labels.

    Where letter case alone differs, a name still means the one image that has it.
    """
    folder = labels_name.rpartition("/")[0]
    by_lower: dict[str, list[str]] = {}
    for name in names:
        by_lower.setdefault(name.lower(), []).append(name)
    exact, result = set(names), {}
    for written, label in labels.items():
        candidates = [f"{folder}/{written}", written] if folder else [written]
        alike = [image for name in candidates for image in by_lower.get(name.lower(), [])]
        image = next((name for name in candidates if name in exact), alike[0] if len(alike) == 1 else None)
        if image is not None:
            result.setdefault(image, label)
    return result


def parse_labels(text: bytes, path: Path) -> dict[str, Label]:
    """Map the names in a dataset.json to their labels; {} where its labels are null. `path` is for messages.

    Raises InputError unless all labels are class numbers from 0 to 16383, or all are finite vectors of one
    length, 1 to 16384.
    """
    where = f"{LABELS_FILE} of {path}"
    try:
        labels = json.loads(text)["labels"]
        pairs = [] if labels is None else [(normal_name(name), label) for name, label in labels]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f'{where} is not {{"labels": [[name, label], ...]}} ({error}): make it again') from error
    parsed: dict[str, Label] = {}
    length = None
    for name, label in pairs:
        if name in parsed:
            raise InputError(f"{where} names {name!r} twice: remove one of the lines")
        value = _label(label)
        if value is None:
            raise InputError(
                f"{where} labels {name!r} {_short(label)}: give a class number below {MOST_CLASSES}, or a vector of "
                "finite numbers"
            )
        parsed[name] = value
        previous, length = length, len(value) if isinstance(value, tuple) else 0
        if previous not in (None, length):
            raise InputError(f"{where} labels {name!r} {_short(label)}, unlike those before it: give all one form")
    return parsed


def _fault(members: Sequence[tuple[str, zipfile.ZipInfo]], labels_name: str | None, archive_bytes: int) -> str | None:
    """The fault in an archive's list of members, with the way out; None where there is no fault."""
    if len(members) > MOST_MEMBERS:
        return f"{len(members)} members, and at most {MOST_MEMBERS} are read: divide it"
    seen = set()
    for name, member in members:
        if name in seen:
            return f"{name!r} stands in it twice: make it again"
        seen.add(name)
        most = MOST_LABELS_BYTES if name == labels_name else MOST_BYTES
        if name != labels_name and not is_image(name):
            continue  # never read
        if member.flag_bits & 1:
            return f"{name!r} is encrypted: make it again without a password"
        if member.compress_type not in _METHODS:
            return f"{name!r} is packed by method {member.compress_type}: make it again, stored or deflated"
        if member.file_size > most:
            return f"{name!r} is {member.file_size} bytes unpacked, and at most {most} are read: leave it out"
    total = sum(member.file_size for _, member in members)
    if total > max(MOST_TOTAL_BYTES, MOST_GROWTH * archive_bytes):
        return f"{total} bytes unpacked from {archive_bytes}: pictures do not shrink so; make it again, stored"
    return None


def _label(value: Json) -> Label | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < MOST_CLASSES else None
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_CLASSES:
        return None
    numbers = [number for number in value if isinstance(number, int | float) and not isinstance(number, bool)]
    # An int beyond float's range fails the comparison, so `math.isfinite` never converts it.
    good = len(numbers) == len(value) and all(abs(number) <= 3e38 and math.isfinite(number) for number in numbers)
    return tuple(map(float, numbers)) if good else None


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
