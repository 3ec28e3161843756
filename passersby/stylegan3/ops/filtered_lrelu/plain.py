"""The filtered leaky ReLU by depthwise convolutions: the way of a CPU.

Five measures made it fast on a CPU, each measured: polyphase filtering by depthwise transposed convolutions instead of
zero-insertion (a quarter of the multiplications), channels-last memory, parts that fit into the cache, activation in
place, and a backward pass that needs only the activated map. On a GPU the library may compute depthwise convolutions
far below the speed of memory, so a GPU goes another way (`matmul.py`, `fused.py`).
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from passersby.stylegan3.ops.filtered_lrelu.activation import FilterPlan, activate_, activation_gradient

TILE_BYTES = 8 << 20


class FilteredLeakyReLU(torch.autograd.Function):
    """x [N, C, H, W], up_filter, down_filter, plan -> [N, C, H', W']. Differentiable once."""

    @staticmethod
    def forward(ctx, x, up_filter, down_filter, plan):
        up_filter = up_filter * plan.up_gain
        x = x.contiguous(memory_format=torch.channels_last)
        save, limit = ctx.needs_input_grad[0], _unclamped(up_filter, plan)
        maps, y, ctx.clamps = [], None, []
        for tile in _tiles(x, plan, maps=2 if save else 1):
            part = _take(x, tile)
            clamp = None if _within(part, limit) else plan.clamp
            z = _up(part, up_filter, plan.up, plan.crop, plan.size)
            activate_(z, plan.slope, clamp)
            y = _put(y, _down(z, down_filter, plan.down), tile, x.shape)
            if save:
                maps.append(z)
                ctx.clamps.append(clamp)  # None where nothing was clamped
        ctx.save_for_backward(up_filter, down_filter, *maps)
        ctx.plan, ctx.shape = plan, x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        up_filter, down_filter, *maps = ctx.saved_tensors
        plan, result = ctx.plan, None
        grad = grad.contiguous(memory_format=torch.channels_last)
        for tile, z, clamp in zip(_tiles(grad, plan, maps=2), maps, ctx.clamps, strict=True):
            # The transpose of a decimating filter is an interpolating filter, and the other way round.
            g = _up(_take(grad, tile), down_filter, plan.down, (0, 0), plan.size)
            activation_gradient(g, z, plan.slope, clamp, out=g)
            result = _put(result, _crop_down(g, up_filter, plan.up, plan.crop, ctx.shape[2:]), tile, ctx.shape)
        return result, None, None, None


def _tiles(x: torch.Tensor, plan: FilterPlan, maps: int) -> list[tuple[slice, slice]]:
    """Parts (samples, channels) of `x`, which are computed one after the other.

    The map between the filters is up to 16 times larger than input and output. On a CPU the `maps` of each part fit
    into `TILE_BYTES`, so that they stay in the cache. A backward pass has two maps, the gradient and the activated map.
    A GPU computes all parts at once.
    """
    n, c = x.shape[:2]
    if x.is_cuda:
        return [(slice(0, n), slice(0, c))]
    plane = plan.size[0] * plan.size[1] * x.element_size() * maps
    parts = max(1, math.ceil(plane * c / TILE_BYTES))
    step = min(c, math.ceil(c / parts / 16) * 16)  # whole vectors of 16 floats
    samples = max(1, TILE_BYTES // (plane * c))
    return [
        (slice(i, min(i + samples, n)), slice(k, min(k + step, c)))
        for i in range(0, n, samples)
        for k in range(0, c, step)
    ]


def _take(x, tile):
    return x[tile].contiguous(memory_format=torch.channels_last)


def _put(whole, part, tile, input_shape):
    if part.shape[:2] == input_shape[:2]:
        return part
    if whole is None:
        shape = (*input_shape[:2], *part.shape[2:])
        whole = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)
    whole[tile] = part
    return whole


def _unclamped(up_filter: torch.Tensor, plan: FilterPlan) -> float:
    # Inputs up to this value are never clamped. The absolute sum of the filter's taps limits what it makes of them.
    if plan.clamp is None:
        return math.inf
    if up_filter.is_cuda:
        return 0.0  # reading a value would wait for the device
    largest = up_filter.abs().view(-1, plan.up).sum(0).max().item()  # over the taps that contribute to one sample
    return 0.99 * plan.clamp / largest**2


def _within(x: torch.Tensor, limit: float) -> bool:
    # Two passes over the small map are cheaper than two (and a third in the backward pass) over the large map.
    if limit in (0, math.inf):
        return limit > 0
    pixels = x.permute(0, 2, 3, 1)
    return pixels.amax().item() < limit and pixels.amin().item() > -limit


def _depthwise(taps: torch.Tensor, like: torch.Tensor, axis: int | None = None) -> torch.Tensor:
    # taps [t] along `axis` (2 or 3), or [t, t] -> [C, 1, kh, kw] in the dtype of `like`
    if taps.ndim == 1:
        taps = taps[:, None] if axis == 2 else taps[None, :]
    return taps.to(like.dtype).expand(like.shape[1], 1, *taps.shape)


def _up(x, taps, factor, crop, size):
    # Zero-insertion + FIR as a transposed convolution whose padding is the crop; [N, C, *size], channels last.
    if taps.ndim == 2:
        return _transposed(x, _depthwise(taps, x), (factor, factor), crop, size)
    # Along axis 3 first, while the map has few rows; along axis 2 the convolution is twice as fast.
    x = _transposed(x, _depthwise(taps, x, 3), (1, factor), (0, crop[1]), (x.shape[2], size[1]))
    return _transposed(x, _depthwise(taps, x, 2), (factor, 1), (crop[0], 0), size)


def _transposed(x, weight, stride, crop, size):
    # conv_transpose2d cuts `crop` at both sides; output_padding adds the missing samples at the high side.
    full = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], stride, weight.shape[2:], strict=True)]
    size_without_crop = [f - 2 * c for f, c in zip(full, crop, strict=True)]
    extra = [n - length for n, length in zip(size, size_without_crop, strict=True)]
    if all(0 <= e < s for e, s in zip(extra, stride, strict=True)):
        return F.conv_transpose2d(x, weight, stride=stride, padding=crop, output_padding=extra, groups=x.shape[1])
    y = F.conv_transpose2d(x, weight, stride=stride, groups=x.shape[1])
    y = F.pad(y, [-crop[1], size[1] + crop[1] - full[1], -crop[0], size[0] + crop[0] - full[0]])
    return y.contiguous(memory_format=torch.channels_last)


def _down(z, taps, factor):
    if taps.ndim == 2:
        return F.conv2d(z, _depthwise(taps, z), stride=factor, groups=z.shape[1])
    z = F.conv2d(z, _depthwise(taps, z, 3), stride=(1, factor), groups=z.shape[1])
    return F.conv2d(z, _depthwise(taps, z, 2), stride=(factor, 1), groups=z.shape[1])


def _crop_down(grad, taps, factor, crop, size):
    # The transpose of `_up`: pad by the crop, filter, keep every `factor`-th sample; [N, C, *size].
    needed_size = [(n - 1) * factor + len(taps) for n in size]
    high_padding = [n - c - length for n, c, length in zip(needed_size, crop, grad.shape[2:], strict=True)]
    if any(crop) or any(high_padding):
        grad = F.pad(grad, [crop[1], high_padding[1], crop[0], high_padding[0]])
    return _down(grad.contiguous(memory_format=torch.channels_last), taps, factor)
