"""ReStyle encoders in files: `save_encoder`, `load_encoder`, `check_pair`.

Two kinds are read: our own `.safetensors`, which carry configuration, average code, the generator's hash and a record,
and the `.pt` of stylegan3-editing (passersby/restyle/published.py). Nothing that a file contains is ever executed.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from passersby.checkpoints import ENCODER, Tensors, check_size, fitted, is_safetensors, named, read_own, save_own
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.restyle.encoder import EncoderConfig, RestyleEncoder
from passersby.restyle.published import read_published
from passersby.stylegan2 import AnyGeneratorConfig
from passersby.stylegan3.config_limits import weight_count
from passersby.stylegan3.generator import Generator
from passersby.stylegan3.schedule import GeneratorConfig
from passersby.weights import former_demo_network

AVERAGE = "average"  # name of the tensor beside the tensors encoder.*
_WAY_OUT = "encoders are .safetensors, or .pt of stylegan3-editing"
Network = TypeVar("Network", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
    """The contents of a file: the encoder in eval mode, without gradients, float32 on the CPU, and facts about it.

    `average` [num_ws, w_dim] float32 is the code that the encoder starts from. `generator` names the generator's file
    and sha256; it is empty if the file does not store them. `decoder` is the generator in a published file. `sha256` is
    the hash of the file. `notes` are lines for the user: assumptions about values that the file does not store.
    """

    encoder: RestyleEncoder
    average: torch.Tensor
    generator: dict[str, str]
    record: dict[str, Any]
    sha256: str
    kind: str  # "passersby" | "stylegan3-editing"
    decoder: Generator | None
    notes: tuple[str, ...]


def save_encoder(
    path: str | os.PathLike,
    encoder: RestyleEncoder,
    average: torch.Tensor,
    *,
    generator: dict[str, str],
    record: dict[str, Any],
) -> None:
    """Write encoder, average code [num_ws, w_dim], the generator's {file, sha256} and `record` (plain JSON data).

    One `.safetensors` file, atomically. Raises InputError for an average of another shape or a file that cannot be
    written.
    """
    config = encoder.config
    if tuple(average.shape) != (config.num_ws, config.w_dim):
        raise InputError(f"average of shape {tuple(average.shape)}: [{config.num_ws}, {config.w_dim}] is needed")
    metadata = {
        "config": dataclasses.asdict(config),
        "generator": generator,
        "record": record,
    }
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    tensors[AVERAGE] = average.float()
    save_own(path, ENCODER, tensors, metadata)


def load_encoder(path: str | os.PathLike) -> LoadedEncoder:
    """Read an encoder of ours or of stylegan3-editing. The contents of the file decide its kind.

    Raises InputError, one line with the path and the problem, for a file that is missing, damaged, hostile or of
    another kind, and for a file whose tensors are not exactly those of such a network.
    """
    path = Path(path)
    with named("encoder", path):
        load = _load_passersby if is_safetensors(path, _WAY_OUT) else _load_published
        return load(path, file_sha256(path))


def check_pair(
    loaded: LoadedEncoder,
    generator_config: AnyGeneratorConfig,
    generator_sha256: str,
    generator: Generator | None = None,
) -> None:
    """Raise InputError unless the encoder belongs to the generator.

    If the encoder's file stores the hash of a generator's file, the hashes must agree. A published encoder stores no
    hash, but its generator: that generator must have the same structure and, if `generator` is given, the same weights.
    """
    config = loaded.encoder.config
    sha256 = loaded.generator.get("sha256")
    if sha256 != generator_sha256 and (former := former_demo_network(sha256 or "")):
        raise InputError(f"the encoder was trained for {former}")
    codes = [(c.num_ws, c.w_dim) for c in (config, generator_config)]
    if codes[0] != codes[1]:
        raise InputError(f"the encoder makes {codes[0]} codes (num_ws, w_dim), the generator takes {codes[1]}")
    if sha256 is not None and sha256 != generator_sha256:
        name = loaded.generator.get("file", "unknown")
        raise InputError(
            f"the encoder was trained for the generator {name} (sha256 {sha256}), not for sha256 {generator_sha256}: "
            "give that one, or train an encoder for this one"
        )
    if sha256 is not None or loaded.decoder is None:
        return
    carried = loaded.decoder.state_dict()
    shapes = {name: tensor.shape for name, tensor in carried.items()}
    with torch.device("meta"):
        expected_shapes = {name: tensor.shape for name, tensor in Generator(generator_config).state_dict().items()}
    if shapes != expected_shapes:
        stored, asked = loaded.decoder.config, generator_config
        sizes = f"{stored.height} x {stored.width}, the one given {asked.height} x {asked.width}"
        raise InputError(f"the encoder carries another generator ({sizes} and other layers): take its own")
    if generator is not None:
        for name, tensor in generator.state_dict().items():
            # float16 files of the same network round weights by 2^-11 of their size.
            if not torch.allclose(tensor.cpu(), carried[name], rtol=2**-10, atol=1e-6):
                raise InputError(f"the encoder carries a generator with other weights ({name}): take its own")


def filled(network: Network, tensors: Tensors, what: str) -> Network:
    """`network` in eval mode without gradients, with all of `tensors`; InputError unless they fit exactly.

    A network on the device "meta" gets memory on the CPU, but only after names and shapes were compared.
    """
    state = network.state_dict()
    tensors = fitted(tensors, state, part=what)
    if any(tensor.is_meta for tensor in state.values()):
        network = network.to_empty(device="cpu")
    network.load_state_dict(tensors, strict=True)
    return network.eval().requires_grad_(False)


def _load_passersby(path: Path, sha256: str) -> LoadedEncoder:
    tensors, metadata = read_own(path, ENCODER)
    values, generator, record = metadata["config"], metadata["generator"], metadata["record"]
    if not all(isinstance(value, str) for value in generator.values()):
        raise InputError("its metadata says of the generator what is no text: the file is damaged")
    fields = {field.name for field in dataclasses.fields(EncoderConfig)}
    if set(values) != fields:
        wrong = sorted(set(values) ^ fields)[0]
        raise InputError(f"its configuration and this version's differ in {wrong[:40]!r}: from another version?")
    encoder = _encoder(EncoderConfig(**values), {k: v for k, v in tensors.items() if k != AVERAGE}, "encoder.")
    average = tensors.get(AVERAGE)
    config = encoder.config
    if average is None or tuple(average.shape) != (config.num_ws, config.w_dim) or not average.is_floating_point():
        raise InputError(f"its average code is missing or not [{config.num_ws}, {config.w_dim}]: the file is damaged")
    if not torch.isfinite(average).all():
        raise InputError("its average code holds values that are no finite numbers")
    return LoadedEncoder(encoder, average.float(), generator, record, sha256, "passersby", None, ())


def _load_published(path: Path, sha256: str) -> LoadedEncoder:
    published = read_published(path)
    encoder = _encoder(published.config, published.tensors, "")
    decoder = None
    if published.decoder_config is not None:
        decoder = _decoder(published.decoder_config, published.decoder_tensors, path.stat().st_size)
    return LoadedEncoder(
        encoder, published.average, {}, published.record, sha256, "stylegan3-editing", decoder, published.notes
    )


def _encoder(config: EncoderConfig, tensors: Tensors, prefix: str) -> RestyleEncoder:
    with torch.device("meta"):  # no initial weights are drawn: loading must not change what a seed gives
        network = RestyleEncoder(config)
    return filled(network, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, "encoder")


def _decoder(config: GeneratorConfig, tensors: Tensors, file_size: int) -> Generator:
    check_size(2 * weight_count(config), file_size)
    with torch.random.fork_rng(devices=[]):  # not on "meta", because its filters are real numbers
        network = Generator(config)
    return filled(network, tensors, "decoder")
