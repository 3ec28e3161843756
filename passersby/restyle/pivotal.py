"""Pivotal tuning (Roich et al. 2021, PTI): it changes the generator a little, until it can draw one person.

The pivots, which are the codes of the person's pictures, do not change. Only the convolutions' kernels change, by
matrices of low rank (Hu et al. 2021, LoRA), so that the file of a person is small. Tuning trains these matrices
directly: full kernels that are tuned and then reduced to that rank draw the person worse than the original generator.
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.func import functional_call

from passersby.devices import send
from passersby.errors import InputError
from passersby.restyle.encoder import pooled
from passersby.restyle.losses import InversionLoss, Target
from passersby.restyle.refinement import ramp
from passersby.stylegan3.generator import Generator
from passersby.stylegan3.mapping import full_precision

# ---- Deltas: the changes of a generator for one person, as files and in use.
#
# A delta is a low-rank matrix for each tuned kernel (Hu et al. 2021, LoRA): kernel + up @ down. It belongs to one
# generator, which it names by the sha256 of its file. Nothing in a file of deltas is ever executed.

FORMAT_VERSION = 1
METADATA_KEY = "passersby_delta"
_LAYER = r"(?:L\d{1,2}_\d{1,5}_\d{1,5}|b\d{1,5}\.conv[01])"  # of a StyleGAN3, of a StyleGAN2
_NAME = re.compile(rf"({_LAYER}\.(?:affine\.)?weight)\.(up|down)")


@dataclasses.dataclass(frozen=True)
class Delta:
    """The change of a generator's weights for one person.

    `factors`: name of a weight in `Generator.synthesis` -> up [O, r] and down [r, I * k * k], float16. The weight
    [O, I, k, k] becomes weight + up @ down, in float32.
    """

    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def save_delta(delta: Delta, generator_sha256: str) -> bytes:
    """The bytes of a delta file (safetensors) for the generator whose file has that sha256; equal for equal deltas."""
    tensors = {
        f"{name}.{part}": tensor.detach().to("cpu", torch.float16).contiguous()
        for name, factors in delta.factors.items()
        for part, tensor in zip(("up", "down"), factors, strict=True)
    }
    metadata = {"format_version": FORMAT_VERSION, "generator_sha256": generator_sha256}
    return safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def load_delta(content: bytes, generator_sha256: str) -> Delta:
    """The delta in `content`, if it belongs to the generator whose file has that sha256.

    Raises InputError, in one line, for another generator, another version, and for a file that is no delta.
    """
    try:
        metadata = _metadata(content)
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"delta: no such file, or damaged ({_one_line(error)}): invert the pictures again") from error
    if metadata.get("format_version") != FORMAT_VERSION:
        version = _one_line(metadata.get("format_version"))
        raise InputError(
            f"delta: format version {version}, this program reads {FORMAT_VERSION}: invert the pictures again"
        )
    if metadata.get("generator_sha256") != generator_sha256:
        made_for = _one_line(metadata.get("generator_sha256"))
        raise InputError(
            f"delta: made for the generator with sha256 {made_for}, not for {generator_sha256}: take that generator, "
            "or invert the pictures with this one"
        )
    return Delta(_factors(tensors))


@contextlib.contextmanager
def apply_delta(generator: Generator, delta: Delta) -> Iterator[Generator]:
    """Inside the context `generator.synthesis` has the person's weights; afterwards it has its own weights again.

    The context exchanges the weight tensors and restores them even after an exception. Other threads must not use the
    generator meanwhile. Raises InputError, before it exchanges anything, if the delta does not fit the generator's
    shapes.
    """
    originals: list[tuple[nn.Module, nn.Parameter]] = []
    weights = changed_weights(generator, delta)
    try:
        for name, weight in weights.items():
            module = generator.synthesis.get_submodule(name.removesuffix(".weight"))
            originals.append((module, module.get_parameter("weight")))
            module.weight = nn.Parameter(weight, requires_grad=False)
        yield generator
    finally:
        for module, weight in originals:
            module.weight = weight


@torch.no_grad()
def changed_weights(generator: Generator, delta: Delta) -> dict[str, torch.Tensor]:
    """The person's weights by their names in `generator.synthesis`. Raises InputError if shapes do not fit."""
    weights = dict(generator.synthesis.named_parameters())
    changed = {}
    for name, factors in delta.factors.items():
        if name not in weights:
            raise InputError(f"delta: the generator has no weight {name}: the delta is another network's")
        weight = weights[name]
        up, down = (factor.to(weight.device, torch.float32) for factor in factors)
        if (len(up), down.shape[1]) != (len(weight), weight[0].numel()):
            size = f"{len(up)} x {down.shape[1]}"
            raise InputError(f"delta: {size} values for {name} {tuple(weight.shape)}: the delta is another network's")
        changed[name] = weight + (up @ down).view_as(weight)
    return changed


