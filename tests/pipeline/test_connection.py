"""Ray's start on machines where little is as usual: long and odd folders, no network, no answer."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from jobs.common import connect
from passersby.errors import InputError
from pipeline import connection
from pipeline.connection import SESSION, SOCKET_BYTES, choose_network_address, choose_temporary_folder

ROOT = Path(__file__).parents[2]
LONGEST = SOCKET_BYTES - len(f"/{SESSION}")  # 39 on Linux


@pytest.fixture(autouse=True)
def no_folders(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def short(tmp_path):
    """A folder with a short path, which is removed at the end."""
    folder = Path(f"/tmp/p{os.getpid()}")
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_the_socket_of_the_longest_folder_is_as_long_as_a_socket_may_be(short):
    """The limit is the system's: a socket below a folder of LONGEST letters can be bound, one letter more cannot."""
    for letters in (LONGEST, LONGEST + 1):
        folder = short / ("x" * (letters - len(str(short)) - 1))
        path = folder / SESSION
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as server:
            if letters == LONGEST:
                server.bind(str(path))
            else:
                with pytest.raises(OSError, match="AF_UNIX path too long"):
                    server.bind(str(path))


def test_a_usual_folder_is_ray_s_choice(short, monkeypatch, capsys):
    assert choose_temporary_folder() == Path("/tmp/ray")
    monkeypatch.setenv("TMPDIR", str(short))
    assert choose_temporary_folder() == short / "ray"
    monkeypatch.setenv("RAY_TMPDIR", str(short / "more"))  # it comes before TMPDIR, and Ray would make it
    assert choose_temporary_folder() == short / "more" / "ray"
    assert "RAY_TMPDIR" in os.environ
    assert os.environ["RAY_TMPDIR"] == str(short / "more")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("{short}/" + "x" * 40, f"is longer than the {LONGEST} letters that Ray's sockets allow"),
        ("{short}/é", "has letters that are not ASCII"),
        ("relative", "is no absolute path"),
        ("", "is no absolute path"),
        ("{short}/file/below", "cannot be written (Not a directory)"),
        ("/proc/none", "cannot be written (No such file or directory)"),
    ],
)
def test_an_unfit_folder_is_replaced_and_the_line_names_the_variable(
    short, monkeypatch, capsys, variable, name, reason
):
    (short / "file").write_text("")
    folder = name.format(short=short)
    monkeypatch.setenv(variable, folder)
    assert choose_temporary_folder() == Path("/tmp/ray")
    assert os.environ["RAY_TMPDIR"] == "/tmp"  # Ray and its processes take it from there
    assert capsys.readouterr().err == f"note: {variable} {folder} {reason}: Ray keeps its session in /tmp\n"


def test_no_folder_at_all_is_one_line_that_names_the_variable(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/scratch/" + "x" * 40)
    monkeypatch.setattr(connection, "_other_folders", lambda: iter(["/proc/none"]))
    with pytest.raises(
        InputError, match="^TMPDIR /scratch/x+ is longer .*: set RAY_TMPDIR to a short path that can be"
    ):
        choose_temporary_folder()


def test_a_folder_of_another_user_is_left_to_them(short, monkeypatch, capsys):
    (short / "ray").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != short / "ray" and access(path, mode))
    monkeypatch.setenv("TMPDIR", str(short))
    assert choose_temporary_folder() == Path("/tmp/ray")
    assert f"TMPDIR {short} cannot be written" in capsys.readouterr().err


@pytest.fixture
def network(monkeypatch):
    """The addresses that this machine reaches itself by, which the test gives; Ray takes 10.0.0.7."""
    from ray._private import ray_constants

    reached: set[str] = set()
    monkeypatch.setattr(connection, "_reaches_itself", lambda address: address in reached)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    return reached


def test_a_machine_that_reaches_itself_keeps_ray_s_address(network):
    from ray._private import ray_constants

    network.update(["127.0.0.1", "10.0.0.7"])
    choose_network_address()
    assert ray_constants.ENABLE_RAY_CLUSTER


def test_a_machine_without_a_network_talks_over_127_0_0_1(network):
    from ray._private import ray_constants

    network.add("127.0.0.1")
    choose_network_address()
    assert not ray_constants.ENABLE_RAY_CLUSTER
    assert ray._private.services.get_node_ip_address() in ("127.0.0.1", "::1") or ray.is_initialized()


