"""The connection of a job to Ray: it joins a cluster, or starts a private Ray on a machine where little is as usual."""

import contextlib
import logging
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import ray

from passersby.environment import own_packages_first, private_folder
from passersby.errors import InputError

SLOW_SECONDS = 60.0  # a start takes 5 to 40 s; after this long a line says that the job waits
START_SECONDS = 300.0  # after this long a start does not come to its end any more
ADDRESS_SECONDS = 5.0
LEAST_FILES, USUAL_FILES = 256, 65_536  # Ray's processes hold 60 to 90 files each on two cores; its own advice
TOO_LATE = "timed out during startup"  # in the text of Ray's exception

# Ray's sockets lie in SESSION below its temporary folder. The path of a socket has a limit in bytes, without its end.
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
SESSION = "ray/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store"


def join_or_start(worker_variables: dict[str, str]) -> None:
    """Join the cluster of `RAY_ADDRESS` (set by `ray job submit`), or start a private local Ray.

    A plain `ray.init()` would join any cluster that happens to run on the machine. worker_variables: environment
    variables of the workers. Raises InputError where no cluster answers, and where Ray does not start. A start that
    takes longer than START_SECONDS ends the program with a line and exit code 2.
    """
    if ray.is_initialized():
        return
    allow_files()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's C++ side reports harmless things as errors
    address = os.environ.get("RAY_ADDRESS", "").strip() or "local"
    if address == "local":
        logs = choose_temporary_folder() / "session_latest" / "logs"
        cluster, advice = "the private Ray", f"try again when the machine is less busy; Ray's logs are in {logs}"
        choose_network_address()
    else:
        cluster, advice = f"RAY_ADDRESS {address}", "unset it for a local Ray"

    def init() -> None:
        ray.init(
            address=address,
            runtime_env={"env_vars": dict(worker_variables), "worker_process_setup_hook": own_packages_first()},
            log_to_driver=False,
            include_dashboard=False if address == "local" else None,  # a joined cluster has its own dashboard
            logging_level=logging.ERROR,
        )

    try:
        with ending_in_time(cluster, advice):
            if address == "local":
                tried_twice(init)
            else:
                init()
    # Ray raises plain exceptions of many kinds here, all of them over the machine or the address.
    except Exception as error:
        if address != "local" and isinstance(error, ConnectionError):
            raise InputError(f"{cluster}: no Ray cluster answers there; {advice}") from error
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0][:200]}"
        verb = " does not start" * (address == "local")
        raise InputError(f"{cluster}{verb}: {reason}; {advice}") from error


def allow_files() -> None:
    """Let this process and those that it starts open LEAST_FILES files or more, if the system allowed fewer.

    Raises InputError where the system does not let this user change that.
    """
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit >= LEAST_FILES or limit == resource.RLIM_INFINITY:
        return
    if most != resource.RLIM_INFINITY and most < LEAST_FILES:
        raise InputError(
            f"a process may open {most} files (ulimit -n), and Ray's need {LEAST_FILES}: allow more, as with "
            "ulimit -n 65536"
        )
    limit = USUAL_FILES if most == resource.RLIM_INFINITY else min(most, USUAL_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


def choose_temporary_folder() -> Path:
    """Let the Ray that starts next keep its session where its sockets' paths are short enough; returns Ray's folder.

    Ray takes RAY_TMPDIR, TMPDIR or /tmp. If that is too long or cannot be written, another folder is chosen, and a line
    on stderr says so. Raises InputError, which names the variable, if there is no such folder.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    usual = os.environ[variable] if variable else "/tmp"
    reason = _unfit(usual)
    if reason is None:
        return Path(usual, "ray")
    for folder in _other_folders():
        if _unfit(folder) is None:
            print(f"note: {variable or 'folder'} {usual} {reason}: Ray keeps its session in {folder}", file=sys.stderr)
            os.environ["RAY_TMPDIR"] = folder  # the workers' processes look there too
            return Path(folder, "ray")
    raise InputError(f"{variable or 'folder'} {usual} {reason}: set RAY_TMPDIR to a short path that can be written")


def _other_folders() -> Iterator[str]:
    yield "/tmp"
    with contextlib.suppress(InputError, OSError):
        yield str(private_folder())
    yield f"/tmp/passersby-{os.getuid()}"
    yield from ("/var/tmp", "/dev/shm")
    if "XDG_RUNTIME_DIR" in os.environ:
        yield os.environ["XDG_RUNTIME_DIR"]


def _unfit(folder: str) -> str | None:
    """Why Ray cannot keep its session in a folder; None if it can."""
    most = SOCKET_BYTES - len(f"/{SESSION}")
    if not os.path.isabs(folder):
        return "is no absolute path"
    if not folder.isascii():
        return "has letters that are not ASCII"
    if len(folder.rstrip("/")) > most:
        return f"is longer than the {most} letters that Ray's sockets allow"
    path = Path(folder, "ray")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    return None if os.access(path, os.W_OK | os.X_OK) else "cannot be written"


def choose_network_address() -> None:
    """Let the private Ray talk over 127.0.0.1 if the machine cannot reach itself by the address that Ray would take.

    So it is without a network, behind a firewall, and where the machine's name stands for an old address: Ray would
    wait for its own processes without end. Raises InputError if 127.0.0.1 cannot be reached either.
    """
    from ray._private import ray_constants

    if not _reaches_itself("127.0.0.1"):
        raise InputError(
            "127.0.0.1 cannot be reached, and Ray's processes talk over it: no network interface is up, not even `lo` "
            "(`ip link set lo up`), or a firewall blocks it"
        )
    if not _reaches_itself(ray.util.get_node_ip_address()):
        ray_constants.ENABLE_RAY_CLUSTER = False  # Ray's own switch for a Ray of one machine: 127.0.0.1 everywhere
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for Ray's other processes


def _reaches_itself(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as server:
            server.bind((address, 0))
            server.listen(1)
            socket.create_connection(server.getsockname()[:2], ADDRESS_SECONDS).close()
    except OSError:
        return False
    return True


def tried_twice(init: Callable[[], None]) -> None:
    """Start Ray, and once more if its processes took too long: Ray gives them 15 and 30 s, which no option changes.

    On a busy machine, or with files on a network, a start can take longer. The second start finds the files in memory.
    """
    import psutil  # Ray brings it, and is imported before

    before = set(psutil.Process().children(recursive=True))
    try:
        init()
    except Exception as error:
        if TOO_LATE not in str(error):
            raise
        print("note: Ray's processes took too long to start: trying once more", file=sys.stderr, flush=True)
        started = [child for child in psutil.Process().children(recursive=True) if child not in before]
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, timeout=ADDRESS_SECONDS)
        init()


@contextlib.contextmanager
def ending_in_time(cluster: str, advice: str) -> Iterator[None]:
    """End the program with one line and exit code 2 if the block takes longer than START_SECONDS.

    The block may wait in Ray's C++ code, which no exception interrupts. Ray's processes end with this one.
    """
    ended = threading.Event()

    def watch() -> None:
        if ended.wait(SLOW_SECONDS):
            return
        print(f"note: {cluster}: no answer yet after {SLOW_SECONDS:.0f} s", file=sys.stderr, flush=True)
        if ended.wait(START_SECONDS - SLOW_SECONDS):
            return
        print(f"error: {cluster}: no answer after {START_SECONDS:.0f} s; {advice}", file=sys.stderr, flush=True)
        os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
