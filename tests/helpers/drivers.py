"""Jobs as users start them: drivers in processes of their own, watched, killed and started again.

A driver's lines go to a log beside its output folder (`said`), over all its starts.
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
    """The command line that starts a job with those options of its configuration, a dataclass."""
    words = [word for name in options for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    return [sys.executable, "-m", f"jobs.{job}", "--out", str(out), *words]


def start(words: list[str], out: Path, **environment: str) -> subprocess.Popen:
    """A driver, on a Ray of its own unless `environment` has a RAY_ADDRESS."""
    settings = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | environment
    with open(out.with_name(f"{out.name}.log"), "a") as log:
        return subprocess.Popen(words, cwd=ROOT, env=settings, stdout=log, stderr=log)


def said(out: Path) -> str:
    """All that the drivers of an output folder have printed."""
    return out.with_name(f"{out.name}.log").read_text()


def shards(out: Path) -> list[Path]:
    """The shards that are there, in the order of their units."""
    return sorted(out.glob("shards/*/*.parquet"))


def contents(out: Path, without: tuple[str, ...]) -> dict[str, bytes]:
    """Every file of an output folder by its name, but those that hold times."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name not in without}


def assert_equal(out: Path, undisturbed: dict[str, bytes], without: tuple[str, ...]) -> None:
    """Nothing is lost, nothing is left over, and every byte is that of the undisturbed run."""
    found = contents(out, without)
    assert set(found) == set(undisturbed)
    assert [name for name, data in undisturbed.items() if found[name] != data] == []


def wait_for(what: Callable[[], Answer], driver: subprocess.Popen, out: Path) -> Answer:
    """Polls `what()` until it is true; the driver must live as long."""
    end = time.monotonic() + PATIENCE
    while not (answer := what()):
        assert driver.poll() is None, f"the driver ended too early: {said(out)}"
        assert time.monotonic() < end, f"waited too long: {said(out)}"
        time.sleep(0.02)
    return answer


def workers(driver: subprocess.Popen, stage: str) -> list[psutil.Process]:
    """The living worker processes of a stage, once they are set up; Ray names them after its class."""
    return [process for process, name in _children(driver) if f"({stage})" in name and "__init__" not in name]


def _children(driver: subprocess.Popen) -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            yield process, " ".join(process.cmdline())
        except psutil.NoSuchProcess:  # it has just ended
            continue
