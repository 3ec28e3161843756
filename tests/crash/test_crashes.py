"""Nothing lost, nothing twice: runs that are killed in every way end, by the same command, as the undisturbed run.

Drivers that are killed are processes of their own. The Ray is the one that all tests share, because each start of a Ray
takes 20 s; a cluster of its own has the test that loses a node.
"""

import ctypes
import dataclasses
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from jobs import generate
from passersby.errors import InputError
from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.checkpoint import save_network
from tests.helpers import drivers
from tests.helpers.drivers import (
    NODES_ARE_MISSED_SOON,
    PATIENCE,
    Workers,
    assert_equal,
    contents,
    has_ended,
    log_text,
    said,
    shards,
    soon_stuck,
    start,
    start_here,
    wait_for,
)

PEOPLE, VARIANTS = 40, 4  # 40 units of one person
OPTIONS = ("people", "variants", "seed", "unit_images", "generators", "detectors", "network", "detector_threshold")
HOLD_TIMES = ("summary.json", "report.html")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> generate.Config:
    path = tmp_path_factory.mktemp("network") / "tiny.safetensors"
    torch.manual_seed(0)
    tiny = GeneratorConfig.config_t(64, 32, channel_base=1024, channel_max=64, output_scale=4.0)
    save_network(path, Generator(tiny), record={"trained_on": "nothing, a test"})
    # Threshold 0: an untrained network makes no pedestrians.
    sizes = {"people": PEOPLE, "variants": VARIANTS, "unit_images": VARIANTS, "generators": 2, "detectors": 2}
    return generate.Config(out="", seed=5, network=path, detector_threshold=0.0, **sizes)


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, config, tmp_path_factory) -> dict[str, bytes]:
    """Every file of a run that nothing happened to, by name; the summary holds times and stays out."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert generate.main(dataclasses.replace(config, out=str(out))) == 0
    files = contents(out, HOLD_TIMES)
    assert sum(name.startswith("shards/") for name in files) == PEOPLE
    return files


def assert_whole(out: Path, undisturbed: dict[str, bytes]) -> None:
    assert_equal(out, undisturbed, HOLD_TIMES)
    manifest = pq.read_table(out / "manifest.parquet", columns=["person", "variant"]).to_pylist()
    assert [(row["person"], row["variant"]) for row in manifest] == [
        (person, variant) for person in range(PEOPLE) for variant in range(VARIANTS)
    ]


def command(config: generate.Config, out: Path, *more: str) -> list[str]:
    return [*drivers.command("generate", config, OPTIONS, out), *more]


def test_killed_drivers_and_two_at_a_time_by_mistake_make_one_run(config, undisturbed, tmp_path):
    # As jobs of one cluster, here the Ray that all tests share: a start of their own costs each 10 s.
    out, chance, cluster = tmp_path / "out", random.Random(), ray.get_runtime_context().gcs_address
    moments = [chance.uniform(0, 12), chance.randint(2, 8)]
    print(f"killed after {moments[0]:.1f} s, then after {moments[1]} more units")
    for number, moment in enumerate(moments):
        driver, before = start(command(config, out), out, RAY_ADDRESS=cluster), len(shards(out))
        if number:
            wait_for(lambda: len(shards(out)) >= before + moment, driver, out)  # noqa: B023
            time.sleep(chance.uniform(0, 0.3))
        else:
            time.sleep(moment)
        made = {path: path.read_bytes() for path in shards(out)}
        driver.kill()
        driver.wait()
        assert all(path.read_bytes() == data for path, data in made.items())
    before = len(shards(out))
    assert 2 <= before < PEOPLE
    first = start(command(config, out), out, RAY_ADDRESS=cluster)
    wait_for(lambda: str(first.pid).encode() in (out / ".driver.json").read_bytes(), first, out)
    with pytest.raises(InputError, match=rf"^--out {out}: process {first.pid} on \S+ has been working .*$"):
        generate.main(dataclasses.replace(config, out=str(out)))
    assert first.wait(PATIENCE) == 0, log_text(out)
    assert_whole(out, undisturbed)
    # Workers of a killed driver live on for a moment, and what they finish then counts as well.
    assert 0 < int(re.findall(r"(\d+) to make", log_text(out))[-1]) <= PEOPLE - before


def test_killed_actors_and_a_writer_in_the_middle_of_a_shard_change_nothing(config, undisturbed, tmp_path):
    out, stages = tmp_path / "out", ("StyleMixer", "PedestrianDetector", "SimilarityScorer")
    workers = Workers(*stages)
    driver = start_here(generate.main, dataclasses.replace(config, out=str(out)))
    wait_for(lambda: workers.of("StyleMixer"), driver, out)[0].kill()
    wait_for(lambda: shards(out), driver, out)
    for stage in stages[1:]:
        wait_for(lambda: workers.of(stage), driver, out)[0].kill()  # noqa: B023
    leftover = kill_a_writer_at_work(out, driver)
    assert len(shards(out)) < PEOPLE
    assert driver.result(PATIENCE) == 0
    assert not leftover.exists()
    assert_whole(out, undisturbed)


def kill_a_writer_at_work(out: Path, driver: Future) -> Path:
    """Kills a writer while its temporary file is there and its shard is not; returns that file."""
    for temporary in created(out / "shards" / "000"):
        match = re.match(r"\.(unit-\d+\.parquet)\..*\.(\d+)\.tmp$", temporary.name)
        if match:
            os.kill(int(match[2]), signal.SIGKILL)
            if temporary.exists() and not temporary.with_name(match[1]).exists():
                return temporary
        assert not has_ended(driver), said(driver, out)
    raise AssertionError("no more files come")


def created(folder: Path) -> Iterator[Path]:
    """Files as they come into a folder, told by the kernel (inotify): polling would see few that live for 1 ms."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    assert libc.inotify_add_watch(descriptor, bytes(folder), 0x100) > 0  # IN_CREATE
    try:
        while True:
            events = os.read(descriptor, 65536)
            while events:
                _, _, _, length = struct.unpack_from("iIII", events)
                yield folder / events[16 : 16 + length].rstrip(b"\0").decode()
                events = events[16 + length :]
    finally:
        os.close(descriptor)


