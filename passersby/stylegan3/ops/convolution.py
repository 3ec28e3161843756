"""Convolutions whose gradients are themselves convolutions: they have derivatives of any order, and are fast.

PyTorch's own second derivative of a convolution, which R1 needs, computes weight gradients as convolutions with
image-sized kernels, group by group, and does so for constant filters too. In this module every derivative is one of
three operations for which libraries have a fast kernel: the convolution, its transpose, and the weight gradient. A
forward pass saves nothing for a gradient that is not needed.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

_weight_gradients = True  # `no_weight_gradients` switches them off


def conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride=1, padding=0):
    """`torch.nn.functional.conv2d` of x [N, C, H, W] and weight [O, C, k, k], with gradients of any order."""
    return _Convolution.apply(x, weight, bias, stride, padding)


def filter2d(x: torch.Tensor, kernel: torch.Tensor, stride: int = 1, padding: int = 0) -> torch.Tensor:
    """Filter every channel of x [N, C, H, W] by the constant `kernel` [k, k], with zeros outside, and decimate it."""
    return _Filter.apply(x, kernel, stride, padding)


def upsample2d(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Twice the height and width of x [N, C, H, W]: zeros between its samples, then 4 times `kernel` [4, 4], symmetric.

    Zeros outside. It has gradients of any order.
    """
    size = (2 * x.shape[2], 2 * x.shape[3])
    return _FilterTransposed.apply(x, kernel * 4, size, 2, 1)