# ---- From bytes to factors.


def _metadata(content: bytes) -> dict:
    # A safetensors file starts with 8 bytes of length and a JSON header. The library reads metadata only from files.
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= len(content) - 8:
        raise InputError("delta: no such file, or damaged (its header is cut off): invert the pictures again")
    metadata = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][METADATA_KEY])
    if not isinstance(metadata, dict):
        raise InputError("delta: no such file, or damaged (its record is no record): invert the pictures again")
    return metadata


def _factors(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in sorted(tensors.items()):
        match = _NAME.fullmatch(key)
        if match is None:
            raise InputError(f"delta: {_one_line(key)} is no part of a delta: damaged, or another program's file")
        if tensor.dtype != torch.float16 or tensor.ndim != 2 or not tensor.numel():
            raise InputError(f"delta: {key} is {tuple(tensor.shape)} {tensor.dtype}: a float16 matrix is needed")
        if not torch.isfinite(tensor).all():
            raise InputError(f"delta: {key} holds infinite or undefined values: invert the pictures again")
        parts.setdefault(match[1], {})[match[2]] = tensor
    for name, pair in parts.items():
        if len(pair) != 2 or pair["up"].shape[1] != len(pair["down"]):
            raise InputError(f"delta: the factors of {name} do not fit each other: damaged: invert the pictures again")
    return {name: (pair["up"], pair["down"]) for name, pair in parts.items()}


def _one_line(value) -> str:
    return " ".join(str(value).split())[:80]


# ---- Tuning.

VARIANTS = 2  # variants of pivots in a step, beside the pictures


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
    keep_precision: bool = False,
) -> Delta:
    """A delta of `generator` with which `pivots` [n, num_ws, w_dim] show `target`'s n pictures, all of one person.

    Each of the `steps` steps of Adam takes the next `batch` pictures, in turn, and lowers the mean `loss.total`. The
    loss also contains `likeness` * (1 - cosine), with the cosine between the identity features of two of the pictures
    and of variants of their pivots. Half of the layers of a variant come from random codes. Without this part the
    images of the pivots improve, but images mixed from them do not become more like the person. A loss without an
    identity network omits the part. Networks that are part of the loss cannot judge the result.

    The factors have rank `rank`, or less where a side of the kernel is smaller. Tuning does not change mapping, input,
    styles (the affine layers), ToRGB, filters and magnitude averages, and it only reads `generator`. Meanwhile the
    generator computes in float32, because in float16 small gradients become 0. `keep_precision=True` keeps its layers'
    number formats, as runs of recipe 1 did. The same call gives the same delta. Raises InputError for impossible
    numbers and shapes, and if the loss is not finite.
    """
    _check(target, pivots, steps, rank, batch, {"learning rate": learning_rate, "likeness": likeness})
    synthesis, pivots, size = generator.synthesis, pivots.detach(), target.images.shape[2:]
    identity = loss.identity
    weights = tuned_weights(generator)
    factors = {name: _start(weight, rank, index) for index, (name, weight) in enumerate(weights.items())}
    optimizer = torch.optim.Adam([factor for pair in factors.values() for factor in pair])
    precision = contextlib.nullcontext if keep_precision else functools.partial(full_precision, synthesis)
    order = torch.arange(steps)[:, None] * batch + torch.arange(min(batch, len(pivots)))
    order = send(order % len(pivots), pivots.device)  # [steps, pictures of a step]
    losses: list[torch.Tensor] = []
    for step, indices in enumerate(order):
        with torch.enable_grad(), precision():
            changed = {name: weights[name] + (up @ down).view_as(weights[name]) for name, (up, down) in factors.items()}
            images = pooled(functional_call(synthesis, changed, (pivots[indices],)), *size)
            value = loss.total(loss.measure(images, target.take(indices))).mean()
            if identity is not None and likeness > 0:
                mixed = variants(generator, pivots[indices[:VARIANTS]], step)
                images = pooled(functional_call(synthesis, changed, (mixed,)), *size)
                cosines = (identity(images) * target.take(indices[:VARIANTS]).identity).sum(1)
                value = value + likeness * (1 - cosines).mean()
            losses.append(value.detach())
            if not value.is_cuda:
                _stop_if_diverged(losses[-1:], step)
            value.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * ramp(step / steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _stop_if_diverged(losses)  # a GPU's host would wait in every step for its loss
    return Delta({name: (up.detach().half(), down.detach().half()) for name, (up, down) in factors.items()})


def _stop_if_diverged(losses: list[torch.Tensor], first: int = 0) -> None:
    for step, loss in enumerate(torch.stack(losses).cpu().tolist() if losses else [], first):
        if not math.isfinite(loss):
            raise InputError(f"pivotal tuning: the loss is {loss} at step {step}: lower the learning rate")


@torch.no_grad()
def variants(generator: Generator, pivots: torch.Tensor, seed: int) -> torch.Tensor:
    """Codes like `pivots` [n, num_ws, w_dim], but up to half of the layers of each, adjacent ones, are a random w's.

    The w's are truncated at 0.7, as in generation. Successive seeds take the labels of a conditional network
    in turn.
    """
    numbers, layers = np.random.RandomState(seed), generator.num_ws
    z = send(torch.from_numpy(numbers.randn(len(pivots), generator.z_dim)).to(torch.float32), pivots.device)
    first = numbers.randint(layers, size=(len(pivots), 1))
    is_random = (np.arange(layers) >= first) & (np.arange(layers) < first + layers // 2)  # [n, num_ws]
    label = seed % max(generator.c_dim, 1)
    labels = torch.eye(max(generator.c_dim, 1), device=pivots.device)[label].repeat(len(pivots), 1)
    random = generator.mapping(z, labels, truncation_psi=0.7)
    return torch.where(send(torch.from_numpy(is_random), pivots.device)[:, :, None], random, pivots)


def tuned_weights(generator: Generator) -> dict[str, torch.Tensor]:
    """The kernels that tuning changes, by their names in `generator.synthesis`."""
    synthesis = generator.synthesis
    return {name: synthesis.get_parameter(name).detach() for name in synthesis.kernel_names}


def _start(weight, rank, seed):
    # One factor is 0, so the first change is 0. The other factor is random, with its own seed for each layer.
    outputs, inputs = len(weight), weight[0].numel()
    rank = min(rank, outputs, inputs)
    numbers = torch.Generator().manual_seed(seed)
    down = send(torch.randn(rank, inputs, generator=numbers), weight.device) / math.sqrt(rank)
    up = torch.zeros(outputs, rank, device=weight.device)
    return up.requires_grad_(True), down.requires_grad_(True)


def _check(target, pivots, steps, rank, batch, numbers):
    if pivots.ndim != 3 or not len(pivots) or len(pivots) != len(target.images):
        shapes = f"pivots {tuple(pivots.shape)} for {len(target.images)} pictures"
        raise InputError(f"pivotal tuning: {shapes}: give one for each")
    for name, value, least in (("steps", steps, 0), ("rank", rank, 1), ("batch", batch, 1)):
        if type(value) is not int or value < least:
            raise InputError(f"pivotal tuning: {name} {value!r}: a whole number from {least} is needed")
    for name, value in numbers.items():
        if not 0 <= value < math.inf:
            raise InputError(f"pivotal tuning: {name} {value}: a number from 0 is needed")
