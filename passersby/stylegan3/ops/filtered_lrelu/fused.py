"""The filtered leaky ReLU as one kernel of Triton, forward and backward, for GPUs from compute capability 8.0 on.

The map between the filters, up to 16 times larger than the input, never reaches memory. For the gradient nothing is
kept but the input: the backward kernel computes the sign and the clamp again. Triton comes with PyTorch on Linux and
compiles at first use. Where Triton cannot run, `reason_against` says why.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from passersby.stylegan3.ops.filtered_lrelu import matmul
from passersby.stylegan3.ops.filtered_lrelu.activation import FilterPlan
from passersby.stylegan3.ops.filtered_lrelu.matmul import SEPARATION_TOLERANCE, Taps, band, separable_parts, taps_of

CAPABILITY = (8, 0)  # the first whose tensor cores also take bfloat16 and float32


class FilteredLeakyReLU(torch.autograd.Function):
    """x [N, C, H, W], up_filter, down_filter, plan -> [N, C, H', W']. Differentiable once."""

    @staticmethod
    def forward(ctx, x, up_filter, down_filter, plan):
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.plan = plan
        ctx.save_for_backward(*((x, up_filter, down_filter) if ctx.needs_input_grad[0] else ()))
        return _forward(x, up_filter, down_filter, *_plain(plan))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, up_filter, down_filter = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        return _backward(x, grad, up_filter, down_filter, *_plain(ctx.plan)), None, None, None


# ---- Operators of PyTorch: tools that follow tensors without values see one operation instead of a launch.


def _plain(plan: FilterPlan) -> tuple:
    return plan.up, plan.down, plan.crop, plan.size, plan.slope, plan.gain, plan.clamp


def _empty(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    shape = (x.shape[0], x.shape[1], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.custom_op("passersby::filtered_lrelu", mutates_args=())
def _forward(
    x: torch.Tensor, up_filter: torch.Tensor, down_filter: torch.Tensor, up: int, down: int, crop: Sequence[int],
    size: Sequence[int], slope: float, gain: float, clamp: float | None,
) -> torch.Tensor:  # fmt: skip
    plan = FilterPlan(up, down, (crop[0], crop[1]), (size[0], size[1]), slope, gain, clamp)
    return launch_forward(x, taps_of(up_filter), taps_of(down_filter), plan)


@_forward.register_fake
def _(x, up_filter, down_filter, up, down, crop, size, slope, gain, clamp):
    return _empty(x, *((n - len(down_filter)) // down + 1 for n in size))


@torch.library.custom_op("passersby::filtered_lrelu_backward", mutates_args=())
def _backward(
    x: torch.Tensor, grad: torch.Tensor, up_filter: torch.Tensor, down_filter: torch.Tensor, up: int, down: int,
    crop: Sequence[int], size: Sequence[int], slope: float, gain: float, clamp: float | None,
) -> torch.Tensor:  # fmt: skip
    plan = FilterPlan(up, down, (crop[0], crop[1]), (size[0], size[1]), slope, gain, clamp)
    return launch_backward(x, grad, taps_of(up_filter), taps_of(down_filter), plan)


@_backward.register_fake
def _(x, grad, up_filter, down_filter, up, down, crop, size, slope, gain, clamp):
    return _empty(x, *x.shape[2:])


# ---- Tiles, and the tables that a kernel reads for them.


@dataclasses.dataclass(frozen=True)
class Tile:
    """What one program makes, the warps that it runs on, and the rows whose loads overlap."""

    height: int
    width: int
    channels: int
    warps: int
    stages: int


# A test compiles every variant for three generations of GPUs: no value may leave the registers for memory, and the
# shared memory must fit the smallest of them (99 kB). Larger tiles compute fewer values twice, but break both limits.


def forward_tile(dtype: torch.dtype, channels: int) -> Tile:
    """The tile of the forward kernel for maps of so many channels."""
    single = dtype == torch.float32
    return Tile(8, 16, 16 if channels <= 16 or single else 32, warps=4, stages=1 if single else 3)


def backward_tile(dtype: torch.dtype, channels: int) -> Tile:
    """The tile of the backward kernel for maps of so many channels."""
    single = dtype == torch.float32
    return Tile(8, 16, 16 if channels <= 16 or single else 32, warps=8, stages=1 if single else 3)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A kernel with its constants, and tables that its programs read: in the format of the products, and in float32."""

    constants: dict[str, Any]
    integers: dict[str, int]  # arguments beside sizes and strides
    matrices: tuple[np.ndarray, ...]
    taps: tuple[np.ndarray, ...]


def _power_of_two(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())  # the lengths of Triton's ranges, and at least 16 in products


