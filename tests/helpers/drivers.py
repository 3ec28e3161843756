"""Jobs that tests watch and disturb: drivers in their own processes, as users start them, or in a thread.

All processes of a driver print to one log beside its output folder (`log_text`).
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import psutil
import pyarrow as pa
import pytest
import torch

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # seconds; a run of the crash tests takes 30 on two idle cores
# For the head of a cluster of a test's own: a lost node is known as lost after 5 s, by default after 15 at least.
NODES_ARE_MISSED_SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000}

Answer = TypeVar("Answer")
Config = TypeVar("Config")


def command(job: str, config: object, options: tuple[str, ...], out: Path) -> list[str]:
    """The command line that starts a job with these `options` of its configuration, a dataclass."""
    words = [word for name in options for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    return [sys.executable, "-m", f"jobs.{job}", "--out", str(out), *words]


def soon_stuck(words: list[str], seconds: float) -> list[str]:
    """The same command, whose pipeline counts as stuck after so many seconds without a row instead of 120."""
    job = words[words.index("-m") + 1]
    code = (
        f"import pipeline.run, runpy; pipeline.run.STUCK_SECONDS = {seconds}; "
        f"runpy.run_module({job!r}, run_name='__main__', alter_sys=True)"
    )
    return [words[0], "-c", code, *words[words.index(job) + 1 :]]


def start(words: list[str], out: Path, **environment: str) -> subprocess.Popen:
    """Start a driver, with its own Ray unless `environment` has a RAY_ADDRESS."""
    settings = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | environment
    with open(out.with_name(f"{out.name}.log"), "a") as log:
        return subprocess.Popen(words, cwd=ROOT, env=settings, stdout=log, stderr=log)


def start_here(main: Callable[[Config], int | None], config: Config) -> Future[int | None]:
    """Call a job's `main` in a thread of this process, whose Ray it uses: where the driver itself is not disturbed.

    A process of its own takes 10 s more, and a Ray of its own 20 s.
    """
    thread = ThreadPoolExecutor(1)
    driver = thread.submit(main, config)
    thread.shutdown(wait=False)
    return driver


def run_units_here(units, actors, pools, plan_again, unit_bytes) -> Iterator[dict]:
    """`pipeline.run.run_units` in this process."""
    threads = torch.get_num_threads()
    stages = [actor(**arguments) for actor, arguments in actors]
    for unit in units:
        batch = pa.table({name: [value] for name, value in unit.items()})
        for stage in stages:
            batch = stage(batch)
        yield batch.to_pylist()[0]
    torch.set_num_threads(threads)


@contextlib.contextmanager
def stages_here() -> Iterator[None]:
    """Let units go through the real stages in this process: Ray's workers take 20 s of CPU time to start.

    For tests of what goes in and comes out. A stage that raises ends the run.
    """

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.commit.run_units", run_units_here)
        yield


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Let jobs that use Ray do their work in this process: units as in `stages_here`, the trials of a sweep one by one.

    For tests of what many jobs make together: Ray and its workers take a minute of CPU time.
    """
    from pipeline.cluster import Node, Resources
    from tune.trial import finish

    def run_trials(trainable, specs, resources, storage, retries, callbacks) -> None:
        threads = torch.get_num_threads()
        for spec in specs:
            callbacks[0].rows[spec["name"]] = finish(spec, spec["training"].out)
        torch.set_num_threads(threads)

    with pytest.MonkeyPatch.context() as patch, stages_here():
        patch.setattr("jobs.common.connect", lambda: None)
        patch.setattr("ray.put", lambda value: value)
        patch.setattr("pipeline.features.run_units", run_units_here)
        for module in ("cluster", "pools", "features"):
            patch.setattr(f"pipeline.{module}.resources", lambda: Resources((Node("one", "one", 2.0),)))
        patch.setattr("tune.runner.run_trials", run_trials)
        patch.setattr("tune.trial._report_step", lambda figures: None)
        yield


def has_ended(driver: subprocess.Popen | Future) -> bool:
    return driver.done() if isinstance(driver, Future) else driver.poll() is not None


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


def wait_for(condition: Callable[[], Answer], driver: subprocess.Popen | Future, out: Path) -> Answer:
    """Call `condition()` until it is true, and return its result. The driver must not end before."""
    end = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert not has_ended(driver), f"the driver ended too early: {said(driver, out)}"
        assert time.monotonic() < end, f"waited too long: {said(driver, out)}"
        time.sleep(0.02)
    return answer


def said(driver: subprocess.Popen | Future, out: Path) -> str:
    """What is known of a driver; pytest shows what a thread has printed."""
    return repr(driver) if isinstance(driver, Future) else log_text(out)


def workers(stage: str) -> list[psutil.Process]:
    """The living worker processes of a stage after their set-up, below this process: of its Ray and of its drivers'.

    Ray names them after the stage's class.
    """
    return [process for process, name in _children() if f"({stage})" in name and "__init__" not in name]


class Workers:
    """The workers of runs that begin after this: those of a run before may still be about to end."""

    def __init__(self, *stages: str):
        self.before = {process.pid for stage in stages for process in workers(stage)}

    def of(self, stage: str) -> list[psutil.Process]:
        return [process for process in workers(stage) if process.pid not in self.before]


def _children() -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.Process().children(recursive=True):
        try:
            yield process, " ".join(process.cmdline())
        except psutil.NoSuchProcess:  # it has just ended
            continue
