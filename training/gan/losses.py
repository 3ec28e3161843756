"""Losses and penalties of a GAN training as functions of tensors and networks, and the images that they are of."""

import math

import torch
import torch.nn.functional as F

from passersby.stylegan3 import Generator
from passersby.stylegan3.ops.convolution import no_weight_gradients
from training.gan.inputs import Latents

# ---- The losses of StyleGAN3's training and the blur before its discriminator, as functions of tensors.


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(D(G(z))), the non-saturating loss; [N, 1] -> [N, 1]."""
    return F.softplus(-fake_logits)


def discriminator_loss(fake_logits: torch.Tensor, real_logits: torch.Tensor) -> torch.Tensor:
    """-log(1 - sigmoid(D(G(z)))) - log sigmoid(D(x)); [N, 1], [N, 1] -> [N, 1]."""
    return F.softplus(fake_logits) + F.softplus(-real_logits)


def r1_penalty(real_logits: torch.Tensor, reals: torch.Tensor, gamma: float) -> torch.Tensor:
    """gamma / 2 * |grad_x D(x)|^2 of every image, differentiable; [N, 1], [N, 3, H, W] -> [N]."""
    with no_weight_gradients():
        (gradient,) = torch.autograd.grad(real_logits.sum(), reals, create_graph=True)
    return gradient.square().sum(dim=[1, 2, 3]) * (gamma / 2)


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable blur of [N, 3, H, W]: kernel 2^-(x/sigma)^2 (base 2), radius floor(3 sigma), zeros outside.

    The blur is two products with banded matrices. At the start of training the kernel is longer than the image, so a
    convolution would mostly multiply padding.
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


# ---- Generated images, and how far they move with w.


def styles(generator: Generator, latents: Latents, update_emas: bool = False) -> torch.Tensor:
    """ws of one phase, [N, num_ws, w_dim] float32, with style mixing where the latents ask for it.

    Mixing is decided per sample, not per batch as in StyleGAN2. The expectation is the same, and every batch has
    several crossing points instead of one.
    """
    ws = generator.mapping(latents.z, latents.labels, update_emas=update_emas)  # [N, num_ws, w_dim]
    if latents.mix_z is not None:
        assert latents.mix_from is not None  # with `mix_z` comes `mix_from`
        mix_ws = generator.mapping(latents.mix_z, latents.labels)
        index = torch.arange(ws.shape[1], device=ws.device)
        ws = torch.where((index[None, :] < latents.mix_from[:, None])[:, :, None], ws, mix_ws)
    return ws


def images_of(generator: Generator, ws: torch.Tensor, latents: Latents, update_emas: bool = False) -> torch.Tensor:
    """Images of ws, [N, 3, H, W] float32, with the noise of the latents where they have any."""
    if latents.noise is None:
        return generator.synthesis(ws, update_emas=update_emas)
    return generator.synthesis(ws, update_emas=update_emas, noise=latents.noise.draw)


def synthesize(generator: Generator, latents: Latents, update_emas: bool = False) -> torch.Tensor:
    """Training images of one phase, [N, 3, H, W] float32."""
    return images_of(generator, styles(generator, latents, update_emas), latents, update_emas)


def path_lengths(generator: Generator, latents: Latents, differentiable: bool = True) -> torch.Tensor:
    """How far each image moves with w, [N] (Karras et al. 2020, StyleGAN2, section 3.2).

    It is the norm of the Jacobian's product with a random image, a mean over the ws. The latents have noise. The
    generator's parameters must require gradients.
    """
    noise = latents.noise
    assert noise is not None  # it also draws the random images
    ws = styles(generator, latents)
    images = images_of(generator, ws, latents)
    directions = noise.draw(ws.shape[1], tuple(images.shape[1:])) / math.sqrt(math.prod(images.shape[2:]))
    with no_weight_gradients():
        (gradient,) = torch.autograd.grad((images * directions).sum(), ws, create_graph=differentiable)
    return gradient.square().sum(2).mean(1).sqrt()
