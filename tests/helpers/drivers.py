"""Jobs as users start them: drivers in their own processes, which tests watch, kill and start again.

All starts of a driver print to one log beside its output folder (`log_text`).
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # seconds; a run of the crash tests takes 30 on two idle cores

Answer = TypeVar("Answer")


def command(job: str, config: object, options: tuple[str, ...], out: Path) -> list[str]:
    """The command line that starts a job with these `options` of its configuration, a dataclass."""
    words = [word for name in options for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    return [sys.executable, "-m", f"jobs.{job}", "--out", str(out), *words]


def start(words: list[str], out: Path, **environment: str) -> subprocess.Popen:
    """Start a driver, with its own Ray unless `environment` has a RAY_ADDRESS."""
    settings = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | environment
    with open(out.with_name(f"{out.name}.log"), "a") as log:
        return subprocess.Popen(words, cwd=ROOT, env=settings, stdout=log, stderr=log)


def log_text(out: Path) -> str:
    """All lines that the drivers of an output folder have printed."""
    return out.with_name(f"{out.name}.log").read_text()


def shards(out: Path) -> list[Path]:
    """The existing shards, in the order of their units."""
    return sorted(out.glob("shards/*/*.parquet"))


def contents(out: Path, without: tuple[str, ...]) -> dict[str, bytes]:
    """Name -> bytes of every file of an output folder, without the files named in `without`, which contain times."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name not in without}


def assert_equal(out: Path, undisturbed: dict[str, bytes], without: tuple[str, ...]) -> None:
    """Check that the folder has the files of the undisturbed run, no others, and with the same bytes."""
    files = contents(out, without)
    assert set(files) == set(undisturbed)
    assert [name for name, data in undisturbed.items() if files[name] != data] == []


def wait_for(condition: Callable[[], Answer], driver: subprocess.Popen, out: Path) -> Answer:
    """Call `condition()` until it is true, and return its result. The driver must not end before."""
    end = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert driver.poll() is None, f"the driver ended too early: {log_text(out)}"
        assert time.monotonic() < end, f"waited too long: {log_text(out)}"
        time.sleep(0.02)
    return answer


def workers(driver: subprocess.Popen, stage: str) -> list[psutil.Process]:
    """The living worker processes of a stage after their set-up. Ray names them after the stage's class."""
    return [process for process, name in _children(driver) if f"({stage})" in name and "__init__" not in name]


def _children(driver: subprocess.Popen) -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            yield process, " ".join(process.cmdline())
        except psutil.NoSuchProcess:  # it has just ended
            continue
