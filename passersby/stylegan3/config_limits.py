"""Checks of configurations from files: keys, types and sizes, before a network is built from them."""

import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

from passersby import stylegan2
from passersby.errors import InputError
from passersby.stylegan3.discriminator import DiscriminatorConfig
from passersby.stylegan3.generator import Generator
from passersby.stylegan3.schedule import GeneratorConfig

Config = TypeVar("Config", GeneratorConfig, stylegan2.GeneratorConfig, DiscriminatorConfig)
AnyConfig: typing.TypeAlias = stylegan2.AnyGeneratorConfig | DiscriminatorConfig

_ARCHITECTURE = (
    "architecture"  # the key that tells a StyleGAN2 generator in a file of ours; StyleGAN3's has no such key
)
_STYLEGAN2 = "stylegan2"
_ADDED = {"last_height"}  # names that older files lack, and that a file has only where they are not the default

# The limits are far beyond any network in use. They are small enough that a hostile file cannot fill the memory before
# its tensors are compared with its configuration.
_LIMITS = {
    "height": (4, 4096),
    "width": (4, 4096),
    "z_dim": (1, 8192),
    "c_dim": (0, 100_000),
    "w_dim": (1, 8192),
    "mapping_layers": (1, 64),
    "img_channels": (1, 64),
    "channel_base": (1, 2**21),
    "channel_max": (1, 8192),
    "conv_kernel": (1, 3),
    "num_layers": (3, 64),
    "num_critical": (0, 63),
    "first_cutoff": (0.01, 4096.0),
    "first_stopband": (0.01, 4096.0),
    "last_stopband_rel": (0.1, 16.0),
    "margin_size": (0, 128),
    "output_scale": (1e-6, 1e6),
    "filter_size": (1, 32),
    "lrelu_upsampling": (1, 8),
    "conv_clamp": (1e-3, 1e9),
    "num_fp16_res": (0, 32),
    "magnitude_ema_beta": (0.0, 1.0),
    "cmap_dim": (1, 8192),
    "mbstd_group_size": (1, 4096),
    "mbstd_num_channels": (0, 64),
    "last_height": (4, 4096),
}


def generator_class(config: stylegan2.AnyGeneratorConfig) -> type[Generator]:
    """The class of the generators with such a configuration."""
    return stylegan2.Generator if isinstance(config, stylegan2.GeneratorConfig) else Generator


def as_mapping(config: AnyConfig) -> dict[str, Any]:
    """The configuration as a file of ours has it, plain JSON; `config_from_mapping` reads it back."""
    values = dataclasses.asdict(config)
    default = {field.name: field.default for field in dataclasses.fields(config)}
    values = {name: value for name, value in values.items() if name not in _ADDED or value != default[name]}
    return {_ARCHITECTURE: _STYLEGAN2} | values if isinstance(config, stylegan2.GeneratorConfig) else values


def generator_config_from_mapping(values: Any) -> stylegan2.AnyGeneratorConfig:
    """The configuration of a generator of either family from parsed JSON; errors as of `config_from_mapping`."""
    if isinstance(values, dict) and values.get(_ARCHITECTURE) == _STYLEGAN2:
        rest = {name: value for name, value in values.items() if name != _ARCHITECTURE}
        return config_from_mapping(stylegan2.GeneratorConfig, rest)
    return config_from_mapping(GeneratorConfig, values)


def config_from_mapping(kind: type[Config], values: Any) -> Config:
    """The configuration of class `kind` from parsed JSON.

    Raises `InputError`, whose message does not name the file, for wrong keys, types and values.
    """
    if not isinstance(values, dict):
        raise InputError(f"the {kind.__name__} is a {type(values).__name__}, not a table of names and values")
    names = {field.name for field in dataclasses.fields(kind)}
    unknown, missing = sorted(set(values) - names), sorted(names - set(values) - _ADDED)
    if unknown or missing:
        problem = f"unknown {unknown}" if unknown else f"without {missing}"
        raise InputError(f"the {kind.__name__} is from another version or damaged: {problem[:120]}")
    for name, value in values.items():
        _check_value(kind, name, value)
    return checked(kind(**values))


def config_from_keywords(build: typing.Callable[..., Config], keywords: dict[str, Any]) -> Config:
    """`build(**keywords)` with keywords from a file; raises `InputError` on keywords that make no sense."""
    try:
        return checked(build(**keywords))
    except (TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"its constructor keywords make no sense ({str(error)[:100]})") from error


def checked(config: Config) -> Config:
    """Return `config` if every value has its type and is within its limits; else raise `InputError`."""
    for field in dataclasses.fields(config):
        _check_value(type(config), field.name, getattr(config, field.name))
    if isinstance(config, GeneratorConfig) and config.num_critical >= config.num_layers:
        raise InputError(f"num_critical={config.num_critical} must be below num_layers={config.num_layers}")
    return config


def weight_count(config: AnyConfig) -> int:
    """Number of elements in the large weights of such a network: a little less than in all its tensors."""
    if isinstance(config, GeneratorConfig):
        width, layers = config.w_dim, config.layers()
        mapping = _mapping_weights(config.z_dim, config.c_dim, width, config.mapping_layers)
        convolutions = sum(spec.in_channels * (spec.out_channels * spec.kernel**2 + width) for spec in layers)
        return mapping + convolutions + layers[0].in_channels ** 2
    if isinstance(config, stylegan2.GeneratorConfig):
        width, channels = config.w_dim, [config.channels(height) for height in config.heights]
        mapping = _mapping_weights(config.z_dim, config.c_dim, width, config.mapping_layers)
        layers = [(channels[0], channels[0])]
        layers += [pair for a, b in zip(channels, channels[1:], strict=False) for pair in ((a, b), (b, b))]
        return mapping + sum(inputs * (outputs * 9 + width) for inputs, outputs in layers)
    channels = [config.channels(height) for height in config.heights]
    last = channels[-1]
    mapping = _mapping_weights(0, config.c_dim, config.cmap_dim or last, config.mapping_layers)
    blocks = sum(a * (a * 9 + b * 10) for a, b in zip(channels, channels[1:], strict=False))
    return (mapping if config.c_dim else 0) + blocks + last**2 * (9 + math.prod(config.last_size))


def _mapping_weights(z_dim: int, c_dim: int, width: int, layers: int) -> int:
    first = z_dim + (width if c_dim else 0)
    return width * (c_dim + first + width * (layers - 1))


def _check_value(kind: type, name: str, value: Any) -> None:
    expected = typing.get_type_hints(kind)[name]
    options = typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)
    if value is None and types.NoneType in options:
        return
    if bool in options or isinstance(value, bool):
        if bool in options and isinstance(value, bool):
            return
        raise InputError(f"{kind.__name__}: {name} has the wrong type, {type(value).__name__}")
    numeric = (int, float) if float in options else (int,)
    low, high = _LIMITS[name]
    if not isinstance(value, numeric) or not low <= value <= high:  # nan fails the comparison, too
        text = str(value)[:40] if isinstance(value, (int, float)) else f"a {type(value).__name__}"
        raise InputError(f"{kind.__name__}: {name}={text} is outside {low} to {high}")
