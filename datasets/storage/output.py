"""The output folder of a run, on this machine or at a pyarrow filesystem URI such as s3://bucket/run.

A file is visible only when it is complete, so an existing file means that its work is done. On a disk a
temporary file is written beside it, synced and renamed. On an object store it is one upload, which the store
shows when the upload has ended. An interrupted upload in parts (files above 5 MB) shows no file. Its parts are
stored, and paid for, until the bucket's lifecycle rule removes them (AbortIncompleteMultipartUpload; set it to
a day). For the forms of addresses and credentials, and the time limits of stores: datasets/storage/addresses.py.
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

from datasets.storage.addresses import STORES, checked_address, explain, finds_credentials, open_store, shown
from passersby.errors import InputError
from passersby.files import sync

# .NAME.HOST.PID.tmp names the writer of a temporary file, so that the file of a running writer is never removed.
TEMPORARY = re.compile(r"^\..+\.([^.]*)\.(\d+)\.tmp$")
FOREIGN_LEFTOVER_SECONDS = 3600  # age at which a temporary file of another machine is a leftover


class Output:
    """A folder of files by relative name ("shards/000/unit-000012.parquet").

    `address` is a path or a pyarrow filesystem URI; a relative path is taken from the working directory.
    A missing file is read as None. Every refusal of the file system (no space, no permission, a file where a
    folder should be, a store that does not answer) is raised as an InputError that names the address and the
    reason.

    `root_address` and the results of `address` are for users and hold no credentials. `secret_address` opens
    the same folder in another process, and is never printed. `local`: whether the folder is on a disk.
    """

    def __init__(self, address: str):
        if not address.strip():
            raise InputError("--out is empty: give a folder or a URI such as s3://bucket/run")
        address = checked_address(address, "--out")
        if "://" not in address:
            if not os.path.isabs(address) and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
                raise InputError(
                    f"--out {address} is relative, and `ray job submit` runs in a copy of the folder that is thrown "
                    "away: give an absolute path that every node sees, or a URI such as s3://bucket/run"
                )
            address = os.path.abspath(os.path.expanduser(address))
        self._files, self._root = open_store(address, "--out")
        self.local = isinstance(self._files, fs.LocalFileSystem)
        self.secret_address = (self._root or "/") if self.local else address  # a file:// address becomes a path as well
        self.root_address = shown(self.secret_address)

    def address(self, name: str) -> str:
        """Full path or URI of a file, for users."""
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
        """The content of a file; None where it does not exist."""
        with self._explained("read", name):
            try:
                with self._files.open_input_stream(self._path(name)) as stream:
                    return stream.read()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def open(self, name: str) -> pa.NativeFile:
        """Open a file for random access, which Parquet readers need. Raises InputError when the file is missing."""
        with self._explained("read", name):
            return self._files.open_input_file(self._path(name))

    def exists(self, name: str) -> bool:
        """Whether a file exists. Costs one small request."""
        with self._explained("read", name):
            if self._files.type_name not in STORES:
                return self._files.get_file_info(self._path(name)).type == fs.FileType.File
            try:
                # get_file_info would also list a missing file's name, to check whether it is a folder.
                self._files.open_input_file(self._path(name)).close()
            except FileNotFoundError:
                return False
            return True

    def list(self, folder: str) -> list[str]:
        """Names, relative to the root, of all files that are not empty, in a folder and its sub-folders.

        Costs one listing; on object stores a request returns 1000 names. Raises InputError for a missing bucket.
        """
        selector = fs.FileSelector(self._path(folder), recursive=True, allow_not_found=True)
        with self._explained("list", folder):
            entries = self._files.get_file_info(selector)
            if not entries and self._files.type_name in STORES:
                self._check_bucket()
        start = len(self._root) + 1
        return [info.path[start:] for info in entries if info.type == fs.FileType.File and info.size]

    def _check_bucket(self) -> None:
        # Stores give the same answer for a missing bucket as for an empty folder.
        bucket = self._root.partition("/")[0]
        try:
            missing = self._files.get_file_info(bucket).type == fs.FileType.NotFound
        except OSError:  # permission to list a prefix does not include permission to query the bucket
            return
        if missing:
            raise InputError(f"--out {self.root_address}: there is no bucket {bucket}: create it, or correct its name")

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file. It replaces an older one."""
        if self.local:
            with self.replacing(name) as path:
                Path(path).write_bytes(content)
            return
        with self._explained("write", name):
            self._put(name, pa.py_buffer(content))

    def remove(self, name: str) -> None:
        """Remove a file. A missing file is no error. On S3 an empty object "folder/" may stay, as Arrow keeps
        the folder."""
        with self._explained("remove", name):
            if self.local:  # a path through a plain file is a missing file too
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    os.unlink(self._path(name))
            else:
                with contextlib.suppress(FileNotFoundError):
                    self._files.delete_file(self._path(name))

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[str]:
        """Yields a local path to write to. When the block ends without an error, its file becomes `name` at once.

        An older file stays until then, and stays after an error.
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
        # When a stream is closed, Arrow commits its content, even if an exception or the garbage collector closes
        # it, and an upload cannot be undone. So the whole content is written in one call, and in a separate thread,
        # where no interrupt can arrive between opening and writing.
        def send() -> None:
            with self._stream(self._path(name)) as stream:
                stream.write(content)

        with ThreadPoolExecutor(1) as uploader:
            uploader.submit(send).result()

    def _stream(self, path: str) -> pa.NativeFile:
        # Object stores have no folders, and creating one would leave an empty object. So it is created only on failure.
        try:
            return self._files.open_output_stream(path)
        except FileNotFoundError:
            self._files.create_dir(os.path.dirname(path), recursive=True)
            return self._files.open_output_stream(path)

    def remove_leftovers(self) -> int:
        """Remove the temporary files of killed writers and return their number. Files of running writers
        stay. Object stores have no temporary files."""
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
