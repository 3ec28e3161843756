"""Files of this machine, written whole or not at all, on the disk when a call returns; their hashes; a run's manifest.

The manifest is read with pyarrow alone. How runs are written, also on object stores, stands in datasets/.
"""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

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


def manifest_name(name: str | None = None) -> str:
    """File name of the run's manifest, or of another one over the same shards."""
    return f"manifest-{name}.parquet" if name else "manifest.parquet"


def read_manifest(run: str | os.PathLike, name: str | None = None, columns: list[str] | None = None) -> pa.Table:
    """Every image of a run without its pixels: a row each, with scores, verdict and shard; all columns or the named.

    run: the folder that `jobs/generate.py --out` made, a path or a pyarrow filesystem URI such as s3://bucket/run.
    name: of a manifest that `jobs/refilter.py --name` made. Raises InputError where it is missing or damaged.

    >>> import passersby
    >>> manifest = passersby.read_manifest("OUT", columns=["person", "variant", "verdict"])
    >>> kept = [row for row in manifest.to_pylist() if row["verdict"] == "kept"]
    >>> kept[0]
    {'person': 0, 'variant': 0, 'verdict': 'kept'}
    """
    address = os.path.expanduser(os.fspath(run))
    shown = address
    if "://" in address:
        scheme, _, rest = address.partition("?")[0].partition("://")
        shown = f"{scheme}://{rest.rpartition('@')[2]}"  # without credentials
    shown = f"{shown.rstrip('/')}/{manifest_name(name)}"
    try:
        files, root = fs.LocalFileSystem(), address
        if "://" in address:
            files, root = fs.FileSystem.from_uri(address)
        file = files.open_input_file(f"{root.rstrip('/')}/{manifest_name(name)}")
    except (OSError, pa.ArrowInvalid) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
        raise InputError(f"cannot read {shown}: {reason}: is it the folder of a run?") from None  # may show a secret
    with file:
        return manifest_rows(file, shown, columns)


def manifest_rows(file: pa.NativeFile, address: str, columns: list[str] | None = None) -> pa.Table:
    """A manifest's rows of its open file. Raises InputError, which names the address, where it is damaged."""
    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{address} is damaged: remove it and run the same command again") from error
