"""Transfer learning: start a network from a trained one of another resolution, shape, width or configuration.

Matching is by layer, never by name and shape: names carry sizes and channels, so that of a 512 px generator a
64 px one would get little, and that with the low-pass filters of the wrong schedule. Filters are never
transferred. What each kind of difference does is told where it is done: other kernels and layers in `generator.py`,
other blocks in `discriminator.py`, other channels and mapping networks in `channels.py`. The training that follows
stands in training/gan.
"""

import torch
from torch import nn

from passersby.errors import InputError
from passersby.stylegan3.discriminator import Discriminator
from passersby.stylegan3.generator import Generator
from passersby.stylegan3.transfer.discriminator import transfer_discriminator
from passersby.stylegan3.transfer.generator import transfer_generator
from passersby.stylegan3.transfer.report import Ledger, TransferReport

__all__ = ["TransferReport", "freeze_discriminator_layers", "transfer"]


def transfer(source: nn.Module, target: nn.Module, images: torch.Tensor | None = None) -> TransferReport:
    """Write what `source` has learned into `target`, a network of the same kind, in place.

    Equal configurations give equal networks, bit for bit. What the source has not keeps the target's own initial
    values, or passes on what it gets; no random numbers are drawn. `images` [N, 3, h, w] float, -1..1, of any size:
    some 40 pictures of what is to be learned; a discriminator that loses blocks or channels keeps more with them.
    Raises `InputError` before anything is written: two kinds of network, other z_dim, w_dim or image channels,
    discriminators without a block in common.
    """
    ledger = Ledger(target)
    if isinstance(source, Generator) and isinstance(target, Generator):
        transfer_generator(source, target, ledger)
    elif isinstance(source, Discriminator) and isinstance(target, Discriminator):
        transfer_discriminator(source, target, ledger, images)
    else:
        kinds = f"{type(source).__name__} into a {type(target).__name__}"
        raise InputError(f"transfer of a {kinds}: give two generators or two discriminators")
    return ledger.report()


def freeze_discriminator_layers(discriminator: Discriminator, count: int) -> list[str]:
    """Names of the parameters of the first `count` layers, counted from the image, to be left out of training.

    Freeze-D (Mo et al. 2020). Layers are counted as the reference's --freezed counts them: fromrgb, then conv0,
    conv1, skip of each block; the epilogue is never frozen. Nothing is changed here: training switches gradients
    phase by phase and has to leave these off. Raises `InputError` for a negative count or more than there are.
    """
    layers = []
    for height in discriminator.heights[:-1]:
        block = getattr(discriminator, f"b{height}")
        parts = [part for part in ("fromrgb", "conv0", "conv1", "skip") if hasattr(block, part)]
        layers += [(f"b{height}.{part}", getattr(block, part)) for part in parts]
    if not 0 <= count <= len(layers):
        raise InputError(f"{count} discriminator layers to freeze: this one has {len(layers)} (0 = none)")
    return [f"{layer}.{name}" for layer, module in layers[:count] for name, _ in module.named_parameters()]
