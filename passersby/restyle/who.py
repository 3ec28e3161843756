"""Refinement of a person: one who, a how for each picture and one offset in w show all of a person's pictures.

It is for networks trained by identity pairs (semantically decomposed GANs, Donahue et al. 2018): the first half of z
says who a person is, the second half how the person is seen. The code of picture i is w_i = mapping(who, how_i) +
offset. So the same who and offset with another how is the same person, seen in another way; a code of w+ has no such
parts. The offset holds what no who of the mapping has; a pull keeps it small, so that who explains what it can.
"""

import dataclasses
import math
from typing import NamedTuple

import torch

from passersby.errors import InputError
from passersby.restyle.encoder import pooled
from passersby.restyle.losses import InversionLoss, Target
from passersby.restyle.refinement import adam, ramp
from passersby.stylegan3.generator import Generator, z_of_seeds
from passersby.stylegan3.mapping import MappingNetwork, full_precision, normalize_second_moment, who_size

START_WHOS, START_HOWS = 48, 8  # each who is drawn with each how; more of them cost more than they gain
START_SEED = 0  # the seeds of the starts' z are this number and those after it
START_CHUNK = 8  # images of starts that go through the generator together: the same on every machine
START_SIZE = 32, 16  # starts are compared with pictures at this size at most, by L2: this needs little memory


class PersonCode(NamedTuple):
    """The parts of the codes of a person's N pictures.

    who: [who_size(z_dim)] float32. hows: [N, z_dim - who_size(z_dim)] float32. The mean square of who, and that of
    each how, is 1, as it is for random ones in the mean. offset: [w_dim] float32.
    """

    who: torch.Tensor
    hows: torch.Tensor
    offset: torch.Tensor

    def codes(self, mapping: MappingNetwork, labels: torch.Tensor | None = None) -> torch.Tensor:
        """The codes [N, num_ws, w_dim] float32; labels [N, c_dim] for networks that have labels."""
        return codes_of(mapping, self.who, self.hows, self.offset, labels)


def codes_of(
    mapping: MappingNetwork,
    who: torch.Tensor,
    hows: torch.Tensor,
    offset: torch.Tensor,
    labels: torch.Tensor | None = None,
    truncation_psi: float = 1.0,
) -> torch.Tensor:
    """mapping(who, how) + offset for each of N hows, [N, num_ws, w_dim] float32.

    who [who_size], hows [N, z_dim - who_size], offset [w_dim], labels [N, c_dim] or None. `truncation_psi` pulls what
    the mapping gives, before the offset is added.
    """
    z = torch.cat([who.expand(len(hows), -1), hows], 1)
    return mapping(z, labels, truncation_psi=truncation_psi) + offset


@dataclasses.dataclass(frozen=True, eq=False)
class Starts:
    """W whos, each drawn with H hows: the nearest of them are where a refinement starts, so that it needs no encoder.

    whos: [W, who_size]. hows: [H, z_dim - who_size]. offset: [w_dim], zeros. images: [W, H, 3 * h * w] float32, -1..1,
    of `size` h x w.
    """

    whos: torch.Tensor
    hows: torch.Tensor
    offset: torch.Tensor
    images: torch.Tensor
    size: tuple[int, int]

    @classmethod
    @torch.no_grad()
    def of(cls, generator: Generator, whos: int = START_WHOS, hows: int = START_HOWS) -> "Starts":
        """The starts of a generator, always the same. A network with labels gives them to the hows in turn."""
        device, first = generator.mapping.w_avg.device, who_size(generator.z_dim)
        z = torch.from_numpy(z_of_seeds(range(START_SEED, START_SEED + max(whos, hows)), generator.z_dim))
        z = z.to(device, torch.float32)
        who, how = normalize_second_moment(z[:whos, :first]), normalize_second_moment(z[:hows, first:])
        labels = None
        if generator.c_dim:
            labels = torch.eye(generator.c_dim, device=device)[torch.arange(hows) % generator.c_dim]
        offset = z.new_zeros(generator.mapping.w_dim)
        codes = torch.cat([codes_of(generator.mapping, each, how, offset, labels) for each in who])
        size = min(START_SIZE[0], generator.config.height), min(START_SIZE[1], generator.config.width)
        images = torch.cat([pooled(generator.synthesis(part), *size).float() for part in codes.split(START_CHUNK)])
        return cls(who, how, offset, images.flatten(1).unflatten(0, (whos, hows)), size)

    def nearest(self, images: torch.Tensor) -> PersonCode:
        """The start for a person's N pictures [N, 3, h, w] float32, -1..1, with an offset of 0 and a who of these.

        For each who, every picture takes the how whose image is nearest to it by L2; the who with the least sum over
        the pictures is the start.
        """
        flat = pooled(images, *self.size).flatten(1)
        # [N, W, H]; a picture at a time, because W * H images are many
        distances = torch.stack([(self.images - picture).square().mean(2) for picture in flat])
        least, places = distances.min(2)
        who = int(least.sum(0).argmin())
        return PersonCode(self.whos[who], self.hows[places[:, who]], self.offset)


