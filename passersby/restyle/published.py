"""Read checkpoints of stylegan3-editing, which publishes ReStyle-pSp on StyleGAN3, without building networks.

Such a `.pt` is a dict: `state_dict` with `encoder.*` and `decoder.*`, `latent_avg`, and `opts`, the options of its
training, which contain paths. Nothing in a file is ever executed.
"""

import argparse
import dataclasses
import re
import types
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from passersby.checkpoints import StandIn, Tensors, check_plain, only_tensors, read_state
from passersby.errors import InputError
from passersby.restyle.encoder import BLOCKS, INPUT_CHANNELS, EncoderConfig
from passersby.stylegan3.schedule import GeneratorConfig
from passersby.stylegan3.state_dict import find_networks, infer_generator_config

ENCODER_TYPE = "ResNetBackboneEncoder"  # the tool's name of the only encoder that this module reads
BASE_SIZE = 16  # the tool's four convolutions halve features of this size to 1 x 1; its input is 256 x 256

_HEAD = re.compile(r"styles\.(\d{1,3})\.(.+)")


@dataclasses.dataclass(frozen=True)
class Published:
    """The contents of a file; `tensors` have RestyleEncoder's names, `decoder_tensors` Generator's names."""

    config: EncoderConfig
    tensors: Tensors
    average: torch.Tensor  # [num_ws, w_dim] float32
    decoder_config: GeneratorConfig | None
    decoder_tensors: Tensors
    record: dict[str, Any]
    notes: tuple[str, ...]


class _Options:
    """It replaces argparse.Namespace while a checkpoint is read: it holds the values and does nothing with them."""

    values: Mapping[str, Any] = types.MappingProxyType({})  # a checkpoint may make one without calling __init__

    def __setstate__(self, state: Any) -> None:
        self.values = dict(state) if isinstance(state, Mapping) else {}


def _path_name(*parts: Any) -> str:
    """It replaces a path while a checkpoint is read: the last part remains, without somebody's folders."""
    return PureWindowsPath(str(parts[-1])).name if parts else ""


_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
_STAND_INS: list[StandIn] = [(_path_name, f"pathlib.{kind}") for kind in _PATHS]
_STAND_INS += [(_path_name, f"pathlib._local.{kind}") for kind in _PATHS]  # of Python 3.13
_STAND_INS += [(_Options, f"{argparse.Namespace.__module__}.{argparse.Namespace.__name__}")]


def read_published(path: Path) -> Published:
    """The encoder of a stylegan3-editing checkpoint, its average code, and its generator if it has one.

    Raises InputError for a damaged or hostile file, for another encoder, and for unknown tensor names.
    """
    contents = _load(path)
    options = _options(contents.get("opts"))
    kind = options.get("encoder_type", ENCODER_TYPE)
    notes = [] if "encoder_type" in options else [f"taken for the encoder {ENCODER_TYPE}: the file does not say it"]
    if kind != ENCODER_TYPE:
        raise InputError(
            f"its encoder is {str(kind)[:60]}: of stylegan3-editing's encoders only {ENCODER_TYPE} can be read"
        )
    parts: dict[str, Tensors] = {"encoder": {}, "decoder": {}}
    for name, tensor in contents["state_dict"].items():
        part, _, key = name.partition(".")
        if part not in parts:
            raise InputError(f"tensor {name[:80]} belongs to neither encoder nor decoder: not stylegan3-editing's")
        parts[part][key] = tensor
    tensors = _stacked(parts["encoder"])
    config = _encoder_config(tensors, len({m[1] for m in map(_HEAD.fullmatch, parts["encoder"]) if m}))
    decoder_config, decoder_tensors = None, {}
    if parts["decoder"]:
        decoder_tensors, part_notes = _decoder(parts["decoder"])
        decoder_config = infer_generator_config(decoder_tensors)
        notes += part_notes
        sizes = [(c.num_ws, c.w_dim) for c in (config, decoder_config)]
        if sizes[0] != sizes[1]:
            raise InputError(f"its encoder is for {sizes[0]} codes (num_ws, w_dim), its generator has {sizes[1]}")
    else:
        notes.append("the file holds no generator")
    average, part_notes = _average(contents.get("latent_avg"), decoder_tensors, config)
    record = {"trained_on": "unknown", "options": options}
    return Published(config, tensors, average, decoder_config, decoder_tensors, record, (*notes, *part_notes))


def _load(path: Path) -> dict[str, Any]:
    contents = read_state(path, _STAND_INS)
    state = contents.get("state_dict") if isinstance(contents, Mapping) else None
    names = [name for name in state if isinstance(name, str)] if isinstance(state, Mapping) else []
    has_encoder = any(name.startswith("encoder.") for name in names)
    if not isinstance(state, Mapping) or not has_encoder or len(names) != len(state):
        raise InputError("no stylegan3-editing checkpoint: it has no `state_dict` with tensors named encoder.*")
    only_tensors(state, path)
    return dict(contents)


