"""One driver a folder: two runs started on the same folder by mistake must not write over each other."""

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
LOCK_SECONDS = 0.2  # for the last holder to leave, who removes the file as it goes
UNLOCKABLE = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


class Holder(TypedDict):
    """What a lease's file says of the driver that holds it; beat: how often the driver has renewed it."""

    driver: NotRequired[str]
    since: NotRequired[str]
    token: NotRequired[str]
    beat: NotRequired[int]


class Lease:
    """Held while a driver writes below `output`; `check` raises InputError once somebody else has taken it over."""

    def __init__(self) -> None:
        self.taken_by: str | None = None

    def check(self) -> None:
        """Raises InputError when another driver works here: after this one had been silent for too long."""
        if self.taken_by:
            raise InputError(f"{self.taken_by} has taken this folder over while this driver was silent: leave it to it")


@contextlib.contextmanager
def hold(output: Output) -> Iterator[Lease]:
    """Hold the only lease on a folder, or raise InputError that names who has it.

    On a disk: a lock of the operating system, which ends with its process, however that ends. Elsewhere, and where the
    file system knows no locks: a small object that its holder writes again every BEAT_SECONDS. One that is not renewed
    for two beats is taken over; so the start after a killed driver waits that long. No clocks are compared.
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
    """Take the operating system's lock; False where there is none to be had."""
    path = Path(output.address(LEASE_FILE))
    folder_is_ours = not path.parent.exists()
    lock = FileLock(path, timeout=LOCK_SECONDS, poll_interval=LOCK_SECONDS / 10, mode=0o644, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(lock)
        path.write_text(json.dumps(_me()))
    except Timeout as error:
        raise _refusal(output, _parse(output.read(LEASE_FILE))) from error
    except OSError as error:
        if error.errno in UNLOCKABLE:
            return False
        raise InputError(f"cannot write {path}: {error.strerror}: choose another --out") from error
    if folder_is_ours:
        stack.callback(_remove_if_empty, path.parent)  # a run refused after this leaves nothing behind
    stack.callback(path.unlink, missing_ok=True)
    return True


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def _beating(output: Output) -> Iterator[Lease]:
    seen = _parse(output.read(LEASE_FILE))
    if seen:
        print(f"{seen.get('driver', 'another driver')} may be working here: waiting {2 * BEAT_SECONDS:.0f} s to see")
        time.sleep(2 * BEAT_SECONDS)
        now = _parse(output.read(LEASE_FILE))
        if now and now != seen:
            raise _refusal(output, now)
    token = uuid.uuid4().hex
    mine: Holder = {**_me(), "token": token, "beat": 0}
    output.write(LEASE_FILE, json.dumps(mine).encode())
    # Two drivers that start together both find nothing and both write: after a moment all see the same last writer.
    time.sleep(min(2.0, BEAT_SECONDS))
    winner = _parse(output.read(LEASE_FILE))
    if winner.get("token") != token:
        raise _refusal(output, winner)
    lease, ended = Lease(), threading.Event()
    beats = threading.Thread(target=_beat, args=(output, lease, mine, ended), daemon=True)
    beats.start()
    try:
        yield lease
    finally:
        ended.set()
        beats.join()
        if not lease.taken_by:
            with contextlib.suppress(InputError):  # the store is gone: the run's own error says so
                output.remove(LEASE_FILE)


def _beat(output: Output, lease: Lease, mine: Holder, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(InputError):  # a store that is away for a moment: writing shards reports it
            found = _parse(output.read(LEASE_FILE))
            if found and found.get("token") != mine.get("token"):
                lease.taken_by = found.get("driver", "another driver")
                return
            mine["beat"] = mine.get("beat", 0) + 1
            output.write(LEASE_FILE, json.dumps(mine).encode())


def _parse(text: bytes | None) -> Holder:
    try:
        content: Holder = json.loads(text or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
