"""Folders of a training's output: each folder is complete or absent, and its name is a number that grows.

    OUT/config.json                                the training's options, which identify the folder's training
    OUT/checkpoints/000004000/training_state.pt    optimisers and counters, beside the networks' file; two are kept

A folder is written under another name and then renamed; the rename commits it.
"""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from passersby import checkpoints
from passersby.errors import InputError
from passersby.files import sync, write_atomically, write_synced
from passersby.options import Json, differences, flag

STATE = "training_state.pt"
CHECKPOINTS_KEPT = 2


def claim(
    out: Path, values: Mapping[str, Json], default: Mapping[str, Json], free: Collection[str], in_use: bool
) -> None:
    """Write a training's options as `config.json` into its output folder; refuse the folder of another training.

    values: options as `as_json` gives them. default: option -> its value in the folder of a training that started
    before the option existed (`passersby.options.defaults`). free: options that may change when a training continues.
    in_use: whether the folder holds anything that could be lost. If not, any options are accepted, so that a user can
    correct a first command. Raises InputError naming the first key that differs, or where the folder cannot be written.
    """
    path = Path(out) / "config.json"
    try:
        if path.exists() and in_use:
            for option in differences(json.loads(path.read_text("utf-8")), values, default, free):
                old = f"{out} holds a training with --{flag(option.key)} {option.old}"
                if option.gone:
                    raise InputError(f"{old}, which this program does not have: give another --out")
                raise InputError(f"{old}, not {option.new}: give the old value, or another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write --out {out}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no JSON: remove it if the folder holds this very training") from error
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def newest(out: Path, pattern: str) -> Path | None:
    """The folder with the highest number that holds a file of this pattern; None where no folder does."""
    return max((path.parent for path in Path(out).glob(pattern)), key=lambda folder: int(folder.name), default=None)


def commit(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill `folder`, which then appears at once and whole; an existing folder stays unchanged.

    Raises InputError where the folder cannot be written.
    """
    if folder.exists():
        return folder
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for remnant in folder.parent.glob(".*.tmp"):  # of a killed process: only one process writes
            shutil.rmtree(remnant, ignore_errors=True)
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


# ---- Checkpoints, from which a training continues.


def last_checkpoint(out: Path) -> Path | None:
    """The newest folder from which training can continue; None at the start."""
    return newest(out, f"checkpoints/[0-9]*/{STATE}")


def commit_checkpoint(
    out: Path, number: int, write_networks: Callable[[Path], None], values: Mapping[str, Any]
) -> Path:
    """Write everything that training needs to continue; returns the folder, whose name is the number.

    write_networks: writes the networks' file into its argument, a folder. values: optimisers and counters, which
    `read_state` returns. The checkpoint before the new one is kept, older ones are removed. Raises InputError where the
    new checkpoint cannot be written; then all earlier checkpoints stay.
    """

    def write(folder: Path) -> None:
        write_networks(folder)
        write_state(folder / STATE, values)

    folder = commit(Path(out) / "checkpoints" / f"{number:09d}", write)
    keep_newest(folder.parent, CHECKPOINTS_KEPT)
    return folder


def write_state(path: Path, values: Mapping[str, Any]) -> None:
    """Write optimisers and counters. Raises OSError where there is no room."""
    buffer = io.BytesIO()  # torch.save reports a full disk as RuntimeError, a plain write as OSError
    torch.save(dict(values), buffer)
    write_synced(path, buffer.getbuffer())


def read_state(folder: Path) -> dict[str, Any]:
    """The values of a checkpoint's `training_state.pt`, on the CPU. Raises InputError for a damaged file."""
    values = checkpoints.read_state(folder / STATE, problem=f"{STATE} is damaged", way_out="")
    if not isinstance(values, dict):
        raise InputError(f"{STATE} holds a {type(values).__name__}")
    return values


@contextlib.contextmanager
def damage_named(folder: Path) -> Iterator[None]:
    """While a checkpoint is read: turn an error that its damage raises into an InputError that names its folder."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, EOFError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"cannot go on from {folder} ({reason}): remove that folder to go on from the one before"
        ) from error


def check_images(checkpoint: str, training: str, data: Path) -> None:
    """Raises InputError unless a checkpoint's fingerprint of its images is that of the training's --data."""
    if checkpoint != training:
        raise InputError(
            f"--data {data}: these are other images than this training began with: give those, or another --out"
        )
