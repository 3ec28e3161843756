"""Orthogonal wavelet filters as matrices that act on one axis of an image.

Images are resampled at twice their resolution, between a sym6 low-pass filter and its mirror image: as the filter is
orthogonal, an image that nothing happens to comes out as it was (Karras et al. 2020, ADA, appendix B). Products with
banded matrices are exact, differentiable as often as one likes, and quicker than convolutions at the sizes of
pedestrian images.
"""

import functools

import numpy as np
import torch

# Daubechies' least asymmetric wavelets ("symlets"), low-pass decomposition filters with sum sqrt(2).
_SYM2 = np.array([-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025])
_SYM6 = np.array(
    [
        *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
        *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263748278646252),
        *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
    ]
)
_LOWPASS = _SYM6 / _SYM6.sum()  # [12]
_REACH = 3  # input pixels on either side that a pixel of the doubled image depends on

GEOMETRY_PAD = 3  # input pixels on either side that a pixel of the halved image depends on


def reflected(start: int, stop: int, length: int, device: torch.device) -> torch.Tensor:
    """Positions start..stop-1 of an axis of `length` pixels, reflected once at its ends: [stop - start] int64."""
    position = torch.arange(start, stop, device=device)
    return (length - 1) - ((length - 1) - position.abs()).abs()


def doubling(length: int, before: int, after: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """[2 (before + length + after), length]: reflect at both ends, then double the resolution.

    `before` and `after` are pixels, at most length - 1. Made on the device from these few numbers: nothing is copied.
    """
    source = reflected(-before, length + after, length, device)
    pixels = (source[:, None] == torch.arange(length, device=device)).to(dtype)
    beyond = pixels.new_zeros(_REACH, length)  # beyond the margin is black
    windows = torch.cat([beyond, pixels, beyond]).unfold(0, 2 * _REACH + 1, 1)  # [padded, length, 7]
    phases = windows @ _doubling_taps(device, dtype)  # [padded, length, 2]
    return phases.transpose(1, 2).reshape(-1, length)


def _constant(values: np.ndarray, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):  # kept for later calls, which may need gradients
        return torch.from_numpy(values).to(device, dtype)


@functools.lru_cache(maxsize=16)
def _doubling_taps(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    taps = np.zeros((2 * _REACH + 1, 2))
    taps[:-1, 0], taps[1:, 1] = 2 * _LOWPASS[::-2], 2 * _LOWPASS[-2::-2]
    return _constant(taps, device, dtype)


@functools.lru_cache(maxsize=16)
def halving(length: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """[length, 2 (length + 2 * GEOMETRY_PAD)]: halve the resolution and cut the pads off."""
    matrix = np.zeros((length, 2 * (length + 2 * GEOMETRY_PAD)))
    for row in range(length):
        matrix[row, 2 * row + 1 : 2 * row + 1 + len(_LOWPASS)] = _LOWPASS
    return _constant(matrix, device, dtype)


def filter_bank() -> np.ndarray:
    """[4, 43]: symmetric band-pass filters, one an octave and the lowest band first, that add up to the identity."""
    signs = (-1.0) ** np.arange(len(_SYM2))
    low = np.convolve(_SYM2, _SYM2[::-1]) / 2
    high = np.convolve(_SYM2 * signs, (_SYM2 * signs)[::-1]) / 2
    bank = np.array([[1.0], [0], [0], [0]])
    for band in range(1, 4):
        spread = np.zeros((4, 2 * bank.shape[1] - 1))
        spread[:, ::2] = bank
        bank = np.stack([np.convolve(row, low) for row in spread])
        start = (bank.shape[1] - len(high)) // 2
        bank[band, start : start + len(high)] += high
    return bank


@functools.lru_cache(maxsize=16)
def band_matrices(length: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """[4, length, length]: the filter bank along an axis that is reflected at its ends (as often as it takes)."""
    bank = filter_bank()
    taps = bank.shape[1]
    source = np.pad(np.arange(length), taps // 2, mode="reflect")
    matrices = np.zeros((4, length, length))
    for row in range(length):
        np.add.at(matrices[:, row], (slice(None), source[row : row + taps]), bank)
    return _constant(matrices, device, dtype)