def forward_variant(up: Taps, down: Taps, plan: FilterPlan, tile: Tile, tolerance: float) -> Variant:
    """The forward kernel of a layer. A tile's columns are ow0 + 0 ... TW - 1, its first up-sampled one ow0 * down."""
    taps = up.values * plan.up_gain
    vertical, horizontal = separable_parts(down, tolerance)
    up_rows = -(-up.count // plan.up)
    first_col = plan.crop[1] // plan.up - (up_rows - 1)  # the first input column of a tile is ow0 * down / up + this
    rows, up_cols = ((n - 1) * plan.down + down.count for n in (tile.height, tile.width))
    in_cols = (up_cols - 1 + plan.crop[1]) // plan.up - first_col + 1
    up_width, in_width = _power_of_two(up_cols), _power_of_two(in_cols)
    up_matrix = band(taps, up_width, in_width, 1, plan.up, plan.crop[1] - first_col * plan.up)
    up_matrix[up_cols:] = 0
    down_matrix = np.stack([band(part, tile.width, up_width, -plan.down, -1) for part in horizontal])
    down_taps = np.stack([band(part, tile.height, rows, -plan.down, -1).T for part in vertical])
    return Variant(
        {"UP": plan.up, "DOWN": plan.down, "UP_ROWS": up_rows, "ROWS": rows, "RANK": len(vertical),
         "TH": tile.height, "TW": tile.width, "IN_W": in_width, "UP_W": up_width, "BC": tile.channels,
         "CLAMP": plan.clamp is not None},
        {"crop_h": plan.crop[0], "first_col": first_col},
        (up_matrix, down_matrix),
        (_padded(taps, up_rows * plan.up), down_taps),
    )  # fmt: skip


def backward_variant(up: Taps, down: Taps, plan: FilterPlan, tile: Tile, tolerance: float) -> Variant:
    """The backward kernel of a layer. A tile's first up-sampled column is w0 * up - crop."""
    taps = up.values * plan.up_gain
    vertical, horizontal = separable_parts(down, tolerance)
    up_rows, down_rows = -(-up.count // plan.up), -(-down.count // plan.down)
    rows, up_cols = ((n - 1) * plan.up + up.count for n in (tile.height, tile.width))
    up_width = _power_of_two(up_cols)
    first_col = -(up_rows - 1)  # the first input column is w0 + this
    in_width = _power_of_two((up_cols - 1) // plan.up - first_col + 1)
    up_matrix = band(taps, up_width, in_width, 1, plan.up, -first_col * plan.up)
    phase = -plan.crop[1] % plan.down  # of a tile's first up-sampled column
    before = down_rows - 1
    grad_width = _power_of_two((up_cols - 1 + phase) // plan.down + before + 1)
    down_matrix = np.stack(
        [band(part, up_width, grad_width, 1, plan.down, phase + before * plan.down) for part in horizontal]
    )
    return Variant(
        {"UP": plan.up, "DOWN": plan.down, "UP_ROWS": up_rows, "DOWN_ROWS": down_rows, "ROWS": rows,
         "RANK": len(vertical), "TH": tile.height, "TW": tile.width, "IN_W": in_width, "UP_W": up_width,
         "GRAD_W": grad_width, "BC": tile.channels, "CLAMP": plan.clamp is not None},
        {"crop_h": plan.crop[0], "crop_w": plan.crop[1], "first_col": first_col,
         "first_grad": -plan.crop[1] // plan.down - before},
        (up_matrix, down_matrix, band(taps, tile.width, up_width, -plan.up, -1)),
        (_padded(taps, up_rows * plan.up), np.stack([_padded(part, down_rows * plan.down) for part in vertical]),
         band(taps, tile.height, rows, -plan.up, -1).T),
    )  # fmt: skip


def _padded(taps: np.ndarray, count: int) -> np.ndarray:
    return np.pad(taps, (0, count - len(taps)))


# ---- Launches.


@functools.lru_cache(maxsize=512)
def _prepared(make, up: Taps, down: Taps, plan: FilterPlan, tile: Tile, dtype: torch.dtype, device: torch.device):
    # (variant, its matrices, its taps), on the device.
    variant = make(up, down, plan, tile, SEPARATION_TOLERANCE[dtype])
    for length, factor, other in ((tile.width, plan.down, plan.up), (tile.width, plan.up, plan.down)):
        if length * factor % other:
            raise AssertionError(f"tiles of {length} x {factor} / {other} do not have the same phase")
    matrices = [torch.from_numpy(np.ascontiguousarray(m)).to(dtype).to(device) for m in variant.matrices]
    taps = [torch.from_numpy(np.ascontiguousarray(m)).float().to(device) for m in variant.taps]
    return variant, matrices, taps


def constants_of(dtype: torch.dtype) -> dict[str, Any]:
    """The kernels' constants of a number format."""
    import triton.language as tl

    formats = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    return {"DOT": formats[dtype], "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32"}


def launch_forward(x: torch.Tensor, up: Taps, down: Taps, plan: FilterPlan) -> torch.Tensor:
    """x [N, C, H, W], channels last -> [N, C, H', W'], channels last."""
    from passersby.stylegan3.ops.filtered_lrelu import triton_kernels

    tile = forward_tile(x.dtype, x.shape[1])
    variant, matrices, taps = _prepared(forward_variant, up, down, plan, tile, x.dtype, x.device)
    y = _empty(x, *((n - down.count) // plan.down + 1 for n in plan.size))
    n, c, oh, ow = y.shape
    tiles_w = -(-ow // tile.width)
    grid = (-(-oh // tile.height) * tiles_w, -(-c // tile.channels), n)
    kernel: Any = triton_kernels.forward_kernel  # called with options of the launch beside its arguments
    with _device(x):
        kernel[grid](
            x, y, matrices[0], taps[0], matrices[1], taps[1], *x.shape[2:], oh, ow, c, tiles_w, *_strides(x),
            *_strides(y), **variant.integers, slope=plan.slope, clamp=plan.clamp or 0.0, **variant.constants,
            **constants_of(x.dtype), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return y


def launch_backward(x: torch.Tensor, grad: torch.Tensor, up: Taps, down: Taps, plan: FilterPlan) -> torch.Tensor:
    """x [N, C, H, W] and grad [N, C, H', W'], channels last -> the gradient at x, channels last."""
    from passersby.stylegan3.ops.filtered_lrelu import triton_kernels

    tile = backward_tile(x.dtype, x.shape[1])
    variant, matrices, taps = _prepared(backward_variant, up, down, plan, tile, x.dtype, x.device)
    dx = _empty(x, *x.shape[2:])
    n, c, h, w = dx.shape
    tiles_w = -(-w // tile.width)
    grid = (-(-h // tile.height) * tiles_w, -(-c // tile.channels), n)
    kernel: Any = triton_kernels.backward_kernel  # called with options of the launch beside its arguments
    with _device(x):
        kernel[grid](
            x, grad, dx, matrices[0], taps[0], matrices[1], taps[1], matrices[2], taps[2], h, w, *grad.shape[2:],
            *plan.size, c, tiles_w, *_strides(x), *_strides(grad), *_strides(dx), **variant.integers, slope=plan.slope,
            clamp=plan.clamp or 0.0, **variant.constants, **constants_of(x.dtype), num_warps=tile.warps,
            num_stages=tile.stages,
        )  # fmt: skip
    return dx


def _strides(x: torch.Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(2), x.stride(3)


def _device(x: torch.Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


# ---- Where the kernel can run.


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on a CPU, because TRITON_INTERPRET=1 is set. It is very slow."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def reason_against(device: torch.device) -> str | None:
    """Why the kernel cannot run on this device, in some words; None where it can.

    On a GPU small layers are computed at the first question, which takes some seconds: Triton may lack a C compiler,
    and a kernel that is wrong on this GPU must not make images. Each process asks once for each device.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if is_interpreted():
        return None
    if device.type != "cuda" or torch.version.hip:
        return "it runs on NVIDIA's GPUs alone"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return f"the GPU's compute capability is {capability[0]}.{capability[1]}, and 8.0 is needed"
    try:
        errors = {(dtype, radial): _error(device, dtype, radial) for dtype, radial in CHECKED}
    except Exception as error:  # noqa: BLE001  whatever Triton, a C compiler or the driver raise
        return f"it failed in a test with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    wrong = [f"{error:.1e}" for (dtype, _), error in errors.items() if not error <= CHECKED_TOLERANCE[dtype]]
    return f"its results differ by {', '.join(wrong)} from matrix products in a test" if wrong else None


CHECKED = ((torch.float16, False), (torch.float32, True))  # format, radial
CHECKED_TOLERANCE = {torch.float16: 0.02, torch.float32: 1e-4}  # of values around 1


def _error(device: torch.device, dtype: torch.dtype, radial: bool) -> float:
    # The largest difference to matrix products, of the map and its gradient, in a layer of two by three tiles.
    results = []
    with torch.inference_mode(False), torch.enable_grad():
        places = torch.linspace(-1, 1, 12, dtype=torch.float64)
        taps = torch.exp(-4 * places.square())
        distances = torch.hypot(places[:, None], places)
        down = torch.exp(-4 * distances.pow(3)) if radial else taps  # not separable
        taps, down = (part.div(part.sum()).to(device, torch.float32) for part in (taps, down))
        plan = FilterPlan(2, 2, (3, 3), (42, 90), 0.2, math.sqrt(2), 1.0)
        x = torch.randn(1, 32, 26, 50, generator=torch.Generator().manual_seed(0)).to(device, dtype).requires_grad_()
        for function in (FilteredLeakyReLU, matmul.FilteredLeakyReLU):
            y = function.apply(x, taps, down, plan)
            (gradient,) = torch.autograd.grad(y.float().square().sum(), x)
            results.append((y.detach().float(), gradient.float()))
        return max((ours - theirs).abs().max().item() for ours, theirs in zip(*results, strict=True))
