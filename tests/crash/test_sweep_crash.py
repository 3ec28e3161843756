"""Sweeps whose driver and a trial are killed: finished trials stay finished, others go on from their checkpoint."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import ray

from jobs import sweep
from tests.helpers import sweep_data
from tests.helpers.drivers import without_ray
from training.checkpoints import STATE
from tune.table import RESULT

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # seconds
SETTINGS = ("batch=8", "checkpoint_minutes=0.0001", "validation_epochs=4")


def command(config: sweep.Config) -> list[str]:
    words = [sys.executable, "-m", "jobs.sweep", "--sweep", config.sweep, "--data", str(config.data)]
    words += ["--generated", config.generated, "--out", config.out, "--preset", "tiny", "--set", *SETTINGS]
    words += ["--levels", *map(str, config.levels), "--seeds", *map(str, config.seeds), "--steps", str(config.steps)]
    return [*words, "--concurrent", "2"]


def results(out: Path) -> list[Path]:
    return sorted(out.glob(f"trials/*/{RESULT}"))


def in_the_middle(out: Path) -> bool:
    """Whether a trial is finished and another has a checkpoint, and many of its 120 steps before it: its process may
    outlive the driver by a moment."""
    newest: dict[Path, int] = {}
    for path in out.glob(f"trials/*/checkpoints/[0-9]*/{STATE}"):
        newest[path.parents[2]] = max(newest.get(path.parents[2], 0), int(path.parent.name))
    return bool(results(out)) and any(0 < step <= 64 for step in newest.values())


def trials() -> list[psutil.Process]:
    """The processes that train on the Ray of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if "ray::ImplicitFunc.train" in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_a_trial(before: list[psutil.Process], killed: list[int]) -> None:
    """Kill a process that trains, as soon as there is one, and none of a driver before; its number into `killed`."""
    end = time.monotonic() + PATIENCE
    while not killed and time.monotonic() < end:
        for process in trials():
            if process not in before and not killed:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    killed.append(process.pid)
        time.sleep(0.01)


def rows(out: Path) -> list[dict]:
    """All but the minutes."""
    return pq.read_table(out / "trials.parquet").drop_columns(["minutes"]).to_pylist()


def test_a_sweep_whose_driver_is_killed_ends_as_an_undisturbed_one(ray_cluster, tmp_path):
    data = sweep_data.write_data(tmp_path / "data")
    config = sweep.Config(
        "artificial-people", Path(data["data"]), str(tmp_path / "killed"), generated=data["people"], levels=(0, 3, 5),
        seeds=(0,), preset="tiny", set=SETTINGS, steps=120, concurrent=2,
    )  # fmt: skip
    out, log = Path(config.out), tmp_path / "log"
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with log.open("a") as said:
        driver = subprocess.Popen(command(config), cwd=ROOT, env=environment, stdout=said, stderr=said)
        end = time.monotonic() + PATIENCE
        while not in_the_middle(out):
            assert driver.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.005)
        driver.kill()
        driver.wait()
    kept = {path: path.read_bytes() for path in results(out)}
    assert 1 <= len(kept) < 3
    killed: list[int] = []
    hunter = threading.Thread(target=kill_a_trial, args=(trials(), killed), daemon=True)
    hunter.start()
    assert sweep.main(config) is None
    hunter.join(10)
    assert len(killed) == 1
    with without_ray():
        assert sweep.main(dataclasses.replace(config, out=str(tmp_path / "whole"))) is None
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert len(rows(out)) == 3
    assert rows(out) == rows(tmp_path / "whole")
    # A finished network is never trained again, a begun one goes on.
    assert any("going on from step" in path.read_text() for path in out.glob("trials/*/log.txt"))
