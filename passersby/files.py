"""Files of this machine: written whole or not at all, on the disk when a call returns, and their hashes.

Runs on object stores are written in datasets/storage/output.py.
"""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from passersby.errors import InputError


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, never a part."""
    path = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # temporary files are private to their owner
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_synced(path: Path, content: bytes | memoryview) -> None:
    """Write a file whose bytes are on the disk when this returns."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """A file's bytes, or a folder's names, are on the disk when this returns: otherwise a power cut could undo a
    rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: str | os.PathLike, option: str | None = None) -> str:
    """The hash of a file's contents, in hexadecimal digits.

    Raises OSError where the file cannot be read; where an `option` gave it, an InputError that names the option.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if option is None:
            raise
        raise InputError(f"{option} {path}: {error.strerror or error}: check the path") from error
