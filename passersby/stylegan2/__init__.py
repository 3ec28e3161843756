"""StyleGAN2: the generator of config 2, square and tall.

Discriminator, mapping network, network files and transfer are those of passersby/stylegan3, which trains and reads both
families.
"""

from typing import TypeAlias

from passersby.stylegan2.generator import Generator, GeneratorConfig
from passersby.stylegan3 import schedule

AnyGeneratorConfig: TypeAlias = GeneratorConfig | schedule.GeneratorConfig  # of a generator of either family

__all__ = ["AnyGeneratorConfig", "Generator", "GeneratorConfig"]
