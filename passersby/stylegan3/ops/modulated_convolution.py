"""The modulated, demodulated convolution (Karras et al. 2020, StyleGAN2) in two ways with the same result.

y = d * conv(s * x; W) + b, "full" (padding k - 1), with styles s [N, I] and output scales d [N, O]. A GPU does it
for the whole batch at once; a CPU sample by sample, where maps stay in the cache.
"""

import torch

from passersby.stylegan3.ops.sample_convolution import sample_conv2d

FEW_CHANNELS = 8  # fewer outputs (ToRGB) do not fill the vectors of a convolution's kernel


def modulated_conv2d(
    x: torch.Tensor, weight: torch.Tensor, style: torch.Tensor, demodulation: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """x [N or 1, I, H, W], weight [O, I, k, k], style [N or 1, I], demodulation [N or 1, O], bias [O].

    Returns [N, O, H', W'] in x's dtype, channels last; all but x are float32. k is 1 or 3. On a CPU differentiable
    once.
    """
    if x.is_cuda or len(weight) < FEW_CHANNELS:
        return whole_batch(x, weight, style, demodulation, bias)
    return sample_by_sample(x, weight, style, demodulation, bias)


def sample_by_sample(x, weight, style, demodulation, bias):
    """Every sample has its own kernel, with style and demodulation inside."""
    kernels = weight * (demodulation[:, :, None] * style[:, None])[..., None, None]  # [N or 1, O, I, k, k]
    return sample_conv2d(x, kernels.to(x.dtype), bias.to(x.dtype), weight.shape[2] - 1)


def whole_batch(x, weight, style, demodulation, bias):
    """Matrix products for 1x1 kernels; else scaled maps before and after a convolution that all samples share."""
    if weight.shape[2] == 1:
        return _pointwise(x, weight, style, demodulation, bias)
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
