"""The losses of StyleGAN3's training and the blur before its discriminator, as functions of tensors."""

import torch
import torch.nn.functional as F


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(D(G(z))), the non-saturating loss; [N, 1] -> [N, 1]."""
    return F.softplus(-fake_logits)


def discriminator_loss(fake_logits: torch.Tensor, real_logits: torch.Tensor) -> torch.Tensor:
    """-log(1 - sigmoid(D(G(z)))) - log sigmoid(D(x)); [N, 1], [N, 1] -> [N, 1]."""
    return F.softplus(fake_logits) + F.softplus(-real_logits)


def r1_penalty(real_logits: torch.Tensor, reals: torch.Tensor, gamma: float) -> torch.Tensor:
    """gamma / 2 * |grad_x D(x)|^2 of every image, differentiable; [N, 1], [N, 3, H, W] -> [N]."""
    (gradient,) = torch.autograd.grad(real_logits.sum(), reals, create_graph=True)
    return gradient.square().sum(dim=[1, 2, 3]) * (gamma / 2)


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable blur of [N, 3, H, W]: kernel 2^-(x/sigma)^2 (base 2), radius floor(3 sigma), zeros outside.

    Written as two banded matrix products: the kernel is longer than the image at the start of training, where
    a convolution would mostly multiply padding.
    """
    radius = int(sigma * 3)
    if radius == 0:
        return images
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32, device=images.device).div(sigma)
    total = taps.square().neg().exp2().sum()

    def matrix(size: int) -> torch.Tensor:
        position = torch.arange(size, dtype=torch.float32, device=images.device)
        distance = position[:, None] - position[None, :]
        kernel = distance.div(sigma).square().neg().exp2() / total
        return torch.where(distance.abs() <= radius, kernel, 0.0)  # [size, size], symmetric

    height, width = images.shape[2:]
    return matrix(height) @ images @ matrix(width)
