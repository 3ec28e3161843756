"""Network files: `load_network` reads them, `save_network` writes them.

Three kinds are read (`checkpoint_formats.py`), of StyleGAN2 and StyleGAN3: the reference's pickles, our own
`.safetensors`, which carries its configuration and a record of its making, and plain `.pt` state dicts with the
reference's names. Nothing that a file contains is ever executed, and no network is built that is larger than the file
it comes from.
"""

import contextlib
import dataclasses
import hashlib
import io
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import nn

from passersby import stylegan2, weights
from passersby.checkpoints import GENERATOR, Tensors, check_size, file_kind, fitted, named, save_own
from passersby.errors import InputError
from passersby.files import write_atomically
from passersby.stylegan3.checkpoint_formats import READERS, Contents
from passersby.stylegan3.config_limits import as_mapping, generator_class, weight_count
from passersby.stylegan3.discriminator import Discriminator
from passersby.stylegan3.generator import Generator
from passersby.stylegan3.mapping import who_size


@dataclasses.dataclass
class LoadedNetwork:
    """What a network file holds.

    `generator` is the averaged one (G_ema), in eval mode, without gradients; `training_generator` (G) and
    `discriminator` (D), where the file has them, are ready for training. All float32, on the CPU. `record`
    says what is known about the training, with "trained_on". `sha256` is the hash of the file.
    """

    generator: Generator
    training_generator: Generator | None
    discriminator: Discriminator | None
    record: dict[str, Any]
    format: str  # "pickle" | "safetensors" | "state_dict"
    sha256: str

    @property
    def has_who(self) -> bool:
        """Whether the record says that the first half of z is who a person is, the second half how it is seen."""
        return self.record.get("z") == z_halves(self.generator.z_dim)

    @property
    def cameras(self) -> tuple[int, ...]:
        """The cameras that the generator has labels for, in the order of its labels, as the record says; () if none."""
        trained_on = self.record.get("trained_on")
        labels = trained_on.get("labels") if isinstance(trained_on, dict) else None
        cameras = labels.get("cameras") if isinstance(labels, dict) else None
        if not isinstance(cameras, list) or not all(type(camera) is int for camera in cameras):
            return ()
        return tuple(cameras) if len(cameras) == len(set(cameras)) == self.generator.c_dim else ()


def z_halves(z_dim: int) -> dict[str, list[int]]:
    """What the record of a network trained by identity pairs says of z: its first half is who, its second half how."""
    return {"who": [0, who_size(z_dim)], "how": [who_size(z_dim), z_dim]}


def load_network(path: str | os.PathLike, width: int | None = None) -> LoadedNetwork:
    """Read the networks of a reference pickle, a `.safetensors` of ours or a plain `.pt` state dict.

    The contents of the file, not its name, decide its kind. Only a tall network in a plain state dict needs `width`
    [pixels], because such a file does not store it. Raises `InputError`, one line with the path and the problem, for a
    file that is missing, damaged, hostile or of another kind.
    """
    path = Path(path)
    with _contents(path, width) as (contents, kind, data):
        return _assemble(contents, kind, hashlib.sha256(data).hexdigest(), len(data))


def load_config(path: str | os.PathLike, width: int | None = None) -> stylegan2.AnyGeneratorConfig:
    """The configuration of a file's generator, without building the network; arguments and errors of `load_network`."""
    with _contents(Path(path), width) as (contents, _, _):
        return contents.generator


