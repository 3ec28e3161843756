"""Transfer learning: start a network from a trained one of another resolution, shape, width or configuration.

The transfer matches layers by position, never by name and shape. Names contain sizes and channels, so a 64 px generator
would get little of a 512 px one, and that with the low-pass filters of the wrong schedule. Filters are never
transferred. Each kind of difference has its module: other kernels and layers `generator.py`, other blocks
`discriminator.py`, other channels and mapping networks `channels.py`. StyleGAN2 generators, whose blocks add up at
their resolutions, have `stylegan2.py`. The training that follows is in training/gan.
"""

import torch
from torch import nn

from passersby import stylegan2
from passersby.errors import InputError
from passersby.stylegan3.discriminator import Discriminator
from passersby.stylegan3.generator import Generator
from passersby.stylegan3.transfer.discriminator import transfer_discriminator
from passersby.stylegan3.transfer.generator import transfer_generator
from passersby.stylegan3.transfer.report import Ledger, TransferReport
from passersby.stylegan3.transfer.stylegan2 import transfer_stylegan2

__all__ = ["TransferReport", "freeze_discriminator_layers", "transfer"]


def transfer(source: nn.Module, target: nn.Module, images: torch.Tensor | None = None) -> TransferReport:
    """Write what `source` has learned into `target`, a network of the same kind, in place.

    Equal configurations give equal networks, bit for bit. Parts that the source does not have keep the target's initial
    values, or pass their input on unchanged. The transfer draws no random numbers. `images` [N, 3, h, w] float, -1..1,
    of any size, are some 40 pictures of the new training set: with them a discriminator that loses blocks or channels
    keeps more of what it learned. Raises `InputError`, before it writes anything, for two kinds of network, for a
    StyleGAN2 and a StyleGAN3 generator, for other z_dim, w_dim or image channels, and for discriminators without a
    common block.
    """
    ledger = Ledger(target)
    families = [isinstance(network, stylegan2.Generator) for network in (source, target)]
    if isinstance(source, stylegan2.Generator) and isinstance(target, stylegan2.Generator):
        transfer_stylegan2(source, target, ledger)
    elif any(families) and isinstance(source, Generator) and isinstance(target, Generator):
        names = [f"StyleGAN{2 if is_second else 3}" for is_second in families]
        raise InputError(
            f"transfer: the source is a {names[0]}, the new generator a {names[1]}, and no layer of one means anything "
            f"in the other: give a {names[1]}, or train a {names[0]} (--config)"
        )
    elif isinstance(source, Generator) and isinstance(target, Generator):
        transfer_generator(source, target, ledger)
    elif isinstance(source, Discriminator) and isinstance(target, Discriminator):
        transfer_discriminator(source, target, ledger, images)
    else:
        kinds = f"{type(source).__name__} into a {type(target).__name__}"
        raise InputError(f"transfer of a {kinds}: give two generators or two discriminators")
    return ledger.report()


def freeze_discriminator_layers(discriminator: Discriminator, count: int) -> list[str]:
    """Names of the parameters of the first `count` layers, counted from the image, which training must not change.

    This is Freeze-D (Mo et al. 2020). Layers are counted as the reference's --freezed counts them: fromrgb, then conv0,
    conv1, skip of each block; the epilogue is never frozen. The function changes nothing: training switches gradients
    on and off in each phase, and must leave these off. Raises `InputError` for a negative count and for more layers
    than the network has.
    """
    layers = []
    for height in discriminator.heights[:-1]:
        block = getattr(discriminator, f"b{height}")
        parts = [part for part in ("fromrgb", "conv0", "conv1", "skip") if hasattr(block, part)]
        layers += [(f"b{height}.{part}", getattr(block, part)) for part in parts]
    if not 0 <= count <= len(layers):
        raise InputError(f"{count} discriminator layers to freeze: this one has {len(layers)} (0 = none)")
    return [f"{layer}.{name}" for layer, module in layers[:count] for name, _ in module.named_parameters()]
