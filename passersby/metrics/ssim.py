"""Structural similarity of images, batched.

Z. Wang et al., Image quality assessment: from error visibility to structural similarity, 2004, with the
choices of scikit-image's `structural_similarity(a, b, data_range=R, channel_axis=2)`: uniform 7x7
window, sample covariance, mean over the positions where the window fits and over the channels.
"""

import torch
from torch import Tensor

from passersby.errors import InputError

WINDOW = 7
K1, K2 = 0.01, 0.03


def ssim(a: Tensor, b: Tensor, data_range: float) -> Tensor:
    """SSIM of pairs of images, both [N, H, W, C] uint8 (either N may be 1) -> [N] float64, -1..1.

    `data_range` only sets the two constants that keep the quotient from 0 / 0; it may be larger than
    255. SSIM is a mean over channels, so RGB and BGR give the same. Raises InputError when images are
    smaller than the window, differ in size or are not uint8, and when `data_range` is not above 0.

    All sums over a window are integers below 2^31, so variances and covariances are exact. In float32
    their differences would be wrong by 1e-5 at data ranges near 1.
    """
    if a.dtype != torch.uint8 or b.dtype != torch.uint8:
        raise InputError(f"SSIM needs uint8 images, not {a.dtype} and {b.dtype}")
    if a.ndim != 4 or a.shape[1:] != b.shape[1:]:
        raise InputError(f"SSIM needs two images of one size, not {list(a.shape)} and {list(b.shape)}")
    if min(a.shape[1:3]) < WINDOW:
        height, width = a.shape[1:3]
        raise InputError(f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, not {height} x {width}")
    if not data_range > 0:
        raise InputError(f"SSIM needs a data range above 0, not {data_range}")
    a, b = a.int(), b.int()
    count = WINDOW**2
    sum_a, sum_b = window_sums(a), window_sums(b)  # [N, H - 6, W - 6, C] int32
    # A mean is a sum / count, a sample covariance (count * sum of products - product of sums) / (count
    # * (count - 1)).
    variances = (count * window_sums(a * a) - sum_a * sum_a) + (count * window_sums(b * b) - sum_b * sum_b)
    products = sum_a * sum_b
    covariances = count * window_sums(a * b) - products
    c1 = count**2 * (K1 * data_range) ** 2
    c2 = count * (count - 1) * (K2 * data_range) ** 2
    luminance = (2 * products.double() + c1) / ((sum_a * sum_a + sum_b * sum_b).double() + c1)
    structure = (2 * covariances.double() + c2) / (variances.double() + c2)
    return (luminance * structure).mean((1, 2, 3))


def window_sums(x: Tensor) -> Tensor:
    """[N, H, W, C] int32 -> the sum over every 7x7 window that fits, [N, H - 6, W - 6, C] int32."""
    for dim in (1, 2):
        length = x.shape[dim] - WINDOW + 1
        total = x.narrow(dim, 0, length).clone()
        for start in range(1, WINDOW):
            total += x.narrow(dim, start, length)
        x = total
    return x
