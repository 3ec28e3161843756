"""What pivotal tuning changes in a generator for one person: its making, its few bytes, its use.

A delta is a low-rank matrix for each tuned kernel (Hu et al. 2021, LoRA): kernel + up @ down. It belongs to one
generator, told by the sha256 of its file. Nothing in a file of deltas is ever executed.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping

import safetensors
import safetensors.torch
import torch
from torch import nn

from passersby.errors import InputError
from passersby.stylegan3.generator import Generator

FORMAT_VERSION = 1
METADATA_KEY = "passersby_delta"
_NAME = re.compile(r"(L\d{1,2}_\d{1,5}_\d{1,5}\.(?:affine\.)?weight)\.(up|down)")


@dataclasses.dataclass(frozen=True)
class Delta:
    """`factors`: by the name of a weight in `Generator.synthesis`, up [O, r] and down [r, I * k * k], float16.

    The weight [O, I, k, k] becomes weight + up @ down, in float32.
    """

    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def save_delta(delta: Delta, generator_sha256: str) -> bytes:
    """The bytes of a delta file (safetensors) for the generator whose file has that sha256; the same every time."""
    tensors = {
        f"{name}.{part}": tensor.detach().to("cpu", torch.float16).contiguous()
        for name, factors in delta.factors.items()
        for part, tensor in zip(("up", "down"), factors, strict=True)
    }
    metadata = {"format_version": FORMAT_VERSION, "generator_sha256": generator_sha256}
    return safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def load_delta(content: bytes, generator_sha256: str) -> Delta:
    """The delta in `content`, if it belongs to the generator whose file has that sha256.

    Raises InputError, in one line, for another generator, another version, and for anything else than such a file.
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
    """Inside, `generator.synthesis` is the person's; afterwards, whatever happened, it has its very own weights again.

    The weights are exchanged, not changed: not for a generator that other threads use meanwhile. Raises InputError,
    before anything is exchanged, when the delta does not fit this generator's shapes.
    """
    exchanged: list[tuple[nn.Module, nn.Parameter]] = []
    changed = changed_weights(generator, delta)
    try:
        for name, weight in changed.items():
            module = generator.synthesis.get_submodule(name.removesuffix(".weight"))
            exchanged.append((module, module.weight))
            module.weight = nn.Parameter(weight, requires_grad=False)
        yield generator
    finally:
        for module, weight in exchanged:
            module.weight = weight


@torch.no_grad()
def changed_weights(generator: Generator, delta: Delta) -> dict[str, torch.Tensor]:
    """The person's weights by their names in `generator.synthesis`. Raises InputError where shapes do not fit."""
    weights = dict(generator.synthesis.named_parameters())
    changed = {}
    for name, factors in delta.factors.items():
        if name not in weights:
            raise InputError(f"delta: the generator has no weight {name}: the delta is another network's")
        weight = weights[name]
        up, down = (factor.to(weight.device, torch.float32) for factor in factors)
        if (len(up), down.shape[1]) != (len(weight), weight[0].numel()):
            found = f"{len(up)} x {down.shape[1]}"
            raise InputError(f"delta: {found} values for {name} {tuple(weight.shape)}: the delta is another network's")
        changed[name] = weight + (up @ down).view_as(weight)
    return changed


# ---- from bytes to factors


def _metadata(content: bytes) -> dict:
    # The header that safetensors has in front: 8 bytes of length, then JSON. The library's own reader of metadata takes
    # files alone.
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
