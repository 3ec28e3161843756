"""Augmentation of the images before a GAN's discriminator (adaptive discriminator augmentation), twice differentiable.

    draws = draw("upright", p, batch, height, width, np.random.default_rng([seed, stream, images_seen]))
    logits = discriminator(apply(images, draws.share(slice(rank, None, workers)).to(device)))

Follows Karras et al. 2020 ("Training Generative Adversarial Networks with Limited Data"): geometry, colour, frequency
bands, noise, cutout. Every transform is linear in the image, so the gradients of R1 pass through the augmentation.
After the first batch of a size no call waits for the device.
"""

from typing import Literal

import torch
import torch.nn.functional as F

from passersby.errors import InputError
from training.gan.augment_draws import (
    AUGMENTATIONS,
    GEOMETRY_PAD,
    Draws,
    band_matrices,
    doubling,
    draw,
    halving,
    rows_of,
)

# ---- The probability of augmentation: fixed, or adapted to how far the discriminator overfits (Karras et al. 2020,
# ADA).
#
# The measure of overfitting is r = E[sign(D(real))]. r is 0 while the discriminator cannot tell real from generated
# images, and goes towards 1 as it memorises its training images. p grows while r is above its target and shrinks while
# r is below.

Mode = Literal["none", "fixed", "ada"]


class AdaController:
    """Holds p and moves it every `interval` iterations. It holds plain numbers: no tensors, no device, no workers.

    The caller waits for the device only in an iteration in which p may move. It keeps the sum and the number of the
    signs on the device, adds them up over the workers every `interval` iterations, and calls `add` and `update`. Before
    a snapshot between two updates the caller calls `add` with its sums and starts new sums at 0; then the state dict is
    everything that must be stored.
    """

    def __init__(
        self,
        mode: Mode = "none",
        p: float = 0.0,
        *,
        target: float = 0.6,
        kimg: float = 500.0,
        interval: int = 4,
        p_max: float = 1.0,
    ):
        """`p`: its start value ("ada") or constant value ("fixed"). `kimg`: thousands of images in which p could go
        from 0 to 1; the reference takes 500, and 100 when it starts from a trained network.

        Raises InputError for values out of range.
        """
        if mode not in ("none", "fixed", "ada"):
            raise InputError(f"no adaptation {mode!r}: choose one of none, fixed, ada")
        if not 0 <= p <= p_max <= 1:
            raise InputError(f"augmentation probability {p} and its upper limit {p_max} need 0 <= p <= limit <= 1")
        if mode == "none" and p != 0:
            raise InputError(f"augmentation probability {p} with adaptation none: choose fixed or ada, or leave it 0")
        if not (-1 < target < 1 and kimg > 0 and interval >= 1):
            raise InputError(
                f"target {target}, kimg {kimg}, interval {interval}: need -1 < target < 1, kimg > 0, interval >= 1"
            )
        self.mode, self.p = mode, p
        self.target, self.kimg, self.interval, self.p_max = target, kimg, interval, p_max
        self._sign_sum, self._count = 0.0, 0

    @property
    def adapts(self) -> bool:
        """Whether p adapts, and so whether the controller needs signs."""
        return self.mode == "ada"

    def add(self, sign_sum: float, count: int) -> None:
        """Count the signs of D(real) of `count` images, over all workers."""
        self._sign_sum += sign_sum
        self._count += count

    def update(self, images: int) -> float:
        """Move p by `images` seen since the last call (batch * interval) and forget the signs. Returns the new p.

        p += sign(r - target) * images / (1000 * kimg), kept in 0..p_max (the reference has no upper limit). Without
        signs, or with another mode than "ada", p stays.
        """
        if self.adapts and self._count:
            excess = self._sign_sum / self._count - self.target
            self.p = self._moved((excess > 0) - (excess < 0), images)
        self._sign_sum, self._count = 0.0, 0
        return self.p

    def next_values(self, images: int) -> tuple[float, ...]:
        """The values that `update(images)` gives p if it moves p."""
        return self._moved(-1, images), self._moved(1, images)

    def _moved(self, direction: int, images: int) -> float:
        return min(max(self.p + direction * images / (self.kimg * 1000), 0.0), self.p_max)

    def state_dict(self) -> dict[str, float | int]:
        """The values that change during training: plain numbers that JSON keeps exactly."""
        return {"p": self.p, "sign_sum": self._sign_sum, "count": self._count}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Continue from `state_dict()`; a fixed p keeps its value. Raises InputError for other content."""
        try:
            p, sign_sum, count = float(state["p"]), float(state["sign_sum"]), int(state["count"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{state!r} is no state of the adaptation: needs p, sign_sum and count") from error
        if not (0 <= p <= 1 and count >= 0 and abs(sign_sum) <= count * 1.001):  # averages over workers are rounded
            raise InputError(f"{state!r} is no state of the adaptation: p is 0..1 and |sign_sum| <= count")
        if self.adapts:
            self.p = min(p, self.p_max)
            self._sign_sum, self._count = sign_sum, count


__all__ = ["AUGMENTATIONS", "Draws", "apply", "draw", "rows_of"]


def apply(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Augment images [N, 3, H, W], -1..1 (colours may leave that range). The result has the same shape and dtype.

    float16 and bfloat16 images are computed in float32, float64 images in float64. A batch without any transform is
    returned unchanged. An image without a transform differs by rounding where other images of the batch have one.
    Raises InputError for draws of another size or number.
    """
    parts = [part for part in vars(draws).values() if isinstance(part, torch.Tensor)]
    if not parts:
        return images
    if images.shape != (len(parts[0]), 3, draws.height, draws.width):
        expected = [len(parts[0]), 3, draws.height, draws.width]
        raise InputError(
            f"images of shape {list(images.shape)} cannot be augmented with draws for {expected}: draw again"
        )
    dtype = images.dtype
    images = images.to(torch.promote_types(dtype, torch.float32))
    if draws.theta is not None:
        images = _resample(images, draws, draws.theta.to(images.dtype))
    if draws.colour is not None:
        colour = draws.colour.to(images.dtype)
        pixels = torch.baddbmm(colour[:, :, 3:], colour[:, :, :3], images.flatten(2))
        images = pixels.unflatten(2, images.shape[2:])
    if draws.gains is not None:
        images = _amplify_bands(images, draws.gains)
    if draws.noise is not None:
        images = images + draws.noise
    if draws.cut_rows is not None and draws.cut_columns is not None:
        images = images.masked_fill((draws.cut_rows[:, :, None] & draws.cut_columns[:, None, :])[:, None], 0)
    return images.to(dtype)


def _resample(images: torch.Tensor, draws: Draws, theta: torch.Tensor) -> torch.Tensor:
    """The inverse affine transforms: reflect, double, sample bilinearly, halve; [N, 3, H, W] -> [N, 3, H, W]."""
    height, width = images.shape[2:]
    left, top, right, bottom = draws.margins
    kind = images.device, images.dtype
    double_x, double_y = doubling(width, left, right, *kind), doubling(height, top, bottom, *kind)
    halve_x, halve_y = halving(width, *kind), halving(height, *kind)
    if draws.separable:
        # Without a turn, one matrix for the rows and one for the columns of each sample do all of this. The padded
        # image in double resolution would be far more work: it has up to 36 times the image's pixels.
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
    position = position.clamp(-1, length)  # pixels at -1 and at length are black
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