def refine_person(
    generator: Generator,
    loss: InversionLoss,
    target: Target,
    start: PersonCode,
    steps: int,
    *,
    spread: float,
    labels: torch.Tensor | None = None,
    pull: float = 0.02,
    learning_rate: float = 0.1,
    chunk: int = 8,
) -> PersonCode:
    """Who, hows and offset that show the N pictures of `target`, all of one person, better than those of `start`.

    `steps` steps of Adam lower the mean of `loss.total` over the pictures + `pull` * d, where d is the mean over
    coordinates of (offset / `spread`)^2; `spread` is that of `w_statistics`. The rate rises and falls as in `refine`.
    It is `learning_rate` for coordinates of who and how, `learning_rate` * `spread` for those of the offset. The result
    is the best that the person had, the start included; 0 steps change nothing. Without a finite value it is the start.

    Who and each how are scaled to a mean square of 1 after every step. The mapping divides z by its own size, so a free
    size of who would only shift the weight between who and how: a how that is drawn later would not have the size
    that the found hows have, and a person with a small who would turn into somebody else.

    labels: [N, c_dim], the label of each picture, for networks that have labels. `chunk` pictures go through the
    networks together, so that memory does not grow with N. The networks' weights get no gradients, and all layers
    compute in float32. Raises InputError for an impossible number or shape.
    """
    _check(generator, target, start, steps, spread, labels, pull, learning_rate, chunk)
    code = start
    best, best_value = start, math.inf
    moments = [(torch.zeros_like(part), torch.zeros_like(part)) for part in start]
    rates = learning_rate, learning_rate, learning_rate * spread
    with full_precision(generator.synthesis):
        descent = _Descent(generator, loss, target, labels, pull, spread, chunk)
        for step in range(steps):
            value, gradients = descent.value(code)
            if value < best_value:  # False where the value is nan
                best, best_value = code, value
            who, hows, offset = (
                part - rate * ramp(step / steps) * adam(gradient, *moment, step)
                for part, rate, gradient, moment in zip(code, rates, gradients, moments, strict=True)
            )
            code = PersonCode(normalize_second_moment(who[None])[0], normalize_second_moment(hows), offset)
        if steps and descent.value(code, gradients=False)[0] < best_value:
            best = code
    return PersonCode(*(part.detach().clone() for part in best))


class _Descent(NamedTuple):
    generator: Generator
    loss: InversionLoss
    target: Target
    labels: torch.Tensor | None
    pull: float
    spread: float
    chunk: int

    def value(self, code: PersonCode, gradients: bool = True) -> tuple[float, tuple[torch.Tensor, ...]]:
        """The value to minimise, and its gradients for who, hows and offset."""
        free = PersonCode(*(part.detach().requires_grad_(gradients) for part in code))
        total, sums = 0.0, tuple(torch.zeros_like(part) for part in code)
        pictures = len(self.target.images)
        with torch.set_grad_enabled(gradients):
            for first in range(0, pictures, self.chunk):
                value = self._part(free, slice(first, first + self.chunk)) / pictures
                if first == 0:
                    value = value + self.pull * (free.offset / self.spread).square().mean()
                if gradients:
                    for gradient, part in zip(sums, torch.autograd.grad(value, tuple(free)), strict=True):
                        gradient += part
                total += value.item()
        return total, sums

    def _part(self, free: PersonCode, part: slice) -> torch.Tensor:
        # The sum of the losses of some pictures. Who and hows are scaled here too: gradients then have no part along
        # them, which Adam would turn into a move.
        who = normalize_second_moment(free.who[None])[0]
        labels = None if self.labels is None else self.labels[part]
        hows = normalize_second_moment(free.hows[part])
        codes = codes_of(self.generator.mapping, who, hows, free.offset, labels)
        images = pooled(self.generator.synthesis(codes), *self.target.images.shape[2:])
        return self.loss.total(self.loss.measure(images, self.target.take(part))).sum()


def _check(generator, target, start, steps, spread, labels, pull, learning_rate, chunk):
    pictures, first = len(target.images), who_size(generator.z_dim)
    mapping = generator.mapping
    shapes = tuple(tuple(part.shape) for part in start)
    wanted = (first,), (pictures, generator.z_dim - first), (mapping.w_dim,)
    if shapes != wanted or not pictures:
        raise InputError(
            f"refinement of a person: a start of {shapes} for {pictures} pictures: who, hows and offset of {wanted} "
            "are needed"
        )
    shape = None if labels is None else tuple(labels.shape)
    if shape != ((pictures, mapping.c_dim) if mapping.c_dim else None):
        raise InputError(f"refinement of a person: labels {shape} for {pictures} pictures and {mapping.c_dim} labels")
    for name, value, least in (("steps", steps, 0), ("pull", pull, 0), ("chunk", chunk, 1)):
        if not least <= value < math.inf:
            raise InputError(f"refinement: {name} {value}: a number from {least} is needed")
    for name, value in (("learning rate", learning_rate), ("spread", spread)):
        if not 0 < value < math.inf:
            raise InputError(f"refinement: {name} {value}: a number above 0 is needed")
