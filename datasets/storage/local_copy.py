"""Inputs that lie anywhere: a path is taken as it is, a file behind a URI is fetched once into the cache folder.

For the driver: it hands contents to the workers, which need neither the store nor its credentials.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import urllib.parse
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pyarrow import fs

from datasets.storage.addresses import explain, finds_credentials, open_store, shown
from passersby.errors import InputError
from passersby.weights import cache_folder

PIECE_BYTES = 16 << 20


def local_copy(address: str | os.PathLike, option: str, beside: Sequence[str] = ()) -> Path:
    """A local path of the file that `option` gives by a path or a pyarrow filesystem URI (s3://, gs://, file://).

    beside: suffixes of files that lie beside it under the same stem (".cfg") and come along. A path is not
    copied, and may be a folder. What a URI names is fetched into the cache folder under its own name, in a folder
    named after address, size, time and, on S3, ETag: not fetched again until it changes, and there only when
    whole. Older versions stay; the cache folder may be emptied at any time. Raises InputError that names the
    option and the address when a file is missing or cannot be read.
    """
    text = os.fspath(address)
    if "://" not in text:
        return _existing(Path(text).expanduser(), option, text)
    if text.startswith("file:///"):
        return _existing(Path(urllib.parse.unquote(urllib.parse.urlsplit(text).path)), option, text)
    files, main = open_store(text, option)
    paths = [main, *(str(PurePosixPath(main).with_suffix(suffix)) for suffix in beside)]
    try:
        versions = [_version(files, path) for path in paths]
    except FileNotFoundError as error:
        raise InputError(f"{option} {shown(text)}: there is no file {_missing(files, paths)}: check it") from error
    except OSError as error:
        raise InputError(f"{option} {shown(text)}: {explain(error, finds_credentials(text))}") from error
    key = "\n".join([shown(text), *(f"{path} {version}" for path, version in zip(paths, versions, strict=True))])
    folder = cache_folder() / "inputs" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not _whole(folder, paths):
        shutil.rmtree(folder, ignore_errors=True)  # where somebody has removed one of its files
        _fetch(files, paths, folder, text, option)
    return folder / PurePosixPath(main).name


def _existing(path: Path, option: str, address: str) -> Path:
    if not path.exists():
        raise InputError(f"{option} {address}: no such file: check the path")
    return path


def _version(files: fs.FileSystem, path: str) -> str:
    info = files.get_file_info(path)
    if info.type != fs.FileType.File:
        raise FileNotFoundError(path)
    with files.open_input_stream(path) as stream:  # nothing is read yet
        etag = (stream.metadata() or {}).get("ETag", b"").decode()
    return f"{info.size} {info.mtime_ns} {etag}"


def _whole(folder: Path, paths: Sequence[str]) -> bool:
    return all((folder / PurePosixPath(path).name).is_file() for path in paths)


def _missing(files: fs.FileSystem, paths: Sequence[str]) -> str:
    return next((path for path in paths if files.get_file_info(path).type != fs.FileType.File), paths[0])


def _fetch(files: fs.FileSystem, paths: Sequence[str], folder: Path, address: str, option: str) -> None:
    """Fetches into a temporary folder that becomes `folder` in one step: two at once do no harm."""
    print(f"fetching {shown(address)}", file=sys.stderr)
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".fetching-", dir=folder.parent))
        for path in paths:
            with files.open_input_stream(path) as source, open(temporary / PurePosixPath(path).name, "wb") as copy:
                while piece := source.read(PIECE_BYTES):
                    copy.write(piece)
                copy.flush()
                os.fsync(copy.fileno())
        try:
            os.rename(temporary, folder)
        except OSError:  # another process was quicker
            if not _whole(folder, paths):
                raise
    except OSError as error:
        if error.errno:  # of this machine's disk: stores' errors have no number
            raise InputError(
                f"{option} {shown(address)}: cannot keep it in {folder.parent} ({error.strerror}): set PASSERSBY_CACHE "
                "to a folder that can be written and has room"
            ) from error
        raise InputError(f"{option} {shown(address)}: {explain(error, finds_credentials(address))}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
