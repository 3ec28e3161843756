"""OSNet, a small backbone for re-identification, and the tensor names of torchreid's two implementations of it.

K. Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification" (ICCV 2019) describes the block. K. Zhou et
al., "Learning Generalisable Omni-Scale Representations for Person Re-Identification" (TPAMI 2021) describes the
variants with instance normalisation: "ibn" after the sums of the first stage (X. Pan et al., "Two at Once", ECCV 2018),
"ain" at the places that a search found. The structure is that of torchreid (deep-person-reid f8cd150), whose weights
fit.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

Norm = Callable[[int], nn.Module]  # features -> batch normalisation of two-dimensional inputs

STREAMS = 4  # of a block: 1 to 4 light convolutions, which see 3 x 3 to 9 x 9 values
REDUCTION = 4  # output channels of a block / channels of its streams
GATE_REDUCTION = 16
# Where each of the six blocks has instance normalisation: nowhere, on the branch before the sum, or on the sum.
NOWHERE, BRANCH, SUM = "nowhere", "branch", "sum"
PLAIN = ((NOWHERE, NOWHERE),) * 3
IBN = ((SUM, SUM), (NOWHERE, NOWHERE), (NOWHERE, NOWHERE))
AIN = ((BRANCH, BRANCH), (NOWHERE, BRANCH), (BRANCH, NOWHERE))


class Variant(NamedTuple):
    """The structure of a variant: channels of the stem and of the three stages, and instance normalisation."""

    channels: tuple[int, int, int, int]
    instance: tuple[tuple[str, str], ...]  # of the blocks of each stage; the stem has it where any block has it


_X1_0, _X0_75, _X0_5, _X0_25 = (64, 256, 384, 512), (48, 192, 288, 384), (32, 128, 192, 256), (16, 64, 96, 128)
OSNETS = {
    "osnet_x1_0": Variant(_X1_0, PLAIN),
    "osnet_x0_75": Variant(_X0_75, PLAIN),
    "osnet_x0_5": Variant(_X0_5, PLAIN),
    "osnet_x0_25": Variant(_X0_25, PLAIN),
    "osnet_ibn_x1_0": Variant(_X1_0, IBN),
    "osnet_ain_x1_0": Variant(_X1_0, AIN),
    "osnet_ain_x0_75": Variant(_X0_75, AIN),
    "osnet_ain_x0_5": Variant(_X0_5, AIN),
    "osnet_ain_x0_25": Variant(_X0_25, AIN),
}


class OSNet(nn.Module):
    """Images [N, 3, H, W] with ImageNet's mean and deviation taken off -> pooled features [N, channels[3]].

    `small_stem`: a 3 x 3 convolution at stride 2 without maximum, for small images. `norm` makes the batch
    normalisations. New weights are drawn as torchreid draws them. Module names are those of torchreid's osnet_ain.
    """

    def __init__(self, variant: Variant, norm: Norm, small_stem: bool = False):
        super().__init__()
        first, second, third, fourth = variant.channels
        with_instance = variant.instance != PLAIN
        stem_norm = _instance_norm if with_instance else norm
        self.conv1 = _Convolution(3, first, stem_norm, kernel=3 if small_stem else 7, stride=2)
        self.maxpool = nn.Identity() if small_stem else nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = _stage(first, second, variant.instance[0], norm)
        self.pool2 = nn.Sequential(_Convolution(second, second, norm), nn.AvgPool2d(2, stride=2))
        self.conv3 = _stage(second, third, variant.instance[1], norm)
        self.pool3 = nn.Sequential(_Convolution(third, third, norm), nn.AvgPool2d(2, stride=2))
        self.conv4 = _stage(third, fourth, variant.instance[2], norm)
        self.conv5 = _Convolution(fourth, fourth, norm)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.conv1(images))  # [N, channels[0], H / 4, W / 4]; H / 2, W / 2 with the small stem
        x = self.pool2(self.conv2(x))  # [N, channels[1], H / 8, W / 8]
        x = self.pool3(self.conv3(x))  # [N, channels[2], H / 16, W / 16]
        x = self.conv5(self.conv4(x))  # [N, channels[3], H / 16, W / 16]
        return nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)


class _Convolution(nn.Module):
    """Convolution, normalisation and, unless `linear`, ReLU. With `norm` None there is no normalisation."""

    def __init__(
        self, inputs: int, outputs: int, norm: Norm | None, kernel: int = 1, stride: int = 1, linear: bool = False
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.Identity() if norm is None else norm(outputs)
        self.relu = nn.Identity() if linear else nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn(self.conv(x)))


class _LightConvolution(nn.Module):
    """A 1 x 1 convolution, then a 3 x 3 convolution of each channel alone, normalisation and ReLU."""

    def __init__(self, channels: int, norm: Norm):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = norm(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn(self.conv2(self.conv1(x))))


class _Stream(nn.Module):
    """A chain of `depth` light convolutions."""

    def __init__(self, channels: int, depth: int, norm: Norm):
        super().__init__()
        self.layers = nn.Sequential(*(_LightConvolution(channels, norm) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class _Gate(nn.Module):
    """Weighs the channels by their means; the streams of a block share it."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // GATE_REDUCTION, 1)
        self.fc2 = nn.Conv2d(channels // GATE_REDUCTION, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.fc2(nn.functional.relu(self.fc1(nn.functional.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(weights)  # [N, channels, 1, 1] weights of 0..1


class _Block(nn.Module):
    """Four streams of 1 to 4 light convolutions, their gated sum, and the shortcut."""

    def __init__(self, inputs: int, outputs: int, instance: str, norm: Norm):
        super().__init__()
        inner = outputs // REDUCTION
        self.conv1 = _Convolution(inputs, inner, norm)
        self.conv2 = nn.ModuleList(_Stream(inner, depth + 1, norm) for depth in range(STREAMS))
        self.gate = _Gate(inner)
        # Instance normalisation of the branch stands in place of its batch normalisation.
        self.conv3 = _Convolution(inner, outputs, None if instance == BRANCH else norm, linear=True)
        equal = inputs == outputs
        self.downsample = nn.Identity() if equal else _Convolution(inputs, outputs, norm, linear=True)
        self.IN = nn.Identity() if instance == NOWHERE else _instance_norm(outputs)
        self.instance = instance

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.conv1(x)
        first, *others = (self.gate(stream(inner)) for stream in self.conv2)
        branch = self.conv3(sum(others, first))
        if self.instance == BRANCH:
            return nn.functional.relu(self.IN(branch) + self.downsample(x))
        return nn.functional.relu(self.IN(branch + self.downsample(x)))


def _stage(inputs: int, outputs: int, instance: tuple[str, str], norm: Norm) -> nn.Sequential:
    return nn.Sequential(_Block(inputs, outputs, instance[0], norm), _Block(outputs, outputs, instance[1], norm))


def _instance_norm(features: int) -> nn.Module:
    return nn.InstanceNorm2d(features, affine=True)


# ---- torchreid's names.

# torchreid's osnet.py numbers and letters what its osnet_ain.py, whose names our modules have, calls otherwise.
_POOL, _STREAM, _CHAIN = (
    re.compile(pattern)
    for pattern in (r"(conv([23]))\.2\.0\.", r"(conv[234]\.[01])\.conv2a\.", r"(conv[234]\.[01])\.conv2([bcd])\.")
)


def is_osnet(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether tensors, named as by torchreid, are those of an OSNet."""
    return "conv1.conv.weight" in tensors and "conv5.conv.weight" in tensors


def our_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of either of torchreid's implementations under the names of `OSNet`; other names stay."""
    return {_our_name(name): value for name, value in tensors.items()}


def _our_name(name: str) -> str:
    name = _POOL.sub(r"pool\2.0.", name)
    name = _STREAM.sub(r"\1.conv2.0.layers.0.", name)
    return _CHAIN.sub(lambda match: f"{match[1]}.conv2.{'abcd'.index(match[2])}.layers.", name)


def variant_name(tensors: dict[str, torch.Tensor]) -> str | None:
    """The name of the variant whose tensors these are, under names of `OSNet`; None if there is no such variant."""
    places = tuple(
        tuple(
            NOWHERE
            if f"conv{stage}.{block}.IN.weight" not in tensors
            else (SUM if f"conv{stage}.{block}.conv3.bn.weight" in tensors else BRANCH)
            for block in (0, 1)
        )
        for stage in (2, 3, 4)
    )
    channels = tensors["conv1.conv.weight"].shape[:1]
    for name, variant in OSNETS.items():
        if (variant.channels[:1], variant.instance) == (channels, places):
            return name
    return None
