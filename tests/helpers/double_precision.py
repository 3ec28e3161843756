"""GAN trainings in float64, so that a sum in another order is no difference.

In float32 a few of the millions of values before a leaky ReLU are so near 0 that another order of a sum changes their
sign, and with it gradients by a thousandth. Which ones depends on the processor. Filtered leaky ReLUs go by matrix
products: depthwise convolutions in float64 take eight times as long.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from passersby.stylegan3.generator import set_kernel
from training.gan.step import TrainingState

FLOAT32 = torch.float32


@contextlib.contextmanager
def float64_for_float32() -> Iterator[None]:
    """Inside the context, code that asks for `torch.float32` or `.float()` gets float64."""
    as_float = torch.Tensor.float
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.Tensor.float = FLOAT32, as_float


def doubled(value: Any) -> Any:
    """The value with float64 in place of float32, in dataclasses, tuples and dictionaries too; networks are changed."""
    if isinstance(value, TrainingState):
        pairs = () if value.pairs is None else (value.pairs.discriminator,)
        for network in (value.generator, value.discriminator, value.generator_ema, *pairs):
            network.double()
        for generator in (value.generator, value.generator_ema):
            set_kernel(generator, "matmul")
        return value
    if isinstance(value, torch.Tensor):
        return value.double() if value.dtype == FLOAT32 else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: doubled(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **fields)
    if isinstance(value, tuple):
        return tuple(map(doubled, value))
    if isinstance(value, dict):
        return {name: doubled(part) for name, part in value.items()}
    return value