def _options(content: Any) -> dict[str, Any]:
    # The options are a record for people: values other than texts, numbers, booleans and None are omitted.
    values = content.values if isinstance(content, _Options) else content
    values = values if isinstance(values, Mapping) else {}
    plain = {
        k: v for k, v in values.items() if isinstance(k, str) and isinstance(v, (str, int, float, bool, type(None)))
    }
    without_folders = {key: PurePosixPath(v).name if isinstance(v, str) and "/" in v else v for key, v in plain.items()}
    finite = {k: v for k, v in without_folders.items() if not isinstance(v, float) or abs(v) < float("inf")}
    return dict(sorted(finite.items()))


def _stacked(tensors: Tensors) -> Tensors:
    """Turn the tool's names into RestyleEncoder's: concatenate `styles.<i>.NAME` of all heads i to `styles.NAME`."""
    if any(name.startswith("input_layer.") for name in tensors):
        raise InputError(f"its encoder has an IR-SE-50 backbone, made for faces: only {ENCODER_TYPE} can be read")
    stacked, heads = {}, {}
    for name, tensor in tensors.items():
        match = _HEAD.fullmatch(name)
        if match is None:
            stacked[name] = tensor
        else:
            heads.setdefault(match[2], {})[int(match[1])] = tensor
    count = max((len(head_tensors) for head_tensors in heads.values()), default=0)
    for name, head_tensors in heads.items():
        missing = sorted(set(range(count)) - set(head_tensors))
        if missing:
            raise InputError(f"tensor encoder.styles.{missing[0]}.{name[:60]} is missing: the file is damaged")
        parts = [head_tensors[i] for i in range(count)]
        if len({(part.shape, part.dtype) for part in parts}) != 1 or parts[0].ndim == 0:
            raise InputError(f"tensors encoder.styles.<i>.{name[:60]} have different shapes: the file is damaged")
        stacked[f"styles.{name}"] = torch.cat(parts)
    return stacked


def _encoder_config(tensors: Tensors, heads: int) -> EncoderConfig:
    first = _shape(tensors, "conv1.weight", 4)
    if first[1] != INPUT_CHANNELS:
        raise InputError(f"its encoder takes {first[1]} channels, not picture and reconstruction ({INPUT_CHANNELS})")
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("body.") and name.count(".") > 1})
    backbone = next((name for name, counts in BLOCKS.items() if sum(counts) == blocks), None)
    if backbone is None or heads == 0:
        raise InputError(
            f"its encoder has {blocks} blocks and {heads} heads: only a ResNet-34 (16 blocks) with heads can be read"
        )
    convolutions = len([name for name in tensors if re.fullmatch(r"styles\.convs\.\d{1,3}\.weight", name)])
    # A fully convolutional network does not determine the size of its input, but its heads end at 1 x 1.
    size = BASE_SIZE * 2**convolutions
    return EncoderConfig(
        height=size,
        width=size,
        num_ws=heads,
        w_dim=_shape(tensors, "styles.linear.weight", 2)[0] // heads,
        backbone=backbone,
        width_factor=first[0] / 64,
        head_channels=_shape(tensors, "styles.linear.weight", 2)[1],
    )


def _decoder(tensors: Tensors) -> tuple[Tensors, list[str]]:
    # The tool sets the identity before each picture, and its files have the last batch's transform [N, 3, 3].
    notes = []
    tensors = dict(find_networks(tensors)["G_ema"])
    transform = tensors.get("synthesis.input.transform")
    identity = torch.eye(3)
    if transform is not None:
        if not transform.is_floating_point() or transform.shape[-2:] != (3, 3):
            raise InputError(f"tensor decoder.synthesis.input.transform has shape {tuple(transform.shape)}")
        if not torch.allclose(transform.float(), identity.expand(transform.shape), rtol=0, atol=1e-6):
            notes.append("its generator's own transform is left out, as the published tool does")
    return tensors | {"synthesis.input.transform": identity}, notes


def _average(code: Any, decoder: Tensors, config: EncoderConfig) -> tuple[torch.Tensor, list[str]]:
    notes = []
    if code is None:
        if "mapping.w_avg" not in decoder:
            raise InputError("it has neither latent_avg nor a generator, so the start of its codes is not known")
        code = decoder["mapping.w_avg"]
        notes.append("no latent_avg in the file: the generator's average w is taken")
    if not isinstance(code, torch.Tensor) or not code.is_floating_point():
        raise InputError(f"its latent_avg is a {type(code).__name__}, not a float tensor")
    check_plain("latent_avg", code)
    if code.shape[-1:] != (config.w_dim,) or code.numel() not in (config.w_dim, config.w_dim * config.num_ws):
        raise InputError(f"its latent_avg has shape {tuple(code.shape)}, not [{config.num_ws}, {config.w_dim}]")
    average = code.float().reshape(-1, config.w_dim).expand(config.num_ws, -1)
    if not torch.isfinite(average).all():
        raise InputError("its latent_avg holds values that are no finite numbers")
    return average.contiguous(), notes


def _shape(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors or tensors[name].ndim != dimensions:
        problem = f"of shape {tuple(tensors[name].shape)}" if name in tensors else "missing"
        raise InputError(f"tensor encoder.{name} is {problem}: not {ENCODER_TYPE}, or damaged")
    return tuple(tensors[name].shape)
