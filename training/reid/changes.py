"""Changes of pictures beyond shift, mirror and erasing: other surroundings, other colours, jitter.

A network that is trained on few people learns their backgrounds and the light of their cameras. Each picture can take
the surroundings and the light of another one, the donor, which needs no label. The host draws all random numbers
(`draw_changes`), so that pictures depend on the seed and the step alone; the device applies them to a whole batch.
"""

import dataclasses
import functools
import math

import numpy as np
import torch
from torch.nn import functional

from passersby.devices import send
from passersby.errors import InputError

# ---- The settings of a source of pictures.


@dataclasses.dataclass(frozen=True)
class Changes:
    """How pictures are changed. The defaults change nothing.

    surroundings: probability that a donor's surroundings replace a picture's. colours: how far its colours move towards
    the donor's, 0 to 1. jitter: strength of the jitter, a factor of the amplitudes in `Amplitudes`.
    """

    surroundings: float = 0.0
    colours: float = 0.0
    jitter: float = 0.0

    def __post_init__(self):
        for name in ("surroundings", "colours"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)}: give 0 to 1")
        if not 0 <= self.jitter < math.inf:
            raise InputError(f"jitter {self.jitter}: give a number of at least 0")

    @property
    def needs_donors(self) -> bool:
        """Whether pictures take anything from donors."""
        return self.surroundings > 0 or self.colours > 0


@dataclasses.dataclass(frozen=True)
class Amplitudes:
    """The largest jitter at strength 1. Doublings (-x to x): gamma, gain, cast of each channel, contrast, saturation.

    blur: standard deviation as a share of the picture's width; noise: standard deviation, of values 0..1. Half of the
    pictures are blurred, and half get noise; both are drawn evenly from 0 up.
    """

    gamma: float = 0.6
    gain: float = 0.4
    cast: float = 0.2
    contrast: float = 0.4
    saturation: float = 0.6
    blur: float = 0.03
    noise: float = 0.06


AMPLITUDES = Amplitudes()
_GAMMA, _GAIN, _RED, _GREEN, _BLUE, _CONTRAST, _SATURATION, _BLUR, _NOISE = range(9)  # columns of `ChangeDraws.jitter`
_DOUBLINGS = slice(_GAMMA, _BLUR)
_SHIFT, _WIDTH = 0.06, 0.2  # the mask's largest shift, a share of the width, and the largest change of its width
_NOISE_VALUES = 1 << 20


@dataclasses.dataclass(frozen=True)
class ChangeDraws:
    """The changes of each of n pictures.

    donors: [n] int64, rows of the donors. surround: [n] bool. colours: [n] float32, 0..1. masks: [n, 2] float32: shift
    of the person's mask, a share of the width, and factor of its width. jitter: [n, 9] float32: factors of gamma, gain,
    red, green, blue, contrast and saturation (1: no change), then the standard deviations of blur and noise.
    noise_starts: [n] int64, where in `noise_values` the noise of a picture starts.
    """

    donors: np.ndarray
    surround: np.ndarray
    colours: np.ndarray
    masks: np.ndarray
    jitter: np.ndarray
    noise_starts: np.ndarray

    def share(self, part: slice) -> "ChangeDraws":
        """The draws of some of the pictures."""
        return ChangeDraws(*(getattr(self, field.name)[part] for field in dataclasses.fields(self)))

    @property
    def takes(self) -> np.ndarray:
        """Whether each picture takes anything from its donor, [n] bool."""
        return self.surround | (self.colours > 0)


def draw_changes(
    settings: tuple[Changes, ...], kinds: np.ndarray, donors: int, rng: np.random.Generator
) -> ChangeDraws:
    """Draw for a whole batch. kinds: [n] int64, the index in `settings` of each picture; donors: number of donors.

    Equally many numbers are drawn for all settings, so that no setting shifts another.
    """
    n = len(kinds)
    values = np.array([[each.surroundings, each.colours, each.jitter] for each in settings])[kinds]  # [n, 3]
    surround = rng.random(n) < values[:, 0]
    donor_rows = np.floor(rng.random(n) * max(donors, 1)).astype(np.int64)
    masks = np.stack([rng.uniform(-_SHIFT, _SHIFT, n), rng.uniform(1 - _WIDTH, 1 + _WIDTH, n)], 1)
    even, strength = rng.uniform(-1, 1, (n, 9)), values[:, 2:]
    largest = AMPLITUDES
    doublings = [largest.gamma, largest.gain] + [largest.cast] * 3 + [largest.contrast, largest.saturation]
    jitter = np.empty((n, 9))
    jitter[:, _DOUBLINGS] = 2 ** (even[:, _DOUBLINGS] * strength * doublings)
    jitter[:, _BLUR:] = even[:, _BLUR:].clip(min=0) * strength * (largest.blur, largest.noise)
    starts = np.floor(rng.random(n) * _NOISE_VALUES).astype(np.int64)
    return ChangeDraws(
        donor_rows,
        surround,
        values[:, 1].astype(np.float32),
        masks.astype(np.float32),
        jitter.astype(np.float32),
        starts,
    )


