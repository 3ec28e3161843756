"""Workers of a training: the values that describe a worker, and the messages between workers that train together."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed

Scalars = dict[str, torch.Tensor]  # per-image values of an iteration or step, by name


class Masked(NamedTuple):
    """Values of a step of which a mask chooses some. Both stay on the device: the host never asks how many they are."""

    values: torch.Tensor  # [n]
    mask: torch.Tensor  # [n] bool


StepScalars = Mapping[str, torch.Tensor | Masked]
Report = Callable[[dict[str, float]], None]  # takes a training's figures


def command_line() -> str:
    """The running command; of each absolute path it keeps only the last part, so that no folder is named."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    return shlex.join(words)


@dataclasses.dataclass(frozen=True)
class Worker:
    """One process of a training.

    rank: 0 is the first worker, which also prints and writes. command: command line for the records. report: takes the
    training's figures; all workers call it equally often.
    """

    device: torch.device
    rank: int = 0
    command: str = dataclasses.field(default_factory=command_line)
    report: Report | None = None

    def __str__(self) -> str:
        gpu = self.device.type == "cuda"
        where = torch.cuda.get_device_name(self.device) if gpu else f"the CPU, {torch.get_num_threads()} threads"
        return f"{workers()} worker{'s' * (workers() > 1)} on {where}"


# ---- Messages between workers that train together. Outside a `torch.distributed` group they do nothing.


def workers() -> int:
    """Number of workers that train together: 1 outside a `torch.distributed` group."""
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
    """Interleave the rows [n, ...] of all W workers, n of each: row i of worker r becomes row i * W + r."""
    if workers() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(workers())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def decided_by_first(decision: bool, device: torch.device) -> bool:
    """The first worker's decision, in all workers."""
    if workers() == 1:
        return decision
    flag = torch.tensor([float(decision)], device=device)
    torch.distributed.broadcast(flag, src=0)
    return bool(flag.item())
