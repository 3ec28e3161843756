"""StyleGAN3: generator, discriminator, their files, and the transfer of one network into another.

Their training is in training/gan; the inversion of images is in restyle/.
"""

from passersby.stylegan3.checkpoint import LoadedNetwork, load_network, save_network
from passersby.stylegan3.discriminator import Discriminator, DiscriminatorConfig
from passersby.stylegan3.generator import Generator, to_uint8
from passersby.stylegan3.schedule import GeneratorConfig

__all__ = [
    "Discriminator",
    "DiscriminatorConfig",
    "Generator",
    "GeneratorConfig",
    "LoadedNetwork",
    "load_network",
    "save_network",
    "to_uint8",
]
