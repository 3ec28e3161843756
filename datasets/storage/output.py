"""Where a run is written: a folder of this machine, or a pyarrow filesystem URI such as s3://bucket/run.

A file is visible only when it is complete. On a disk: a temporary file beside it, fsync, rename. On an object
store: one upload, which stores show when it has ended. So "the file exists" can stand for "the work is done".
An upload in parts (files above 5 MB) that was broken off shows nothing, but its parts are stored, and paid for,
until the bucket's lifecycle rule removes them (AbortIncompleteMultipartUpload; set it to a day). How addresses and
credentials are given, and how long a store is waited for: datasets/storage/addresses.py.
"""

import contextlib
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from datasets.storage.addresses import STORES, explain, finds_credentials, open_store, shown
from passersby.errors import InputError
from passersby.files import sync

# .NAME.HOST.PID.tmp: who wrote a leftover can be told, so that a living writer's file is never removed.
TEMPORARY = re.compile(r"^\..+\.([^.]*)\.(\d+)\.tmp$")
FOREIGN_LEFTOVER_SECONDS = 3600  # a temporary file of another machine that nobody has touched for so long


class Output:
    """A folder of files by relative name ("shards/000/unit-000012.parquet").

    `address` is a path or a pyarrow filesystem URI; a relative path is taken from the working directory.
    Files are read as None when missing. Whatever the file system refuses (no space, no permission, a file
    where a folder should be, a store that does not answer) is raised as an InputError that names the place and
    the reason.

    `root_address` is for people and holds no credentials, no more than what `address` gives;
    `secret_address` opens the same folder in another process, and is never printed. `local`: on a disk.
    """

    def __init__(self, address: str):
        if not address.strip():
            raise InputError("--out is empty: give a folder or a URI such as s3://bucket/run")
        if "://" not in address:
            if not os.path.isabs(address) and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
                raise InputError(
                    f"--out {address} is relative, and `ray job submit` runs in a copy of the folder that is thrown "
                    "away: give an absolute path that every node sees, or a URI such as s3://bucket/run"
                )
            address = os.path.abspath(os.path.expanduser(address))
        self._files, self._root = open_store(address, "--out")
        self.local = isinstance(self._files, fs.LocalFileSystem)
        self.secret_address = (self._root or "/") if self.local else address  # file:// as well becomes a path
        self.root_address = shown(self.secret_address)

    def address(self, name: str) -> str:
        """Full path or URI of a file, for people."""
        return shown(self.secret_address, name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _explained(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = explain(error, finds_credentials(self.secret_address))
            raise InputError(
                f"cannot {verb} {self.address(name)}: {reason}. Mend that, then the same command goes on"
            ) from error

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None when there is none."""
        with self._explained("read", name):
            try:
                with self._files.open_input_stream(self._path(name)) as stream:
                    return stream.read()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def open(self, name: str) -> pa.NativeFile:
        """A file for random access, as Parquet readers want it. Raises InputError when it is missing."""
        with self._explained("read", name):
            return self._files.open_input_file(self._path(name))

    def exists(self, name: str) -> bool:
        """Whether a file is there: one small request."""
        with self._explained("read", name):
            if self._files.type_name not in STORES:
                return self._files.get_file_info(self._path(name)).type == fs.FileType.File
            try:
                # get_file_info would also look, by a listing, whether a missing file is a folder.
                self._files.open_input_file(self._path(name)).close()
            except FileNotFoundError:
                return False
            return True

    def list(self, folder: str) -> list[str]:
        """Names, relative to the root, of all files that hold something in a folder and below: one
        listing, of 1000 names a request on object stores. A store without the bucket is an InputError."""
        selector = fs.FileSelector(self._path(folder), recursive=True, allow_not_found=True)
        with self._explained("list", folder):
            found = self._files.get_file_info(selector)
            if not found and self._files.type_name in STORES:
                self._check_bucket()
        start = len(self._root) + 1
        return [info.path[start:] for info in found if info.type == fs.FileType.File and info.size]

    def _check_bucket(self) -> None:
        # Stores answer like an empty folder where the bucket itself is missing.
        bucket = self._root.partition("/")[0]
        try:
            missing = self._files.get_file_info(bucket).type == fs.FileType.NotFound
        except OSError:  # whoever may list a prefix need not be allowed to ask for the bucket
            return
        if missing:
            raise InputError(f"--out {self.root_address}: there is no bucket {bucket}: create it, or correct its name")

    def write(self, name: str, content: bytes) -> None:
        """Write a file as a whole, in place of an older one."""
        if self.local:
            with self.replacing(name) as path:
                Path(path).write_bytes(content)
            return
        with self._explained("write", name):
            self._put(name, pa.py_buffer(content))

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is fine. On S3 an empty object "folder/" may stay: Arrow keeps
        the folder."""
        with self._explained("remove", name):
            if self.local:  # a path through a plain file leads to no file either
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    os.unlink(self._path(name))
            else:
                with contextlib.suppress(FileNotFoundError):
                    self._files.delete_file(self._path(name))

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[str]:
        """A local path to write a file to; when the block ends without an error it becomes `name`, at once.

        What was there before stays until then, and after an error.
        """
        with self._explained("write", name), self._local(name) if self.local else self._upload(name) as path:
            yield path

    @contextlib.contextmanager
    def _local(self, name: str) -> Iterator[str]:
        final = Path(self._path(name))
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{_host()}.{os.getpid()}.tmp")
        try:
            yield str(temporary)
            sync(temporary)
            os.replace(temporary, final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(final.parent)  # otherwise a power cut could undo the rename

    @contextlib.contextmanager
    def _upload(self, name: str) -> Iterator[str]:
        with tempfile.TemporaryDirectory(prefix="passersby-") as folder:
            path = os.path.join(folder, "upload")
            yield path
            with pa.memory_map(path) as source:
                self._put(name, source.read_buffer())

    def _put(self, name: str, content: pa.Buffer) -> None:
        # Arrow commits whatever a stream holds when it is closed, be that by an exception or by the garbage
        # collector, and nothing takes an upload back. So everything is handed over in one piece, and in a thread of
        # its own, where no interrupt arrives between the opening and the writing.
        def send() -> None:
            with self._stream(self._path(name)) as stream:
                stream.write(content)

        with ThreadPoolExecutor(1) as uploader:
            uploader.submit(send).result()

    def _stream(self, path: str) -> pa.NativeFile:
        # Object stores have no folders, and creating one would leave an empty object: only where one is missed.
        try:
            return self._files.open_output_stream(path)
        except FileNotFoundError:
            self._files.create_dir(os.path.dirname(path), recursive=True)
            return self._files.open_output_stream(path)

    def remove_leftovers(self) -> int:
        """Remove temporary files that killed writers have left; returns how many. Those of living ones
        stay. Object stores have none."""
        if not self.local or not os.path.isdir(self._root):
            return 0
        with self._explained("clean", "shards"):
            leftovers = [path for path in Path(self._root).rglob(".*.tmp") if _is_leftover(path)]
            for path in leftovers:
                path.unlink(missing_ok=True)
        return len(leftovers)


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _is_leftover(path: Path) -> bool:
    match = TEMPORARY.match(path.name)
    if match is None:
        return False
    host, process = match.groups()
    if host != _host():
        return time.time() - path.stat().st_mtime > FOREIGN_LEFTOVER_SECONDS
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
