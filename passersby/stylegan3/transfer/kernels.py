"""Convolution kernels of the synthesis layers for another kernel size or sampling rate."""

import numpy as np
import torch
import torch.nn.functional as F

from passersby.stylegan3.schedule import LayerSpec


def fit_kernel(weight: torch.Tensor, old: LayerSpec, new: LayerSpec) -> tuple[torch.Tensor, str]:
    """`weight` [O, I, k, k] of layer `old` as a kernel of layer `new`, and the change in words.

    Unchanged where kernel sizes and, for 3 x 3, sampling rates are the same.
    """
    if old.kernel == 3 and new.kernel == 1:
        # Right for constant maps. Optimal in the mean square for 1/f^2 spectra was no better (measured).
        return weight.sum((2, 3), keepdim=True), "3x3 -> 1x1 by sum"
    if old.kernel == 1 and new.kernel == 3:
        return F.pad(weight, [1, 1, 1, 1]), "1x1 -> centre of 3x3"
    if old.kernel == 1 or old.in_rate == new.in_rate:
        return weight, ""
    matrix = torch.from_numpy(_resampling(old, new)).to(weight)
    text = f"3x3 for {new.in_rate} instead of {old.in_rate} samples"
    return torch.einsum("yi,xj,ocij->ocyx", matrix, matrix, weight), text


def _resampling(old: LayerSpec, new: LayerSpec) -> np.ndarray:
    """[3 new taps, 3 old taps] for each axis: the kernel whose response is nearest to the old one's.

    Nearest in the mean square over signals with the spectrum of images, 1 / (1 + (f / 2)^2) up to the lower of
    the two cutoffs (f in cycles per height). The normal equations need the autocorrelation only; the small
    diagonal term keeps taps moderate where they lie closer together than the band can tell apart.
    """
    frequency = np.linspace(0, min(old.in_cutoff, new.in_cutoff), 400)
    spectrum = 1 / (1 + (frequency / 2) ** 2)

    def correlation(distance):
        return (spectrum * np.cos(2 * np.pi * frequency * distance[..., None])).sum(-1) / spectrum.sum()

    taps = np.arange(-1, 2)
    have, want = taps / old.in_rate, taps / new.in_rate
    gram = correlation(want[:, None] - want[None]) + 1e-3 * np.eye(3)
    return np.linalg.solve(gram, correlation(want[:, None] - have[None]))
