"""Pivotal tuning (Roich et al. 2021, PTI): the generator itself is moved a little, until it can draw one person.

The pivots, the codes of the person's pictures, stay where they are; what changes are the convolutions' kernels, and
those by matrices of low rank (Hu et al. 2021, LoRA), so that what is stored for a person is small.
"""

import math

import torch
from torch.func import functional_call

from models.errors import InputError
from models.restyle.delta import Delta
from models.restyle.losses import InversionLoss, Target
from models.restyle.refinement import ramp
from models.restyle.restyle import pooled
from models.stylegan3.generator import Generator


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
) -> Delta:
    """A delta of `generator` in which `pivots` [n, num_ws, w_dim] show `target`'s n pictures, all of one person.

    `steps` steps of Adam on `loss.total`, each with the next `batch` pictures, in turn. `rank` of the factors is what
    fits: at most the sides of the kernel. Mapping, input, styles (the affine layers), ToRGB, filters and
    magnitude averages are not touched; nor is anything of `generator`, which is only read. The same call gives the
    same delta. Raises InputError for numbers and shapes that cannot be, and when the loss is not finite.
    """
    _check(target, pivots, steps, rank, learning_rate, batch)
    synthesis, pivots = generator.synthesis, pivots.detach()
    weights = tuned_weights(generator)
    factors = {name: _start(weight, rank, place) for place, (name, weight) in enumerate(weights.items())}
    optimizer = torch.optim.Adam([factor for pair in factors.values() for factor in pair])
    for step in range(steps):
        places = [(step * batch + offset) % len(pivots) for offset in range(min(batch, len(pivots)))]
        with torch.enable_grad():
            changed = {name: weights[name] + (up @ down).view_as(weights[name]) for name, (up, down) in factors.items()}
            images = pooled(functional_call(synthesis, changed, (pivots[places],)), *target.images.shape[2:])
            value = loss.total(loss.measure(images, target.take(places))).mean()
            if not math.isfinite(value.item()):
                raise InputError(f"pivotal tuning: the loss is {value.item()} at step {step}: lower the learning rate")
            value.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * ramp(step / steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Delta({name: tuple(factor.detach().half() for factor in pair) for name, pair in factors.items()})


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


def _check(target, pivots, steps, rank, learning_rate, batch):
    if pivots.ndim != 3 or not len(pivots) or len(pivots) != len(target.images):
        shapes = f"pivots {tuple(pivots.shape)} for {len(target.images)} pictures"
        raise InputError(f"pivotal tuning: {shapes}: one each is needed")
    for name, value, least in (("steps", steps, 0), ("rank", rank, 1), ("batch", batch, 1)):
        if type(value) is not int or value < least:
            raise InputError(f"pivotal tuning: {name} {value!r}: a whole number from {least} is needed")
    if not 0 < learning_rate < math.inf:
        raise InputError(f"pivotal tuning: learning rate {learning_rate}: a number above 0 is needed")
