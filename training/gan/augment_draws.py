"""The random numbers of an augmentation, drawn on the CPU for the whole batch.

The transforms, their order and their distributions are those of StyleGAN2-ADA and StyleGAN3 (Karras et al. 2020,
"Training Generative Adversarial Networks with Limited Data", appendix B). Every transform happens to a sample with
probability p. The random numbers of a transform depend neither on p nor on the set of transforms, so a larger p applies
the same transforms to more samples.
"""

import dataclasses
import functools
import math

import numpy as np
import scipy.special
import torch

from passersby.devices import pinned, send
from passersby.errors import InputError

# ---- Orthogonal wavelet filters as matrices that act on one axis of an image.
#
# Images are resampled at twice their resolution, between a sym6 low-pass filter and its mirror image. The filter is
# orthogonal, so an image without a transform comes out unchanged (Karras et al. 2020, ADA, appendix B). Products with
# banded matrices are exact, differentiable any number of times, and quicker than convolutions at the sizes of
# pedestrian images.

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

    `before` and `after` are pixels, at most length - 1. The matrix is made on the device, without a copy from the host.
    """
    source = reflected(-before, length + after, length, device)
    pixels = (source[:, None] == torch.arange(length, device=device)).to(dtype)
    black = pixels.new_zeros(_REACH, length)  # outside the margin
    windows = torch.cat([black, pixels, black]).unfold(0, 2 * _REACH + 1, 1)  # [padded, length, 7]
    phases = windows @ _doubling_taps(device, dtype)  # [padded, length, 2]
    return phases.transpose(1, 2).reshape(-1, length)


def _constant(values: np.ndarray, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):  # the cache keeps the tensor for later calls, which may need gradients
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
    """[4, 43]: symmetric band-pass filters that add up to the identity, one an octave, the lowest band first."""
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
    """[4, length, length]: the filter bank along an axis that is reflected at its ends, as often as needed."""
    bank = filter_bank()
    taps = bank.shape[1]
    source = np.pad(np.arange(length), taps // 2, mode="reflect")
    matrices = np.zeros((4, length, length))
    for row in range(length):
        np.add.at(matrices[:, row].T, source[row : row + taps], bank.T)
    return _constant(matrices, device, dtype)


_BLIT = ("xflip", "rotate90", "xint")
_GEOM = ("scale", "rotate", "aniso", "xfrac")
_COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")

# Names of the ADA paper, and `upright` for people who stand. `upright` is 'bgc' without transforms that no photograph
# shows and that the generator would learn to imitate: turned people, and unnatural hues and negatives of skin and sky.
AUGMENTATIONS: dict[str, tuple[str, ...]] = {
    "upright": ("xflip", "xint", "scale", "aniso", "xfrac", "brightness", "contrast", "saturation"),
    "blit": _BLIT,
    "geom": _GEOM,
    "color": _COLOR,
    "filter": ("imgfilter",),
    "noise": ("noise",),
    "cutout": ("cutout",),
    "bg": _BLIT + _GEOM,
    "bgc": _BLIT + _GEOM + _COLOR,
    "bgcf": _BLIT + _GEOM + _COLOR + ("imgfilter",),
    "bgcfn": _BLIT + _GEOM + _COLOR + ("imgfilter", "noise"),
    "bgcfnc": _BLIT + _GEOM + _COLOR + ("imgfilter", "noise", "cutout"),
}

_BAND_POWER = np.array([10, 1, 1, 1]) / 13  # of natural images (1 / f), lowest band first


@dataclasses.dataclass(frozen=True)
class Draws:
    """The augmentation of each sample of a batch. None: no sample of the batch has this transform.

    `margins`, `separable` and each None describe the whole batch, also in a share of it: so a sample comes out the same
    in every worker.
    """

    height: int
    width: int
    margins: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, top, right, bottom: pixels of reflection needed
    separable: bool = True  # no sample is turned: rows and columns can be resampled one after the other
    theta: torch.Tensor | None = None  # [N, 2, 3] float32: from the output to the input as `affine_grid` takes it
    colour: torch.Tensor | None = None  # [N, 3, 4] float32: (r, g, b, 1) -> (r, g, b)
    gains: torch.Tensor | None = None  # [N, 4] float32: of the frequency bands, lowest first
    noise: torch.Tensor | None = None  # [N, 3, H, W] float32, to be added
    cut_rows: torch.Tensor | None = None  # [N, H] bool; a pixel is black where its row and its column are both cut
    cut_columns: torch.Tensor | None = None  # [N, W] bool

    def share(self, index: slice, size: int = 1) -> "Draws":
        """The draws of some samples; size: images of a sample, 2 for pairs (`rows_of`)."""
        return self._map(lambda tensor: rows_of(tensor, index, size))

    def alike_in_pairs(self) -> "Draws":
        """The same draws, but the images 2i and 2i + 1 have the colour transform of image 2i."""
        colour = None if self.colour is None else self.colour[::2].repeat_interleave(2, 0)
        return dataclasses.replace(self, colour=colour)

    def to(self, device: torch.device | str) -> "Draws":
        """The same draws on the device. The call does not wait for the device."""
        return self._map(lambda tensor: send(tensor, torch.device(device)))

    def pinned(self) -> "Draws":
        """The same draws in pinned memory, from which a GPU reads without the host's waiting."""
        return self._map(pinned)

    def _map(self, change) -> "Draws":
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Draws(**{name: change(v) if isinstance(v, torch.Tensor) else v for name, v in values.items()})


