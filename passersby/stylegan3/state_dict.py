"""Plain state dicts with the reference's names: the networks in them, and the configurations of these networks.

A state dict holds no configuration, but StyleGAN's names and shapes determine nearly all of it. The name of a layer
has its size and channels, the weights give kernels and label sizes, and the low-pass filters give the frequencies.
Four values leave no trace (conv_clamp, num_fp16_res, output_scale, magnitude_ema_beta): for these the defaults of the
reference's training are assumed.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from passersby import stylegan2
from passersby.checkpoints import Tensors, check_plain
from passersby.errors import InputError
from passersby.stylegan3.config_limits import checked
from passersby.stylegan3.discriminator import DiscriminatorConfig
from passersby.stylegan3.foreign_networks import refuse_foreign_tensors
from passersby.stylegan3.schedule import GeneratorConfig, lowpass_filter

STYLEGAN2_MARK = "synthesis.b4.const"  # a tensor that every StyleGAN2 generator has, and no StyleGAN3 generator
_GENERATOR = re.compile(r"(|.*\.)synthesis\.(?:input\.freqs|b4\.const)")
_DISCRIMINATOR = re.compile(r"(|.*\.)b\d+\.out\.weight")
_LAYER = re.compile(r"synthesis\.L(\d{1,2})_(\d{1,5})_(\d{1,5})\.weight")
_STYLEGAN2_BLOCK = re.compile(r"synthesis\.b(\d{1,5})\.conv1\.weight")
_BLOCK = re.compile(r"b(\d{1,5})\.conv0\.weight")
_EPILOGUE = re.compile(r"b(\d{1,5})\.out\.weight")
_AVERAGED, _TRAINING = {"G_ema", "g_ema", "generator_ema"}, {"G", "g", "generator"}
_WAY_OUT = "convert from the .pkl or .safetensors it came from, which carry the configuration"


def find_networks(state: Any) -> dict[str, Tensors]:
    """The networks in a loaded `.pt` by name: always "G_ema"; "G" and "D" if the file has them.

    `state` is a generator's bare state dict, a state dict whose names share a prefix, or a dict of such state dicts.
    The averaged generator is the generator called G_ema, or the only generator. Raises `InputError` if there is no
    StyleGAN2 or StyleGAN3 generator, and if several could be the averaged one.
    """
    flat: Tensors = {}
    _flatten(state, "", 0, flat)
    generators, discriminators = _prefixes(flat, _GENERATOR), _prefixes(flat, _DISCRIMINATOR)
    if not generators:
        refuse_foreign_tensors(flat)
        text = ", ".join(name[:40] for name in list(flat)[:3]) or "none"
        raise InputError(
            f"no StyleGAN3 generator (tensor synthesis.input.freqs) and no StyleGAN2 generator (tensor "
            f"{STYLEGAN2_MARK}) among its tensors: {text}"
        )
    for name, tensor in flat.items():
        if name.startswith((*generators, *discriminators)):
            check_plain(name, tensor)
    names = {prefix: prefix.rstrip(".").rpartition(".")[2] for prefix in generators}
    averaged = [prefix for prefix in generators if names[prefix] in _AVERAGED]
    if len(generators) == 1:
        averaged = generators
    if len(averaged) != 1 or len(discriminators) > 1:
        text = ", ".join(sorted(generators + discriminators))[:100]
        raise InputError(
            f"several networks ({text}), and it is not clear which is the averaged generator: call it G_ema"
        )
    training = [prefix for prefix in generators if names[prefix] in _TRAINING and prefix not in averaged]
    prefixes = generators + discriminators
    networks = {"G_ema": averaged, "G": training[:1], "D": discriminators}
    return {name: _below(flat, prefix[0], prefixes) for name, prefix in networks.items() if prefix}


def _flatten(state: Any, prefix: str, depth: int, flat: Tensors) -> None:
    if not isinstance(state, dict) or depth > 3:
        return
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            flat[f"{prefix}{key}"] = value
        else:
            _flatten(value, f"{prefix}{key}.", depth + 1, flat)


def _prefixes(flat: Tensors, mark: re.Pattern) -> list[str]:
    return [match[1] for match in map(mark.fullmatch, flat) if match]


def _below(flat: Tensors, prefix: str, prefixes: list[str]) -> Tensors:
    # A tensor belongs to the longest prefix that fits its name; the empty prefix "" fits all names.
    longer = tuple(text for text in prefixes if len(text) > len(prefix) and text.startswith(prefix))
    names = [name for name in flat if name.startswith(prefix) and not (longer and name.startswith(longer))]
    return {name[len(prefix) :]: flat[name] for name in names}


def infer_generator_config(tensors: Tensors, width: int | None = None) -> GeneratorConfig:
    """The configuration of a generator's state dict.

    `width` is the width of a tall network; None means a square one. The tensors do not depend on the width, so the
    caller must give it. Raises `InputError` if names, shapes or filters do not fit StyleGAN3's schedule.
    """
    layers = {int(m[1]): (int(m[2]), int(m[3]), m[0]) for m in map(_LAYER.fullmatch, tensors) if m}
    count = len(layers) - 1
    if count < 3 or sorted(layers) != list(range(count + 1)):
        raise InputError(f"{count + 1} layers named synthesis.L<i>_<size>_<channels>: expected 15 of them")
    height, channels = layers[count][0], [layers[i][1] for i in range(count + 1)]
    w_dim = _shape(tensors, "mapping.w_avg", 1)[0]
    c_dim = _shape(tensors, "mapping.embed.weight", 2)[1] if "mapping.embed.weight" in tensors else 0
    first = layers[0][2]

    def build(base: int, limit: int) -> GeneratorConfig:
        return GeneratorConfig(
            height,
            width or height,
            z_dim=_shape(tensors, "mapping.fc0.weight", 2)[1] - (w_dim if c_dim else 0),
            c_dim=c_dim,
            w_dim=w_dim,
            mapping_layers=_count(tensors, "mapping.fc{}.weight"),
            img_channels=channels[-1],
            channel_base=base,
            channel_max=limit,
            conv_kernel=_shape(tensors, first, 4)[3],
            use_radial_filters=len(_shape(tensors, first.replace("weight", "down_filter"))) == 2,
            num_layers=count,
        )

    cutoffs = [build(1, 1).cutoff(i) for i in range(count)]
    bounds = [((n - 0.5) * 2 * fc, (n + 0.5) * 2 * fc) for n, fc in zip(channels, cutoffs, strict=False)]
    names = [layers[i][2].split(".")[1] for i in range(count + 1)]
    config = _with_channels(
        build, channels[:-1], bounds, lambda candidate: [spec.name for spec in candidate.layers()] == names
    )
    _check_filters(config, tensors)
    return config


def infer_stylegan2_config(tensors: Tensors) -> stylegan2.GeneratorConfig:
    """The configuration of a StyleGAN2 generator's state dict, also of a tall one.

    Its constant input says which shape it has. Raises `InputError` if names or shapes do not fit StyleGAN2's schedule.
    """
    heights = sorted(int(m[1]) for m in map(_STYLEGAN2_BLOCK.fullmatch, tensors) if m)
    first = _shape(tensors, STYLEGAN2_MARK, 3)
    if not heights or first[1] != heights[0]:
        raise InputError(f"blocks of heights {heights[:20]}, constant input {first}: not StyleGAN2's")
    channels = [_shape(tensors, f"synthesis.b{height}.conv1.weight", 4)[0] for height in heights]
    w_dim = _shape(tensors, "mapping.w_avg", 1)[0]
    c_dim = _shape(tensors, "mapping.embed.weight", 2)[1] if "mapping.embed.weight" in tensors else 0

    def build(base: int, limit: int) -> stylegan2.GeneratorConfig:
        return stylegan2.GeneratorConfig(
            heights[-1],
            heights[-1] * first[2] // first[1],
            z_dim=_shape(tensors, "mapping.fc0.weight", 2)[1] - (w_dim if c_dim else 0),
            c_dim=c_dim,
            w_dim=w_dim,
            mapping_layers=_count(tensors, "mapping.fc{}.weight"),
            img_channels=_shape(tensors, f"synthesis.b{heights[-1]}.torgb.weight", 4)[0],
            channel_base=base,
            channel_max=limit,
        )

    def fits(candidate: stylegan2.GeneratorConfig) -> bool:
        return candidate.heights == heights and [candidate.channels(height) for height in heights] == channels

    return _with_channels(build, channels, _bases(channels, heights), fits)


def _bases(channels: list[int], heights: list[int]) -> list[tuple[float, float]]:
    # The smallest and largest channel base that give each block its channels: base // height.
    return [(n * height, (n + 1) * height - 1) for n, height in zip(channels, heights, strict=True)]


def infer_discriminator_config(tensors: Tensors) -> DiscriminatorConfig:
    """The configuration of a discriminator's state dict, also of a tall one.

    Raises `InputError` if names or shapes do not fit StyleGAN3's schedule.
    """
    heights = sorted((int(m[1]) for m in map(_BLOCK.fullmatch, tensors) if m), reverse=True)
    last = [int(m[1]) for m in map(_EPILOGUE.fullmatch, tensors) if m]
    if not heights or len(last) != 1:
        raise InputError("its discriminator has no blocks named b<size>: not StyleGAN3's")
    epilogue = f"b{last[0]}"
    channels = [_shape(tensors, f"b{height}.conv0.weight", 4)[1] for height in heights]
    linear = _shape(tensors, f"{epilogue}.fc.weight", 2)
    channels.append(linear[0])
    columns = linear[1] // max(linear[0] * last[0], 1)  # of the epilogue's maps
    embed = _shape(tensors, "mapping.embed.weight", 2) if "mapping.embed.weight" in tensors else None

    def build(base: int, limit: int) -> DiscriminatorConfig:
        return DiscriminatorConfig(
            heights[0],
            columns * heights[0] // max(last[0], 1),
            c_dim=embed[1] if embed else 0,
            img_channels=_shape(tensors, f"b{heights[0]}.fromrgb.weight", 4)[1],
            channel_base=base,
            channel_max=limit,
            cmap_dim=embed[0] if embed else None,
            mapping_layers=_count(tensors, "mapping.fc{}.weight") if embed else 8,
            mbstd_num_channels=_shape(tensors, f"{epilogue}.conv.weight", 4)[1] - channels[-1],
            last_height=None if columns == 4 else last[0],
        )

    heights.append(last[0])

    def fits(candidate: DiscriminatorConfig) -> bool:
        return candidate.heights == heights and [candidate.channels(height) for height in heights] == channels

    return _with_channels(build, channels, _bases(channels, heights), fits)


def _with_channels(build: Callable, channels: list[int], bounds: Sequence[tuple[float, float]], fits: Callable):
    """The configuration `build(channel_base, channel_max)` with these channels.

    Several pairs may give these channels; they all describe the same network. `bounds` holds, for each number of
    channels below the maximum, the smallest and the largest channel base that give it.
    """
    limit = max(channels)
    low = max((bound[0] for bound in bounds), default=1)
    high = min((bound[1] for n, bound in zip(channels, bounds, strict=True) if n < limit), default=math.inf)
    for base in _round_numbers(max(low, 1), high):
        config = checked(build(base, limit))
        if fits(config):
            return config
    raise InputError(f"its layers' sizes and channels {channels[:20]} are not StyleGAN3's schedule: {_WAY_OUT}")


def _round_numbers(low: float, high: float) -> Iterator[int]:
    # Integers in [low, high], the roundest first: a multiple of the next power of two, then of its half, ...
    step = 2 ** math.ceil(math.log2(low))
    while step >= 1:
        number = math.ceil(low / step) * step
        if number <= high:
            yield number
        step //= 2


def _check_filters(config: GeneratorConfig, tensors: Tensors) -> None:
    for spec in config.layers():
        radial = config.use_radial_filters and not spec.critically_sampled
        kernels = {
            "up_filter": lowpass_filter(spec.up_taps, spec.in_cutoff, spec.in_half_width, spec.rate),
            "down_filter": lowpass_filter(spec.down_taps, spec.out_cutoff, spec.out_half_width, spec.rate, radial),
        }
        for kind, kernel in kernels.items():
            tensor = tensors.get(f"synthesis.{spec.name}.{kind}")
            if kernel is None and tensor is None:
                continue
            # float16 files round taps of at most 0.5 by 2.5e-4; other cutoffs change the taps by far more.
            if (
                tensor is None
                or kernel is None
                or tensor.shape != kernel.shape
                or not torch.allclose(tensor.float().cpu(), torch.from_numpy(kernel), rtol=0, atol=1e-3)
            ):
                raise InputError(f"{spec.name}.{kind} is not the reference's filter at these sizes: {_WAY_OUT}")


def _shape(tensors: Tensors, name: str, dimensions: int | None = None) -> tuple[int, ...]:
    shape = tuple(tensors[name].shape) if name in tensors else None
    if shape is None or (dimensions is not None and len(shape) != dimensions):
        problem = "missing" if shape is None else f"of shape {shape}"
        raise InputError(f"its tensor {name} is {problem}: not a StyleGAN state dict, or incomplete")
    return shape


def _count(tensors: Tensors, pattern: str) -> int:
    return next(i for i in range(len(tensors) + 1) if pattern.format(i) not in tensors)
