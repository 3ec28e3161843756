"""What all jobs share: paths of the command line that are addresses, letters that a terminal does not know."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.common import on_disk, run_job
from passersby.errors import InputError

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the kinds that jobs have."""

    out: Path
    data: Path = Path("market")
    weights: Path | None = None
    people: tuple[Path, ...] = ()
    levels: tuple[int, ...] = (1, 2)
    run: str = "s3://bucket/run"


@pytest.mark.parametrize("address", ["file:///data/a%20run", "file:/data/a%20run", "file:///data/./a%20run/"])
def test_the_path_of_a_file_address_is_a_path(address):
    config = on_disk(Config(Path(address), Path(address), Path(address), (Path(address), Path("other"))))
    path = Path("/data/a run")
    assert config == Config(path, path, path, (path, Path("other")))


@pytest.mark.parametrize("address", ["s3://bucket/run", "S3://bucket/run", "gs://bucket//run", "s3a://bucket/run"])
def test_an_option_that_takes_a_path_refuses_an_address_of_a_store(address):
    for name in ("out", "weights"):
        with pytest.raises(InputError, match=f"^--{name} (s3|gs)://bucket/run: this option takes a path on a disk"):
            on_disk(Config(**{"out": Path("out")} | {name: Path(address)}))


def test_a_secret_in_such_an_address_is_not_shown():
    with pytest.raises(InputError) as caught:
        on_disk(Config(Path("s3://KEY:hidden@bucket/run")))
    assert "hidden" not in str(caught.value)


def test_runs_and_real_people_may_be_on_a_store():
    config = Config(Path("out"), data=Path("s3://bucket/run"), people=(Path("s3://bucket/run"),))
    assert on_disk(config) == config


def test_paths_are_taken_as_they_are():
    config = Config(Path("a//b/../c d"), Path("~/x"), Path("s3"), (Path("/data/16:45"),))
    assert on_disk(config) == config


def test_an_out_whose_name_is_not_utf8_is_refused_in_one_line():
    with pytest.raises(InputError, match="--out .*: a part of the name is not UTF-8: rename it"):
        on_disk(Config(Path("caf\udce9")))


PRINTING = """
import dataclasses
from jobs.common import run_job

@dataclasses.dataclass(frozen=True)
class Config:
    name: str

run_job(lambda config: print(config.name), Config)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_letter_that_the_terminal_does_not_know_ends_no_job(encoding):
    done = subprocess.run(
        [sys.executable, "-c", PRINTING, "--name", "José 夜"],
        env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT), "HOME": str(ROOT), "PATH": ""},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "José 夜\n".encode(encoding, "backslashreplace")


@pytest.mark.parametrize("arguments", [["--name", "x" * 100_000], ["--help"]])
def test_a_reader_that_has_ended_ends_a_job_without_a_traceback(arguments):
    reader, writer = os.pipe()
    os.close(reader)  # as `head` has done
    done = subprocess.run(
        [sys.executable, "-c", PRINTING, *arguments],
        env={"PYTHONPATH": str(ROOT), "HOME": str(ROOT), "PATH": ""},
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.EACCES, "/data/market: Permission denied: give this user the right to it, or another path"),
        (errno.EROFS, "/data/market: Read-only file system: give this user the right to it, or another path"),
        (errno.EMFILE, "too many files are open, the system allows "),
    ],
)
def test_what_the_system_refuses_is_one_line(monkeypatch, capsys, number, line):
    def refused(_: Config) -> None:
        raise OSError(number, os.strerror(number), "/data/market")

    monkeypatch.setattr(sys, "argv", ["job", "--out", "out"])
    with pytest.raises(SystemExit) as caught:
        run_job(refused, Config)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch):
    def wrong(_: Config) -> None:
        raise OSError(errno.EINVAL, "Invalid argument", "/data/market")

    monkeypatch.setattr(sys, "argv", ["job", "--out", "out"])
    with pytest.raises(OSError, match="Invalid argument"):
        run_job(wrong, Config)


def test_an_ascii_locale_is_named_where_it_hides_a_good_name(monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    name = b"gr\xc3\xb6\xc3\x9fe".decode("ascii", "surrogateescape")
    with pytest.raises(InputError, match="this Python takes names of files for ascii, .*: set PYTHONUTF8=1"):
        on_disk(Config(Path(name)))
    with pytest.raises(InputError, match="is not UTF-8: rename it"):
        on_disk(Config(Path("gr\udcf6")))
