"""StyleGAN3: generator, discriminator, their files, and the transfer of one network into another.

Their training is in training/gan; the inversion of images is in restyle/.
"""

import importlib
from typing import TYPE_CHECKING

from passersby.stylegan3.discriminator import Discriminator, DiscriminatorConfig
from passersby.stylegan3.generator import Generator, to_uint8
from passersby.stylegan3.schedule import GeneratorConfig

if TYPE_CHECKING:
    from passersby.stylegan3.checkpoint import LoadedNetwork, load_network, save_network

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

if not TYPE_CHECKING:  # because of `__getattr__` a type checker would accept every name
    # Loaded at their first use: network files may hold a StyleGAN2, whose modules import those of this folder.
    _OF_CHECKPOINT = ("LoadedNetwork", "load_network", "save_network")

    def __getattr__(name):
        if name not in _OF_CHECKPOINT:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module("passersby.stylegan3.checkpoint"), name)
