"""Local copies of input files: a path is used as it is, and the file of a URI is fetched once into the cache.

The driver uses this module. It sends the contents to the workers, which need neither the store nor its credentials.
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

from datasets.storage.addresses import checked_address, explain, finds_credentials, open_store, shown
from passersby.environment import cache_folder
from passersby.errors import InputError

PIECE_BYTES = 16 << 20


def local_copy(
    address: str | os.PathLike, option: str, beside: Sequence[str] = (), perhaps: Sequence[str] = ()
) -> Path:
    """A local path of the file that `option` gives as a path or a pyarrow filesystem URI (s3://, gs://, file://).

    beside: suffixes (".cfg") of files with the same stem that are fetched too; perhaps: those of files that are
    fetched if they exist. A path is not copied, and may be a folder. The file of a URI is fetched under its own name
    into a cache folder, which is named by a hash of address, size, time and, on S3, ETag. So it is fetched again only
    when it changes. It appears in the cache only when it is whole. Older versions stay; the cache folder may be emptied
    at any time. Raises InputError that names the option and the address when a file is missing or cannot be read.
    """
    text = checked_address(os.fspath(address), option)
    if "://" not in text:
        return _existing(Path(text).expanduser(), option, text)
    if text.startswith("file:///"):
        return _existing(Path(urllib.parse.unquote(urllib.parse.urlsplit(text).path)), option, text)
    files, main = open_store(text, option)
    paths = [main, *(str(PurePosixPath(main).with_suffix(suffix)) for suffix in beside)]
    try:
        others = [str(PurePosixPath(main).with_suffix(suffix)) for suffix in perhaps]
        paths += [path for path in others if files.get_file_info(path).type == fs.FileType.File]
        versions = [_version(files, path) for path in paths]
    except FileNotFoundError as error:
        raise InputError(f"{option} {shown(text)}: there is no file {_missing(files, paths)}: check it") from error
    except OSError as error:
        raise InputError(f"{option} {shown(text)}: {explain(error, finds_credentials(text))}") from error
    key = "\n".join([shown(text), *(f"{path} {version}" for path, version in zip(paths, versions, strict=True))])
    folder = cache_folder() / "inputs" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not _whole(folder, paths):
        shutil.rmtree(folder, ignore_errors=True)  # a folder from which a file was removed
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
    with files.open_input_stream(path) as stream:  # opening reads no content
        etag = (stream.metadata() or {}).get("ETag", b"").decode()
    return f"{info.size} {info.mtime_ns} {etag}"


def _whole(folder: Path, paths: Sequence[str]) -> bool:
    return all((folder / PurePosixPath(path).name).is_file() for path in paths)


def _missing(files: fs.FileSystem, paths: Sequence[str]) -> str:
    return next((path for path in paths if files.get_file_info(path).type != fs.FileType.File), paths[0])


def _fetch(files: fs.FileSystem, paths: Sequence[str], folder: Path, address: str, option: str) -> None:
    """Fetch into a temporary folder that becomes `folder` in one step, so two processes may fetch at once."""
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
        if error.errno:  # an error of this machine's disk; errors of stores have no number
            raise InputError(
                f"{option} {shown(address)}: cannot keep it in {folder.parent} ({error.strerror}): set PASSERSBY_CACHE "
                "to a folder that can be written and has room"
            ) from error
        raise InputError(f"{option} {shown(address)}: {explain(error, finds_credentials(address))}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
