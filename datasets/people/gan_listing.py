"""A listing of images for a GAN training: what each file's name says, and reading one file's bytes."""

import dataclasses
import struct
import threading
import zipfile
import zlib
from pathlib import Path

from passersby.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABELS_FILE = "dataset.json"
MOST_IMAGE_BYTES = 64 << 20  # of one file, in an archive unpacked: nothing that is a person's picture comes near
# What `zipfile` raises for damaged, encrypted or foreign archives and members.
BROKEN_ARCHIVE = (OSError, EOFError, KeyError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)

Label = int | tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One image: its name below the source, with /, and what is known without opening it."""

    name: str
    size: int  # bytes; in an archive unpacked
    identity: int | None = None
    camera: int | None = None
    label: Label | None = None  # of dataset.json


@dataclasses.dataclass(frozen=True)
class Listing:
    """What may be trained on, in the order of the names, and how much was left out and why."""

    kind: str  # "tree" | "folder" | "zip"
    root: Path
    items: tuple[Item, ...]
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)


def is_image(name: str) -> bool:
    """Whether a name with / is an image's: by its suffix, and hidden in no way (._x.jpg, __MACOSX/x.jpg)."""
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and parts[-1].lower().endswith(IMAGE_SUFFIXES)


class Reader:
    """Bytes of images below a folder or in a zip file, by name; threads may share one. Nothing is unpacked.

    Raises InputError where the zip file itself cannot be opened any more.
    """

    def __init__(self, root: Path):
        self._root = Path(root)
        self._archive = None
        self._lock = threading.Lock()
        if self._root.is_file():
            try:
                self._archive = zipfile.ZipFile(self._root)
            except BROKEN_ARCHIVE as error:
                raise InputError(f"cannot read {self._root}: {error}: it was a zip file when it was listed") from error

    def __call__(self, name: str) -> bytes | None:
        """The bytes of one image; None where it cannot be read, is damaged or larger than `MOST_IMAGE_BYTES`."""
        try:
            if self._archive is None:
                with open(self._root / name, "rb") as file:
                    data = file.read(MOST_IMAGE_BYTES + 1)
            else:
                # One thread at a time: members are short, and a ZipFile's own lock does not cover all of its state.
                with self._lock, self._archive.open(name) as member:
                    data = member.read(MOST_IMAGE_BYTES + 1)
        except BROKEN_ARCHIVE:
            return None
        return data if len(data) <= MOST_IMAGE_BYTES else None
