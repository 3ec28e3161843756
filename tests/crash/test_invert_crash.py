"""Inversions that are killed end, by the same command, as the undisturbed one: no picture lost, none twice."""

import dataclasses

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from jobs import invert
from passersby.files import file_sha256
from passersby.restyle.checkpoint import save_encoder
from passersby.stylegan3.checkpoint import save_network
from tests.helpers import drivers, inversion_networks
from tests.helpers.drivers import PATIENCE, Workers, assert_equal, contents, shards, start, start_here, wait_for

PEOPLE = 10  # 10 units of one person, two pictures each; a run takes some 8 s on two idle cores
OPTIONS = (
    "data", "encoder", "network", "steps", "refine", "refine_steps", "pivotal_steps", "unit_images", "inverters",
)  # fmt: skip
HOLD_TIMES = ("summary.json",)


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
    files = contents(out, HOLD_TIMES)
    for folder in ("shards/", "deltas/"):
        assert sum(name.startswith(folder) for name in files) == PEOPLE
    return files


def test_a_killed_driver_and_a_killed_inverter_lose_nothing_and_make_nothing_twice(config, undisturbed, tmp_path):
    out = tmp_path / "out"
    command = drivers.command("invert", config, OPTIONS, out)
    driver = start(command, out, RAY_ADDRESS=ray.get_runtime_context().gcs_address)
    wait_for(lambda: len(shards(out)) >= 2, driver, out)
    made = {path: path.read_bytes() for path in shards(out)}
    driver.kill()
    driver.wait()
    before = len(shards(out))
    assert before < PEOPLE
    workers = Workers("Inverter")
    again = start_here(invert.main, dataclasses.replace(config, out=str(out)))
    wait_for(lambda: len(shards(out)) > before, again, out)
    wait_for(lambda: workers.of("Inverter"), again, out)[0].kill()
    assert len(shards(out)) < PEOPLE
    assert again.result(PATIENCE) == 0
    assert all(path.read_bytes() == data for path, data in made.items())
    assert_equal(out, undisturbed, HOLD_TIMES)
    table = pq.read_table(out / "latents.parquet", columns=["person", "path", "status"]).to_pylist()
    assert [(row["person"], row["path"]) for row in table] == [
        (number // 2, f"p{number // 2:02d}/{number % 2}_c{number % 2}.png") for number in range(2 * PEOPLE)
    ]
    assert [number for number, row in enumerate(table) if row["status"] != "ok"] == [5]
