"""Augmentation of what a GAN's discriminator sees, differentiable twice (adaptive discriminator augmentation).

    draws = draw("upright", p, batch, height, width, np.random.default_rng([seed, stream, images_seen]))
    logits = discriminator(apply(images, draws.share(slice(rank, None, workers)).to(device)))

Follows Karras et al. 2020 ("Training Generative Adversarial Networks with Limited Data"): geometry, colour, frequency
bands, noise, cutout. Everything is linear in the image, so R1 goes through it. After the first batch of a
size no call waits for the device.
"""

import torch
import torch.nn.functional as F

from passersby.errors import InputError
from training.gan.augment_draws import AUGMENTATIONS, Draws, draw
from training.gan.augment_wavelets import GEOMETRY_PAD, band_matrices, doubling, halving

__all__ = ["AUGMENTATIONS", "Draws", "apply", "draw"]


def apply(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Augment images [N, 3, H, W], -1..1 (colours may leave that range). The result has the same shape and dtype.

    Worked out in float32, float16 and bfloat16 images too; in float64 for float64. Images that nothing happens to are
    returned as they are; beside ones that something happens to they differ by rounding. Raises InputError for draws
    of another size or number.
    """
    parts = [part for part in vars(draws).values() if isinstance(part, torch.Tensor)]
    if not parts:
        return images
    if images.shape != (len(parts[0]), 3, draws.height, draws.width):
        wanted = [len(parts[0]), 3, draws.height, draws.width]
        raise InputError(
            f"images of shape {list(images.shape)} cannot be augmented with draws for {wanted}: draw again"
        )
    dtype = images.dtype
    images = images.to(torch.promote_types(dtype, torch.float32))
    if draws.theta is not None:
        images = _resample(images, draws)
    if draws.colour is not None:
        colour = draws.colour.to(images.dtype)
        pixels = torch.baddbmm(colour[:, :, 3:], colour[:, :, :3], images.flatten(2))
        images = pixels.unflatten(2, images.shape[2:])
    if draws.gains is not None:
        images = _amplify_bands(images, draws.gains)
    if draws.noise is not None:
        images = images + draws.noise
    if draws.cut_rows is not None:
        images = images.masked_fill((draws.cut_rows[:, :, None] & draws.cut_columns[:, None, :])[:, None], 0)
    return images.to(dtype)


def _resample(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """The inverse affine transforms: reflect, double, sample bilinearly, halve; [N, 3, H, W] -> [N, 3, H, W]."""
    height, width = images.shape[2:]
    left, top, right, bottom = draws.margins
    kind = images.device, images.dtype
    double_x, double_y = doubling(width, left, right, *kind), doubling(height, top, bottom, *kind)
    halve_x, halve_y = halving(width, *kind), halving(height, *kind)
    theta = draws.theta.to(images.dtype)
    if draws.separable:
        # All of it is then one matrix for the rows and one for the columns of each sample: far less work than the
        # padded image in double resolution, up to 36 times the image's pixels.
        across = halve_x @ _sampled(double_x, theta[:, 0, 0], theta[:, 0, 2], halve_x.shape[1])  # [N, W, W]
        down = halve_y @ _sampled(double_y, theta[:, 1, 1], theta[:, 1, 2], halve_y.shape[1])  # [N, H, H]
        return _both_axes(down, images, across)
    padded = double_y @ (images @ double_x.T)
    size = [len(images), 3, 2 * (height + 2 * GEOMETRY_PAD), 2 * (width + 2 * GEOMETRY_PAD)]
    grid = F.affine_grid(theta, size, align_corners=False)
    sampled = F.grid_sample(padded, grid, align_corners=False)  # twice differentiable since PyTorch 2.14
    return halve_y @ (sampled @ halve_x.T)


def _sampled(doubled: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, count: int) -> torch.Tensor:
    """`grid_sample` along one axis: [N, count, L] between the rows of [2P, L], black outside. `scale`, `shift`: [N]."""
    length = len(doubled)
    target = (2 * torch.arange(count, device=doubled.device, dtype=doubled.dtype) + 1) / count - 1
    position = ((scale[:, None] * target + shift[:, None] + 1) * length - 1) / 2  # [N, count], pixels
    position = position.clamp(-1, length)  # where it is black already
    first = position.floor()
    weight = (position - first)[:, :, None]
    black = doubled.new_zeros(1, doubled.shape[1])
    rows = torch.cat([black, doubled, black, black])
    first = first.to(torch.int64) + 1
    return torch.lerp(rows[first], rows[first + 1], weight)


def _amplify_bands(images: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """Amplify the frequency bands of [N, 3, H, W] by [N, 4], along both axes."""
    height, width = images.shape[2:]
    gains = gains.to(images.dtype)
    down = torch.einsum("nb,bij->nij", gains, band_matrices(height, images.device, images.dtype))
    across = torch.einsum("nb,bij->nij", gains, band_matrices(width, images.device, images.dtype))
    return _both_axes(down, images, across)


def _both_axes(down: torch.Tensor, images: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """down [N, H, H] @ images [N, 3, H, W] @ across [N, W, W] transposed."""
    return down[:, None] @ images @ across[:, None].mT
