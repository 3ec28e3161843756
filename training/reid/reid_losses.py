"""Losses of a re-identification network, each sample's own. Computed in float32, whatever autocast says."""

import torch
from torch.nn import functional

_SMALLEST_SQUARE = 1e-12  # of a distance; below it the gradient of the root is cut to 0, which is where it leads


def soft_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy against distributions, each sample's times its weight: [n] float32, >= 0.

    logits: [n, C]; targets: [n, C], rows sum to 1; weights: [n], None for 1 each. `batch_mean` makes one number of it.
    """
    losses = functional.cross_entropy(_precise(logits), targets, reduction="none")
    return losses if weights is None else losses * weights


def batch_mean(weighted: torch.Tensor) -> torch.Tensor:
    """Sum of the weighted losses [n] over n: the number of images, not the sum of their weights.

    So a weight says how hard an image pulls, whatever else is in the batch: with the sum of the weights below,
    light generated images would make the real ones beside them heavier, a batch of weights 0 would be 0 / 0, and
    the mean over workers would not be the mean of the batch.
    """
    return weighted.mean()


def distillation(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Hinton et al. 2015: T^2 KL(teacher || student), both [n, C] logits divided by T first -> [n] float32, >= 0.

    T^2 keeps the gradient's size the same for every temperature. No gradient flows to the teacher.
    """
    student = (_precise(student_logits) / temperature).log_softmax(1)
    teacher = (_precise(teacher_logits).detach() / temperature).log_softmax(1)
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1) * temperature**2


def batch_hard_triplet(
    embedding: torch.Tensor, classes: torch.Tensor, margin: float | None, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch-hard triplet loss (Hermans et al. 2017) with Euclidean distances: losses [n] float32, valid [n] bool.

    Each anchor's farthest other sample of its class against the nearest of another class: max(0, margin + far -
    near), or log(1 + exp(far - near)) with margin None (soft margin).
    embedding: [n, D]; classes: [n] int64; mask: [n] bool of the samples that take part, None for all; the others are
    neither anchors nor anyone's far or near. An anchor without another of its class or without one of another class
    is not valid: its loss and gradient are 0. `valid_mean` makes one number of both.
    """
    embedding = _precise(embedding)
    mask = torch.ones_like(classes, dtype=torch.bool) if mask is None else mask
    take_part = mask[:, None] & mask[None, :]
    same = classes[:, None] == classes[None, :]
    itself = torch.eye(len(classes), dtype=torch.bool, device=classes.device)
    positive, negative = take_part & same & ~itself, take_part & ~same
    valid = positive.any(1) & negative.any(1)
    with torch.no_grad():  # which pairs; differences, as the matrix product loses what is near
        distances = torch.cdist(embedding, embedding, compute_mode="donot_use_mm_for_euclid_dist")
        far = distances.masked_fill(~positive, float("-inf")).argmax(1)
        near = distances.masked_fill(~negative, float("inf")).argmin(1)
    own = torch.arange(len(classes), device=classes.device)
    far, near = torch.where(valid, far, own), torch.where(valid, near, own)
    gap = _distance(embedding, embedding[far]) - _distance(embedding, embedding[near])
    losses = functional.softplus(gap) if margin is None else (gap + margin).clamp(min=0)
    return torch.where(valid, losses, 0), valid


def valid_mean(losses: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of the losses [n] of valid anchors [n] bool; 0, with gradient 0, where none is."""
    return torch.where(valid, losses, 0).sum() / valid.sum().clamp(min=1)


def _distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Euclidean distance of the rows, [n]; equal rows have gradient 0 and not 0 / 0."""
    return (one - other).square().sum(1).clamp(min=_SMALLEST_SQUARE).sqrt()


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision -> float32; double stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
