"""Where a run is written: a folder of this machine, or a pyarrow filesystem URI such as s3://bucket/run.

A file is visible only when it is complete. On a disk: a temporary file beside it, fsync, rename. On an object
store: one upload, which stores show when it has ended. So "the file exists" can stand for "the work is done".
"""

import contextlib
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from models.errors import InputError

# .NAME.HOST.PID.tmp: who wrote a leftover can be told, so that a living writer's file is never removed.
TEMPORARY = re.compile(r"^\..+\.([^.]*)\.(\d+)\.tmp$")
FOREIGN_LEFTOVER_SECONDS = 3600  # a temporary file of another machine that nobody has touched for so long


class Output:
    """A folder of files by relative name ("shards/000/unit-000012.parquet").

    `address` is a path or a pyarrow filesystem URI; a relative path is taken from the working directory.
    Files are read as None when missing. Whatever the file system refuses (no space, no permission, a file
    where a folder should be) is raised as an InputError that names the path and the reason. Picklable
    through `root_address`.
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
        try:
            local = address.startswith("/")
            self._files, self._root = (
                (pa.fs.LocalFileSystem(), address) if local else pa.fs.FileSystem.from_uri(address)
            )
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"--out {address}: {error}") from error
        self._root = self._root.rstrip("/")
        self.local = isinstance(self._files, pa.fs.LocalFileSystem)
        self.root_address = address.rstrip("/") or "/"

    def address(self, name: str) -> str:
        """Full path or URI of a file, for people."""
        return f"{self.root_address}/{name}"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _explained(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)  # Arrow's texts are long
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
        """Whether a file is there."""
        with self._explained("read", name):
            return self._files.get_file_info(self._path(name)).type == pa.fs.FileType.File

    def list(self, folder: str) -> list[str]:
        """Names, relative to the root, of all files that hold something in a folder and below: one
        listing."""
        selector = pa.fs.FileSelector(self._path(folder), recursive=True, allow_not_found=True)
        with self._explained("list", folder):
            found = self._files.get_file_info(selector)
        start = len(self._root) + 1
        return [info.path[start:] for info in found if info.type == pa.fs.FileType.File and info.size]

    def write(self, name: str, content: bytes) -> None:
        """Write a file as a whole, in place of an older one."""
        with self.replacing(name) as path:
            Path(path).write_bytes(content)

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
            _sync(temporary)
            os.replace(temporary, final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(final.parent)  # otherwise a power cut could undo the rename

    @contextlib.contextmanager
    def _upload(self, name: str) -> Iterator[str]:
        with tempfile.TemporaryDirectory(prefix="passersby-") as folder:
            path = os.path.join(folder, "upload")
            yield path
            with open(path, "rb") as source, self._stream(self._path(name)) as stream:
                while piece := source.read(16 << 20):
                    stream.write(piece)

    def _stream(self, path: str) -> pa.NativeFile:
        # Object stores have no folders, and creating one would leave an empty object: only where one is missed.
        try:
            return self._files.open_output_stream(path)
        except FileNotFoundError:
            self._files.create_dir(os.path.dirname(path), recursive=True)
            return self._files.open_output_stream(path)

    def remove_leftovers(self) -> int:
        """Remove temporary files that killed writers have left; returns how many. Those of living ones
        stay."""
        if not self.local or not os.path.isdir(self._root):
            return 0
        with self._explained("clean", "shards"):
            leftovers = [path for path in Path(self._root).rglob(".*.tmp") if _is_leftover(path)]
            for path in leftovers:
                path.unlink(missing_ok=True)
        return len(leftovers)


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
