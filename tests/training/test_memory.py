"""The rule for images in memory, and that workers of a node share them."""

from pathlib import Path

import numpy as np
import ray

from training.workers import available_memory, fits, smallest_object_store


def test_images_stay_in_memory_up_to_half_of_what_there_is():
    image = 64 * 32 * 3
    assert fits(1000, 64, 32, available=2000 * image)
    assert not fits(1001, 64, 32, available=2000 * image)
    # Shared through Ray, the smallest object store counts, and so does the driver's memory, where they are decoded.
    assert fits(1000, 64, 32, available=10_000 * image, object_store=2000 * image)
    assert not fits(1001, 64, 32, available=10_000 * image, object_store=2000 * image)
    assert not fits(1001, 64, 32, available=2000 * image, object_store=10_000 * image)
    assert not fits(1, 64, 32, available=0)


def test_memory_is_counted_in_bytes():
    assert 1 << 26 < available_memory() < 1 << 50


def test_workers_get_a_read_only_view_of_the_node_s_shared_memory(ray_cluster):
    @ray.remote(num_cpus=0)
    def look(values):
        images = ray.get(values["images"])
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        address = images.ctypes.data
        shared = any(
            int(line[0].split("-")[0], 16) <= address < int(line[0].split("-")[1], 16) and line[1].endswith("s")
            for line in maps
        )
        return shared, images.flags.writeable, int(images.sum(dtype=np.int64))

    images = np.random.default_rng(0).integers(0, 255, (500, 16, 8, 3), np.uint8)
    reference = ray.put(images)
    # Inside a dict, as in a `train_loop_config`: Ray does not resolve it before the worker asks.
    for shared, writeable, total in ray.get([look.remote({"images": reference}) for _ in range(2)]):
        assert shared
        assert not writeable
        assert total == images.sum(dtype=np.int64)
    assert smallest_object_store() > images.nbytes
