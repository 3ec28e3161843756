"""One step of re-ID training: images in, gradients averaged over the workers, weights moved."""

import contextlib
import dataclasses
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from datasets.reid.training_set import GENERATED, SINGLES
from passersby.devices import send
from passersby.reid.network import Outputs, ReidNetwork
from training.reid.augment import Draws, augment
from training.reid.changes import ChangeDraws, change
from training.reid.config import ReidTraining
from training.reid.labels import Labelling, is_generated
from training.workers import Masked, StepScalars, average_over_workers, workers

# ---- Losses of a re-ID network, one for each sample. They are computed in float32, also inside autocast.

_SMALLEST_SQUARE = 1e-12  # of a squared distance; below it the gradient of the root is set to 0


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each sample against its distribution: [n] float32, >= 0.

    logits: [n, C]; targets: [n, C], rows sum to 1.
    """
    return functional.cross_entropy(_precise(logits), targets, reduction="none")


def batch_hard_triplet(
    embedding: torch.Tensor, classes: torch.Tensor, margin: float | None, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch-hard triplet loss (Hermans et al. 2017) with Euclidean distances: losses [n] float32, valid [n] bool.

    The loss compares each anchor's farthest other sample of its class (far) with the nearest sample of another class
    (near): max(0, margin + far - near), or log(1 + exp(far - near)) with margin None (soft margin).
    embedding: [n, D]; classes: [n] int64; mask: [n] bool of the samples that take part, None for all. Other samples
    are neither anchors nor anyone's far or near. An anchor is not valid without another sample of its class, or without
    a sample of another class: its loss and gradient are 0. `valid_mean` averages the losses of valid anchors.
    """
    embedding = _precise(embedding)
    mask = torch.ones_like(classes, dtype=torch.bool) if mask is None else mask
    take_part = mask[:, None] & mask[None, :]
    same = classes[:, None] == classes[None, :]
    itself = torch.eye(len(classes), dtype=torch.bool, device=classes.device)
    positive, negative = take_part & same & ~itself, take_part & ~same
    valid = positive.any(1) & negative.any(1)
    with torch.no_grad():  # only chooses pairs; without matrix products, which lose small distances
        distances = torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")
        far = distances.masked_fill(~positive, float("-inf")).argmax(1)
        near = distances.masked_fill(~negative, float("inf")).argmin(1)
    anchor = torch.arange(len(classes), device=classes.device)
    far, near = torch.where(valid, far, anchor), torch.where(valid, near, anchor)
    gap = _distance(embedding, embedding[far]) - _distance(embedding, embedding[near])
    losses = functional.softplus(gap) if margin is None else (gap + margin).clamp(min=0)
    return torch.where(valid, losses, 0), valid


def valid_mean(losses: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of the losses [n] of valid anchors [n] bool; 0, with gradient 0, where no anchor is valid."""
    return torch.where(valid, losses, 0).sum() / valid.sum().clamp(min=1)


def _distance(rows: torch.Tensor, other_rows: torch.Tensor) -> torch.Tensor:
    """Euclidean distances of the rows, [n]; equal rows have gradient 0 and not 0 / 0."""
    return (rows - other_rows).square().sum(1).clamp(min=_SMALLEST_SQUARE).sqrt()


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision -> float32; double stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclasses.dataclass
class ReidState:
    """Everything that a step changes. `rates`: the learning rate of each group of parameters at factor 1."""

    network: ReidNetwork
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rates: tuple[float, ...]
    step: int = 0
    images_seen: int = 0


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """The settings of every step. `autocast`: dtype of the backbone's products, None for float32."""

    labelling: Labelling
    triplet_weight: float
    margin: float | None
    generated_triplet: bool
    separate_batchnorm: bool
    temperature: float
    autocast: torch.dtype | None = None


class Halves(NamedTuple):
    """The rows of real and of generated images in a batch, each int64 on the device. The host knows their numbers.

    order: [n], the rows of the real outputs followed by the generated ones, in the batch's order.
    """

    real: torch.Tensor
    generated: torch.Tensor
    order: torch.Tensor

    @classmethod
    def of(cls, sources: np.ndarray, device: torch.device) -> Self:
        """The halves of a batch of these sources [n]."""
        is_generated = np.isin(sources, GENERATED)
        real, generated = np.flatnonzero(~is_generated), np.flatnonzero(is_generated)
        order = np.argsort(np.concatenate([real, generated]))
        return cls(
            *send(torch.from_numpy(np.concatenate([real, generated, order])), device).split(
                [len(real), len(generated), len(order)]
            )
        )


@dataclasses.dataclass(frozen=True)
class Batch:
    """This worker's part of a step's images, on the device: uint8 [n, H, W, 3]; classes and sources int64 [n].

    changes: the changes of the images, None for none. donors: uint8 [n, H, W, 3], if any image takes from its donor.
    halves: for separate batch norms; without them a step reads the sources from the device.
    """

    images: torch.Tensor
    classes: torch.Tensor
    sources: torch.Tensor
    draws: Draws
    changes: ChangeDraws | None = None
    donors: torch.Tensor | None = None
    halves: Halves | None = None


def make_optimizer(
    config: ReidTraining, network: ReidNetwork, fused: bool | None = None
) -> tuple[torch.optim.Optimizer, tuple[float, ...]]:
    """The optimiser over the backbone's and the head's parameters, and both rates. fused: as PyTorch's optimisers."""
    rates = (config.lr * config.backbone_lr_factor, config.lr)
    groups = [
        {"params": parameters, "lr": rate}
        for parameters, rate in zip((network.backbone_parameters(), network.head_parameters()), rates, strict=True)
    ]
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, weight_decay=config.weight_decay, fused=fused), rates
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=config.weight_decay, fused=fused), rates


