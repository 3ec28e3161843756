"""The filtered non-linearity of StyleGAN3: up-sample, leaky ReLU, clamp, down-sample. All other code calls
`filtered_lrelu`, which chooses one of three kernels:

- `plain.py`: depthwise convolutions, the way of a CPU;
- `matmul.py`: products with banded matrices, the way of a GPU;
- `fused.py`: one kernel of Triton, for GPUs on which Triton runs, where it is asked for.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from passersby.errors import InputError
from passersby.stylegan3.ops.filtered_lrelu import fused, matmul, plain
from passersby.stylegan3.ops.filtered_lrelu.activation import FilterPlan, leaky_clamp_

__all__ = ["KERNELS", "FilterPlan", "Kernel", "filtered_lrelu", "kernel_on", "leaky_clamp_"]

Kernel = Literal["auto", "plain", "matmul", "triton"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


def filtered_lrelu(
    x: torch.Tensor,
    up_filter: torch.Tensor | None,
    down_filter: torch.Tensor | None,
    plan: FilterPlan,
    kernel: Kernel = "auto",
) -> torch.Tensor:
    """Up-sample `x` by `plan.up`, apply leaky ReLU with gain, clamp, down-sample by `plan.down`.

    x: [N, C, H, W] float32, float16 or bfloat16, with the bias already added. `up_filter`: [taps]; `down_filter`:
    [taps], or [taps, taps] if radial. Filters are float32, symmetric, and constants without gradient. Returns
    [N, C, H', W'] in x's dtype, channels last. Differentiable once (StyleGAN3 trains its generator without path-length
    regularisation). `kernel`: see `kernel_on`; kernels differ by rounding alone.
    """
    if up_filter is None or down_filter is None:
        y = x if plan.slope == 1 else F.leaky_relu(x, plan.slope) * plan.gain
        return y if plan.clamp is None else y.clamp(-plan.clamp, plan.clamp)
    ways = {
        "plain": plain.FilteredLeakyReLU,
        "matmul": matmul.FilteredLeakyReLU,
        "triton": fused.FilteredLeakyReLU,
    }
    return ways[kernel_on(x.device, kernel)].apply(x, up_filter, down_filter, plan)


def kernel_on(device: torch.device, kernel: Kernel = "auto") -> Kernel:
    """The kernel that computes on this device.

    auto: `plain` on a CPU, `matmul` on a GPU: equal bytes on like GPUs, whether Triton is there or not.
    Raises InputError for an unknown kernel, and for `triton` where it cannot run.
    """
    if kernel not in KERNELS:
        raise InputError(f"kernel {kernel} is not known: give one of {', '.join(KERNELS)}")
    if kernel == "triton" and (reason := fused.reason_against(device)):
        raise InputError(f"kernel triton cannot run on {device}: {reason}; give auto, plain or matmul")
    if kernel != "auto":
        return kernel
    return "matmul" if device.type == "cuda" else "plain"
