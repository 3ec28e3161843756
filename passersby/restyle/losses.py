"""The loss of inversion: the distance of a reconstruction from its image in pixels, in perception and in identity.

Alaluf et al., "ReStyle" (2021), with the weights of the pedestrian study: 1 x L2, 0.8 x LPIPS, 0.1 x (1 - cosine).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import nn

from passersby.errors import InputError
from passersby.perception.perceptual import Perceptual
from passersby.reid.identity_features import IdentityFeatures


@dataclass(frozen=True)
class LossWeights:
    """Factors of the loss's parts, 0 or more; a factor of 0 omits its part. Raises InputError for other values."""

    l2: float = 1.0
    lpips: float = 0.8
    identity: float = 0.1

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"weight of {field.name} {value!r}: a number of 0 or more is needed")


class Target(NamedTuple):
    """Images and their features, computed once for all reconstructions that are compared with them."""

    images: torch.Tensor  # [N, 3, H, W] float32, -1..1
    perceptual: tuple[torch.Tensor, ...] | None  # five layers [N, C, h, w] float32; None without the network
    identity: torch.Tensor | None  # [N, D] float32 of length 1; None without the network

    def take(self, indices: torch.Tensor | Sequence[int] | slice) -> "Target":
        """The images at `indices` (numbers, a mask or a slice), in that order."""
        perceptual = None if self.perceptual is None else tuple(layer[indices] for layer in self.perceptual)
        return Target(self.images[indices], perceptual, None if self.identity is None else self.identity[indices])


class Losses(NamedTuple):
    """The losses of each reconstruction, [N] float32; nan where there is no network to measure one."""

    l2: torch.Tensor  # mean squared difference of the pixels, of values -1..1
    lpips: torch.Tensor  # Perceptual's distance
    identity_cosine: torch.Tensor  # -1..1


class InversionLoss(nn.Module):
    """Losses of reconstructions against their targets, for each image separately; the networks stay frozen.

    Raises InputError if a part has a weight but no network.
    """

    def __init__(self, weights: LossWeights, perceptual: Perceptual | None, identity: IdentityFeatures | None):
        super().__init__()
        if weights.lpips > 0 and perceptual is None:
            raise InputError(f"weight of lpips {weights.lpips:g} without a perceptual network: give one, or weight 0")
        if weights.identity > 0 and identity is None:
            raise InputError(f"weight of identity {weights.identity:g} without a network: give one, or weight 0")
        self.weights, self.perceptual, self.identity = weights, perceptual, identity

    @torch.no_grad()
    def target(self, images: torch.Tensor) -> Target:
        """The target of images [N, 3, H, W] float, -1..1, RGB, at the size that reconstructions will have."""
        perceptual = None if self.perceptual is None else self.perceptual.features(images)
        return Target(images.detach().float(), perceptual, None if self.identity is None else self.identity(images))

    def measure(self, reconstructions: torch.Tensor, target: Target) -> Losses:
        """The losses of reconstructions [N, 3, H, W] float, nominally -1..1, which get gradients.

        Raises ValueError if their shape is not that of the target's images.
        """
        if reconstructions.shape != target.images.shape:
            shapes = f"{tuple(reconstructions.shape)}, images {tuple(target.images.shape)}"
            raise ValueError(f"reconstructions {shapes}: bring them to one size first")
        reconstructions = reconstructions.float()
        l2 = (reconstructions - target.images).square().mean((1, 2, 3))
        lpips = cosine = torch.full_like(l2, math.nan, requires_grad=False)
        if self.perceptual is not None:
            assert target.perceptual is not None  # `target` made it, with the same network
            lpips = self.perceptual.distance(self.perceptual.features(reconstructions), target.perceptual)
        if self.identity is not None:
            cosine = (self.identity(reconstructions) * target.identity).sum(1)
        return Losses(l2, lpips, cosine)

    def total(self, losses: Losses) -> torch.Tensor:
        """[N] float32: l2 * L2 + lpips * LPIPS + identity * (1 - cosine), without the parts of weight 0."""
        parts = (
            (self.weights.l2, losses.l2),
            (self.weights.lpips, losses.lpips),
            (self.weights.identity, 1 - losses.identity_cosine),
        )
        return sum((weight * part for weight, part in parts if weight > 0), torch.zeros_like(losses.l2))
