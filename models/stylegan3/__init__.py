"""StyleGAN3: generator, discriminator, and the files they live in."""

from pathlib import Path

from models.stylegan3.checkpoint import LoadedNetwork, load_network, save_network
from models.stylegan3.discriminator import Discriminator, DiscriminatorConfig
from models.stylegan3.generator import Generator, to_uint8
from models.stylegan3.schedule import GeneratorConfig

# A small network trained by this project on its toy crowd, so that everything can be tried offline.
DEMO_NETWORK = Path(__file__).resolve().parents[1] / "demo" / "toy-crowd-64x32.safetensors"

__all__ = [
    "DEMO_NETWORK",
    "Discriminator",
    "DiscriminatorConfig",
    "Generator",
    "GeneratorConfig",
    "LoadedNetwork",
    "load_network",
    "save_network",
    "to_uint8",
]
