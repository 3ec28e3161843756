"""Refinement of latent codes: gradient descent through the generator, for each picture separately.

It improves the codes of an encoder, either in the mapping network's w, one code for all layers (Karras et al. 2020,
StyleGAN2, appendix D), or in w+, one code for every layer (Abdal et al. 2019, Image2StyleGAN).
"""

import contextlib
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from passersby.errors import InputError
from passersby.restyle.encoder import Synthesis, pooled
from passersby.restyle.losses import InversionLoss, Target
from passersby.stylegan3.generator import Generator
from passersby.stylegan3.mapping import full_precision

SPACES = ("w+", "w")
SAMPLES = 10_000  # the number of w's for `w_statistics`, as in the projector of StyleGAN2
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the steps in which the learning rate rises and falls, as in that projector


class WStatistics(NamedTuple):
    """The distribution of the mapping's codes.

    mean: [w_dim] float32. spread: the root mean square of a coordinate's distance from its mean.
    """

    mean: torch.Tensor
    spread: float


@torch.no_grad()
def w_statistics(generator: Generator) -> WStatistics:
    """Mean and spread of the w's of 10,000 fixed z's, the same at every call; z's take the labels, if any, in turn."""
    device = generator.mapping.w_avg.device
    # The z's do not come from torch's generator: its first numbers after torch.manual_seed(0) are the initial mapping
    # weights of a network built after that call, and the network's response to its own weights is not typical.
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
    keep_precision: bool = False,
) -> torch.Tensor:
    """Codes [N, num_ws, w_dim] float32 that show `target`'s N pictures better than `codes` do.

    `steps` steps of Adam lower `loss.total` + `pull` * d, for each sample separately. The result is the best code that
    a sample had, its start included: no sample gets worse, and 0 steps change nothing. A sample whose loss is not
    finite keeps its code. The space "w" has one code for all layers, and starts from the mean of the layers.

    d is the mean over layers and coordinates of ((code - `average`) / `spread`)^2. With the `spread` of `w_statistics`
    it is 1 for a random w of the mapping and 0 for the average. `learning_rate` has the same unit: a coordinate moves
    by about so many spreads in a step.

    The pull is needed because in w+ every layer can have a code that the mapping never makes. The network was not
    trained on such combinations of layers, and the code of one layer compensates for that of another. The picture is
    right, but taking a layer from somebody else, as mixing does, breaks it (Tov et al. 2021, "Designing an encoder":
    distortion against editability).

    A `synthesis` that is a module computes in float32 meanwhile: in float16 a part of the gradient is lost (whole
    layers do not move), and images are off by more than late steps change. `keep_precision=True` keeps the layers'
    number formats, as runs of recipe 1 did.

    On a CPU the result of a sample is the same alone and in any batch, to the last bit. A GPU computes the batch at
    once, and its composition matters as much as rounding does. The networks' weights get no gradients. Raises
    InputError for an impossible space, number or shape.
    """
    _check(codes, target, average, steps, pull, learning_rate, spread, space)
    if steps == 0:
        return codes.clone()
    # Batches of other sizes round differently, and descent over the kinks of ReLU amplifies the difference. After 40
    # steps, a picture refined alone and with two others differed by up to 0.3 (of -1..1), though the two results were
    # equally good. So a CPU refines one sample at a time, which takes 1.6 times as long.
    chunk = 1 if codes.device.type == "cpu" else len(codes)
    results = []
    is_network = isinstance(synthesis, nn.Module)
    with full_precision(synthesis) if is_network and not keep_precision else contextlib.nullcontext():
        for first in range(0, len(codes), chunk):
            part = slice(first, first + chunk)
            descent = _Descent(synthesis, loss, target.take(part), average.detach(), pull, spread)
            results.append(descent.best_of(codes[part].detach(), steps, learning_rate * spread, space))
    return torch.cat(results) if results else codes.clone()


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
                # With the sum instead of the mean, a sample's gradient does not depend on the number of samples.
                (gradient,) = torch.autograd.grad(values.sum(), free)
            free, values = free.detach(), values.detach()
            best, best_value = _better(best, best_value, free, values)
            free = free - learning_rate * ramp(step / steps) * adam(gradient, first, second, step)
        with torch.no_grad():
            return _better(best, best_value, free, self.values(free.expand_as(start)))[0]

    def values(self, codes):
        # The values to minimise, [N].
        images = pooled(self.synthesis(codes), *self.target.images.shape[2:])
        distances = ((codes - self.average) / self.spread).square().mean((1, 2))
        return self.loss.total(self.loss.measure(images, self.target)) + self.pull * distances


def _better(best, best_values, codes, values):
    better = values < best_values  # False where a value is nan
    return torch.where(better[:, None, None], codes, best), torch.where(better, values, best_values)