def change(images: torch.Tensor, donors: torch.Tensor | None, draws: ChangeDraws) -> torch.Tensor:
    """Apply the draws: uint8 [n, H, W, 3] RGB -> uint8 of the same shape, on their device.

    donors: uint8 [n, H, W, 3], the donor of each picture; None where no picture takes anything. The colours move first,
    then the surroundings change, so that a donor's surroundings keep their own colours; jitter comes last and changes
    the whole picture, as a camera would.
    """
    values = images.to(torch.float32) / 255  # [n, H, W, 3] float32, 0..1
    moved = np.flatnonzero(draws.colours > 0)
    if donors is not None and len(moved):
        rows = send(torch.from_numpy(moved), images.device)
        amounts = send(torch.from_numpy(draws.colours[moved]), images.device)
        values[rows] = move_colours(images[rows], donors[rows], amounts)
    surrounded = np.flatnonzero(draws.surround)
    if donors is not None and len(surrounded):
        rows = send(torch.from_numpy(surrounded), images.device)
        masks = send(person_masks(torch.from_numpy(draws.masks[surrounded]), *images.shape[1:3]), images.device)
        values[rows] = surround(values[rows], donors[rows].to(torch.float32) / 255, masks)
    if (draws.jitter != (1, 1, 1, 1, 1, 1, 1, 0, 0)).any():
        numbers = send(torch.from_numpy(draws.jitter), images.device)
        values = jitter_colours(values, numbers[:, :_BLUR])
        values = blur(values, draws.jitter[:, _BLUR] * images.shape[2])
        values = values + numbers[:, _NOISE, None, None, None] * _noise(values.shape, draws.noise_starts, images.device)
    return (values * 255).round_().clamp_(0, 255).to(torch.uint8)


# ---- Surroundings behind a soft mask in the shape of a person.

# Half of a person's width, as a share of the picture's, at heights as shares of the picture's. A crop of a detector
# shows a person from top to bottom in the middle: head, shoulders with arms, hips, legs that may be in stride. Below 0
# nothing of the row is the person.
_PROFILE = (
    (0.0, 0.02, 0.06, 0.14, 0.18, 0.22, 0.30, 0.45, 0.55, 0.75, 0.92, 0.97, 1.0),
    (-0.05, 0.04, 0.12, 0.13, 0.15, 0.24, 0.28, 0.28, 0.26, 0.24, 0.27, 0.27, 0.18),
)
_EDGE = 0.05  # the mask falls from 0.88 to 0.12 within this share of the width


def person_masks(masks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Soft masks of persons, [n, H, W] float32: near 1 on the person, near 0 on the surroundings.

    masks: [n, 2], the shift to the right as a share of the width, and the factor of the person's width.
    """
    rows, columns = (np.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    half = torch.from_numpy(np.interp(rows, *_PROFILE)).to(torch.float32)  # [H]
    distance = (columns[None] - 0.5 - masks[:, :1]).abs()  # [n, W], from the person's middle
    inside = half[None] * masks[:, 1:]  # [n, H]
    return torch.sigmoid((inside[:, :, None] - distance[:, None, :]) * (4 / _EDGE))


def surround(images: torch.Tensor, donors: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The images inside the masks, the donors outside: float [n, H, W, 3], masks [n, H, W]."""
    return donors + masks[..., None] * (images - donors)


# ---- Colours.

_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))  # of D65
_WHITE = (0.950456, 1.0, 1.088754)
_SMALL_DEVIATION = 1.0  # of Lab; a picture of one colour is not stretched
_MOST_STRETCH = 3.0


