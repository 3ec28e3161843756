"""Pivotal tuning (Roich et al. 2021, PTI): the generator itself is moved a little, until it can draw one person.

The pivots, the codes of the person's pictures, stay where they are; what changes are the convolutions' kernels, and
those by matrices of low rank (Hu et al. 2021, LoRA), so that what is stored for a person is small. Trained as such:
full kernels, tuned and then cut to that rank, draw the person worse than the generator they started from.
"""

import math

import numpy as np
import torch
from torch.func import functional_call

from passersby.errors import InputError
from passersby.restyle.delta import Delta
from passersby.restyle.losses import InversionLoss, Target
from passersby.restyle.refinement import ramp
from passersby.restyle.restyle import pooled
from passersby.stylegan3.generator import Generator

VARIANTS = 2  # in a step, beside the pictures


def tune(
    generator: Generator,
    loss: InversionLoss,
    target: Target,
    pivots: torch.Tensor,
    steps: int,
    *,
    rank: int = 4,
    learning_rate: float = 0.005,
    batch: int = 8,
    likeness: float = 0.1,
) -> Delta:
    """A delta of `generator` in which `pivots` [n, num_ws, w_dim] show `target`'s n pictures, all of one person.

    `steps` steps of Adam on the mean `loss.total`, each with the next `batch` pictures, in turn. Added is `likeness` *
    (1 - cosine) between the identity features of two of them and of variants of their pivots, in which half of the
    layers come from random codes: without it the pivots get better and what is mixed out of them no more like the
    person. A loss without identity network leaves it out. Networks that were part of the loss are no judges of it.

    `rank` of the factors is what fits: at most the sides of the kernel. Mapping, input, styles (the affine layers),
    ToRGB, filters and magnitude averages are not touched; nor is anything of `generator`, which is only read. The same
    call gives the same delta. Raises InputError for numbers and shapes that cannot be, and when the loss is not finite.
    """
    _check(target, pivots, steps, rank, batch, {"learning rate": learning_rate, "likeness": likeness})
    synthesis, pivots, size = generator.synthesis, pivots.detach(), target.images.shape[2:]
    likeness = likeness if loss.identity is not None else 0.0
    weights = tuned_weights(generator)
    factors = {name: _start(weight, rank, place) for place, (name, weight) in enumerate(weights.items())}
    optimizer = torch.optim.Adam([factor for pair in factors.values() for factor in pair])
    for step in range(steps):
        places = [(step * batch + offset) % len(pivots) for offset in range(min(batch, len(pivots)))]
        with torch.enable_grad():
            changed = {name: weights[name] + (up @ down).view_as(weights[name]) for name, (up, down) in factors.items()}
            images = pooled(functional_call(synthesis, changed, (pivots[places],)), *size)
            value = loss.total(loss.measure(images, target.take(places))).mean()
            if likeness > 0:
                mixed = variants(generator, pivots[places[:VARIANTS]], step)
                images = pooled(functional_call(synthesis, changed, (mixed,)), *size)
                cosines = (loss.identity(images) * target.take(places[:VARIANTS]).identity).sum(1)
                value = value + likeness * (1 - cosines).mean()
            if not math.isfinite(value.item()):
                raise InputError(f"pivotal tuning: the loss is {value.item()} at step {step}: lower the learning rate")
            value.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * ramp(step / steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Delta({name: tuple(factor.detach().half() for factor in pair) for name, pair in factors.items()})


@torch.no_grad()
def variants(generator: Generator, pivots: torch.Tensor, seed: int) -> torch.Tensor:
    """Codes like `pivots` [n, num_ws, w_dim]; in each, up to half of the layers, side by side, are a random w's.

    The w's are truncated at 0.7, as people are generated. Labels of a conditional network take turns.
    """
    numbers, layers = np.random.RandomState(seed), generator.num_ws
    z = torch.from_numpy(numbers.randn(len(pivots), generator.z_dim)).to(pivots.device, torch.float32)
    first = numbers.randint(layers, size=(len(pivots), 1))
    replaced = (np.arange(layers) >= first) & (np.arange(layers) < first + layers // 2)  # [n, num_ws]
    labels = torch.eye(max(generator.c_dim, 1), device=pivots.device)[[seed % max(generator.c_dim, 1)] * len(pivots)]
    random = generator.mapping(z, labels, truncation_psi=0.7)
    return torch.where(torch.from_numpy(replaced).to(pivots.device)[:, :, None], random, pivots)


def tuned_weights(generator: Generator) -> dict[str, torch.Tensor]:
    """The kernels that tuning moves, by their names in `generator.synthesis`."""
    layers = ((name, getattr(generator.synthesis, name)) for name in generator.synthesis.layer_names)
    return {f"{name}.weight": layer.weight.detach() for name, layer in layers if not layer.spec.to_rgb}


def _start(weight, rank, place):
    # Their product is 0, and so is the change: one factor is 0, the other drawn, from numbers of its own for each
    # layer.
    outputs, inputs = len(weight), weight[0].numel()
    rank = min(rank, outputs, inputs)
    numbers = torch.Generator().manual_seed(place)
    down = torch.randn(rank, inputs, generator=numbers).to(weight.device) / math.sqrt(rank)
    up = torch.zeros(outputs, rank, device=weight.device)
    return up.requires_grad_(True), down.requires_grad_(True)


def _check(target, pivots, steps, rank, batch, numbers):
    if pivots.ndim != 3 or not len(pivots) or len(pivots) != len(target.images):
        shapes = f"pivots {tuple(pivots.shape)} for {len(target.images)} pictures"
        raise InputError(f"pivotal tuning: {shapes}: one each is needed")
    for name, value, least in (("steps", steps, 0), ("rank", rank, 1), ("batch", batch, 1)):
        if type(value) is not int or value < least:
            raise InputError(f"pivotal tuning: {name} {value!r}: a whole number from {least} is needed")
    for name, value in numbers.items():
        if not 0 <= value < math.inf:
            raise InputError(f"pivotal tuning: {name} {value}: a number from 0 is needed")
