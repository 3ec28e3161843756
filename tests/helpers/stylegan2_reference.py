"""What the public implementations of StyleGAN2 computed with small networks, and the weights and draws of it.

tests/data/stylegan2.npz was made on a CPU with torch 2.14 by NVlabs/stylegan3 at commit c233a91: square networks by
training/networks_stylegan2.py, tall ones by the file of that name in stylegan-human/StyleGAN-Human (commit a6a162a,
training_scripts/sg3), the iteration by training/loss.py with the phases and optimisers of training/training_loop.py.
Weights, codes and draws are those of this module.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from passersby.stylegan2 import Generator, GeneratorConfig
from passersby.stylegan3 import Discriminator, DiscriminatorConfig

REFERENCE = Path(__file__).parents[1] / "data/stylegan2.npz"
SIZES = {"square": (32, 32), "tall": (32, 16)}
CHANNELS = {"channel_base": 128, "channel_max": 6}


def generator(kind: str, c_dim: int = 0, **options) -> Generator:
    """The reference's generator: "square" or "tall"; in eval mode, without gradients."""
    values = {"z_dim": 16, "w_dim": 12, "c_dim": c_dim, **CHANNELS} | options
    return filled(Generator(GeneratorConfig(*SIZES[kind], **values))).eval().requires_grad_(False)


def discriminator(kind: str, c_dim: int = 0, **options) -> Discriminator:
    """The reference's discriminator; in eval mode, without gradients."""
    last = 4 if kind == "tall" else None
    network = Discriminator(DiscriminatorConfig(*SIZES[kind], c_dim=c_dim, last_height=last, **CHANNELS, **options))
    return filled(network).eval().requires_grad_(False)


def filled(network: nn.Module) -> nn.Module:
    """The network with weights that depend on their names alone."""
    state = network.state_dict()
    names = [name for name in state if not name.endswith("resample_filter")]
    network.load_state_dict(state | {name: values_of(name, tuple(state[name].shape)) for name in names})
    return network


def values_of(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The values of the tensor of this name, float32."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.rpartition(".")[2]
    if name.startswith("mapping.fc"):  # stored as the reference stores them: divided by the rate of the mapping
        values = values * (100 if last == "weight" else 10)
    elif name.endswith("affine.bias"):
        values = 1 + 0.1 * values
    elif last in ("bias", "noise_strength", "w_avg"):
        values = 0.2 * values
    return torch.from_numpy(np.asarray(values, np.float32))


def codes(count: int) -> torch.Tensor:
    """z of the seeds 0 to count - 1, [count, 16] float32."""
    return torch.from_numpy(np.concatenate([np.random.RandomState(seed).randn(1, 16) for seed in range(count)])).float()


def drawn(number: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The number-th draw of the recorded iteration, counted from 1."""
    values = np.random.RandomState(1000 + number).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))