def train_step(
    state: ReidState, settings: StepSettings, batch: Batch, rate_factor: float, teacher: ReidNetwork | None = None
) -> StepScalars:
    """Do one step; returns this worker's scalars: losses and Rank-1 errors, [n] or fewer values each, on the device.

    On a GPU they may be `Masked`: no step waits for the device.

    The loss is the mean over the batch of weight x cross-entropy with the targets of `settings.labelling`, plus the
    batch-hard triplet loss, the mean over the anchors that have both kinds of partner.
    """
    network = state.network
    network.train()
    images = batch.images if batch.changes is None else change(batch.images, batch.donors, batch.changes)
    images = augment(images, batch.draws)
    real = ~is_generated(batch.sources)
    person = real & (batch.sources != SINGLES)  # single pictures say little about how well people are told apart
    with autocast(settings.autocast, images.device):
        halves = None
        if settings.separate_batchnorm:
            halves = batch.halves or Halves.of(batch.sources.cpu().numpy(), images.device)
        outputs = _forward(network, images, halves)
    logits = outputs.logits.float()
    teacher_logits = None
    if teacher is not None:
        with torch.no_grad(), autocast(settings.autocast, images.device):
            teacher_logits = _widen(teacher(images).logits.float(), logits.shape[1])
    labelling = settings.labelling
    targets = labelling.targets(batch.classes, batch.sources, logits.shape[1], teacher_logits, settings.temperature)
    weights = labelling.weights(batch.sources, state.step)
    each = soft_cross_entropy(logits, targets)
    # The mean over images, not over the sum of the weights: that would make real images heavier beside light generated
    # images, would be 0 / 0 for weights 0, and the mean over workers would differ from the batch's mean.
    loss = (each * weights).mean()
    with torch.no_grad():
        wrong = (logits.argmax(1) != batch.classes).float()
        scalars = {
            "loss/real": _chosen(each.detach(), person),
            "loss/generated": _chosen(each.detach(), ~real),
            "error/real": _chosen(wrong, person),
        }
    if settings.triplet_weight:
        taking_part = real | settings.generated_triplet
        anchors, valid = batch_hard_triplet(outputs.embedding.float(), batch.classes, settings.margin, taking_part)
        loss = loss + settings.triplet_weight * valid_mean(anchors, valid)
        scalars["loss/triplet"] = _chosen(anchors.detach(), valid)
    _move(state, loss, rate_factor)
    state.step += 1
    return scalars


def autocast(dtype: torch.dtype | None, device: torch.device):
    """A context with products in `dtype`; with None products keep their dtype."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _chosen(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | Masked:
    """The values [n] that the mask [n] chooses. A GPU's host would have to wait for their number."""
    return Masked(values, mask) if values.is_cuda else values[mask]


def _forward(network: ReidNetwork, images: torch.Tensor, halves: Halves | None) -> Outputs:
    if halves is None or not len(halves.generated):
        return network(images)
    if not len(halves.real):
        return network(images, domain=1)
    parts = network(images[halves.real]), network(images[halves.generated], domain=1)
    return Outputs(*(torch.cat(pair)[halves.order] for pair in zip(*parts, strict=True)))


def _widen(logits: torch.Tensor, count: int) -> torch.Tensor:
    # The teacher knows the real people only: it gives artificial ones no probability.
    missing = logits.new_full((len(logits), count - logits.shape[1]), -torch.inf)
    return torch.cat((logits, missing), 1)


def _move(state: ReidState, loss: torch.Tensor, rate_factor: float) -> None:
    for group, rate in zip(state.optimizer.param_groups, state.rates, strict=True):
        group["lr"] = rate * rate_factor
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss).backward()
    if workers() > 1:  # only another worker may have generated images, and so gradients of their batch norms
        for parameter in state.network.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in state.network.parameters() if parameter.grad is not None]
    # The running statistics too: they are the means over all workers' parts, and the same after a restart.
    average_over_workers([*gradients, *running_statistics(state.network)])
    state.scaler.step(state.optimizer)
    state.scaler.update()


def running_statistics(network: nn.Module) -> list[torch.Tensor]:
    """Running means and variances of all batch norms."""
    return [buffer for name, buffer in network.named_buffers() if name.endswith(("running_mean", "running_var"))]