def ramp(progress: float) -> float:
    """The factor 0..1 of the learning rate at `progress` 0..1: linear rise, constant, half a cosine to 0."""
    down = min(1.0, (1 - progress) / RAMP_DOWN)
    up = min(1.0, (progress + 0.01) / RAMP_UP)
    return (0.5 - 0.5 * math.cos(math.pi * down)) * up


def adam(
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> torch.Tensor:
    """The direction of Adam's step number `step`, from 0, for a learning rate of 1 (Kingma & Ba 2015).

    Unlike torch.optim's, this version updates both averages, `first` and `second`, in place, and has no groups.
    """
    first.lerp_(gradient, 1 - betas[0])
    second.lerp_(gradient.square(), 1 - betas[1])
    deviation = (second / (1 - betas[1] ** (step + 1))).sqrt()
    return first / (1 - betas[0] ** (step + 1)) / (deviation + epsilon)


def _check(codes, target, average, steps, pull, learning_rate, spread, space):
    if codes.ndim != 3 or len(codes) != len(target.images):
        raise InputError(f"refinement: codes {tuple(codes.shape)} for {len(target.images)} pictures: give one for each")
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


# ---- A person's code: the robust mean of the codes of that person's pictures.

ITERATIONS = 1000  # the limit; Weiszfeld's method converges linearly, and usually needs some tens
TOLERANCE = 1e-9  # of the step, relative to the codes' mean distance from their mean
TIE = 1e-9  # two pictures of equal weight balance up to rounding: their middle is the median, not one of the two


def person_code(codes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The geometric median of the codes [n, num_ws, w_dim] of a person's n pictures: [num_ws, w_dim] float32.

    Each code is taken as one point. The median is the point with the smallest sum of distances to the pictures,
    times `weights` [n] (0 or more, default 1). Weiszfeld's method (1937) finds it, starting at the mean. A badly
    inverted picture, however far away, pulls on the median no more than any other; a mean would follow it. The
    median of one picture is its code. Two pictures of equal weight give their middle, two of unequal weight the
    code of the heavier one. The result does not depend on the order of the pictures, to the last bit.

    Raises InputError without pictures, for values that are not finite, and for weights that are below 0, all 0, or not
    one for each picture.
    """
    points, weights, shape = _checked(codes, weights)
    points, weights = _merged(points, weights)
    # If the median is one of the pictures, Weiszfeld's method would converge too slowly, so check the nearest picture.
    nearest = int(np.argmin([weights @ _distances(points, point) for point in points]))
    if np.linalg.norm(_pull(points, weights, points[nearest])) < weights[nearest] * (1 - TIE):
        return points[nearest].reshape(shape).astype(np.float32)
    middle = weights @ points / weights.sum()
    size = weights @ _distances(points, middle) / weights.sum()
    for _ in range(ITERATIONS):
        step = _step(points, weights, middle)
        middle = middle + step
        if np.linalg.norm(step) <= TOLERANCE * size:
            break
    return middle.reshape(shape).astype(np.float32)


def _checked(codes, weights):
    codes = np.asarray(codes, np.float64)
    if codes.ndim != 3 or not codes.size:
        raise InputError(f"codes of a person: shape {codes.shape}, [n, num_ws, w_dim] with n of 1 or more is needed")
    if not np.isfinite(codes).all():
        wrong = np.flatnonzero(~np.isfinite(codes).all((1, 2))).tolist()
        raise InputError(
            f"codes of a person: pictures {wrong[:5]} hold values that are no finite numbers: leave them out"
        )
    weights = np.ones(len(codes)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (len(codes),):
        raise InputError(f"weights of shape {weights.shape} for {len(codes)} pictures: give one for each")
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise InputError(f"weights {weights.tolist()[:8]}: numbers of 0 or more, not all 0, are needed")
    return codes[weights > 0].reshape(int((weights > 0).sum()), -1), weights[weights > 0], codes.shape[1:]


def _merged(points, weights):
    # Equal pictures become one picture with the sum of their weights, in the order of their values. So sums do not
    # depend on the order of the pictures.
    points, inverse = np.unique(points, axis=0, return_inverse=True)
    order = np.lexsort((weights, inverse.ravel()))
    return points, np.bincount(inverse.ravel()[order], weights[order])


def _distances(points, middle):
    return np.linalg.norm(points - middle, axis=1)


def _pull(points, weights, middle):
    # The weighted sum of the unit vectors from `middle` to the points; a point at `middle` does not pull. The median is
    # the point where this sum is 0, or where it is less than the weight of the picture at that point.
    distances = _distances(points, middle)
    away = distances > 0
    return (weights[away] / distances[away]) @ (points[away] - middle)


def _step(points, weights, middle):
    # Weiszfeld's step. If `middle` is one of the points, Vardi and Zhang (2000) take a share of the step.
    distances = _distances(points, middle)
    away = distances > 0
    pull = _pull(points, weights, middle)
    if not pull.any():
        return pull
    share = max(0.0, 1 - weights[~away].sum() / np.linalg.norm(pull))
    return share * pull / (weights[away] / distances[away]).sum()
