"""Layers of re-ID networks beside torchvision's: normalisation by domain and by instance, pooling, non-local blocks."""

import copy
from collections.abc import Callable

import torch
from torch import nn


class DomainBatchNorm(nn.Module):
    """Batch normalisation with statistics, scale and shift for each domain; `current` is the domain of the next call.

    Chang et al., "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation" (2019). All images of a batch
    have one domain. ReidNetwork.forward sets `current` for the batch, so that torchvision's forward can stay unchanged.
    """

    def __init__(self, kind: Callable[[int], nn.Module], features: int, domains: int):
        super().__init__()
        self.norms = nn.ModuleList(kind(features) for _ in range(domains))
        self.current = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norms[self.current](x)


class InstanceBatchNorm(nn.Module):
    """IBN-a (X. Pan et al. 2018): instance normalisation of half of the channels, batch norm of the others."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = norm(channels - channels // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, rest = x.tensor_split([self.IN.num_features], dim=1)
        return torch.cat([self.IN(first), self.BN(rest)], 1)


class GeneralisedMean(nn.Module):
    """[N, C, H, W] -> [N, C, 1, 1]: the mean of powers, with an exponent `p` that is learnt."""

    def __init__(self, exponent: float = 3.0, least: float = 1e-6):
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), exponent))
        self.least = least  # powers and their gradients need values above 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x.clamp(min=self.least).pow(self.p), 1).pow(1 / self.p)


class NonLocal(nn.Module):
    """Adds to each place a sum over all places, weighed by products of one value a place, as fast-reid has it.

    X. Wang et al., "Non-local Neural Networks" (2018), with dot products divided by the number of places. A new block
    adds nothing.
    """

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.g, self.theta, self.phi = (nn.Conv2d(channels, 1, 1) for _ in range(3))
        self.W = nn.Sequential(nn.Conv2d(1, channels, 1), norm(channels))
        for module in self.W[1].modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.zeros_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, queries, keys = (layer(x).flatten(2) for layer in (self.g, self.theta, self.phi))  # [N, 1, HW] each
        # (queries^T keys) values: with one value a place the sum over places comes first, and no [HW, HW] is needed.
        sums = queries * (keys * values).sum(2, keepdim=True) / values.shape[2]
        return self.W(sums.unflatten(2, x.shape[2:])) + x


class NonLocalStage(nn.Sequential):
    """A ResNet's stage with a non-local block after each of its last `count` blocks; the blocks keep their names."""

    def __init__(self, blocks: nn.Sequential, count: int, channels: int, norm: Callable[[int], nn.Module]):
        super().__init__(*blocks)
        self.blocks, self.first = len(blocks), len(blocks) - count
        self.non_local = nn.ModuleList(NonLocal(channels, norm) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in range(self.blocks):
            x = self[index](x)
            if index >= self.first:
                x = self.non_local[index - self.first](x)
        return x


def normalisation(kind: type[nn.Module], features: int, domains: int) -> nn.Module:
    """Batch normalisation of a kind, such as nn.BatchNorm2d, for so many domains."""
    # With one domain this is torchvision's own module, so that the names of torchvision's weights fit.
    return kind(features) if domains == 1 else DomainBatchNorm(kind, features, domains)


def with_domains(backbone: nn.Module, domains: int) -> nn.Module:
    """Every batch normalisation becomes one for each domain, with equal values, in place."""
    for module in [*backbone.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, nn.BatchNorm2d):
                # timm's own kinds contain an activation, so the whole module is copied.
                made = DomainBatchNorm(lambda _, norm=child: copy.deepcopy(norm), child.num_features, domains)
                setattr(module, name, made)
    return backbone
