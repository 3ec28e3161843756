"""Inversions that are killed end, by the same command, as the undisturbed one: no picture lost, none twice."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from jobs import invert
from passersby.reid.checkpoint import file_sha256
from passersby.restyle.checkpoint import save_encoder
from passersby.stylegan3.checkpoint import save_network
from tests.helpers import inversion_networks

ROOT = Path(__file__).parents[2]
PEOPLE = 10  # 10 units of one person, two pictures each
PATIENCE = 240.0  # seconds; each run takes some 8 on two idle cores


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> invert.Config:
    folder = tmp_path_factory.mktemp("inversion")
    save_network(folder / "generator.safetensors", inversion_networks.tiny_generator(), record={})
    generator = {"file": "generator.safetensors", "sha256": file_sha256(folder / "generator.safetensors")}
    encoder, average = inversion_networks.tiny_encoder()
    save_encoder(folder / "encoder.safetensors", encoder, average, generator=generator, record={})
    for number in range(2 * PEOPLE):
        noise = np.random.default_rng(number).integers(0, 256, (4, 2, 3), np.uint8)
        content = cv2.imencode(".png", cv2.resize(noise, (16, 32)))[1].tobytes()
        path = folder / "people" / f"p{number // 2:02d}" / f"{number % 2}_c{number % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"broken" if number == 5 else content)
    return invert.Config(
        out="", data=str(folder / "people"), encoder=str(folder / "encoder.safetensors"),
        network=str(folder / "generator.safetensors"), steps=2, refine="pivotal", refine_steps=2, pivotal_steps=2,
        unit_images=2, inverters=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, config, tmp_path_factory) -> dict[str, bytes]:
    """Every file of a run that nothing happened to, by name; the summary holds times and stays out."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert invert.main(dataclasses.replace(config, out=str(out))) == 0
    files = contents(out)
    for folder in ("shards/", "deltas/"):
        assert sum(name.startswith(folder) for name in files) == PEOPLE
    return files


def contents(out: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name != "summary.json"}


def start(config: invert.Config, out: Path, **environment: str) -> subprocess.Popen:
    names = (
        "data",
        "encoder",
        "network",
        "steps",
        "refine",
        "refine_steps",
        "pivotal_steps",
        "unit_images",
        "inverters",
    )
    options = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    settings = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | environment
    log = open(out.with_name(f"{out.name}.log"), "a")  # noqa: SIM115
    command = [sys.executable, "-m", "jobs.invert", "--out", str(out), *options]
    return subprocess.Popen(command, cwd=ROOT, env=settings, stdout=log, stderr=log)


def shards(out: Path) -> list[Path]:
    return sorted(out.glob("shards/*/*.parquet"))


def said(out: Path) -> str:
    return out.with_name(f"{out.name}.log").read_text()


def wait_for(what, driver: subprocess.Popen, out: Path):
    """Polls `what()` until it is true; the driver must live as long."""
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert driver.poll() is None, f"the driver ended too early: {said(out)}"
        assert time.monotonic() < end, f"waited too long: {said(out)}"
        time.sleep(0.02)
    return found


def inverters(driver: subprocess.Popen) -> list[int]:
    """The living worker processes that invert, once they are set up; Ray names them after their class."""
    names, parents = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            names[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    found = []
    for process, name in names.items():
        above = process
        while above in parents and above != driver.pid:
            above = parents[above]
        if above == driver.pid and "(Inverter)" in name and "__init__" not in name:
            found.append(process)
    return found


def test_a_killed_driver_and_a_killed_inverter_lose_nothing_and_make_nothing_twice(config, undisturbed, tmp_path):
    out = tmp_path / "out"
    driver = start(config, out, RAY_ADDRESS=ray.get_runtime_context().gcs_address)
    wait_for(lambda: len(shards(out)) >= 2, driver, out)
    made = {path: path.read_bytes() for path in shards(out)}
    driver.kill()
    driver.wait()
    before = len(shards(out))
    assert before < PEOPLE
    driver = start(config, out)
    wait_for(lambda: len(shards(out)) > before, driver, out)
    os.kill(wait_for(lambda: inverters(driver), driver, out)[0], signal.SIGKILL)
    assert len(shards(out)) < PEOPLE
    assert driver.wait(PATIENCE) == 0, said(out)
    assert all(path.read_bytes() == data for path, data in made.items())
    found = contents(out)
    assert set(found) == set(undisturbed)  # nothing lost, nothing left over
    assert [name for name, data in undisturbed.items() if found[name] != data] == []
    table = pq.read_table(out / "latents.parquet", columns=["person", "path", "status"]).to_pylist()
    assert [(row["person"], row["path"]) for row in table] == [
        (number // 2, f"p{number // 2:02d}/{number % 2}_c{number % 2}.png") for number in range(2 * PEOPLE)
    ]
    assert [number for number, row in enumerate(table) if row["status"] != "ok"] == [5]
