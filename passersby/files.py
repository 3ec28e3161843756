"""Local files: atomic writes that are on the disk when a call returns, hashes of files, and a run's manifest.

Only pyarrow is needed to read the manifest. The code that writes runs, also to object stores, is in datasets/.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from passersby.errors import InputError

# Schemes of addresses. Hadoop's programs call S3 s3a and s3n.
_SCHEMES = {name: name for name in ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file", "http", "https")}
_SCHEMES |= {"s3a": "s3", "s3n": "s3"}
_BUCKETS = ("s3", "gs", "gcs")  # the schemes whose first part is always a bucket
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)")
_FORM = "%s://BUCKET/PATH"
_COLLAPSED_OPTION = re.compile(r"(?<==)(https?):/(?!/)")


def normal_address(address: str) -> str:
    """An address in its usual form: two spellings of one place become equal. A path on a disk is returned as it is.

    Space around an address is dropped, the scheme becomes lower case (s3a and s3n become s3), and slashes that are
    doubled, `.` and a slash at the end are dropped from the path. A slash that pathlib has taken away is put back:
    s3:/bucket/run is s3://bucket/run. Options after ? stay as they are. Raises InputError, whose message does not name
    the address, for an address that means no place.
    """
    text = address.strip()
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else ""
    if match is None or (scheme not in _SCHEMES and len(match[2]) < 2):
        return address
    slashes, scheme = len(match[2]), _SCHEMES.get(scheme, scheme)
    if not slashes:
        form = "file:///PATH" if scheme == "file" else _FORM % scheme
        raise InputError(f"two slashes come after {scheme}:, as in {form}")
    if "#" in text:
        raise InputError("# ends the path of a URI: write %23")
    location, sign, query = text[match.end() :].partition("?")
    query = _COLLAPSED_OPTION.sub(r"\1://", query)
    if scheme in _BUCKETS and (slashes > 2 or not location):
        raise InputError(f"it names no bucket: write {_FORM % scheme}")
    authority, *parts = location.split("/")
    if slashes > 2 or (scheme == "file" and slashes == 1):  # file:///data/run and file:/data/run name no host
        authority, parts = "", [authority, *parts]
    if scheme == "file" and authority == "localhost":
        authority = ""
    return f"{scheme}://{'/'.join([authority, *_named(parts)])}{sign}{query}"


def normal_path(path: str) -> str:
    """The path below a store's root, bucket/run, without the doubled slashes that a percent-encoding may have hidden.

    Raises InputError for a path with `..`.
    """
    return "/".join(_named(path.split("/")))


def _named(parts: list[str]) -> list[str]:
    if ".." in parts:
        raise InputError("it has .. in it: write the address without")
    return [part for part in parts if part not in ("", ".")]


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees either the old file or the whole new file, never a part."""
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
    """Flush the bytes of a file, or the names in a folder, to the disk: else a power cut could undo a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: str | os.PathLike, option: str | None = None) -> str:
    """The hash of a file's contents, in hexadecimal digits.

    Raises OSError if the file cannot be read; with `option`, the option that named the file, an InputError names it.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if option is None:
            raise
        raise InputError(f"{option} {path}: {error.strerror or error}: check the path") from error


def manifest_name(name: str | None = None) -> str:
    """The file name of a run's manifest, or of another manifest over the same shards, called `name`."""
    return f"manifest-{name}.parquet" if name else "manifest.parquet"


def read_manifest(run: str | os.PathLike, name: str | None = None, columns: list[str] | None = None) -> pa.Table:
    """A run's manifest: one row for each image, without its pixels, with scores, verdict and shard.

    run: the folder that `jobs/generate.py --out` made, a path or a pyarrow filesystem URI such as s3://bucket/run.
    name: the name of a manifest that `jobs/refilter.py --name` made. columns: the columns to read, by default all.
    Raises InputError if the manifest is missing or damaged.

    >>> import passersby
    >>> manifest = passersby.read_manifest("OUT", columns=["person", "variant", "verdict"])
    >>> kept = [row for row in manifest.to_pylist() if row["verdict"] == "kept"]
    >>> kept[0]
    {'person': 0, 'variant': 0, 'verdict': 'kept'}
    """
    try:
        address = normal_address(os.path.expanduser(os.fspath(run)))
    except InputError as error:
        raise InputError(f"{os.fspath(run)}: {error}") from error
    location = address
    if "://" in address:
        scheme, _, remainder = address.partition("?")[0].partition("://")
        location = f"{scheme}://{remainder.rpartition('@')[2]}"  # without credentials
    location = f"{location.rstrip('/')}/{manifest_name(name)}"
    try:
        files, root = fs.LocalFileSystem(), address
        if "://" in address:
            files, root = fs.FileSystem.from_uri(address)
        file = files.open_input_file(f"{root.rstrip('/')}/{manifest_name(name)}")
    except (OSError, pa.ArrowInvalid) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
        raise InputError(
            f"cannot read {location}: {reason}: is it the folder of a run?"
        ) from None  # the cause may show a secret
    with file:
        return manifest_rows(file, location, columns)


def manifest_rows(file: pa.NativeFile, address: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of a manifest's open file. Raises InputError, which names the address, if the file is damaged."""
    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{address} is damaged: remove it and run the same command again") from error
