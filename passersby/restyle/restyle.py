"""Iterative refinement of latent codes by a ReStyle encoder (Alaluf et al. 2021), step by step."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from passersby.errors import InputError
from passersby.restyle.encoder import EncoderConfig, RestyleEncoder
from passersby.stylegan3.schedule import GeneratorConfig

Synthesis = Callable[[torch.Tensor], torch.Tensor]  # ws [N, num_ws, w_dim] -> images [N, 3, height, width] float32


def pooled(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Images [N, C, h, w] -> [N, C, height, width]: averages where smaller, whole pixels repeated where larger.

    As the published tool does it (adaptive average pooling); the images themselves when they have that size.
    """
    if tuple(images.shape[2:]) == (height, width):
        return images
    return nn.functional.adaptive_avg_pool2d(images, (height, width))


def working_size(encoder: EncoderConfig, generator: GeneratorConfig) -> tuple[int, int]:
    """Height and width at which pictures are decoded and losses taken: on each side the smaller of both networks'."""
    return min(encoder.height, generator.height), min(encoder.width, generator.width)


def restyle_steps(
    encoder: RestyleEncoder,
    synthesis: Synthesis,
    images: torch.Tensor,
    average: torch.Tensor,
    steps: int,
    average_image: torch.Tensor | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`steps` pairs of codes [N, num_ws, w_dim] and reconstructions [N, 3, gh, gw], each better than the one before.

    `images` [N, 3, h, w] float32, -1..1, at the working size; `average` [num_ws, w_dim] is where the codes start, and
    `average_image` [1, 3, gh, gw] (or without the 1) its picture, which is made when it is not given. Each step adds
    the encoder's answer to the codes so far. Codes and reconstructions are detached between the steps: each step's loss
    is to be back-propagated before the next pair is asked for. Raises InputError for shapes that do not fit.
    """
    config = encoder.config
    if type(steps) is not int or steps < 1:
        raise InputError(f"{steps!r} refinement steps: at least 1 is needed")
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise InputError(f"images of shape {tuple(images.shape)} {images.dtype}: float [N, 3, h, w] is needed")
    if tuple(average.shape) != (config.num_ws, config.w_dim):
        needed = f"[{config.num_ws}, {config.w_dim}]"
        raise InputError(f"average code of shape {tuple(average.shape)}: the encoder needs {needed}")
    return _steps(encoder, synthesis, images, average, steps, average_image)


def _steps(encoder, synthesis, images, average, steps, average_image):
    size = encoder.config.height, encoder.config.width
    if average_image is None:
        with torch.no_grad():
            average_image = synthesis(average[None])
    codes = average.expand(len(images), -1, -1)
    current = average_image.expand(len(images), *average_image.shape[-3:])
    inputs = pooled(images, *size)
    for _ in range(steps):
        codes = codes.detach() + encoder(torch.cat([inputs, pooled(current.detach(), *size)], 1))
        current = synthesis(codes)
        yield codes, current
