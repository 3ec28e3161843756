"""The kernels of `fused.py` in Triton: the whole filtered leaky ReLU of a tile, forward and backward.

Maps are channels last. A program makes `TH` x `TW` values of `BC` channels of one sample. It walks down the up-sampled
rows that its tile meets and holds one of them at a time, so nothing of the up-sampled map leaves the chip. Along the
height, filters are sums of rows: input rows come from the first cache. Along the width, they are products with banded
matrices, because a program cannot shift values inside its registers, and tensor cores make such products cheap. Radial
filters are sums of `RANK` separable ones.

Divisions of integers round towards zero on a GPU, so only numbers of at least 0 are divided here: `fused.py` adds a
multiple of the divisor (`LIFT`). Only built-in functions of Triton are called: its interpreter then also runs where
Triton was loaded without it.
"""

# pyright: reportGeneralTypeIssues=false
# Triton reads this source, and Python never runs it: `static_range`, which it unrolls, cannot be iterated over.

import triton
import triton.language as tl

LIFT = tl.constexpr(1024)  # input rows that are added before a division and taken off after it


@triton.jit
def _upsampled_row(
    x, matrix, taps, j, col0, channels, inside_c, H, W, x_row, x_col, crop_h,
    UP: tl.constexpr, UP_ROWS: tl.constexpr, IN_W: tl.constexpr, UP_W: tl.constexpr, BC: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Row j of the up-sampled map, UP_W columns -> [UP_W, BC] float32, before the activation. x points to the sample.
    cols = col0 + tl.arange(0, IN_W)
    inside = ((cols >= 0) & (cols < W))[:, None] & inside_c[None, :]
    lifted = j + crop_h + LIFT * UP
    last, phase = lifted // UP - LIFT, lifted % UP
    pointers = x + cols[:, None] * x_col + channels[None, :]
    total = tl.full((IN_W, BC), 0.0, tl.float32)
    for q in tl.static_range(UP_ROWS):
        row = last - q
        values = tl.load(pointers + row * x_row, inside & (row >= 0) & (row < H), 0.0)
        total += tl.load(taps + phase + q * UP) * values.to(tl.float32)
    weights = tl.load(matrix + tl.arange(0, UP_W)[:, None] * IN_W + tl.arange(0, IN_W)[None, :])
    return tl.dot(weights, total.to(DOT), input_precision=PRECISION)


@triton.jit
def forward_kernel(
    x, y, up_matrix, up_taps, down_matrix, down_taps, H, W, OH, OW, C, tiles_w, x_sample, x_row, x_col,
    y_sample, y_row, y_col, crop_h, first_col, slope, clamp,
    UP: tl.constexpr, DOWN: tl.constexpr, UP_ROWS: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, IN_W: tl.constexpr, UP_W: tl.constexpr, BC: tl.constexpr,
    CLAMP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x [N, H, W, C] -> y [N, OH, OW, C].

    up_matrix [UP_W, IN_W], down_matrix [RANK, TW, UP_W] of the format DOT; up_taps [taps], down_taps [RANK, ROWS, TH]
    float32: the weight of an up-sampled row of the tile in each of the tile's outputs.
    """
    tile = tl.program_id(0)
    oh0, ow0 = (tile // tiles_w) * TH, (tile % tiles_w) * TW
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    sample = tl.program_id(2).to(tl.int64)
    inside_c = channels < C
    total = tl.full((TH, TW, BC), 0.0, tl.float32)
    for jj in range(ROWS):
        z = _upsampled_row(
            x + sample * x_sample, up_matrix, up_taps, oh0 * DOWN + jj, ow0 * DOWN // UP + first_col, channels,
            inside_c, H, W, x_row, x_col, crop_h, UP, UP_ROWS, IN_W, UP_W, BC, DOT, PRECISION,
        )  # fmt: skip
        z = tl.where(z > 0, z, z * slope)
        if CLAMP:
            z = tl.minimum(tl.maximum(z, -clamp), clamp)
        z = z.to(DOT)
        for r in tl.static_range(RANK):
            index = r * TW * UP_W + tl.arange(0, TW)[:, None] * UP_W + tl.arange(0, UP_W)[None, :]
            part = tl.dot(tl.load(down_matrix + index), z, input_precision=PRECISION)  # [TW, BC]
            weights = tl.load(down_taps + (r * ROWS + jj) * TH + tl.arange(0, TH))
            total += weights[:, None, None] * part[None, :, :]
    rows, cols = oh0 + tl.arange(0, TH), ow0 + tl.arange(0, TW)
    inside = (rows < OH)[:, None, None] & (cols < OW)[None, :, None] & inside_c[None, None, :]
    pointers = rows[:, None, None] * y_row + cols[None, :, None] * y_col + channels[None, None, :]
    tl.store(y + sample * y_sample + pointers, total.to(y.dtype.element_ty), inside)


@triton.jit
def backward_kernel(
    x, grad, dx, up_matrix, up_taps, down_matrix, down_taps, up_matrix_t, up_taps_t, H, W, OH, OW, HU, WU, C, tiles_w,
    x_sample, x_row, x_col, grad_sample, grad_row, grad_col, dx_sample, dx_row, dx_col, crop_h, crop_w, first_col,
    first_grad, slope, clamp,
    UP: tl.constexpr, DOWN: tl.constexpr, UP_ROWS: tl.constexpr, DOWN_ROWS: tl.constexpr, ROWS: tl.constexpr,
    RANK: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, IN_W: tl.constexpr, UP_W: tl.constexpr,
    GRAD_W: tl.constexpr, BC: tl.constexpr, CLAMP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient dx [N, H, W, C] at x, from grad [N, OH, OW, C]. Sign and clamp come from x once more.

    up_matrix [UP_W, IN_W], down_matrix [RANK, UP_W, GRAD_W], up_matrix_t [TW, UP_W] of the format DOT; up_taps [taps],
    down_taps [RANK, taps], up_taps_t [ROWS, TH] float32.
    """
    tile = tl.program_id(0)
    h0, w0 = (tile // tiles_w) * TH, (tile % tiles_w) * TW
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    sample = tl.program_id(2).to(tl.int64)
    inside_c = channels < C
    columns = w0 * UP - crop_w + tl.arange(0, UP_W)  # of the up-sampled map
    inside_up = ((columns >= 0) & (columns < WU))[:, None]
    grad_cols = w0 * UP // DOWN + first_grad + tl.arange(0, GRAD_W)
    inside_grad = ((grad_cols >= 0) & (grad_cols < OW))[:, None] & inside_c[None, :]
    grads = grad + sample * grad_sample + grad_cols[:, None] * grad_col + channels[None, :]
    total = tl.full((TH, TW, BC), 0.0, tl.float32)
    for jj in range(ROWS):
        j = h0 * UP - crop_h + jj
        if (j >= 0) & (j < HU):
            z = _upsampled_row(
                x + sample * x_sample, up_matrix, up_taps, j, w0 + first_col, channels, inside_c, H, W, x_row, x_col,
                crop_h, UP, UP_ROWS, IN_W, UP_W, BC, DOT, PRECISION,
            )  # fmt: skip
            g = tl.full((UP_W, BC), 0.0, tl.float32)
            for r in tl.static_range(RANK):
                part = tl.full((GRAD_W, BC), 0.0, tl.float32)
                for q in tl.static_range(DOWN_ROWS):
                    row = j // DOWN - q
                    values = tl.load(grads + row * grad_row, inside_grad & (row >= 0) & (row < OH), 0.0)
                    weight = tl.load(down_taps + r * DOWN_ROWS * DOWN + j % DOWN + q * DOWN)
                    part += weight * values.to(tl.float32)
                index = r * UP_W * GRAD_W + tl.arange(0, UP_W)[:, None] * GRAD_W + tl.arange(0, GRAD_W)[None, :]
                g += tl.dot(tl.load(down_matrix + index), part.to(DOT), input_precision=PRECISION)
            positive = z > 0
            if CLAMP:
                activated = tl.where(positive, z, z * slope)
                g = tl.where((activated < clamp) & (activated > -clamp), g, 0.0)
            g = tl.where(positive, g, g * slope)
            g = tl.where(inside_up, g, 0.0)
            index = tl.arange(0, TW)[:, None] * UP_W + tl.arange(0, UP_W)[None, :]
            part = tl.dot(tl.load(up_matrix_t + index), g.to(DOT), input_precision=PRECISION)  # [TW, BC]
            weights = tl.load(up_taps_t + jj * TH + tl.arange(0, TH))
            total += weights[:, None, None] * part[None, :, :]
    rows, cols = h0 + tl.arange(0, TH), w0 + tl.arange(0, TW)
    inside = (rows < H)[:, None, None] & (cols < W)[None, :, None] & inside_c[None, None, :]
    pointers = rows[:, None, None] * dx_row + cols[None, :, None] * dx_col + channels[None, None, :]
    tl.store(dx + sample * dx_sample + pointers, total.to(dx.dtype.element_ty), inside)