def rows_of(tensor: torch.Tensor, samples: slice | torch.Tensor, size: int = 1) -> torch.Tensor:
    """The rows of some samples, where each sample is `size` rows one after the other."""
    return tensor[samples] if size == 1 else tensor.unflatten(0, (-1, size))[samples].flatten(0, 1)


class _Dice:
    """Random values [..., N] of a batch, and gates that say which samples use them.

    With a percentile every value is that percentile of its distribution and every gate is open, which is the
    reference's way to compare implementations. The reference's normal percentiles lack a factor of sqrt(2), and so do
    these.
    """

    def __init__(self, names: tuple[str, ...], p: float, count: int, random: np.random.Generator, percentile):
        self.names, self.p, self.count, self.random, self.percentile = names, p, count, random, percentile

    def uniform(self, *shape: int) -> np.ndarray:
        """0..1."""
        values = self.random.random((*shape, self.count))
        return values if self.percentile is None else np.full_like(values, self.percentile)

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal."""
        values = self.random.standard_normal((*shape, self.count))
        return values if self.percentile is None else np.full_like(values, _erfinv(2 * self.percentile - 1))

    def gated(self, name: str, values: np.ndarray, identity: float, p: float | None = None) -> np.ndarray:
        """The value of each sample to which the transform happens, `identity` for all other samples."""
        happens = self.random.random(self.count) < (self.p if p is None else p)
        if name not in self.names:
            happens = np.zeros_like(happens)
        elif self.percentile is not None:
            happens = np.ones_like(happens)
        return np.where(happens, values, identity)


def draw(
    augmentation: str,
    p: float,
    count: int,
    height: int,
    width: int,
    random: np.random.Generator,
    percentile: float | None = None,
) -> Draws:
    """Draw the augmentation of `count` images: one set of AUGMENTATIONS, each of its transforms with probability p.

    `percentile` replaces every draw by that percentile of its distribution, for comparisons. Raises InputError for an
    unknown set and for p outside 0..1.
    """
    if augmentation not in AUGMENTATIONS:
        raise InputError(f"no augmentation {augmentation!r}: choose one of {', '.join(AUGMENTATIONS)}")
    if not 0 <= p <= 1:
        raise InputError(f"augmentation probability {p} is outside 0..1")
    if p == 0 and percentile is None:
        return Draws(height, width)
    names = AUGMENTATIONS[augmentation]
    dice = _Dice(names, p, count, random, percentile)
    # Every set draws all of these numbers. The noise takes long, so it is drawn last and only for sets that have it.
    inverse = _inverse_affine(dice, height, width)
    colour = _colour(dice)
    gains = _band_gains(dice)
    cut_rows, cut_columns = _cutout(dice, height, width)
    draws = Draws(
        height,
        width,
        colour=None if (colour == np.eye(3, 4)).all() else _tensor(colour),
        gains=None if (gains == 1).all() else _tensor(gains),
        noise=_noise(dice, height, width) if "noise" in names else None,
    )
    if cut_rows.any():
        tensors = torch.from_numpy(cut_rows), torch.from_numpy(cut_columns)
        draws = dataclasses.replace(draws, cut_rows=tensors[0], cut_columns=tensors[1])
    if (inverse != np.eye(3)).any():
        margins = _margins(inverse, height, width)
        separable = not (inverse[:, [0, 1], [1, 0]] != 0).any()
        theta = _tensor(_theta(inverse, height, width, margins))
        draws = dataclasses.replace(draws, margins=margins, separable=separable, theta=theta)
    return draws


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _erfinv(value: float) -> float:
    return float(scipy.special.erfinv(value))


def _inverse_affine(dice: _Dice, height: int, width: int) -> np.ndarray:
    """[N, 3, 3]: pixels of the output -> pixels of the input, both counted from the image's centre."""
    flip = dice.gated("xflip", np.floor(dice.uniform() * 2), 0)
    quarter_turns = dice.gated("rotate90", np.floor(dice.uniform() * 4), 0)
    shift = dice.gated("xint", (dice.uniform(2) * 2 - 1) * 0.125, 0)
    scale = dice.gated("scale", np.exp2(dice.normal() * 0.2), 1)
    one_of_two = 1 - math.sqrt(1 - dice.p)  # P(turned before or after the anisotropic scaling) = p
    before = dice.gated("rotate", (dice.uniform() * 2 - 1) * np.pi, 0, one_of_two)
    stretch = dice.gated("aniso", np.exp2(dice.normal() * 0.2), 1)
    after = dice.gated("rotate", (dice.uniform() * 2 - 1) * np.pi, 0, one_of_two)
    if dice.percentile is not None:
        after = np.zeros_like(after)
    slide = dice.gated("xfrac", dice.normal(2) * 0.125, 0)
    inverse = _scaling(1 - 2 * flip, np.ones_like(flip))
    inverse = inverse @ _rotation(np.pi / 2 * quarter_turns)
    inverse = inverse @ _translation(-np.round(shift[0] * width), -np.round(shift[1] * height))
    inverse = inverse @ _scaling(1 / scale, 1 / scale)
    inverse = inverse @ _rotation(before)
    inverse = inverse @ _scaling(1 / stretch, stretch)
    inverse = inverse @ _rotation(after)
    return inverse @ _translation(-slide[0] * width, -slide[1] * height)


