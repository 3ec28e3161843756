"""Darknet's two files of a network: the structure (.cfg, text) and the numbers (.weights, binary).

The reader is strict on purpose: with an unknown option, or with a file that is one byte too long, it would compute
another network than the one that was trained. The formats are those of the Darknet framework (J. Redmon;
A. Bochkovskiy). While reading, batch normalisation is folded into the convolutions.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from passersby.errors import InputError

# Darknet divides by sqrt(variance + 1e-5) on a GPU and by sqrt(variance) + 1e-6 on a CPU. OpenCV, which computed the
# study's scores, divides by sqrt(variance + 1e-6).
BATCH_NORM_EPSILON = 1e-6

# Options that concern training only. They are listed, so that the reader still refuses a misspelt option.
TRAINING_OPTIONS = {
    "net": "batch subdivisions momentum decay angle saturation exposure hue learning_rate burn_in "
    "max_batches policy steps scales",
    "convolutional": "",
    "route": "",
    "maxpool": "",
    "upsample": "",
    "yolo": "jitter cls_normalizer iou_normalizer iou_loss ignore_thresh truth_thresh random resize nms_kind beta_nms",
}


@dataclass(frozen=True)
class Convolution:
    """`weight` [filters, channels, size, size], `bias` [filters], float32, batch normalisation folded in."""

    channels: int
    filters: int
    size: int
    stride: int
    padding: int
    batch_normalize: bool
    leaky: bool
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None


@dataclass(frozen=True)
class Route:
    """Concatenates channel group `group` of `groups` of each layer in `sources` (absolute indices)."""

    sources: tuple[int, ...]
    groups: int
    group: int


@dataclass(frozen=True)
class MaxPool:
    """Maximum over windows of `stride` x `stride` pixels that do not overlap."""

    stride: int


@dataclass(frozen=True)
class Upsample:
    """Nearest neighbour, `stride` times larger."""

    stride: int


@dataclass(frozen=True)
class Yolo:
    """A detection head: `anchors` ((width, height), ...) in input pixels; `scale_xy` as in YOLOv4."""

    anchors: tuple[tuple[float, float], ...]
    classes: int
    scale_xy: float


Layer = Convolution | Route | MaxPool | Upsample | Yolo


@dataclass(frozen=True)
class DarknetNetwork:
    """A network's layers, and the shape [channels, height, width] of each layer's output."""

    height: int
    width: int
    layers: tuple[Layer, ...]
    shapes: tuple[tuple[int, int, int], ...]


class Section:
    """One `[name]` of a .cfg with its options. The reader must ask for every option that does not concern training."""

    def __init__(self, path: Path, name: str, line: int):
        self.position = f"{path}, line {line}: [{name}]"
        self.name = name
        self.options: dict[str, str] = {}

    def error(self, words: str) -> InputError:
        return InputError(f"{self.position}: {words}; a YOLOv4-tiny .cfg as Darknet publishes it is expected")

    def numbers(self, option: str, default: str | None = None, kind: type = int) -> list:
        text = self.options.pop(option, default)
        if text is None:
            raise self.error(f"option {option!r} is missing")
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError as error:
            raise self.error(f"{option}={text!r} is not a list of {kind.__name__}") from error

    def number(self, option: str, default: str | None = None, kind: type = int, least: float = 1):
        values = self.numbers(option, default, kind)
        if len(values) != 1 or not values[0] >= least:
            raise self.error(f"{option}={','.join(map(str, values))} must be one number, at least {least}")
        return values[0]

    def choice(self, option: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        text = self.options.pop(option, default)
        if text not in allowed:
            raise self.error(f"{option}={text!r} is not one of {', '.join(allowed)}")
        return text

    def finish(self) -> None:
        unknown = set(self.options) - set(TRAINING_OPTIONS[self.name].split())
        if unknown:
            raise self.error(f"unknown option {sorted(unknown)[0]!r}")


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises InputError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): the network needs this file") from error


def read_sections(path: Path) -> list[Section]:
    """The sections of a .cfg. Raises InputError unless it is text with lines `[section]` and `option=value`."""
    try:
        lines = read_file(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file: a Darknet .cfg is expected") from error
    sections: list[Section] = []
    for number, line in enumerate(lines, 1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            sections.append(Section(path, line[1:-1], number))
            if sections[-1].name not in TRAINING_OPTIONS:
                raise sections[-1].error("unknown section")
            continue
        option, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not sections:
            raise InputError(f"{path}, line {number}: {line!r} is neither a [section] nor option=value")
        if option in sections[-1].options:
            raise sections[-1].error(f"option {option!r} occurs twice")
        sections[-1].options[option] = value
    if not sections or sections[0].name != "net" or len(sections) < 2:
        raise InputError(f"{path} does not begin with [net] and some layers: a Darknet .cfg is expected")
    return sections


def read_layer(section: Section, index: int, channels: int) -> Layer:
    """The layer that a section describes. `channels`: of the layer's input; `index`: of the layer, from 0."""
    if section.name == "convolutional":
        size = section.number("size")
        pad = section.choice("pad", ("0", "1"), "0")
        return Convolution(
            channels=channels,
            filters=section.number("filters"),
            size=size,
            stride=section.number("stride", "1"),
            padding=size // 2 if pad == "1" else 0,
            batch_normalize=section.choice("batch_normalize", ("0", "1"), "0") == "1",
            leaky=section.choice("activation", ("leaky", "linear")) == "leaky",
        )
    if section.name == "route":
        sources = [index + i if i < 0 else i for i in section.numbers("layers")]
        groups, group = section.number("groups", "1"), section.number("group_id", "0", least=0)
        if not all(0 <= source < index for source in sources) or group >= groups:
            raise section.error(f"layers {sources} of layer {index}, group {group} of {groups}, do not exist")
        return Route(tuple(sources), groups, group)
    if section.name == "maxpool":
        size, stride = section.number("size"), section.number("stride")
        if size != stride:
            raise section.error(f"size={size} with stride={stride}: overlapping windows are not supported")
        return MaxPool(stride)
    if section.name == "upsample":
        return Upsample(section.number("stride"))
    if section.name == "yolo":
        flat, mask = section.numbers("anchors", kind=float), section.numbers("mask")
        if len(flat) != 2 * section.number("num") or not all(0 <= i < len(flat) // 2 for i in mask):
            raise section.error(f"mask {mask} and num do not fit {len(flat)} anchor numbers")
        anchors = tuple((flat[2 * i], flat[2 * i + 1]) for i in mask)
        return Yolo(anchors, section.number("classes"), section.number("scale_x_y", "1", float))
    raise section.error("occurs twice")


def output_shape(
    section: Section, layer: Layer, shapes: list[tuple[int, int, int]], before: tuple[int, int, int]
) -> tuple[int, int, int]:
    """The shape [channels, height, width] of `layer`'s output. Raises InputError if the layers before do not fit."""
    channels, height, width = before
    if isinstance(layer, Convolution):
        high, wide = ((side + 2 * layer.padding - layer.size) // layer.stride + 1 for side in (height, width))
        return (layer.filters, high, wide)
    if isinstance(layer, Route):
        parts = [shapes[source] for source in layer.sources]
        if len({part[1:] for part in parts}) > 1 or any(part[0] % layer.groups for part in parts):
            raise section.error(f"the routed layers {parts} do not fit together")
        return (sum(part[0] // layer.groups for part in parts), parts[0][1], parts[0][2])
    if isinstance(layer, MaxPool):
        if height % layer.stride or width % layer.stride:
            raise section.error(f"a map of {height} x {width} cannot be pooled by {layer.stride} without a remainder")
        return (channels, height // layer.stride, width // layer.stride)
    if isinstance(layer, Upsample):
        return (channels, height * layer.stride, width * layer.stride)
    if channels != len(layer.anchors) * (5 + layer.classes):
        raise section.error(f"{len(layer.anchors)} anchors of {layer.classes} classes do not fit {channels} channels")
    return before


def read_structure(path: Path, input_size: int | None = None) -> DarknetNetwork:
    """The network of a .cfg, without its numbers. `input_size` (pixels, square) replaces the size in the file."""
    net, *sections = read_sections(path)
    height, width = net.number("height"), net.number("width")
    height, width = (input_size, input_size) if input_size else (height, width)
    if net.number("channels") != 3:
        raise net.error("channels must be 3")
    net.finish()
    layers: list[Layer] = []
    shapes: list[tuple[int, int, int]] = []
    for index, section in enumerate(sections):
        before = shapes[-1] if shapes else (3, height, width)
        layers.append(read_layer(section, index, before[0]))
        shapes.append(output_shape(section, layers[-1], shapes, before))
        section.finish()
    return DarknetNetwork(height, width, tuple(layers), tuple(shapes))


def read_network(weights: Path, structure: Path, input_size: int | None = None) -> DarknetNetwork:
    """The network in `structure` (.cfg) with the numbers in `weights` (.weights).

    Raises InputError if a file does not have its format, if the .weights file is shorter or longer than the structure
    needs, and if it holds numbers that are not finite.
    """
    network = read_structure(structure, input_size)
    data = read_file(weights)
    version = np.frombuffer(data[:8], "<i4")  # major, minor; then follow the revision and the number of training images
    if len(version) != 2 or version[0] != 0 or not 0 <= version[1] < 10:
        raise InputError(f"{weights} has no Darknet header: a .weights file is expected")
    header = 20 if version[1] >= 2 else 16
    needed = header + 4 * sum(
        layer.filters * (layer.channels * layer.size**2 + (4 if layer.batch_normalize else 1))
        for layer in network.layers
        if isinstance(layer, Convolution)
    )
    if len(data) != needed:
        raise InputError(f"{weights} is {len(data)} bytes, the network in {structure} needs exactly {needed}")
    numbers = np.frombuffer(data, "<f4", offset=header)
    if not np.isfinite(numbers).all():
        raise InputError(f"{weights} holds numbers that are not finite: it is damaged, fetch it again")
    layers = []
    for layer in network.layers:
        if isinstance(layer, Convolution):
            layer, numbers = read_convolution(layer, numbers)
        layers.append(layer)
    return replace(network, layers=tuple(layers))


def read_convolution(layer: Convolution, numbers: np.ndarray) -> tuple[Convolution, np.ndarray]:
    """Fill `layer` from the front of `numbers` (float32). Returns the layer and the remaining numbers."""
    count, fan_in = layer.filters, layer.channels * layer.size**2
    bias, numbers = numbers[:count].astype(np.float64), numbers[count:]
    gain = np.ones(count)
    if layer.batch_normalize:
        scale, mean, variance = numbers[: 3 * count].reshape(3, count).astype(np.float64)
        numbers = numbers[3 * count :]
        gain = scale / np.sqrt(np.maximum(variance, 0) + BATCH_NORM_EPSILON)
        bias = bias - mean * gain
    weight = numbers[: count * fan_in].reshape(count, layer.channels, layer.size, layer.size)
    weight = (weight * gain[:, None, None, None]).astype(np.float32)
    layer = replace(layer, weight=weight, bias=bias.astype(np.float32))
    return layer, numbers[count * fan_in :]