@contextlib.contextmanager
def _contents(path: Path, width: int | None) -> Iterator[tuple[Contents, str, mmap.mmap]]:
    """What a file holds, its kind, and its bytes; the errors of `load_network`."""
    with named("network", path), path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise InputError("the file is empty: fetch it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            stream = cast(BinaryIO, data)  # a memory map is read and sought like a file
            kind = file_kind(stream, ".pkl (StyleGAN2, StyleGAN3), .safetensors and .pt are read", pickles=True)
            contents = READERS[kind](stream, path, width)
            if width is not None and width != contents.generator.width:
                size = f"{contents.generator.height} x {contents.generator.width}"
                raise InputError(f"width {width} was asked for, but the file says that the network is {size}")
            yield contents, kind, data


def load_generator(file: str | os.PathLike = weights.DEMO_NETWORK, device: str = "cpu") -> Generator:
    """The generator of a network file: a reference .pkl, a .safetensors of ours or a .pt; by default the demo network.

    Raises InputError for a file that is no such network. `passersby.stylegan3.load_network` gives everything in a file.

    >>> import passersby
    >>> generator = passersby.load_generator()
    >>> people = generator.images([0, 1, 2], truncation_psi=0.7)
    >>> people.shape, people.dtype
    ((3, 64, 32, 3), dtype('uint8'))
    >>> variants = generator.images([0, 0], others=[7, 8], layers=range(4), truncation_psi=0.7)
    """
    return load_network(file).generator.to(device)


def save_network(
    path: str | os.PathLike,
    generator: Generator,
    *,
    discriminator: Discriminator | None = None,
    training_generator: Generator | None = None,
    record: dict[str, Any],
    half: bool = False,
) -> None:
    """Write networks, configurations and `record` (plain JSON data) as one `.safetensors` file, atomically.

    `half` stores weight matrices and kernels as float16, half the bytes at a relative error of 2^-11; biases,
    filters, frequencies and averages stay float32. Raises `InputError` when the file cannot be written.
    """
    networks: dict[str, nn.Module | None] = {"G_ema": generator, "G": training_generator, "D": discriminator}
    tensors = {
        f"{name}.{key}": tensor
        for name, network in networks.items()
        if network is not None
        for key, tensor in stored_tensors(network, half).items()
    }
    if training_generator is not None and training_generator.config != generator.config:
        raise InputError("the training generator and its average have different configurations")
    metadata = {
        "generator": as_mapping(generator.config),
        "discriminator": None if discriminator is None else as_mapping(discriminator.config),
        "record": record,
        "half": half,
    }
    save_own(path, GENERATOR, tensors, metadata)


def save_state_dict(path: str | os.PathLike, generator: Generator, half: bool = False) -> None:
    """Write the generator alone as a plain `.pt` state dict with the reference's names, atomically.

    Other programs load the file with `strict=True`; it holds neither configuration nor record. `half` and errors
    as for `save_network`.
    """
    buffer = io.BytesIO()
    torch.save(stored_tensors(generator, half), buffer)
    write_atomically(path, buffer.getvalue())


def stored_tensors(network: nn.Module, half: bool) -> Tensors:
    """The network's state dict as it goes into a file, contiguous on the CPU; `half`: see `save_network`."""
    matrices = {name for name, parameter in network.named_parameters() if parameter.ndim >= 2}
    stored = {}
    for name, tensor in network.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        fits = tensor.abs().max() < torch.finfo(torch.float16).max if tensor.numel() else False
        stored[name] = tensor.half() if half and fits and name in matrices else tensor
    return stored


# ---- From tensors to networks.


def _assemble(contents: Contents, kind: str, sha256: str, file_size: int) -> LoadedNetwork:
    networks = contents.networks
    family = generator_class(contents.generator)
    generator = _build(family, contents.generator, "G_ema", networks["G_ema"], file_size)
    generator.eval().requires_grad_(False)
    training = discriminator = None
    if "G" in networks:
        training = _build(family, contents.generator, "G", networks["G"], file_size)
    if contents.discriminator is not None:
        sizes = [(c.height, c.width) for c in (contents.generator, contents.discriminator)]
        if sizes[0] != sizes[1]:
            raise InputError(f"its generator is for size {sizes[0]}, its discriminator for {sizes[1]}")
        discriminator = _build(Discriminator, contents.discriminator, "D", networks["D"], file_size)
    return LoadedNetwork(generator, training, discriminator, contents.record, kind, sha256)


def _build(network_class, config, name: str, tensors: Tensors, file_size: int):
    # A tensor can pretend to be larger than its file (strides of 0), and so can a configuration: both are
    # compared with the file before anything of the announced size is allocated.
    try:
        check_size(max(sum(tensor.nbytes for tensor in tensors.values()), 2 * weight_count(config)), file_size)
        with _undisturbed_random_numbers():
            network = network_class(config)
    except (ArithmeticError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: no such network can be built ({str(error)[:100]})") from error
    network.load_state_dict(fitted(tensors, network.state_dict(), part=name), strict=True)
    return network


@contextlib.contextmanager
def _undisturbed_random_numbers() -> Iterator[None]:
    # Constructing a network draws its initial weights: loading one must not change what a seed gives.
    with torch.random.fork_rng(devices=[]):
        yield
