"""Reference arrays of a small StyleGAN3-R (64 x 64) with random weights."""

import json

import numpy as np
import pytest
import torch

from passersby.stylegan3 import Discriminator, Generator
from passersby.stylegan3.discriminator import reference_discriminator_config
from passersby.stylegan3.generator import reference_generator_config


class Oracle:
    """Networks with the reference's weights, and what the reference computed with them."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.arrays = np.load(folder / "reference.npz")
        self.folder = folder

    def state(self, name):
        return {k: torch.from_numpy(v) for k, v in np.load(self.folder / f"state_{name}.npz").items()}

    def tensor(self, name):
        return torch.from_numpy(self.arrays[name])

    def generator(self, state="G_ema"):
        network = Generator(reference_generator_config(**self.config["G_init_kwargs"]))
        network.load_state_dict(self.state(state), strict=True)
        return network.eval().requires_grad_(False)

    def discriminator(self):
        network = Discriminator(reference_discriminator_config(**self.config["D_init_kwargs"]))
        network.load_state_dict(self.state("D"), strict=True)
        return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def oracle(shared_dir):
    return Oracle(shared_dir / "oracles" / "stylegan3-r64")
