"""The generator's modulated convolution on a CPU: every sample with its own kernel.

One sample fits into the cache, and with the modulation inside the kernels nothing has to be scaled on the maps. A GPU
prefers one call for the whole batch (see modulated_convolution.py). Measured and given up: going on to the filtered
leaky ReLU sample by sample (no faster).
"""

import torch
from torch.autograd.function import once_differentiable

from passersby.stylegan3.ops.convolution import convolve, input_gradient, weight_gradient


def sample_conv2d(x: torch.Tensor, kernels: torch.Tensor, bias: torch.Tensor, padding: int = 0) -> torch.Tensor:
    """x [N or 1, C, H, W] convolved with kernels [N or 1, O, C, k, k], plus bias [O] -> [N, O, H', W'].

    Result in x's dtype, channels last. One sample of x or one kernel serves all N. Differentiable once.
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
    # One sample, also of what all samples share.
    index = min(index, len(batch) - 1)
    return batch[index : index + 1]


def _joined(parts):
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _summed(gradient, count):
    return gradient if len(gradient) == count else gradient.sum(0, keepdim=True)
