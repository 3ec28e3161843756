"""Workers of a node share what the driver puts into the object store, and how much of it there is."""

from pathlib import Path

import numpy as np
import pytest
import ray

from pipeline.cluster import smallest_object_store


@pytest.mark.slow
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