def move_colours(images: torch.Tensor, donors: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    """Move colours towards the donors': sRGB [n, H, W, 3] of both, as `rgb_to_lab` takes it, to float 0..1.

    amounts: [n], 0 (stay) to 1.

    At 1 every channel of CIE Lab gets the donor's mean and standard deviation over the whole picture (Reinhard et al.,
    "Color transfer between images", 2001, with Lab in place of their l-alpha-beta). No deviation changes more than
    threefold.
    """
    lab = rgb_to_lab(images)
    mean, deviation = _statistics(lab)
    donor_mean, donor_deviation = _statistics(rgb_to_lab(donors))
    stretch = donor_deviation.clamp(min=_SMALL_DEVIATION) / deviation.clamp(min=_SMALL_DEVIATION)
    stretch = stretch.clamp(1 / _MOST_STRETCH, _MOST_STRETCH)
    amounts = amounts[:, None, None, None]
    return lab_to_rgb(lab + amounts * ((lab - mean) * stretch + donor_mean - lab)).clamp(0, 1)


def rgb_to_lab(images: torch.Tensor) -> torch.Tensor:
    """sRGB, uint8 or float 0..1, [..., 3] -> CIE Lab of white D65, float: L 0..100, a and b about -128..127."""
    if images.dtype == torch.uint8:  # 256 powers instead of one for each value: four times as fast on a CPU
        steps = torch.arange(256, device=images.device, dtype=torch.float32) / 255
        linear = torch.take(_linear(steps), images.long())
    else:
        linear = _linear(images)
    xyz = linear @ _matrices(linear.device, linear.dtype)[0]
    root = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """The inverse of `rgb_to_lab`; values may be outside of 0..1."""
    lightness, a, b = lab.unbind(-1)
    y = (lightness + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], -1)
    xyz = torch.where(root > 0.206893, root**3, (root - 16 / 116) / 7.787)
    linear = xyz @ _matrices(lab.device, lab.dtype)[1]
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055, linear * 12.92)


@functools.cache
def _matrices(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear RGB -> XYZ over white, and back, each for the product from the right; sent to a device once."""
    xyz, white = torch.tensor(_XYZ, dtype=dtype), torch.tensor(_WHITE, dtype=dtype)
    double = torch.tensor(_XYZ, dtype=torch.float64), torch.tensor(_WHITE, dtype=torch.float64)
    to_rgb = torch.linalg.inv(double[0]) * double[1]
    return (xyz / white[:, None]).T.to(device), to_rgb.T.to(device, dtype)


def _linear(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values > 0.04045, ((values + 0.055) / 1.055).clamp(min=0) ** 2.4, values / 12.92)


def _statistics(lab: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return lab.mean((1, 2), keepdim=True), lab.std((1, 2), keepdim=True, correction=0)


def jitter_colours(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Change light and camera: float [n, H, W, 3], 0..1 before and after.

    factors: [n, 7]: exponent (gamma), gain, factors of red, green and blue, contrast about the picture's mean grey,
    saturation about each pixel's grey (ITU-R BT.601). 1 changes nothing.
    """
    factors = factors[:, None, None, :]
    values = images.clamp(min=1e-6) ** factors[..., _GAMMA, None]
    values = values * (factors[..., _GAIN, None] * factors[..., _RED : _BLUE + 1])
    grey = values @ _grey_on(values.device, values.dtype)  # [n, H, W, 1]
    values = grey + factors[..., _SATURATION, None] * (values - grey)
    mean = grey.mean((1, 2), keepdim=True)
    return (mean + factors[..., _CONTRAST, None] * (values - mean)).clamp(0, 1)


@functools.cache
def _grey_on(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor((0.299, 0.587, 0.114), dtype=dtype, device=device)[:, None]


def blur(images: torch.Tensor, deviations: np.ndarray) -> torch.Tensor:
    """Gaussian blur with edges repeated: float [n, H, W, 3]; deviations [n] in pixels, 0 for none."""
    n, height, width, _ = images.shape
    radius = math.ceil(3 * float(deviations.max()))
    if radius == 0:
        return images
    offsets = np.arange(-radius, radius + 1)
    kernels = np.exp(-0.5 * (offsets / deviations.clip(min=1e-3)[:, None]) ** 2)
    kernels /= kernels.sum(1, keepdims=True)
    weights = send(torch.from_numpy(kernels.repeat(3, 0)).to(images.dtype), images.device)  # [3n, 2 * radius + 1]
    planes = images.permute(0, 3, 1, 2).reshape(1, 3 * n, height, width)
    planes = functional.pad(planes, [radius] * 4, mode="replicate")
    planes = functional.conv2d(planes, weights[:, None, :, None], groups=3 * n)
    planes = functional.conv2d(planes, weights[:, None, None, :], groups=3 * n)
    return planes.view(n, 3, height, width).permute(0, 2, 3, 1)


@functools.cache
def noise_values() -> np.ndarray:
    """Standard normal values, [2**20] float32, the same on every machine: a picture's noise is a stretch of them.

    Drawing them anew for each step would take the host longer than a GPU's step takes.
    """
    return np.random.default_rng(0).standard_normal(_NOISE_VALUES, np.float32)


@functools.cache
def _noise_on(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(noise_values()).to(device)


def _noise(shape: torch.Size, starts: np.ndarray, device: torch.device) -> torch.Tensor:
    offsets = torch.arange(shape[1:].numel(), device=device)
    rows = (send(torch.from_numpy(starts), device)[:, None] + offsets) % _NOISE_VALUES
    return _noise_on(device)[rows].view(shape)