@pytest.fixture
def small_disk(undisturbed, tmp_path) -> Iterator[Path]:
    """A disk that holds about half of the shards."""
    pages = sum(-(-len(data) // 4096) for name, data in undisturbed.items() if name.startswith("shards/"))
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={pages // 2 * 4}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_in_one_line_and_the_same_command_goes_on_when_there_is_room(config, undisturbed, small_disk):
    config = dataclasses.replace(config, out=str(small_disk / "out"))  # on the Ray that all tests share
    out = Path(config.out)
    with pytest.raises(InputError, match=r"^cannot write .*: No space left on device\. Mend that, .*goes on$"):
        generate.main(config)
    made = {path: path.read_bytes() for path in shards(out)}
    assert 1 <= len(made) < PEOPLE
    end = time.monotonic() + 10  # the writer may be at its next unit when the driver ends
    while list(out.rglob(".*.tmp")) and time.monotonic() < end:
        time.sleep(0.1)
    assert list(out.rglob(".*.tmp")) == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert generate.main(config) == 0
    assert all(path.read_bytes() == data for path, data in made.items())
    assert_whole(out, undisturbed)


def test_a_lost_node_changes_nothing(config, undisturbed, tmp_path):
    # As spot machines go: without a word before it. The GPUs are logical, the processes real.
    out = tmp_path / "out"
    head = {"num_cpus": 2, "num_gpus": 0, "_system_config": NODES_ARE_MISSED_SOON}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    lost, _ = cluster.add_node(num_cpus=4, num_gpus=1), cluster.add_node(num_cpus=4, num_gpus=1)
    try:
        shares = ["--device", "cpu", "--gpus-per-generator", "0.5", "--gpus-per-detector", "0.5"]
        driver = start(soon_stuck(command(config, out, *shares), 15), out, RAY_ADDRESS=cluster.address)
        wait_for(lambda: len(shards(out)) >= 3, driver, out)
        made = len(shards(out))
        cluster.remove_node(lost, allow_graceful=False)
        assert made < PEOPLE
        assert driver.wait(PATIENCE) == 0, log_text(out)
    finally:
        cluster.shutdown()
    assert_whole(out, undisturbed)
