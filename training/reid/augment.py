"""Augmentation for re-ID: shift, mirror, erase. The host draws it, the device applies it to a whole batch at once.

The order is the study's (layumi's baseline): pad with black, crop, mirror; random erasing comes last.
"""

import dataclasses
import functools

import numpy as np
import torch

from passersby.devices import send
from passersby.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of R, G, B, 0..1: erased pixels become 0 after normalisation
_ATTEMPTS = 100  # rectangles tried for one image before it stays whole, as in Zhong et al.'s code


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How images are changed. The defaults are the study's at 256x128: no erasing.

    flip: probability that an image is mirrored. pad: pixels of black around the image before the crop.
    erase: probability of random erasing (Zhong et al. 2020; bag of tricks: 0.5). The erased rectangle has a share
    `erase_area` of the image and a height / width in `erase_aspect`, both drawn evenly.
    """

    flip: float = 0.5
    pad: int = 10
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.4)
    erase_aspect: tuple[float, float] = (0.3, 3.3)

    def __post_init__(self):
        for name in ("flip", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)}: give a probability, 0 to 1")
        if self.pad < 0:
            raise InputError(f"pad {self.pad}: give a number of pixels, 0 for no shift")
        for name, most in (("erase_area", 1.0), ("erase_aspect", float("inf"))):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise InputError(f"{name} {low}, {high}: give the smallest and the largest, above 0 and in this order")


@dataclasses.dataclass(frozen=True)
class Draws:
    """The augmentation of each of n images.

    flips: [n] bool. offsets: [n, 2] int64, top and left of the crop in the padded image, 0..2 * pad.
    erase: [n, 4] int64, top, left, height, width in the output image; height 0: nothing is erased.
    """

    flips: np.ndarray
    offsets: np.ndarray
    erase: np.ndarray
    pad: int

    def share(self, part: slice) -> "Draws":
        """The draws of some of the images."""
        return Draws(self.flips[part], self.offsets[part], self.erase[part], self.pad)


def draw(config: AugmentConfig, batch_size: int, height: int, width: int, rng: np.random.Generator) -> Draws:
    """Draw for a whole batch. Each part draws equally many numbers for all settings, so no part shifts another."""
    flips = rng.random(batch_size) < config.flip
    offsets = np.floor(rng.random((batch_size, 2)) * (2 * config.pad + 1)).astype(np.int64)
    erased = rng.random(batch_size) < config.erase
    area = rng.uniform(*config.erase_area, (batch_size, _ATTEMPTS)) * (height * width)
    aspect = rng.uniform(*config.erase_aspect, (batch_size, _ATTEMPTS))
    sizes = np.stack([np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))], 2).astype(np.int64)
    fits = np.all((sizes >= 1) & (sizes < (height, width)), axis=2)
    chosen = sizes[np.arange(batch_size), fits.argmax(1)]  # the first rectangle that fits
    corners = np.floor(rng.random((batch_size, 2)) * ((height, width) - chosen + 1)).astype(np.int64)
    erased &= fits.any(1)
    return Draws(flips, offsets, np.where(erased[:, None], np.concatenate([corners, chosen], 1), 0), config.pad)


def augment(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Images uint8 [n, H, W, 3] or [n, 3, H, W] -> float32 [n, 3, H, W], 0..1, channels last, on their device."""
    images = _colours_last(images)
    n, height, width, _ = images.shape
    flat = np.concatenate([draws.flips[:, None], draws.offsets - draws.pad, draws.erase], 1).astype(np.int64)
    flips, shift_down, shift_right, top, left, tall, wide = (  # one transfer; each [n, 1]
        send(torch.from_numpy(flat), images.device)[:, :, None].unbind(1)
    )
    rows, columns = (torch.arange(size, device=images.device)[None] for size in (height, width))
    from_rows = rows + shift_down  # [n, H]
    from_columns = torch.where(flips > 0, width - 1 - columns, columns) + shift_right  # [n, W]
    inside = _between(from_rows, 0, height)[:, :, None] & _between(from_columns, 0, width)[:, None, :]  # [n, H, W]
    first = torch.arange(n, device=images.device)[:, None] * height + from_rows.clamp(0, height - 1)
    pixel_indices = first[:, :, None] * width + from_columns.clamp(0, width - 1)[:, None, :]
    pixels = images.reshape(-1, 3).index_select(0, pixel_indices.flatten()).view(n, height, width, 3)
    changed = pixels.to(torch.float32).div_(255).mul_(inside[..., None])
    if draws.erase[:, 2].any():
        erased = _between(rows, top, top + tall)[:, :, None] & _between(columns, left, left + wide)[:, None, :]
        changed = torch.where(erased[..., None], _mean_on(images.device), changed)
    return changed.permute(0, 3, 1, 2)


@functools.cache
def _mean_on(device: torch.device) -> torch.Tensor:
    return torch.tensor(IMAGENET_MEAN, device=device)


def _colours_last(images: torch.Tensor) -> torch.Tensor:
    if images.shape[-1] == 3:
        return images
    if images.shape[1] != 3:
        raise ValueError(f"images of shape {tuple(images.shape)}: neither [n, H, W, 3] nor [n, 3, H, W]")
    return images.permute(0, 2, 3, 1)


def _between(values: torch.Tensor, low: torch.Tensor | int, high: torch.Tensor | int) -> torch.Tensor:
    return (values >= low) & (values < high)
