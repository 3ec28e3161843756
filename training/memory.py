"""Memory of a training: whether its decoded images fit, what this machine has free, what was used."""

import os
import resource
import sys
from pathlib import Path

import torch

from passersby.errors import InputError

# Whether the decoded images of a training stay in memory, and what memory a node has for them.
#
# Where they fit, they are decoded once, by the driver, and every worker of a node sees the same memory: without Ray a
# plain array; with Ray Train the driver puts the array into the object store, hands the reference to the workers
# (`train_loop_config`), and `ray.get` there is a read-only view of the node's shared memory, not a copy. The driver
# keeps the reference as long as it trains, so a worker that is started anew gets the same view. Where they do not fit,
# `pipeline/image_stream.py` decodes every batch when it is needed.

SHARE = 0.5  # of a node's memory; the networks, the second copy while the array is put, and others need the rest


def fits(images: int, height: int, width: int, available: int, object_store: int | None = None) -> bool:
    """Whether so many images stay in memory: 3 bytes a pixel, in at most half of what there is [bytes].

    available: memory that is free on the node that decodes. object_store: the smallest object store among the nodes,
    where workers share the images through Ray; None where they do not.
    """
    limit = SHARE * min(available, available if object_store is None else object_store)
    return images * height * width * 3 <= limit


def available_memory() -> int:
    """Bytes that this machine, or the container that this process runs in, has free for new data."""
    free = [_meminfo_available(), _container_free()]
    known = [number for number in free if number is not None]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(needed: int, way_out: str = "a smaller") -> None:
    """Raises InputError where so many bytes of decoded images leave too little for everything else.

    way_out: options of this training that make it less, before "--height and --width".
    """
    free = SHARE * available_memory()
    if needed > free:
        raise InputError(
            f"the images take {needed / 1e9:.1f} GB decoded, and {free / 1e9:.1f} GB may be used: give {way_out} "
            "--height and --width, or a machine with more memory"
        )


def _meminfo_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:  # not Linux
        pass
    return None


def _container_free() -> int | None:
    """What the limit of a version-2 control group leaves; files in its page cache can be dropped, so count as free."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (folder / "memory.max").read_text().strip(), int((folder / "memory.current").read_text())
        cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # no such group
        return None
    return None if limit == "max" else max(0, int(limit) - used + int(cached.get("inactive_file", 0)))


def memory_gb(device: torch.device) -> float:
    """The most memory in use so far, GB: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
