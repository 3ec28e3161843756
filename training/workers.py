"""Who trains: what a worker is given beside configuration and data, and what workers that train together exchange."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed

Scalars = dict[str, torch.Tensor]  # per-image values of an iteration or step, by name
Report = Callable[[dict[str, float]], None]  # takes a training's figures


def command_line() -> str:
    """The command that runs, with folders of this machine cut down to their last part."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    return shlex.join(words)


@dataclasses.dataclass(frozen=True)
class Worker:
    """One process of a training. rank: 0 is the first, who also tells and writes. command: goes into the records.

    report: gets the training's figures, equally often in all workers.
    """

    device: torch.device
    rank: int = 0
    command: str = dataclasses.field(default_factory=command_line)
    report: Report | None = None

    def __str__(self) -> str:
        gpu = self.device.type == "cuda"
        where = torch.cuda.get_device_name(self.device) if gpu else f"the CPU, {torch.get_num_threads()} threads"
        return f"{workers()} worker{'s' * (workers() > 1)} on {where}"


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
