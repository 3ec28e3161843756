"""Folders of a training's output: each is complete or not there at all, and named by a number that grows."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from passersby.errors import InputError
from passersby.files import sync, write_atomically
from passersby.options import Json, differences, flag


def claim(
    out: Path, values: Mapping[str, Json], default: Mapping[str, Json], free: Collection[str], begun: bool
) -> None:
    """Write a training's options as `config.json` into its output folder; refuse the folder of another training.

    values: options as `as_json` gives them. default: option -> what it is in the folder of a training that was begun
    before the option existed (`passersby.options.defaults`). free: those that may change when a training goes on.
    begun: whether there is anything that could be lost; without, the folder is nobody's: what was wrong with a first
    command may be mended. Raises InputError naming the first key that differs, or where the folder cannot be written.
    """
    path = Path(out) / "config.json"
    try:
        if path.exists() and begun:
            for option in differences(json.loads(path.read_text()), values, default, free):
                old = f"{out} holds a training with --{flag(option.key)} {option.old}"
                if option.gone:
                    raise InputError(f"{old}, which this program does not have: give another --out")
                raise InputError(f"{old}, not {option.new}: give the old value, or another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write --out {out}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no JSON: remove it if the folder holds this very training") from error
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def newest(out: Path, pattern: str) -> Path | None:
    """The folder with the highest number among those that hold a file of this pattern; None where there is none."""
    return max((path.parent for path in Path(out).glob(pattern)), key=lambda folder: int(folder.name), default=None)


def commit(folder: Path, write: Callable[[Path], None]) -> Path:
    """Make `folder`, which `write` fills, appear at once and whole; one that is there already stays as it is.

    Raises InputError where it cannot be written.
    """
    if folder.exists():
        return folder
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(".*.tmp"):  # of a process that was killed: there is one writer
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        write(temporary)
        os.replace(temporary, folder)
        sync(folder.parent)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def keep_newest(parent: Path, count: int) -> None:
    """Remove all but the `count` folders with the highest numbers."""
    for old in sorted(parent.glob("[0-9]*"), key=lambda path: int(path.name))[:-count]:
        shutil.rmtree(old, ignore_errors=True)
