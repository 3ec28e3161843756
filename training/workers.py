"""What every training's worker needs: its device, its command, what workers exchange, and memory for images."""

import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed

from passersby.errors import InputError

Scalars = dict[str, torch.Tensor]  # per-image values of an iteration or step, by name
Report = Callable[[dict[str, float]], None]  # takes a training's figures


def pick_device(gpus: int | None) -> torch.device:
    """The device of a training without Ray: the first GPU, or the CPU where there is none or `gpus` is 0.

    Raises InputError where a GPU is asked for and there is none.
    """
    if gpus and not torch.cuda.is_available():
        raise InputError(f"--gpus {gpus}: this machine has no usable CUDA device; give --gpus 0 for the CPU")
    return torch.device("cuda", 0) if gpus != 0 and torch.cuda.is_available() else torch.device("cpu")


def command_line() -> str:
    """The command that runs, with folders of this machine cut down to their last part."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    return shlex.join(words)


# ---- What workers that train together exchange. Every function does nothing outside a `torch.distributed` group.


def workers() -> int:
    """How many workers train together: 1 outside a `torch.distributed` group."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def average_over_workers(tensors: Iterable[torch.Tensor]) -> None:
    """Replace every tensor by its mean over the workers, in one message. Does nothing for one worker."""
    tensors = list(tensors)
    if workers() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= workers()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows [n, ...] of every worker, equally many each, interleaved: row i of worker r becomes row i * W + r."""
    if workers() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(workers())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def decided_by_first(decision: bool, device: torch.device) -> bool:
    """The first worker's decision, the same in all."""
    if workers() == 1:
        return decision
    flag = torch.tensor([float(decision)], device=device)
    torch.distributed.broadcast(flag, src=0)
    return bool(flag.item())


# ---- Whether the decoded images of a training stay in memory, and what memory a node has for them.
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
