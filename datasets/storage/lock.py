"""The lock that allows one driver a folder: two runs on the same folder would overwrite each other's files."""

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NotRequired, TypedDict

from filelock import FileLock, Timeout

from datasets.storage.output import Output
from passersby.errors import InputError

LEASE_FILE = ".driver.json"
BEAT_SECONDS = 15.0
LOCK_SECONDS = 0.2  # time for an ending holder to remove its file
UNLOCKABLE = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


class Holder(TypedDict):
    """The content of a lease's file: the driver that holds the lease. beat: the number of its renewals."""

    driver: NotRequired[str]
    since: NotRequired[str]
    token: NotRequired[str]
    beat: NotRequired[int]


class Lease:
    """A driver holds it while it writes below `output`. `check` raises InputError after another driver took it over."""

    def __init__(self) -> None:
        self.taken_by: str | None = None

    def check(self) -> None:
        """Raises InputError where another driver has taken the folder over, as this one was silent for too long."""
        if self.taken_by:
            raise InputError(f"{self.taken_by} has taken this folder over while this driver was silent: leave it to it")


@contextlib.contextmanager
def hold(output: Output) -> Iterator[Lease]:
    """Hold the only lease on a folder. Raises InputError that names the driver which already has it.

    On a disk the lease is a lock of the operating system, which is released when the process ends in any way.
    Elsewhere, and where the file system has no locks, the lease is a small object that its holder writes again
    every BEAT_SECONDS. A lease that is not renewed for two beats is taken over, so a start after a killed driver
    waits that long. No clocks are compared.
    """
    with contextlib.ExitStack() as stack:
        if not (output.local and _lock(output, stack)):
            yield stack.enter_context(_beating(output))
            return
        yield Lease()


def _me() -> Holder:
    return {"driver": f"process {os.getpid()} on {socket.gethostname()}", "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _refusal(output: Output, holder: Holder) -> InputError:
    return InputError(
        f"--out {output.address('').rstrip('/')}: {holder.get('driver', 'another driver')} has been working here since "
        f"{holder.get('since', 'a while')}: wait for it, end it, or choose another --out"
    )


def _lock(output: Output, stack: contextlib.ExitStack) -> bool:
    """Take the operating system's lock. False where the file system has no locks."""
    path = Path(output.address(LEASE_FILE))
    folder_is_ours = not path.parent.exists()
    lock = FileLock(path, timeout=LOCK_SECONDS, poll_interval=LOCK_SECONDS / 10, mode=0o644, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(lock)
        path.write_text(json.dumps(_me()), "utf-8")
    except Timeout as error:
        raise _refusal(output, _parse(output.read(LEASE_FILE))) from error
    except OSError as error:
        if error.errno in UNLOCKABLE:
            return False
        raise InputError(f"cannot write {path}: {error.strerror}: choose another --out") from error
    if folder_is_ours:
        stack.callback(_remove_if_empty, path.parent)  # a run that is refused later leaves no folder behind
    stack.callback(path.unlink, missing_ok=True)
    return True


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def _beating(output: Output) -> Iterator[Lease]:
    holder = _parse(output.read(LEASE_FILE))
    if holder:
        print(f"{holder.get('driver', 'another driver')} may be working here: waiting {2 * BEAT_SECONDS:.0f} s to see")
        time.sleep(2 * BEAT_SECONDS)
        latest = _parse(output.read(LEASE_FILE))
        if latest and latest != holder:
            raise _refusal(output, latest)
    token = uuid.uuid4().hex
    own_record: Holder = {**_me(), "token": token, "beat": 0}
    output.write(LEASE_FILE, json.dumps(own_record).encode())
    # Two drivers that start together both see no lease, and both write. After a moment both read the last writer.
    time.sleep(min(2.0, BEAT_SECONDS))
    winner = _parse(output.read(LEASE_FILE))
    if winner.get("token") != token:
        raise _refusal(output, winner)
    lease, ended = Lease(), threading.Event()
    beats = threading.Thread(target=_beat, args=(output, lease, own_record, ended), daemon=True)
    beats.start()
    try:
        yield lease
    finally:
        ended.set()
        beats.join()
        if not lease.taken_by:
            with contextlib.suppress(InputError):  # the store does not answer: the run's own error reports it
                output.remove(LEASE_FILE)


def _beat(output: Output, lease: Lease, own_record: Holder, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(InputError):  # the store does not answer for a moment: writing shards reports it
            stored = _parse(output.read(LEASE_FILE))
            if stored and stored.get("token") != own_record.get("token"):
                lease.taken_by = stored.get("driver", "another driver")
                return
            own_record["beat"] = own_record.get("beat", 0) + 1
            output.write(LEASE_FILE, json.dumps(own_record).encode())


def _parse(text: bytes | None) -> Holder:
    try:
        content: Holder = json.loads(text or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
