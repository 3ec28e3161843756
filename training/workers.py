"""What workers that train together exchange. Every function does nothing outside a `torch.distributed` group."""

from collections.abc import Iterable

import torch
import torch.distributed


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
