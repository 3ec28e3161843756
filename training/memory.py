"""Memory of a training: whether its decoded images fit, the free memory of this machine, and the memory in use."""

import os
import resource
import sys
from pathlib import Path

import torch

from passersby.errors import InputError

# The decoded images of a training stay in memory where they fit.
#
# Then the driver decodes them once, and every worker of a node sees the same memory. Without Ray this memory is a plain
# array. With Ray Train the driver puts the array into the object store and hands the reference to the workers
# (`train_loop_config`). Their `ray.get` returns a read-only view of the node's shared memory, not a copy. The driver
# keeps the reference as long as it trains, so a restarted worker gets the same view. Images that do not fit are decoded
# by `pipeline/image_stream.py` when a batch needs them.

SHARE = 0.5  # of a node's memory; networks, the array's second copy during the put, and other processes need the rest


def fits(images: int, height: int, width: int, available: int, object_store: int | None = None) -> bool:
    """Whether so many images stay in memory: with 3 bytes a pixel they may fill half of the available memory [bytes].

    available: free memory of the node that decodes. object_store: the smallest object store among the nodes, where
    workers share the images through Ray; None without Ray.
    """
    limit = SHARE * min(available, available if object_store is None else object_store)
    return images * height * width * 3 <= limit


def available_memory() -> int:
    """Free bytes for new data in this machine, or in the container of this process."""
    amounts = [_meminfo_available(), _container_free()]
    available = [number for number in amounts if number is not None]
    return min(available) if available else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(needed: int, way_out: str = "a smaller") -> None:
    """Raises InputError where so many bytes of decoded images leave too little memory for everything else.

    way_out: options of this training that reduce the bytes; the message names them before "--height and --width".
    """
    free = SHARE * available_memory()
    if needed > free:
        raise InputError(
            f"the images take {needed / 1e9:.1f} GB decoded, and {free / 1e9:.1f} GB may be used: give {way_out} "
            "--height and --width, or a machine with more memory"
        )


def _meminfo_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:  # not Linux
        pass
    return None


def _container_free() -> int | None:
    """Free bytes below the limit of a version-2 control group. Its page cache counts as free, as it can be dropped."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text("ascii").strip()
        used = int((folder / "memory.current").read_text("ascii"))
        cached = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
    except OSError:  # no control group of version 2
        return None
    return None if limit == "max" else max(0, int(limit) - used + int(cached.get("inactive_file", 0)))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU had no memory left; libraries of it say so in their own words."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def memory_gb(device: torch.device) -> float:
    """The greatest memory in use so far, in GB: memory of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
