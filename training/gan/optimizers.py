"""How weights move: Adam for lazy regularisation, gradients of rounds and workers, the averaged generator."""

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import (
    _foreach_copy_,  # pyright: ignore[reportPrivateImportUsage]  (torch's stubs do not export what torch exports)
    _foreach_div_,  # pyright: ignore[reportPrivateImportUsage]  (the same)
    _foreach_lerp_,  # pyright: ignore[reportPrivateImportUsage]  (the same)
)

from passersby.stylegan3 import Generator
from training.workers import average_over_workers


def new_adam(parameters: Iterable[torch.nn.Parameter], lr: float, interval: int | None) -> torch.optim.Adam:
    """Adam for a network with a lazy regularisation every `interval` steps; None: without one.

    Such a network takes 17 Adam steps in place of 16, so its rate and betas are adjusted (StyleGAN2, appendix B:
    c = k / (k + 1), rate * c, betas ** c).
    """
    correction = 1.0 if interval is None else interval / (interval + 1)
    return torch.optim.Adam(parameters, lr=lr * correction, betas=(0.0, 0.99**correction), eps=1e-8)


@torch.no_grad()
def apply_gradients(optimizer: torch.optim.Optimizer, rounds: int = 1) -> None:
    """Average the gradients over rounds and workers, make them finite (nan -> 0, +-inf -> +-1e5), step, clear them.

    The reference does the same, and has no loss scale in float16 either.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if rounds > 1:
        _foreach_div_(gradients, float(rounds))
    average_over_workers(gradients)
    make_finite(gradients)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def make_finite(gradients: Sequence[torch.Tensor], together: bool | None = None) -> None:
    """nan -> 0, +-inf -> +-1e5 in every gradient, in place. All are of one dtype, on one device.

    together: in three calls instead of one for each of two hundred gradients, which a GPU's host would take longer to
    launch than the GPU computes. By default on a GPU.
    """
    finite = functools.partial(torch.nan_to_num, nan=0.0, posinf=1e5, neginf=-1e5)
    if together is None:
        together = bool(gradients) and gradients[0].is_cuda
    if not together or not all(map(_is_dense, gradients)):
        for gradient in gradients:
            finite(gradient, out=gradient)
    else:
        rows = [gradient.as_strided((gradient.numel(),), (1,)) for gradient in gradients]  # in the order of memory
        _foreach_copy_(rows, finite(torch.cat(rows)).split([len(row) for row in rows]))


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


@torch.no_grad()
def update_ema(average: Generator, generator: Generator, beta: float) -> None:
    """average <- beta * average + (1 - beta) * generator; buffers are copied, because they are averages already."""
    _foreach_lerp_(list(average.parameters()), list(generator.parameters()), 1 - beta)
    _foreach_copy_(list(average.buffers()), list(generator.buffers()))
