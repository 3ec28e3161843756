"""Leaky ReLU and clamp in one step, in place; the gradient needs only the result. Also the plan of a whole layer."""

import dataclasses
import math

import torch
import torch.nn.functional as F

from passersby.stylegan3.schedule import LayerSpec


def leaky_clamp_(x: torch.Tensor, slope: float, clamp: float | None) -> torch.Tensor:
    """Leaky ReLU, then clamp to +-`clamp` (None: no clamp); x is overwritten. Differentiable any number of times.

    x may have any shape and floating dtype. The gradient of the operation that computed x must not need x; that of a
    convolution does not. Both functions are piecewise linear: the derivative of the gradient's mask is zero.
    """
    return _LeakyClamp.apply(x, slope, clamp)


def activate_(x: torch.Tensor, slope: float, clamp: float | None) -> None:
    """Leaky ReLU and clamp of x in place, outside of autograd."""
    F.leaky_relu_(x, slope)
    if clamp is not None:
        x.clamp_(-clamp, clamp)


def activation_gradient(grad: torch.Tensor, y: torch.Tensor, slope: float, clamp: float | None, out: torch.Tensor):
    """The gradient before `activate_`, from `grad` after it and its result y, written to `out` (which may be `grad`).

    y is above 0 exactly where the input of the leaky ReLU was. No gradient passes where the value was clamped.
    """
    torch.ops.aten.leaky_relu_backward.grad_input(grad, y, slope, True, grad_input=out)
    if clamp is not None:
        torch.ops.aten.hardtanh_backward.grad_input(out, y, -clamp, clamp, grad_input=out)
    return out


class _LeakyClamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, slope, clamp):
        activate_(x, slope, clamp)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.slope, ctx.clamp = slope, clamp
        return x

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return _Gradient.apply(grad, y, ctx.slope, ctx.clamp), None, None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, y, slope, clamp):
        ctx.save_for_backward(y)
        ctx.slope, ctx.clamp = slope, clamp
        return activation_gradient(grad, y, slope, clamp, torch.empty_like(y))

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return _Gradient.apply(grad, y, ctx.slope, ctx.clamp), None, None, None


# ---- Leaky ReLU and clamp between two filters: the arguments beside the filters.


@dataclasses.dataclass(frozen=True)
class FilterPlan:
    """The arguments of `filtered_lrelu` beside the filters: integer factors, crops, the activation's constants."""

    up: int
    down: int
    crop: tuple[int, int]  # samples cut off at the low side of the full up-sampled map (height, width)
    size: tuple[int, int]  # height and width of the map between the filters
    slope: float
    gain: float
    clamp: float | None

    @classmethod
    def of_layer(cls, layer: LayerSpec, clamp: float | None) -> "FilterPlan":
        """The plan of one layer of the schedule. ToRGB has no filters, slope 1 and gain 1."""
        crop, size = [], []
        for (low, _), out in zip(layer.padding, layer.out_size, strict=True):
            crop.append(layer.up_taps - 1 - low)
            size.append((out - 1) * layer.down + layer.down_taps)
        slope, gain = (1.0, 1.0) if layer.to_rgb else (0.2, math.sqrt(2))
        return cls(layer.up, layer.down, tuple(crop), tuple(size), slope, gain, clamp)

    @property
    def up_gain(self) -> float:
        """The factor of each of the two one-dimensional passes of up-sampling.

        `up` keeps the signal's level after zero-insertion. The activation's gain is applied before the activation: a
        leaky ReLU is positively homogeneous and allows this.
        """
        return self.up * math.sqrt(self.gain)
