"""Darknet's two files of a network: the structure (.cfg, text) and the numbers (.weights, binary).

The reader is strict on purpose: with an unknown option, or with a file that is one byte too long, it would compute
another network than the one that was trained. The formats are those of the Darknet framework (J. Redmon;
A. Bochkovskiy). While reading, batch normalisation is folded into the convolutions.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from passersby.errors import InputError

# Darknet divides by sqrt(variance + 1e-5) on a GPU and by sqrt(variance) + 1e-6 on a CPU. OpenCV, which computed the
# study's scores, divides by sqrt(variance + 1e-6).
BATCH_NORM_EPSILON = 1e-6
MOST_PIXELS = 4096  # of the input, in height and width

# Options of A. Bochkovskiy's and J. Redmon's Darknet that change no score. Most concern training; others concern
# suppression, tracking, memory or messages. They are listed, so that the reader still refuses a misspelt option.
_ANY_LAYER = "clip onlyforward dont_update burnin_update stopbackward train_only_bn learning_rate stream wait_stream"
_YOLO_TRAINING = """jitter resize random ignore_thresh truth_thresh iou_thresh iou_thresh_kind iou_loss iou_normalizer
    obj_normalizer cls_normalizer delta_normalizer uc_normalizer label_smooth_eps objectness_smooth focal_loss max
    max_delta counters_per_class show_details map nms_kind beta_nms nms_threshold thresh track_history_size sim_thresh
    dets_for_track dets_for_show track_ciou_norm embedding_layer rescore absolute bias_match"""
# `letter_box` says how Darknet itself fills the input. This filter has its own border and always stretches.
_NET_TRAINING = """batch subdivisions momentum decay angle aspect saturation exposure hue learning_rate
    learning_rate_min burn_in power policy step scale steps scales seq_scales gamma sgdr_cycle sgdr_mult max_batches
    time_steps track augment_speed sequential_subdivisions try_fix_nan weights_reject_freq equidistant_point
    ema_alpha use_cuda_graph badlabels_rejection_percentage num_sigmas_reject_badlabels loss_scale dynamic_minibatch
    optimized_memory workspace_size_limit_MB adam B1 B2 eps inputs max_crop min_crop min_ratio max_ratio center clip
    random notruth flip blur gaussian_noise mixup cutmix mosaic mosaic_bound letter_box contrastive
    contrastive_jit_flip contrastive_color unsupervised label_smooth_eps resize_step attention adversarial_lr
    max_chart_loss show_receptive_field"""
TRAINING_OPTIONS = {
    "net": set(_NET_TRAINING.split()),
    "convolutional": set(f"{_ANY_LAYER} grad_centr bin_output".split()),
    "route": set(_ANY_LAYER.split()),
    "maxpool": set(_ANY_LAYER.split()),
    "upsample": set(_ANY_LAYER.split()),
    "yolo": set(f"{_ANY_LAYER} {_YOLO_TRAINING}".split()),
}
# Options that change what a layer computes or how its numbers are stored, with the one value that is read.
NEUTRAL_OPTIONS = {
    "convolutional": "groups=1 dilation=1 antialiasing=0 binary=0 xnor=0 flipped=0 coordconv=0 cbn=0 sway=0 rotate=0 "
    "stretch=0 stretch_sway=0 assisted_excitation=0 reverse=0 dot=0",
    "maxpool": "maxpool_depth=0 antialiasing=0 maxpool_zero_nonmax=0",
    "upsample": "scale=1",
    "yolo": "new_coords=0",
}
for _name in ("convolutional", "route", "maxpool", "upsample", "yolo"):
    NEUTRAL_OPTIONS[_name] = f"{NEUTRAL_OPTIONS.get(_name, '')} dontload=0 dontloadscales=0"
_OTHER_NAMES = {"network": "net", "conv": "convolutional", "max": "maxpool"}  # Darknet takes both


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
    """Maximum over windows of `size` x `size` pixels, one window each `stride` pixels.

    `padding` pixels in all are missing at the edges, where the maximum is over the others: `before` at the upper and
    left edge, the rest at the lower and right edge.
    """

    size: int
    stride: int
    padding: int

    @property
    def before(self) -> int:
        """The missing pixels at the upper and left edge."""
        return self.padding // 2


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

    @property
    def classes(self) -> int:
        """The number of classes that every head tells apart."""
        return next(layer.classes for layer in self.layers if isinstance(layer, Yolo))


class Section:
    """One `[name]` of a .cfg with its options. The reader must ask for every option that does not concern training."""

    def __init__(self, path: Path, name: str, line: int):
        self.position = f"{path}, line {line}: [{name}]"
        self.name = name
        self.options: dict[str, str] = {}

    def error(self, words: str) -> InputError:
        return InputError(f"{self.position}: {words}; a .cfg of YOLOv4-tiny or YOLOv3-tiny is expected")

    def numbers(self, option: str, default: str | None = None, kind: type = int) -> list:
        text = self.options.pop(option, default)
        if text is None:
            raise self.error(f"option {option!r} is missing")
        try:
            return [kind(part) for part in text.rstrip(" ,").split(",")]
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

    def give(self, option: str, value: str) -> None:
        """Take a line `option=value` of the file."""
        # Darknet takes the first of two values and OpenCV the last: only where both are one, or concern training,
        # is it clear what is meant.
        if option in TRAINING_OPTIONS[self.name] or self.options.setdefault(option, value) == value:
            return
        raise self.error(f"option {option!r} occurs twice, as {self.options[option]!r} and as {value!r}")

    def finish(self) -> None:
        """Raise InputError for an option that nothing has asked for, unless it has the value without an effect."""
        for text in NEUTRAL_OPTIONS.get(self.name, "").split():
            option, _, neutral = text.partition("=")
            value = self.number(option, neutral, float, least=-math.inf)
            if value != float(neutral):
                raise self.error(f"{option}={value:g} is not supported, only {text}")
        if self.options:
            raise self.error(f"unknown option {sorted(self.options)[0]!r}")


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises InputError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): the network needs this file") from error


def read_sections(path: Path) -> list[Section]:
    """The sections of a .cfg. Raises InputError unless it is text with lines `[section]` and `option=value`.

    Comments begin with # or ;. A byte order mark, any ends of lines, and spaces around names have no meaning.
    """
    # A comment may be in any encoding. Where a line with a meaning is no UTF-8, the file is no .cfg.
    text = read_file(path).decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
    sections: list[Section] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = re.split("[#;]", line)[0].strip()
        if not line:
            continue
        if "\ufffd" in line or "\0" in line:
            raise InputError(f"{path} is not a text file: a Darknet .cfg is expected")
        if line.startswith("[") and line.endswith("]"):
            name = line[1:-1].strip()
            sections.append(Section(path, _OTHER_NAMES.get(name, name), number))
            if sections[-1].name not in TRAINING_OPTIONS:
                raise sections[-1].error("unknown section")
            continue
        option, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not sections:
            raise InputError(f"{path}, line {number}: {line!r} is neither a [section] nor option=value")
        sections[-1].give(option, value)
    if not sections or sections[0].name != "net" or len(sections) < 2:
        raise InputError(f"{path} does not begin with [net] and some layers: a Darknet .cfg is expected")
    return sections


def read_layer(section: Section, index: int, channels: int) -> Layer:
    """The layer that a section describes. `channels`: of the layer's input; `index`: of the layer, from 0."""
    if section.name == "convolutional":
        size = section.number("size")
        pad = section.choice("pad", ("0", "1"), "0")
        padding = section.number("padding", "0", least=0)
        return Convolution(
            channels=channels,
            filters=section.number("filters"),
            size=size,
            stride=section.number("stride", "1"),
            padding=size // 2 if pad == "1" else padding,
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
        stride = section.number("stride", "1")
        size = section.number("size", str(stride))
        padding = section.number("padding", str(size - 1), least=0)
        if padding >= 2 * size - 1:  # a window would lie wholly outside
            raise section.error(f"padding={padding} is too much for size={size}")
        return MaxPool(size, stride, padding)
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
        high, wide = ((side + layer.padding - layer.size) // layer.stride + 1 for side in (height, width))
        return (channels, high, wide)
    if isinstance(layer, Upsample):
        return (channels, height * layer.stride, width * layer.stride)
    if channels != len(layer.anchors) * (5 + layer.classes):
        raise section.error(f"{len(layer.anchors)} anchors of {layer.classes} classes do not fit {channels} channels")
    return before


def read_structure(path: Path, input_size: int | None = None) -> DarknetNetwork:
    """The network of a .cfg, without its numbers. `input_size` (pixels, square) replaces the size in the file.

    Raises InputError for a structure that is not understood, and for one whose heads have different classes.
    """
    net, *sections = read_sections(path)
    height, width = net.number("height"), net.number("width")
    height, width = (input_size, input_size) if input_size else (height, width)
    if net.number("channels") != 3:
        raise net.error("channels must be 3")
    if max(height, width) > MOST_PIXELS:
        raise net.error(f"an input of {height} x {width} is too large, at most {MOST_PIXELS} is read")
    net.finish()
    layers: list[Layer] = []
    shapes: list[tuple[int, int, int]] = []
    for index, section in enumerate(sections):
        before = shapes[-1] if shapes else (3, height, width)
        layers.append(read_layer(section, index, before[0]))
        shapes.append(output_shape(section, layers[-1], shapes, before))
        section.finish()
        if min(shapes[-1]) < 1:
            raise section.error(f"nothing is left of an input of {height} x {width}: it is too small")
    heads = [layer.classes for layer in layers if isinstance(layer, Yolo)]
    if len(set(heads)) != 1:
        raise InputError(f"{path}: its [yolo] heads have {heads or 'no'} classes: one number is expected")
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
