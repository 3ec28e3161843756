"""Leaky ReLU and clamp in one step, in place, with a gradient that needs nothing but the result."""

import torch
import torch.nn.functional as F


def leaky_clamp_(x: torch.Tensor, slope: float, clamp: float | None) -> torch.Tensor:
    """Leaky ReLU, then clamp to +-`clamp` (None: no clamp); x is overwritten. Differentiable as often as is asked.

    x may be of any shape and floating dtype. It must not be needed by the gradient of what made it, as that of a
    convolution is not. Both functions are piecewise linear: the derivative of the gradient's mask is zero.
    """
    return _LeakyClamp.apply(x, slope, clamp)


def activate_(x: torch.Tensor, slope: float, clamp: float | None) -> None:
    """Leaky ReLU and clamp of x in place, outside of autograd."""
    F.leaky_relu_(x, slope)
    if clamp is not None:
        x.clamp_(-clamp, clamp)


def activation_gradient(grad: torch.Tensor, y: torch.Tensor, slope: float, clamp: float | None, out: torch.Tensor):
    """The gradient before `activate_` from that behind it and its result y, written to `out` (which may be `grad`).

    y > 0 exactly where the input of the leaky ReLU was; no gradient passes where the value was clamped.
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
