"""The ReStyle encoder: a picture and its current reconstruction -> a correction of the latent codes.

Alaluf et al., "ReStyle: A Residual-Based StyleGAN Encoder via Iterative Refinement" (2021), with the encoder that
Alaluf et al., "Third Time's the Charm? Image and Video Editing with StyleGAN3" (2022), publish as
ResNetBackboneEncoder: a ResNet-34 (He et al. 2016) without its maximum pooling. Its last features go into one small
head for each w input. Files of encoders are read in passersby/restyle/checkpoint.py.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from passersby.checkpoints import fitted, named, read_tensors
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.stylegan2 import AnyGeneratorConfig

BLOCKS = {
    "resnet34": (3, 4, 6, 3),
    "resnet18": (2, 2, 2, 2),
    "resnet10": (1, 1, 1, 1),  # for CPUs; torchvision does not have it, so there are no ImageNet weights
}
BACKBONES = tuple(BLOCKS)
INPUT_CHANNELS = 6  # the picture's RGB, then the reconstruction's
BACKBONE_STRIDE = 16  # pixels of the input for one position of the last features
FEW_POSITIONS = 4  # up to so many positions of a head's map, a matrix product is faster than a convolution


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The configuration of an encoder, by default the published one. Raises InputError for impossible values."""

    height: int = 256  # of the encoder's input [pixels]; any size and shape works
    width: int = 256
    num_ws: int = 16  # w inputs of the generator, one head for each
    w_dim: int = 512
    backbone: str = "resnet34"  # one of BACKBONES
    width_factor: float = 1.0  # factor of the backbone's 64, 128, 256 and 512 channels: below 1 for CPUs
    head_channels: int = 512

    def __post_init__(self):
        if self.backbone not in BLOCKS:
            raise InputError(f"encoder: backbone {self.backbone!r}: take one of {', '.join(BACKBONES)}")
        limits = {"height": (16, 4096), "width": (16, 4096), "num_ws": (1, 64)}
        for name, (least, most) in (limits | {"w_dim": (1, 8192), "head_channels": (1, 8192)}).items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise InputError(f"encoder: {name} {value!r}: a whole number from {least} to {most} is needed")
        if type(self.width_factor) not in (int, float) or not 0.1 <= self.width_factor <= 4:
            raise InputError(f"encoder: width_factor {self.width_factor!r}: a number from 0.1 to 4 is needed")

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the backbone's four stages: multiples of 8, for which the kernels of CPUs are fast."""
        return tuple(max(8, 8 * round(base * self.width_factor / 8)) for base in (64, 128, 256, 512))

    @property
    def feature_size(self) -> tuple[int, int]:
        """Height and width of the backbone's last features."""
        return -(-self.height // BACKBONE_STRIDE), -(-self.width // BACKBONE_STRIDE)

    @property
    def head_convolutions(self) -> int:
        """Convolutions of a head: each halves the size of the features, rounded up, until it is 1 x 1."""
        return max(1, math.ceil(math.log2(max(self.feature_size))))


class HeadConvolution(nn.Module):
    """A 3 x 3 convolution of stride 2 and padding 1 for each of several heads.

    [N, in, H, W], shared by all heads, or [N, heads * in, H, W] -> [N, heads * out, ceil(H/2), ceil(W/2)]. `weight`
    [heads * out, in, 3, 3] and `bias` [heads * out] hold the values of one head after the other.
    """

    def __init__(self, heads: int, in_channels: int, out_channels: int):
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(heads * out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.empty(heads * out_channels))
        bound = 1 / math.sqrt(in_channels * 9)  # PyTorch's default for a convolution, as published
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
        shared = x.shape[1] == self.weight.shape[1]
        if math.prod(size) <= FEW_POSITIONS:
            return self._product(x, 1 if shared else self.heads).unflatten(2, size)
        convolution = functools.partial(nn.functional.conv2d, stride=2, padding=1)
        if x.device.type != "cpu":
            return convolution(x, self.weight, self.bias, groups=1 if shared else self.heads)
        # A single call is up to three times slower on a CPU, because its kernels rearrange 150 MB of weights at once.
        inputs = [x] * self.heads if shared else x.chunk(self.heads, 1)
        parts = zip(inputs, self.weight.chunk(self.heads), self.bias.chunk(self.heads), strict=True)
        return torch.cat([convolution(*part) for part in parts], 1)

    def _product(self, x: torch.Tensor, groups: int) -> torch.Tensor:
        # Columns [groups, N * positions, in * 9], times each head's weights. The kernels of convolutions rearrange the
        # weights, which for so few positions takes longer than the arithmetic. A matrix product does not need this.
        columns = nn.functional.unfold(x, 3, padding=1, stride=2).unflatten(1, (groups, -1))
        images, _, _, positions = columns.shape
        columns = columns.permute(1, 0, 3, 2).flatten(1, 2).expand(self.heads, -1, -1)
        weight = self.weight.reshape(self.heads, -1, columns.shape[2]).transpose(1, 2)  # [heads, in * 9, out]
        out = torch.baddbmm(self.bias.view(self.heads, 1, -1), columns, weight)  # [heads, N * positions, out]
        return out.unflatten(1, (images, positions)).permute(1, 0, 3, 2).flatten(1, 2)  # [N, heads * out, positions]


class HeadLinear(nn.Module):
    """A linear layer for each head, with equalised learning rate (Karras et al. 2018).

    [N, heads * in] -> [N, heads, out]. `weight` [heads * out, in] and `bias` [heads * out] hold the values of one head
    after the other. They start as N(0, 1) and 0; the weights are scaled by 1 / sqrt(in) at run time.
    """

    def __init__(self, heads: int, in_features: int, out_features: int):
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.randn(heads * out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(heads * out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.weight.shape[1]
        x = x.view(len(x), self.heads, features).transpose(0, 1) * (1 / math.sqrt(features))
        weight = self.weight.reshape(self.heads, -1, features).transpose(1, 2)
        return torch.baddbmm(self.bias.view(self.heads, 1, -1), x, weight).transpose(0, 1)


class StyleHeads(nn.Module):
    """All map-to-style heads: features [N, C, h, w] -> [N, num_ws, w_dim].

    The published tool has a module for each head: its `styles.<i>.NAME` is the i-th part of the rows of `styles.NAME`
    in this class.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        channels = [config.stage_channels[-1]] + [config.head_channels] * config.head_convolutions
        layers = []
        for before, after in zip(channels, channels[1:], strict=False):
            layers += [HeadConvolution(config.num_ws, before, after), nn.LeakyReLU(0.01, inplace=True)]
        self.convs = nn.Sequential(*layers)
        self.linear = HeadLinear(config.num_ws, config.head_channels, config.w_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.convs(x.contiguous()).flatten(1))


class RestyleEncoder(nn.Module):
    """Picture and current reconstruction, both -1..1 RGB -> the correction that is added to the codes.

    x [N, 6, H, W] float, the picture's channels first, H x W as configured -> [N, num_ws, w_dim] float32. A new encoder
    has random weights, drawn as published; torchvision's way draws those of the backbone. In eval mode images are
    independent.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        channels = config.stage_channels
        self.conv1 = nn.Conv2d(INPUT_CHANNELS, channels[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.PReLU(channels[0])
        blocks, before = [], channels[0]
        for stage, (count, after) in enumerate(zip(BLOCKS[config.backbone], channels, strict=True)):
            for i in range(count):
                blocks.append(_block(before, after, stride=2 if stage > 0 and i == 0 else 1))
                before = after
        self.body = nn.Sequential(*blocks)
        self.styles = StyleHeads(config)
        for part in (self.conv1, self.body):  # a tenth faster on CPUs
            part.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raises InputError for an input of another shape."""
        expected_shape = (INPUT_CHANNELS, self.config.height, self.config.width)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected_shape:
            raise InputError(
                f"encoder: input of shape {tuple(x.shape)}, expected [N, {', '.join(map(str, expected_shape))}]"
            )
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.relu(self.bn1(self.conv1(x)))  # [N, 64, H/2, W/2]
        return self.styles(self.body(x)).float()


def load_backbone(encoder: RestyleEncoder, path: str | os.PathLike) -> tuple[str, ...]:
    """Fill the backbone's blocks, in place, with torchvision's ImageNet weights; returns notes for the user.

    `path` is a state dict with torchvision's names (`.pth` or `.safetensors`) of the encoder's own backbone. As
    published, its first convolution, for 3 channels, the normalisation after it and its classifier are not used. Raises
    InputError for an encoder without such weights, for the file of another network, and for a file that cannot be read.
    """
    config, path = encoder.config, Path(path)
    with named("ImageNet weights", path):
        if config.backbone == "resnet10" or config.width_factor != 1:
            raise InputError(
                f"backbone {config.backbone} of width {config.width_factor}: there are no ImageNet weights for it; "
                "take resnet34 or resnet18 at width 1, or random weights"
            )
        sha256 = file_sha256(path)
        file_tensors = read_tensors(path)
        names = {}  # torchvision's prefix -> that of `body`, which counts the blocks of all stages
        for stage, count in enumerate(BLOCKS[config.backbone]):
            for i in range(count):
                names[f"layer{stage + 1}.{i}."] = f"{sum(BLOCKS[config.backbone][:stage]) + i}."
        tensors, unused = {}, ("conv1.", "bn1.", "fc.")
        for name, tensor in file_tensors.items():
            prefix = ".".join(name.split(".")[:2]) + "."
            if prefix in names:
                tensors[names[prefix] + name.removeprefix(prefix)] = tensor
            elif not name.startswith(unused):
                tensors[name] = tensor  # `fitted` refuses it
        tensors = fitted(tensors, encoder.body.state_dict(), f"torchvision's {config.backbone}", "block ")
        encoder.body.load_state_dict(tensors)
    return (
        f"backbone {config.backbone} starts from ImageNet weights: {path.name}, sha256 {sha256}; its first convolution "
        "starts from random ones, for it has 6 channels",
    )


def _block(before: int, after: int, stride: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock  # takes seconds: for those who build an encoder

    shortcut = None
    if stride != 1 or before != after:
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))
    block = BasicBlock(before, after, stride, shortcut)
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return block


# ---- The encoder's steps: each starts from the code and the image of the step before.

Synthesis = Callable[[torch.Tensor], torch.Tensor]  # ws [N, num_ws, w_dim] -> images [N, 3, height, width] float32


def pooled(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize images [N, C, h, w] -> [N, C, height, width] by adaptive average pooling, as the published tool does.

    Smaller sizes take averages, larger sizes repeat pixels. Images that have this size are returned unchanged.
    """
    if tuple(images.shape[2:]) == (height, width):
        return images
    return nn.functional.adaptive_avg_pool2d(images, (height, width))


def working_size(encoder: EncoderConfig, generator: AnyGeneratorConfig) -> tuple[int, int]:
    """Height and width for decoding pictures and measuring losses: of each, the smaller value of the two networks."""
    return min(encoder.height, generator.height), min(encoder.width, generator.width)


def restyle_steps(
    encoder: RestyleEncoder,
    synthesis: Synthesis,
    images: torch.Tensor,
    average: torch.Tensor,
    steps: int,
    average_image: torch.Tensor | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `steps` pairs of codes [N, num_ws, w_dim] and reconstructions [N, 3, gh, gw], each better than the last.

    `images` [N, 3, h, w] float32, -1..1, have the working size. The codes start at `average` [num_ws, w_dim].
    `average_image` [1, 3, gh, gw] (or without the 1) is the image of the average; without it, the function makes it.
    Each step adds the encoder's output to the codes. Codes and reconstructions are detached between the steps, so the
    caller must back-propagate the loss of a step before it takes the next pair. Raises InputError for shapes that do
    not fit.
    """
    config = encoder.config
    if type(steps) is not int or steps < 1:
        raise InputError(f"{steps!r} refinement steps: at least 1 is needed")
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise InputError(f"images of shape {tuple(images.shape)} {images.dtype}: float [N, 3, h, w] is needed")
    if tuple(average.shape) != (config.num_ws, config.w_dim):
        needed = f"[{config.num_ws}, {config.w_dim}]"
        raise InputError(f"average code of shape {tuple(average.shape)}: the encoder needs {needed}")
    return _steps(encoder, synthesis, images, average, steps, average_image)


def _steps(encoder, synthesis, images, average, steps, average_image):
    size = encoder.config.height, encoder.config.width
    if average_image is None:
        with torch.no_grad():
            average_image = synthesis(average[None])
    codes = average.expand(len(images), -1, -1)
    current = average_image.expand(len(images), *average_image.shape[-3:])
    inputs = pooled(images, *size)
    for _ in range(steps):
        codes = codes.detach() + encoder(torch.cat([inputs, pooled(current.detach(), *size)], 1))
        current = synthesis(codes)
        yield codes, current