def upsampling_conv2d(x: torch.Tensor, weight: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """x [N, I, H, W] -> [N, O, 2H, 2W]: zeros between its samples, then the weight [O, I, 3, 3], then 4 times `kernel`.

    The weight is convolved, not correlated, as in StyleGAN2, and nothing is cut off between the two filters. `kernel`
    [4, 4] is symmetric. It has gradients of any order.
    """
    size = (2 * x.shape[2] + 1, 2 * x.shape[3] + 1)
    x = _InputGradient.apply(x, weight.transpose(0, 1), size, 2, 0)
    return filter2d(x, kernel * 4, padding=1)


@contextlib.contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Inside the context gradients do not go to the weights of `conv2d` and `upsampling_conv2d`: they are None.

    For `torch.autograd.grad` with respect to inputs alone, whose backward pass would compute the weights' gradients too
    and drop them. Second derivatives with respect to the weights are still right.
    """
    global _weight_gradients
    _weight_gradients = False
    try:
        yield
    finally:
        _weight_gradients = True


def convolve(x, weight, bias=None, stride=1, padding=0, groups=1):
    """The convolution of x [N, C, H, W] and weight [O, C, k, k], outside of autograd, as are the next two functions."""
    # Dilation has no effect on a 1x1 kernel. With a dilation of 2, PyTorch takes oneDNN where it would take a matrix
    # product of MKL (few samples on one thread): 2.4 times faster where MKL does not use AVX-512.
    return F.conv2d(x, weight, bias, stride, padding, dilation=_dilation(weight), groups=groups)


def input_gradient(grad, weight, size, stride=1, padding=0, groups=1):
    """The gradient at the input, whose height and width are `size`, from `grad` [N, O, h, w] at the output."""
    kernel = weight.shape[2:]
    extra = [n - ((h - 1) * stride - 2 * padding + k) for n, h, k in zip(size, grad.shape[2:], kernel, strict=True)]
    return F.conv_transpose2d(grad, weight, None, stride, padding, extra, groups, _dilation(weight))


def weight_gradient(grad, x, kernel, stride=1, padding=0):
    """The gradient at the weight [O, C, kernel, kernel], from `grad` [N, O, h, w] at the output and x [N, C, H, W]."""
    # oneDNN has a fast kernel for paddings of 0 and 1 only. It is three times faster, even with the time for padding.
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
        if ctx.needs_input_grad[1] and _weight_gradients:
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
        if ctx.needs_input_grad[1] and _weight_gradients:
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
        if stride == 1:  # the transpose is a filter again, for which libraries have a faster depthwise kernel
            weight = _per_channel(kernel.flip(0, 1), grad)
            return convolve(grad, weight, None, 1, len(kernel) - 1 - padding, grad.shape[1])
        return input_gradient(grad, _per_channel(kernel, grad), size, stride, padding, grad.shape[1])

    @staticmethod
    def backward(ctx, x):
        (kernel,) = ctx.saved_tensors
        return _Filter.apply(x, kernel, ctx.stride, ctx.padding), None, None, None, None


def _per_channel(kernel, x):
    return kernel.to(x.dtype).expand(x.shape[1], 1, *kernel.shape)


# ---- Convolutions in which each sample has its own kernel: modulated convolutions on a CPU.
#
# One sample fits into the cache. The kernels contain the modulation, so the maps need no scaling. A GPU is faster with
# one call for the whole batch (`whole_batch`, below). Also computing the filtered leaky ReLU sample by sample was no
# faster.


def sample_conv2d(x: torch.Tensor, kernels: torch.Tensor, bias: torch.Tensor, padding: int = 0) -> torch.Tensor:
    """Convolve x [N or 1, C, H, W] with kernels [N or 1, O, C, k, k] and add bias [O] -> [N, O, H', W'].

    The result has x's dtype, channels last. A single sample of x, or a single kernel, serves all N. Differentiable
    once.
    """
    return _SampleConvolution.apply(x, kernels, bias, padding)


class _SampleConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kernels, bias, padding):
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, kernels)
        ctx.padding = padding
        samples = range(max(len(x), len(kernels)))
        return _joined([convolve(_one(x, i), _one(kernels, i)[0], bias, padding=padding) for i in samples])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, kernels = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        samples, size, kernel, padding = range(len(grad)), x.shape[2:], kernels.shape[3], ctx.padding
        to_x = to_kernels = to_bias = None
        if ctx.needs_input_grad[0]:
            parts = [input_gradient(_one(grad, i), _one(kernels, i)[0], size, padding=padding) for i in samples]
            to_x = _summed(_joined(parts), len(x))
        if ctx.needs_input_grad[1]:
            parts = [weight_gradient(_one(grad, i), _one(x, i), kernel, padding=padding)[None] for i in samples]
            to_kernels = _summed(_joined(parts), len(kernels))
        if ctx.needs_input_grad[2]:
            to_bias = grad.sum((0, 2, 3))
        return to_x, to_kernels, to_bias, None


def _one(batch, index):
    # Sample `index` of a batch, or the only entry of a batch that all samples share.
    index = min(index, len(batch) - 1)
    return batch[index : index + 1]


def _joined(parts):
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _summed(gradient, count):
    return gradient if len(gradient) == count else gradient.sum(0, keepdim=True)


# ---- The generator's modulated, demodulated convolution (Karras et al. 2020, StyleGAN2), in two ways.
#
# y = d * conv(s * x; W) + b, "full" (padding k - 1), with styles s [N, I] and output scales d [N, O]. A GPU computes
# the whole batch at once, a CPU sample by sample, because then the maps stay in the cache.
#
# For kernels of mean square 1, d is about 1 / sqrt(fan-in): 1/68 for 512 channels of 3x3. Multiplied by d only after
# the convolution, a float16 map would overflow at outputs of 963, where the reference's order holds 65504. Infinite
# values become nan in the filters, whose taps have both signs. So in float16, kernels are divided by about
# sqrt(fan-in), and d is multiplied by it. A power of two rounds nothing but the very smallest kernel values, so all
# other results keep their bits.

FEW_CHANNELS = 8  # fewer outputs (ToRGB) do not fill the vectors of a convolution's kernel


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    style: torch.Tensor,
    demodulation: torch.Tensor,
    bias: torch.Tensor,
    scaled: bool = True,
) -> torch.Tensor:
    """x [N or 1, I, H, W], weight [O, I, k, k], style [N or 1, I], demodulation [N or 1, O], bias [O].

    Returns [N, O, H', W'] in x's dtype, channels last. All arguments except x are float32; k is 1 or 3. On a CPU the
    function is differentiable once. `scaled=False` lets float16 maps overflow early, as runs of recipe 1 did.
    """
    if x.is_cuda or len(weight) < FEW_CHANNELS:
        return whole_batch(x, weight, style, demodulation, bias, scaled)
    return sample_by_sample(x, weight, style, demodulation, bias)


def sample_by_sample(x, weight, style, demodulation, bias):
    """Every sample has its own kernel, which contains style and demodulation."""
    kernels = weight * (demodulation[:, :, None] * style[:, None])[..., None, None]  # [N or 1, O, I, k, k]
    return sample_conv2d(x, kernels.to(x.dtype), bias.to(x.dtype), weight.shape[2] - 1)


def whole_batch(x, weight, style, demodulation, bias, scaled=True):
    """Kernels of 1x1 are matrix products; for others, all samples share a convolution between two scalings of maps."""
    if weight.shape[2] == 1:
        return _pointwise(x, weight, style, demodulation, bias)
    if scaled and x.dtype == torch.float16:
        scale = 2.0 ** math.ceil(math.log2(weight[0].numel()) / 2)  # sqrt(fan-in) or up to twice that
        weight, demodulation = weight / scale, demodulation * scale
    style, demodulation, bias = (part.to(x.dtype) for part in (style, demodulation, bias))
    x = torch.nn.functional.conv2d(x * style[:, :, None, None], weight.to(x.dtype), padding=weight.shape[2] - 1)
    return torch.addcmul(bias[:, None, None], x, demodulation[:, :, None, None])


def _pointwise(x, weight, style, demodulation, bias):
    # A 1x1 convolution is a matrix product on channels-last memory, each sample with its own small matrix.
    n, _, h, w = x.shape
    matrix = weight[:, :, 0, 0] * style[:, None] * demodulation[:, :, None]  # [N or 1, O, I]
    n = max(n, len(matrix))
    pixels = x.permute(0, 2, 3, 1).reshape(len(x), h * w, -1).expand(n, -1, -1)
    matrix = matrix.to(x.dtype).expand(n, -1, -1).transpose(1, 2)
    y = torch.baddbmm(bias.to(x.dtype), pixels, matrix)
    return y.view(n, h, w, -1).permute(0, 3, 1, 2)
