"""How a GAN does on people it never trains on, and whether something is wrong with it."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from passersby.errors import InputError
from training.gan.data import to_float
from training.gan.gan_inputs import Latents
from training.gan.step import TrainingState, synthesize

_CHUNK = 16  # a multiple of the minibatch deviation's group
_MOST = 256
_SEED = 2**31 - 1  # of codes that no training draws: training's streams have three numbers


class Validation:
    """Losses on fixed real images and fixed codes: [V, H, W, 3] uint8, at most 256 of them, evenly taken."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None, z_dim: int, device: torch.device):
        count = min(len(images), _MOST)
        count -= count % 4 if count > 4 else 0
        index = np.linspace(0, len(images) - 1, count).astype(int)
        self.images, self.device = images[index], device
        z = np.random.default_rng(_SEED).standard_normal((count, z_dim), np.float32)
        labels = None if labels is None else torch.from_numpy(labels[index])
        self.latents = Latents(torch.from_numpy(z), labels=labels)

    @torch.no_grad()
    def measure(self, state: TrainingState) -> dict[str, float]:
        """Losses of both networks and scores, without blur and augmentation; and the variety of generated images.

        "diversity" is the mean standard deviation of a pixel over generated images, as a share of that over real
        ones: it falls towards 0 when the generator collapses. It is left out where the real ones are all the same.
        """
        real_scores, fake_scores, moments = [], [], torch.zeros(2, 2, *self.images.shape[1:3], 3, dtype=torch.float64)
        for start in range(0, len(self.images), _CHUNK):
            part = slice(start, start + _CHUNK)
            latents = self.latents.share(part).to(self.device)
            reals = to_float(torch.from_numpy(self.images[part]).permute(0, 3, 1, 2), self.device)
            fakes = synthesize(state.generator, latents)
            for index, (images, scores) in enumerate(((reals, real_scores), (fakes, fake_scores))):
                scores.append(state.discriminator(images, latents.labels))
                pixels = images.permute(0, 2, 3, 1).double().cpu()
                moments[index] += torch.stack([pixels.sum(0), pixels.square().sum(0)])
        real, fake = torch.cat(real_scores), torch.cat(fake_scores)
        mean, square = moments[:, 0] / len(self.images), moments[:, 1] / len(self.images)
        spread = (square - mean.square()).clamp(min=0).sqrt().mean((1, 2, 3))  # of reals, of fakes
        figures = {
            "validation/D_loss": (F.softplus(fake) + F.softplus(-real)).mean().item(),
            "validation/G_loss": F.softplus(-fake).mean().item(),
            "scores/validation": real.mean().item(),
        }
        return figures | ({"diversity": (spread[1] / spread[0]).item()} if spread[0] > 0 else {})


def stop_if_diverged(figures: dict[str, float], kimg: float) -> None:
    """Raises InputError where a loss or score is infinite or undefined: nothing good comes after that."""
    bad = {name: value for name, value in figures.items() if name in _LOSSES and not math.isfinite(value)}
    if bad:
        name, value = next(iter(bad.items()))
        raise InputError(
            f"the training diverged before kimg {kimg:.1f} ({name} is {value}): take a new --out with "
            "--transfer and the last good snapshot, a higher --gamma, or --precision float32"
        )


_LOSSES = ("G/loss", "D/loss", "D/r1", "scores/real", "scores/fake", "validation/D_loss", "validation/G_loss")


def warnings(figures: dict[str, float]) -> list[str]:
    """What a person should know about these figures of validation, a line each; none when all seems well."""
    lines = []
    if figures.get("diversity", 1) < 0.35:
        lines.append(
            f"the generator seems to collapse: its images vary {figures['diversity']:.0%} as much as real ones; "
            "look at the grids; a higher --gamma, or --transfer from an earlier snapshot, may help"
        )
    if figures.get("validation/G_loss", 0) > 8:
        lines.append(
            f"the discriminator tells every generated image (loss G {figures['validation/G_loss']:.1f}): "
            "a higher --gamma, or a lower --discriminator-lr, may help"
        )
    if figures.get("augment/p", 0) >= 0.85:
        lines.append(
            f"augmentation has reached p = {figures['augment/p']:.2f}: there are too few images for this many kimg; "
            "the best snapshot is likely an earlier one"
        )
    return lines
