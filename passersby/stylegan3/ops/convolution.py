"""Convolutions whose gradients are themselves convolutions: differentiable as often as is asked, and fast.

PyTorch's own second derivative of a convolution (which R1 needs) computes weight gradients, those of constant filters
too, as convolutions with image-sized kernels, group by group. Here every derivative is one of three operations
that libraries have a fast kernel for: the convolution, its transpose, and the weight gradient. Nothing is kept
for a gradient that nobody asks for.
"""

import torch
import torch.nn.functional as F


def conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride=1, padding=0):
    """`torch.nn.functional.conv2d` of x [N, C, H, W] and weight [O, C, k, k]; all gradients of any order."""
    return _Convolution.apply(x, weight, bias, stride, padding)


def filter2d(x: torch.Tensor, kernel: torch.Tensor, stride: int = 1, padding: int = 0) -> torch.Tensor:
    """Every channel of x [N, C, H, W] filtered by the constant `kernel` [k, k], zeros outside, decimated."""
    return _Filter.apply(x, kernel, stride, padding)


def convolve(x, weight, bias=None, stride=1, padding=0, groups=1):
    """The convolution itself, outside of autograd (as are the next two): x [N, C, H, W], weight [O, C, k, k]."""
    # A 1x1 kernel has no dilation. Calling it 2 makes PyTorch take oneDNN where it would take a matrix product of
    # MKL (few samples on one thread): 2.4 times faster where MKL does not use AVX-512.
    return F.conv2d(x, weight, bias, stride, padding, dilation=_dilation(weight), groups=groups)


def input_gradient(grad, weight, size, stride=1, padding=0, groups=1):
    """The gradient at the input, whose height and width are `size`, from that at the output [N, O, h, w]."""
    kernel = weight.shape[2:]
    extra = [n - ((h - 1) * stride - 2 * padding + k) for n, h, k in zip(size, grad.shape[2:], kernel, strict=True)]
    return F.conv_transpose2d(grad, weight, None, stride, padding, extra, groups, _dilation(weight))


def weight_gradient(grad, x, kernel, stride=1, padding=0):
    """The gradient at the weight, [O, C, kernel, kernel], from that at the output [N, O, h, w] and x [N, C, H, W]."""
    # oneDNN has a fast kernel for paddings of 0 and 1 only: three times faster, the time for padding included.
    if padding > 1 and not x.is_cuda:
        x, padding = F.pad(x, [padding - 1] * 4), 1
    weight = grad.new_empty(grad.shape[1], x.shape[1], kernel, kernel)
    dilation = [_dilation(weight)] * 2
    parameters = ([stride] * 2, [padding] * 2, dilation, False, [0, 0], 1, [False, True, False])
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *parameters)[1]


def _dilation(weight):
    return 2 if weight.shape[2:] == (1, 1) and not weight.is_cuda else 1


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.size, ctx.kernel, ctx.stride, ctx.padding = x.shape[2:], weight.shape[2], stride, padding
        return convolve(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = _InputGradient.apply(grad, weight, ctx.size, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            to_weight = _WeightGradient.apply(grad, x, ctx.kernel, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            to_bias = grad.sum((0, 2, 3))
        return to_x, to_weight, to_bias, None, None


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, weight, size, stride, padding):
        needs_grad, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(grad if needs_weight else None, weight if needs_grad else None)
        ctx.kernel, ctx.stride, ctx.padding = weight.shape[2], stride, padding
        return input_gradient(grad, weight, size, stride, padding)

    @staticmethod
    def backward(ctx, x):
        grad, weight = ctx.saved_tensors
        to_grad = to_weight = None
        if ctx.needs_input_grad[0]:
            to_grad = _Convolution.apply(x, weight, None, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            to_weight = _WeightGradient.apply(grad, x, ctx.kernel, ctx.stride, ctx.padding)
        return to_grad, to_weight, None, None, None


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, x, kernel, stride, padding):
        ctx.save_for_backward(grad, x)
        ctx.stride, ctx.padding = stride, padding
        return weight_gradient(grad, x, kernel, stride, padding)

    @staticmethod
    def backward(ctx, weight):
        grad, x = ctx.saved_tensors
        to_grad = to_x = None
        if ctx.needs_input_grad[0]:
            to_grad = _Convolution.apply(x, weight, None, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            to_x = _InputGradient.apply(grad, weight, x.shape[2:], ctx.stride, ctx.padding)
        return to_grad, to_x, None, None, None


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kernel, stride, padding):
        ctx.save_for_backward(kernel)
        ctx.size, ctx.stride, ctx.padding = x.shape[2:], stride, padding
        return convolve(x, _per_channel(kernel, x), None, stride, padding, x.shape[1])

    @staticmethod
    def backward(ctx, grad):
        (kernel,) = ctx.saved_tensors
        return _FilterTransposed.apply(grad, kernel, ctx.size, ctx.stride, ctx.padding), None, None, None


class _FilterTransposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, kernel, size, stride, padding):
        ctx.save_for_backward(kernel)
        ctx.stride, ctx.padding = stride, padding
        if stride == 1:  # a filter again, for which libraries have a faster depthwise kernel
            weight = _per_channel(kernel.flip(0, 1), grad)
            return convolve(grad, weight, None, 1, len(kernel) - 1 - padding, grad.shape[1])
        return input_gradient(grad, _per_channel(kernel, grad), size, stride, padding, grad.shape[1])

    @staticmethod
    def backward(ctx, x):
        (kernel,) = ctx.saved_tensors
        return _Filter.apply(x, kernel, ctx.stride, ctx.padding), None, None, None, None


def _per_channel(kernel, x):
    return kernel.to(x.dtype).expand(x.shape[1], 1, *kernel.shape)
