"""The filtered leaky ReLU by products with banded matrices: matrix products alone, no depthwise convolution.

Libraries for GPUs may compute a depthwise transposed convolution channel by channel, thousands of times below the speed
of memory. Matrix products are fast and deterministic on every GPU. A FIR along one axis is the product with a matrix
whose rows hold the shifted taps, [outputs, inputs] @ [inputs, channels] on channels-last memory. Most of such a matrix
is zero, but tensor cores make its products cheap, and long axes are divided into blocks that leave out most zeros.

A radial filter is a sum of a few separable ones, by its singular value decomposition. Their matrices are stacked, so
that its two products sum over them in the product's own accumulator.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from passersby.stylegan3.ops.filtered_lrelu.activation import FilterPlan, activate_, activation_gradient

# The part of a radial filter that its separable parts may leave out, as the sum of absolute taps (of a sum of 1). Half
# precision rounds every tap of its largest values by more.
SEPARATION_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-4}
LONG_AXIS, BLOCK = 256, 128  # outputs along an axis: a longer axis is divided into blocks of at most BLOCK


class FilteredLeakyReLU(torch.autograd.Function):
    """x [N, C, H, W], up_filter, down_filter, plan -> [N, C, H', W']. Differentiable once."""

    @staticmethod
    def forward(ctx, x, up_filter, down_filter, plan):
        ctx.plan, size = plan, tuple(x.shape[2:])
        ctx.products = products = _products(taps_of(up_filter), taps_of(down_filter), plan, size, x.dtype, x.device)
        z = products.up(x.permute(0, 2, 3, 1).contiguous())  # [N, *plan.size, C]
        activate_(z, plan.slope, plan.clamp)
        y = products.down(z)
        ctx.save_for_backward(z if ctx.needs_input_grad[0] else None)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        g = ctx.products.down_t(grad.permute(0, 2, 3, 1).contiguous())
        activation_gradient(g, z, ctx.plan.slope, ctx.plan.clamp, out=g)
        return ctx.products.up_t(g).permute(0, 3, 1, 2), None, None, None


# ---- Filters on the host: their values, and radial ones as sums of separable ones.


class Taps(NamedTuple):
    """The taps of a filter along each axis: `content` is [count] or, of a radial filter, [count, count], float64."""

    content: bytes  # hashed once, where an array or a tuple would be hashed at each call
    count: int
    radial: bool

    @property
    def values(self) -> np.ndarray:
        """[count] or [count, count] float64."""
        return np.frombuffer(self.content).reshape((self.count,) * (1 + self.radial))


_known_taps: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # filter -> (its version, its taps)


def taps_of(taps: torch.Tensor) -> Taps:
    """The taps of a filter, which are read from the device at the first call only."""
    version = 0 if taps.is_inference() else taps._version
    known = _known_taps.get(taps)
    if known is None or known[0] != version:
        content = taps.detach().double().cpu().contiguous().numpy().tobytes()
        known = _known_taps[taps] = (version, Taps(content, len(taps), taps.ndim == 2))
    return known[1]


@functools.lru_cache(maxsize=256)
def separable_parts(taps: Taps, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """A filter as a sum of separable ones -> their vertical and horizontal taps [rank, count], float64.

    The sum over ranks of outer(vertical, horizontal) is the filter, but for absolute differences that sum to at most
    `tolerance`. A one-dimensional filter stands for its outer product with itself.
    """
    values = taps.values
    if not taps.radial:
        return values[None], values[None]
    u, s, v = np.linalg.svd(values)
    u, v = u * np.sqrt(s), np.sqrt(s)[:, None] * v
    errors = [np.abs(values - u[:, :rank] @ v[:rank]).sum() for rank in range(1, taps.count)]
    rank = next((rank for rank, error in enumerate(errors, start=1) if error <= tolerance), taps.count)
    return u[:, :rank].T, v[:rank]


# ---- Banded matrices.


def band(values: np.ndarray, outputs: int, inputs: int, step_out: int, step_in: int, offset: int = 0) -> np.ndarray:
    """The matrix [outputs, inputs] with values[o * step_out + offset - i * step_in] at (o, i), and zeros beyond."""
    index = np.arange(outputs)[:, None] * step_out + offset - np.arange(inputs) * step_in
    inside = (index >= 0) & (index < len(values))
    return np.where(inside, values[index.clip(0, len(values) - 1)], 0.0)


class _Product:
    """[batch, inputs, K] -> [batch, outputs, K]: the product with a banded matrix, block by block."""

    def __init__(self, matrix: np.ndarray, dtype: torch.dtype, device: torch.device):
        self.outputs, inputs = matrix.shape
        parts = -(-self.outputs // BLOCK) if self.outputs > LONG_AXIS else 1
        self.blocks = []
        for rows in np.array_split(np.arange(self.outputs), parts):
            used = np.flatnonzero(matrix[rows].any(0))
            first, last = (used[0], used[-1] + 1) if parts > 1 and len(used) else (0, inputs)
            part = torch.from_numpy(np.ascontiguousarray(matrix[rows, first:last])).to(dtype).to(device)
            self.blocks.append((slice(rows[0], rows[-1] + 1), slice(first, last), part))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.blocks) == 1:
            return torch.bmm(self.blocks[0][2].expand(len(x), -1, -1), x)
        y = x.new_empty(len(x), self.outputs, x.shape[2])
        for outputs, inputs, part in self.blocks:
            torch.bmm(part.expand(len(x), -1, -1), x[:, inputs], out=y[:, outputs])
        return y


@dataclasses.dataclass(frozen=True)
class _Products:
    """The four products of a layer and their transposes; maps are [N, H, W, C], contiguous."""

    ranks: int  # separable parts of the decimating filter
    up_columns: _Product
    up_rows: _Product
    down_columns: _Product  # its outputs are (rank, column)
    down_rows: _Product  # its inputs are (row, rank)
    up_columns_t: _Product
    up_rows_t: _Product
    down_columns_t: _Product
    down_rows_t: _Product

    def up(self, x: torch.Tensor) -> torch.Tensor:
        """The interpolating filter."""
        return _rows(self.up_rows, _columns(self.up_columns, x))

    def up_t(self, grad: torch.Tensor) -> torch.Tensor:
        """The transpose of `up`."""
        return _columns(self.up_columns_t, _rows(self.up_rows_t, grad))

    def down(self, z: torch.Tensor) -> torch.Tensor:
        """The decimating filter."""
        n, h, _, c = z.shape
        return _rows(self.down_rows, _columns(self.down_columns, z).view(n, h * self.ranks, -1, c))

    def down_t(self, grad: torch.Tensor) -> torch.Tensor:
        """The transpose of `down`."""
        n, _, w, c = grad.shape
        return _columns(self.down_columns_t, _rows(self.down_rows_t, grad).view(n, -1, self.ranks * w, c))


def _columns(product, x):
    n, h, w, c = x.shape
    return product(x.view(n * h, w, c)).view(n, h, -1, c)


def _rows(product, x):
    n, h, w, c = x.shape
    return product(x.view(n, h, w * c)).view(n, -1, w, c)


@functools.lru_cache(maxsize=256)  # the layers of several networks; a layer has about 1 MB at 256 x 128
def _products(
    up: Taps, down: Taps, plan: FilterPlan, size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> _Products:
    vertical, horizontal = separable_parts(down, SEPARATION_TOLERANCE[dtype])
    up_rows, up_columns = (
        band(up.values * plan.up_gain, outputs, inputs, 1, plan.up, crop)
        for outputs, inputs, crop in zip(plan.size, size, plan.crop, strict=True)
    )
    (h, w), (oh, ow) = plan.size, ((n - down.count) // plan.down + 1 for n in plan.size)
    down_columns = np.concatenate([band(part, ow, w, -plan.down, -1) for part in horizontal])
    down_rows = np.stack([band(part, oh, h, -plan.down, -1) for part in vertical], 2).reshape(oh, -1)
    matrices = (up_columns, up_rows, down_columns, down_rows)
    return _Products(len(vertical), *(_Product(m, dtype, device) for m in (*matrices, *(m.T for m in matrices))))