def test_no_interface_at_all_is_one_line(network):
    with pytest.raises(InputError, match="^127.0.0.1 cannot be reached.*no network interface is up, not even `lo`"):
        choose_network_address()


def test_a_machine_reaches_itself_by_its_own_addresses_only():
    assert connection._reaches_itself("127.0.0.1")
    assert not connection._reaches_itself("203.0.113.1")  # an address of the documentation's, which nobody has
    assert not connection._reaches_itself("no address")


ENDLESS = """
import sys, threading
from pipeline import connection
connection.SLOW_SECONDS, connection.START_SECONDS = 0.1, 0.3
connection.choose_network_address = lambda: None
connection.ray.init = lambda **options: threading.Event().wait()
connection.ray.is_initialized = lambda: False
connection.join_or_start({})
"""


@pytest.mark.parametrize(
    ("address", "lines"),
    [
        (
            "",
            "note: the private Ray: no answer yet after 0 s\n"
            "error: the private Ray: no answer after 0 s; try again when the machine is less busy; Ray's logs are in "
            "/tmp/ray/session_latest/logs\n",
        ),
        (
            "192.0.2.1:6379",
            "note: RAY_ADDRESS 192.0.2.1:6379: no answer yet after 0 s\n"
            "error: RAY_ADDRESS 192.0.2.1:6379: no answer after 0 s; unset it for a local Ray\n",
        ),
    ],
)
def test_a_start_that_never_ends_says_so_and_ends(address, lines):
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS],
        env=os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, lines)


def test_a_start_that_took_too_long_is_tried_once_more_without_the_processes_of_the_first(capsys):
    started = []

    def init() -> None:
        started.append(subprocess.Popen(["sleep", "100"]))
        if len(started) == 1:
            raise Exception("The current node timed out during startup. This could happen because ...")

    before = subprocess.Popen(["sleep", "100"])
    try:
        connection.tried_twice(init)
        assert [process.poll() is None for process in (before, *started)] == [True, False, True]
        assert capsys.readouterr().err == "note: Ray's processes took too long to start: trying once more\n"
    finally:
        for process in (before, *started):
            process.kill()
            process.wait()


def test_another_failure_of_a_start_is_not_tried_again():
    starts = []

    def init() -> None:
        starts.append(1)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        connection.tried_twice(init)
    assert len(starts) == 1


@pytest.mark.parametrize(
    ("address", "error", "line"),
    [
        (
            "nonsense",
            ValueError("Invalid address format: nonsense"),
            "RAY_ADDRESS nonsense: ValueError: Invalid address",
        ),
        ("h:1", ConnectionError("no"), "RAY_ADDRESS h:1: no Ray cluster answers there; unset it for a local Ray"),
        (
            None,
            OSError(28, "No space left on device"),
            "the private Ray does not start: OSError: .*No space left.*logs",
        ),
        (
            "",
            Exception("The current node timed out\nduring startup"),
            "the private Ray does not start: Exception: The cu",
        ),
    ],
)
def test_every_failure_of_a_start_is_one_line(monkeypatch, address, error, line):
    def fail(**options):
        assert options["address"] == (address or "local")
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(connection, "choose_network_address", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", address) if address is not None else monkeypatch.delenv(
        "RAY_ADDRESS", raising=False
    )
    with pytest.raises(InputError, match=f"^{line}") as caught:
        connect()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after"), [((64, 4096), (4096, 4096)), ((64, -1), (65_536, -1)), ((256, 256), None)]
)
def test_too_few_open_files_become_enough_where_the_system_lets_us(monkeypatch, before, after):
    changed = []
    monkeypatch.setattr(connection.resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(connection.resource, "setrlimit", lambda _, limits: changed.append(limits))
    connection.allow_files()
    assert changed == ([] if after is None else [after])


def test_too_few_open_files_are_one_line_before_ray_starts(monkeypatch):
    monkeypatch.setattr(connection.resource, "getrlimit", lambda _: (64, 64))
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    with pytest.raises(InputError, match=r"may open 64 files \(ulimit -n\), and Ray's need 256: .* ulimit -n 65536"):
        connection.join_or_start({})