def _matrices(count: int, size: int = 3) -> np.ndarray:
    return np.tile(np.eye(size), (count, 1, 1))


def _scaling(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    matrices = _matrices(len(x))
    matrices[:, 0, 0], matrices[:, 1, 1] = x, y
    return matrices


def _translation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    matrices = _matrices(len(x))
    matrices[:, 0, 2], matrices[:, 1, 2] = x, y
    return matrices


def _rotation(angle: np.ndarray) -> np.ndarray:
    matrices = _matrices(len(angle))
    matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(angle)
    matrices[:, 0, 1], matrices[:, 1, 0] = -np.sin(angle), np.sin(angle)
    return matrices


def _margins(inverse: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Pixels of reflection that the whole batch needs on the left, top, right and bottom."""
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    corners = np.array([[-1, 1, 1, -1], [-1, -1, 1, 1]]) * centre[:, None]
    corners = inverse[:, :2, :2] @ corners + inverse[:, :2, 2:]  # [N, xy, corner]
    reach = np.stack([-corners.min(axis=(0, 2)), corners.max(axis=(0, 2))]) + 2 * GEOMETRY_PAD - centre
    # One reflection cannot be wider than the image. The small number keeps rounding from asking for another pixel.
    left, top, right, bottom = (int(side) for side in np.ceil(np.clip(reach, 0, 2 * centre) - 1e-6).ravel())
    return left, top, right, bottom


def _theta(inverse: np.ndarray, height: int, width: int, margins: tuple[int, int, int, int]) -> np.ndarray:
    """[N, 2, 3]: from the doubled output with its pads to the doubled padded image, in units of half their sides."""
    left, top, right, bottom = margins
    matrices = inverse.copy()
    matrices[:, 0, 2] += (left - right) / 2
    matrices[:, 1, 2] += (top - bottom) / 2
    double, half_pixel = np.diag([2.0, 2, 1]), np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    grow = half_pixel @ double
    matrices = grow @ matrices @ np.linalg.inv(grow)
    source = np.array([width + left + right, height + top + bottom, 1.0])
    target = np.array([2 * (width + 2 * GEOMETRY_PAD), 2 * (height + 2 * GEOMETRY_PAD), 2]) / 2
    return (matrices / source[:, None] * target)[:, :2]


def _colour(dice: _Dice) -> np.ndarray:
    """[N, 3, 4]: the colour transforms as one matrix on (r, g, b, 1)."""
    brightness = dice.gated("brightness", dice.normal() * 0.2, 0)
    contrast = dice.gated("contrast", np.exp2(dice.normal() * 0.5), 1)
    luma_flip = dice.gated("lumaflip", np.floor(dice.uniform() * 2), 0)
    hue = dice.gated("hue", (dice.uniform() * 2 - 1) * np.pi, 0)
    saturation = dice.gated("saturation", np.exp2(dice.normal()), 1)
    eye, grey = np.eye(3), np.full((3, 3), 1 / 3)  # `grey` projects onto the luma axis
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # product with the luma axis
    hue, saturation = hue[:, None, None], saturation[:, None, None]
    linear = contrast[:, None, None] * (eye - 2 * grey * luma_flip[:, None, None])
    turn = np.cos(hue) * (eye - grey) + grey + np.sin(hue) * cross
    turn = np.where(hue == 0, eye, turn)  # exactly the identity, so that `draw` can see that nothing happens
    linear = np.where(saturation == 1, eye, grey + (eye - grey) * saturation) @ turn @ linear
    return np.concatenate([linear, linear @ np.tile(brightness[:, None, None], (1, 3, 1))], axis=2)


def _band_gains(dice: _Dice) -> np.ndarray:
    """[N, 4]: amplification of each frequency band; natural images keep their power."""
    gains = np.ones((dice.count, 4))
    for band in range(4):
        amplified = dice.gated("imgfilter", np.exp2(dice.normal()), 1)
        power = 1 + _BAND_POWER[band] * (amplified**2 - 1)
        gains[:, band] *= amplified
        gains /= np.sqrt(power)[:, None]
    return gains


def _cutout(dice: _Dice, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [N, H] and columns [N, W] of a rectangle of half the image's sides, both bool."""
    size = dice.gated("cutout", np.full(dice.count, 0.5), 0)[:, None]
    x, y = dice.uniform(2)[:, :, None]
    columns = np.abs((np.arange(width) + 0.5) / width - x) < size / 2
    rows = np.abs((np.arange(height) + 0.5) / height - y) < size / 2
    return rows, columns


def _noise(dice: _Dice, height: int, width: int) -> torch.Tensor:
    """[N, 3, H, W]: white noise whose strength is half-normal."""
    strength = np.abs(dice.normal()) if dice.percentile is None else np.full(dice.count, _erfinv(dice.percentile))
    strength = _tensor(dice.gated("noise", strength * 0.1, 0))
    values = torch.from_numpy(dice.random.standard_normal((dice.count, 3, height, width), np.float32))
    return values * strength[:, None, None, None]
