"""Refinement of latent codes: gradient descent through the generator, for each picture on its own.

An encoder's guess is improved picture by picture, in the w of the mapping network (Karras et al. 2020, StyleGAN2,
appendix D) or with a code of its own for every layer, w+ (Abdal et al. 2019, Image2StyleGAN).
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from passersby.errors import InputError
from passersby.restyle.losses import InversionLoss, Target
from passersby.restyle.restyle import Synthesis, pooled
from passersby.stylegan3.generator import Generator

SPACES = ("w+", "w")
SAMPLES = 10_000  # w's behind `w_statistics`, as in the projector of StyleGAN2
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the steps in which the learning rate rises and falls (there as well)


class WStatistics(NamedTuple):
    """Where the mapping's codes lie: `mean` [w_dim] float32, and `spread`, the root mean square of a coordinate's
    distance from its mean.
    """

    mean: torch.Tensor
    spread: float


@torch.no_grad()
def w_statistics(generator: Generator) -> WStatistics:
    """Mean and spread of the w's of 10,000 fixed z's, the same at every call; labels, if any, take turns."""
    device = generator.mapping.w_avg.device
    # Not from torch's generator: a network that was built after torch.manual_seed(0) has the first of those numbers as
    # the initial weights of its mapping, and answers to them as to no other z.
    z = np.random.RandomState(0).randn(SAMPLES, generator.z_dim)
    z = torch.from_numpy(z).to(device, torch.float32)
    labels = (
        torch.eye(generator.c_dim, device=device)[torch.arange(SAMPLES) % generator.c_dim] if generator.c_dim else z
    )
    parts = zip(z.split(1000), labels.split(1000), strict=True)
    w = torch.cat([generator.mapping(*part)[:, 0] for part in parts])  # [SAMPLES, w_dim] float32
    mean = w.mean(0)
    return WStatistics(mean, (w - mean).square().mean().sqrt().item())


def refine(
    synthesis: Synthesis,
    loss: InversionLoss,
    target: Target,
    codes: torch.Tensor,
    steps: int,
    *,
    average: torch.Tensor,
    pull: float = 0.02,
    learning_rate: float = 0.1,
    spread: float = 1.0,
    space: str = "w+",
) -> torch.Tensor:
    """Codes [N, num_ws, w_dim] float32 that show `target`'s N pictures better than `codes` do.

    `steps` steps of Adam on `loss.total` + `pull` * d, each sample for itself; what comes back is the best code that
    a sample had (where it started from included), so that no sample gets worse, and 0 steps change nothing. A sample
    whose loss is not finite keeps its code. Space "w" holds one code for all layers, and starts from the layers' mean.

    d is the mean over layers and coordinates of ((code - `average`) / `spread`)^2; with the `spread` of
    `w_statistics` it is 1 for a random w of the mapping and 0 for the average. `learning_rate` is in the same unit:
    about so many spreads does a coordinate move in a step.

    Why a pull: in w+ every layer can have a code that the mapping never makes. There the layers are used together in
    combinations the network was not trained on, and one layer's code makes up for another's: the picture is right,
    but a layer taken from somebody else, as mixing does, breaks it (Tov et al. 2021, "Designing an encoder": distortion
    against editability).

    On a CPU a sample's result is the same alone and in any batch, to the last bit; on a GPU the batch is worked on at
    once, and how it is formed matters as much as rounding does. The networks' weights get no gradients. Raises
    InputError for a space, a number or a shape that cannot be.
    """
    _check(codes, target, average, steps, pull, learning_rate, spread, space)
    if steps == 0:
        return codes.clone()
    # Batches of other sizes round differently, and descent over the kinks of ReLU makes more of it: after 40 steps, two
    # runs of one picture, alone and with two others, differed by up to 0.3 (of -1..1), though not in how good they
    # were. So a CPU works on one sample at a time, at 1.6 times the cost.
    together = 1 if codes.device.type == "cpu" else len(codes)
    found = []
    for first in range(0, len(codes), together):
        part = slice(first, first + together)
        descent = _Descent(synthesis, loss, target.take(part), average.detach(), pull, spread)
        found.append(descent.best_of(codes[part].detach(), steps, learning_rate * spread, space))
    return torch.cat(found) if found else codes.clone()


class _Descent(NamedTuple):
    synthesis: Synthesis
    loss: InversionLoss
    target: Target
    average: torch.Tensor
    pull: float
    spread: float

    def best_of(self, start, steps, learning_rate, space):
        best, best_value = start.clone(), start.new_full((len(start),), math.inf)
        free = start.mean(1, keepdim=True) if space == "w" else start.clone()  # [N, 1 or num_ws, w_dim]
        first, second = torch.zeros_like(free), torch.zeros_like(free)  # Adam's moments
        for step in range(steps):
            free.requires_grad_(True)
            with torch.enable_grad():
                values = self.values(free.expand_as(start))
                # The sum, not the mean: a sample's gradient does not depend on how many others there are.
                (gradient,) = torch.autograd.grad(values.sum(), free)
            free, values = free.detach(), values.detach()
            best, best_value = _better(best, best_value, free, values)
            free = free - learning_rate * ramp(step / steps) * _adam(gradient, first, second, step)
        with torch.no_grad():
            return _better(best, best_value, free, self.values(free.expand_as(start)))[0]

    def values(self, codes):
        # What is minimised, [N].
        images = pooled(self.synthesis(codes), *self.target.images.shape[2:])
        distances = ((codes - self.average) / self.spread).square().mean((1, 2))
        return self.loss.total(self.loss.measure(images, self.target)) + self.pull * distances


def _better(best, best_values, codes, values):
    better = values < best_values  # never where one is not a number
    return torch.where(better[:, None, None], codes, best), torch.where(better, values, best_values)


def ramp(progress: float) -> float:
    """The factor 0..1 of the learning rate at `progress` 0..1: linear rise, constant, half a cosine to 0."""
    down = min(1.0, (1 - progress) / RAMP_DOWN)
    up = min(1.0, (progress + 0.01) / RAMP_UP)
    return (0.5 - 0.5 * math.cos(math.pi * down)) * up


def _adam(gradient, first, second, step, betas=(0.9, 0.999), epsilon=1e-8):
    # Kingma & Ba 2015. Written out as it moves both averages in place and has no parameter groups to look after.
    first.lerp_(gradient, 1 - betas[0])
    second.lerp_(gradient.square(), 1 - betas[1])
    deviation = (second / (1 - betas[1] ** (step + 1))).sqrt()
    return first / (1 - betas[0] ** (step + 1)) / (deviation + epsilon)


def _check(codes, target, average, steps, pull, learning_rate, spread, space):
    if codes.ndim != 3 or len(codes) != len(target.images):
        raise InputError(
            f"refinement: codes {tuple(codes.shape)} for {len(target.images)} pictures: one each is needed"
        )
    if average.shape != codes.shape[1:]:
        raise InputError(f"refinement: the average is {tuple(average.shape)}, a code {tuple(codes.shape[1:])}")
    if space not in SPACES:
        raise InputError(f"refinement in space {space!r}: take one of {', '.join(SPACES)}")
    for name, value, least in (("steps", steps, 0), ("pull", pull, 0)):
        if not least <= value < math.inf:
            raise InputError(f"refinement: {name} {value}: a number from 0 is needed")
    for name, value in (("learning rate", learning_rate), ("spread", spread)):
        if not 0 < value < math.inf:
            raise InputError(f"refinement: {name} {value}: a number above 0 is needed")
