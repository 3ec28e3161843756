"""Fixtures of all tests: one local Ray, and the folder of larger reference data, if it exists."""

import os
from collections import Counter
from pathlib import Path

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# With several processes on few cores, OpenMP threads that spin while they wait make tests up to ten times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default of 15 starves the workers if the machine is busy
if "PYTEST_XDIST_WORKER" in os.environ:  # one test process per core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Module-wide fixtures that run a whole job or training, which takes 10 s to a minute. A test that uses one is slow. The
# main job's own tests are the exception, so that `make test` starts Ray and runs that job once.
WHOLE_JOBS = {"finished", "exported", "straight"}
MAIN_JOB = Path(__file__).with_name("jobs") / "test_generate.py"

# By marks, the first that fits.
TYPICAL_SECONDS = {("crash",): 60.0, ("slow", "ray"): 40.0, ("slow",): 8.0, ("ray",): 2.0, (): 0.1}


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
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("reference data: no folder `shared` beside this checkout")
    return path


@pytest.fixture(scope="session")
def tiny():
    """Tiny StyleGAN3 networks and their files: the module tests/helpers/reference_format.py."""
    from tests.helpers import reference_format

    return reference_format


@pytest.hookimpl(tryfirst=True)  # before pytest's -m reads the marks
def pytest_collection_modifyitems(items):
    """Add marks by the folder and the fixtures of a test.

    `crash`: tests in that folder. `slow`: tests that wait for a whole job or training. `ray`: tests that use Ray. Tests
    marked `gpu` are skipped, with the reason, if PyTorch sees no CUDA device. The files that take longest come first,
    so that no test process waits at the end for another's long file (--no-loadscope-reorder keeps this order).
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
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    seconds: Counter[Path] = Counter()
    for item in items:
        fitting = (value for marks, value in TYPICAL_SECONDS.items() if all(mark in item.keywords for mark in marks))
        seconds[item.path] += next(fitting)
    items.sort(key=lambda item: -seconds[item.path])  # stable: the tests of a file stay in their order
