"""Fixtures of all tests: one local Ray, jobs as programs, the folder of larger reference data; marks and order."""

import os
import runpy
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# With several processes on few cores, OpenMP threads that spin while they wait make tests up to ten times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # as in CPU_VARIABLES of jobs/common.py
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default of 15 starves the workers if the machine is busy
if "PYTEST_XDIST_WORKER" in os.environ:  # one test process per core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Module-wide fixtures that run a whole job or training, which takes 10 s to a minute. A test that uses one is slow. The
# main job's own tests are the exception, so that `make test` starts Ray and runs that job once.
WHOLE_JOBS = {"finished", "exported", "straight"}
ROOT = Path(__file__).resolve().parents[1]
OWN_CLUSTER = Path(__file__).with_name("crash") / "test_pools_on_a_cluster.py"
MAIN_JOB = Path(__file__).with_name("jobs") / "test_generate.py"

# By marks, the first that fits.
TYPICAL_SECONDS = {("crash",): 60.0, ("slow", "ray"): 40.0, ("slow",): 8.0, ("ray",): 2.0, (): 0.1}

STARTED = time.monotonic()


def pytest_addoption(parser):
    """--minutes N, for machines that end a run which takes too long, whatever it has found."""
    parser.addoption("--minutes", type=float, help="begin no test later than so many minutes after the start")


def pytest_runtest_setup(item):
    """Skip, with the reason, what --minutes leaves no time for: the shortest files, because the longest come first."""
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - STARTED > minutes * 60:
        pytest.skip(f"no time left: more than {minutes:g} minutes (--minutes)")


@pytest.fixture(scope="session")
def ray_cluster():
    """One local Ray with 8 logical CPUs for the whole test run: a start costs 10-35 s."""
    import ray

    from jobs.common import MALLOC_VARIABLES
    from pipeline.connection import tried_twice

    def init() -> None:
        ray.init(
            address="local",
            num_cpus=8,
            include_dashboard=False,
            runtime_env={"env_vars": MALLOC_VARIABLES},
            log_to_driver=False,
        )

    tried_twice(init)  # Ray's own time limits are short for a machine on which other tests run
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `shared` beside the checkout: larger reference arrays, which most machines do not have."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("reference data: no folder `shared` beside this checkout")
    return path


@pytest.fixture(scope="session")
def tiny():
    """Tiny StyleGAN3 networks and their files: the module tests/helpers/reference_format.py."""
    from tests.helpers import reference_format

    return reference_format


@pytest.fixture
def call(monkeypatch, capsys) -> Callable:
    """call(job, *words) -> (exit code, stdout, stderr): a job's file, run as a program with these words.

    It runs in this process, which has loaded the modules: a process of its own takes 8 s more.
    """
    import torch

    from jobs.common import CPU_VARIABLES

    for name, value in CPU_VARIABLES.items():  # without them jobs start themselves anew
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()

    def called(job: str, *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    yield called
    torch.set_num_threads(threads)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest's -m, which reads the marks
def pytest_collection_modifyitems(items):
    """Add marks by the folder and the fixtures of a test, and put the tests that -m leaves into order.

    `crash`: tests in that folder. `slow`: tests that wait for a whole job or training. `ray`: tests that use Ray. Tests
    marked `gpu` are skipped, with the reason, if PyTorch sees no CUDA device. The files that take longest come first,
    so that no test process waits at the end for another's long file (--no-loadscope-reorder keeps this order). Before
    them comes the file whose tests start a cluster of their own: later it would have to end the Ray that all tests
    share, and to start that again.
    """
    import torch

    for item in items:
        if "crash" in item.path.parts:
            item.add_marker("crash")
        fixtures = getattr(item, "fixturenames", ())
        if "crash" in item.path.parts or "ray_cluster" in fixtures:
            item.add_marker("ray")
        if WHOLE_JOBS & set(fixtures) and item.path != MAIN_JOB:
            item.add_marker("slow")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    result = yield
    seconds: Counter[Path] = Counter()
    for item in items:
        fitting = (value for marks, value in TYPICAL_SECONDS.items() if all(mark in item.keywords for mark in marks))
        seconds[item.path] += next(fitting)
    # The tests of a file stay in their order.
    items.sort(key=lambda item: (item.path != OWN_CLUSTER, -seconds[item.path]))
    return result
