"""What the layers of a discriminator make of colours: how a new first layer is fitted to the ones it stands for."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from passersby.stylegan3.discriminator import Discriminator

IMAGES = 64
RECTANGLES = 60
GREY = 0.7  # how near to grey the colours of rectangles are
NEWTON_STEPS = 10


def dead_leaves(height: int, width: int, count: int) -> torch.Tensor:
    """[count, 3, height, width] float32, -1..1: rectangles of all sizes and colours over each other, always the same.

    Such "dead leaves" have the edges, flat parts and spectrum of pictures. A network file holds no pictures.
    """
    random = np.random.default_rng(0)
    images = np.empty((count, height, width, 3), np.float32)
    for image in images:
        image[:] = _colour(random)
        for _ in range(RECTANGLES):
            side = height * random.uniform(0.03, 0.5)
            top, left = random.uniform(-0.2, 1, 2) * (height, width)
            bottom, right = top + side * random.uniform(0.4, 2.5), left + side
            area = (slice(max(int(top), 0), max(int(bottom), 0)), slice(max(int(left), 0), max(int(right), 0)))
            image[area] = _colour(random)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _colour(random: np.random.Generator) -> np.ndarray:
    colour = random.uniform(-1, 1, 3)
    return (GREY * math.sqrt(3) * colour.mean() + (1 - GREY) * colour) * random.uniform(0.2, 1)


def fit_fromrgb(source: Discriminator, height: int, images: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Stored weight [C, 3, 1, 1] and bias [C] of a fromrgb that stands for all that `source` has above its block of
    `height`: leaky ReLU of a linear function of the colour, fitted to that block's input by least squares.

    On people (64 x 32 -> 32 x 16) the scores then follow the source's by 0.63 when fitted on pictures of people
    (`images` [N, 3, h, w], -1..1), by 0.33 on dead leaves; by 0.18 with a new fromrgb, by -0.20 with the source's own.
    """
    config = source.config
    factor = config.height // height
    device = next(source.parameters()).device
    if images is None:
        # Blocks above know no size: a part of an image is enough.
        images = dead_leaves(*(min(side, 16 * factor) for side in (config.height, config.width)), IMAGES)
    else:
        size = (config.height, max(config.height * images.shape[3] // images.shape[2], factor))
        images = resized(images, (size[0], size[1] // factor * factor))
    images = images.to(device)
    with torch.no_grad():
        maps = [_above(source, height, part) for part in images.split(4)]
    want = torch.cat(maps).float().permute(0, 2, 3, 1).flatten(0, 2)  # [pixels, C]
    pixels = F.avg_pool2d(images, factor).permute(0, 2, 3, 1).flatten(0, 2)
    pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)  # [pixels, 4]: colour and 1
    solution = _fit_leaky(pixels, want)  # [4, C]
    gain = 1 / math.sqrt(config.img_channels)
    return (solution[:-1].t() / gain)[:, :, None, None], solution[-1]


def resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images [N, 3, h, w] at another size, without aliasing."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True)


def _above(source: Discriminator, height: int, x: torch.Tensor) -> torch.Tensor:
    for above in source.heights[: source.heights.index(height)]:
        x = getattr(source, f"b{above}")(x)
    return x


def _fit_leaky(inputs: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    # Coefficients [4, C] of want [n, C] ~ sqrt(2) * leaky ReLU(inputs [n, 4] @ coefficients): a linear fit of the
    # activation's inverse, then Gauss-Newton steps, which judge by the output instead.
    inverse = want / math.sqrt(2)
    fit = torch.linalg.lstsq(inputs, torch.where(inverse < 0, inverse / 0.2, inverse)).solution
    ridge = 1e-3 * len(inputs) * torch.eye(inputs.shape[1], device=inputs.device)
    for _ in range(NEWTON_STEPS):
        before = inputs @ fit
        slope = torch.where(before < 0, 0.2, 1.0) * math.sqrt(2)
        gram = torch.einsum("ni,nc,nj->cij", inputs, slope.square(), inputs) + ridge
        gradient = torch.einsum("ni,nc->ci", inputs, slope * (want - before * slope))
        fit = fit + torch.linalg.solve(gram, gradient[..., None])[..., 0].t()
    return fit


def colour_grid(device: torch.device) -> torch.Tensor:
    """[125, 3] float32: all colours with each value among -1, -0.5, .. 1."""
    levels = torch.linspace(-1, 1, 5, device=device)
    return torch.cartesian_prod(levels, levels, levels)


def features_of_colours(network: Discriminator, height: int) -> torch.Tensor:
    """[125, C]: what the block of `height` reads where the image is flat, for every colour of the grid.

    The blocks above it must have silent main branches; of the source's first block there are none.
    """
    with torch.no_grad():
        top = getattr(network, f"b{network.heights[0]}")
        x = top.fromrgb(colour_grid(top.fromrgb.weight.device)[:, :, None, None])[:, :, 0, 0]
        for above in network.heights[: network.heights.index(height)]:
            skip = getattr(network, f"b{above}").skip
            x = x @ skip.weight[:, :, 0, 0].t() * (skip.weight_gain * math.sqrt(0.5))
    return x
