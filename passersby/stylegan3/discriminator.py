"""The StyleGAN2 residual discriminator that StyleGAN3 trains against, square and tall.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", 2020. Tall images: every block halves both
sides until the shorter is 4; the epilogue works on (4 * height / width) x 4. Blocks are named by their height.
"""

import dataclasses
import math

import torch
from torch import nn

from passersby.errors import InputError
from passersby.stylegan3.mapping import FullyConnected, MappingNetwork, Precision
from passersby.stylegan3.ops.convolution import conv2d, filter2d
from passersby.stylegan3.ops.filtered_lrelu import leaky_clamp_
from passersby.stylegan3.schedule import check_size


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """The whole configuration of a discriminator. `mbstd_group_size` images share one minibatch statistic.

    `last_height` is the height of the epilogue's maps. None: the height at which the shorter side is 4. Config 2 has 4,
    as StyleGAN-Human's networks have: tall maps then end as 4 x 2.
    """

    height: int
    width: int
    c_dim: int = 0
    img_channels: int = 3
    channel_base: int = 32768
    channel_max: int = 512
    num_fp16_res: int = 4
    conv_clamp: float | None = 256.0
    cmap_dim: int | None = None
    mapping_layers: int = 8
    mbstd_group_size: int | None = 4
    mbstd_num_channels: int = 1
    last_height: int | None = None

    def __post_init__(self):
        check_size(self.height, self.width)
        last = self.last_height
        if last is None:
            return
        if last < 4 or last & (last - 1) or last * 2 > self.height or last * self.width < self.height:
            raise InputError(
                f"discriminator: last_height={last} for {self.height} x {self.width}: it must be a power of two, at "
                "least 4 and at most half the height, with one column or more"
            )

    @property
    def heights(self) -> list[int]:
        """Heights of the blocks; the last is the epilogue's."""
        last = self.last_height or 4 * self.height // self.width
        return [self.height >> i for i in range(int(math.log2(self.height // last)) + 1)]

    @property
    def last_size(self) -> tuple[int, int]:
        """Height and width of the epilogue's maps."""
        return self.heights[-1], self.heights[-1] * self.width // self.height

    def channels(self, height: int) -> int:
        """Channels of the block of that height."""
        return min(self.channel_base // height, self.channel_max)

    def half_on_cuda(self, height: int) -> bool:
        """Whether the block of that height runs in float16 on a GPU: the `num_fp16_res` highest ones."""
        return height >= max(2 ** (int(math.log2(self.height)) + 1 - self.num_fp16_res), 8)


class Conv(nn.Module):
    """Equalised convolution, optionally with leaky ReLU (gain sqrt(2)) and 2x down-sampling by [1, 3, 3, 1]."""

    resample_filter: torch.Tensor

    def __init__(self, in_channels, out_channels, kernel, bias=True, activation=False, down=1, clamp=None):
        super().__init__()
        self.down, self.activation, self.clamp, self.padding = down, activation, clamp, kernel // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("resample_filter", binomial_filter())

    def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        clamp = None if self.clamp is None else self.clamp * gain  # grows with the gain of the output
        # A leaky ReLU is positively homogeneous, so a gain after it can go into weight and bias instead.
        gain = gain * math.sqrt(2) if self.activation else gain
        weight = (self.weight * (self.weight_gain * gain)).to(x.dtype)
        bias = None if self.bias is None else (self.bias * gain).to(x.dtype)
        if self.down == 1:
            x = conv2d(x, weight, bias, padding=self.padding)
        elif self.padding:
            x = conv2d(filter2d(x, self.resample_filter, padding=2), weight, bias, stride=self.down)
        else:
            x = conv2d(filter2d(x, self.resample_filter, self.down, padding=1), weight, bias)
        return leaky_clamp_(x, 0.2, clamp) if self.activation else x


def binomial_filter() -> torch.Tensor:
    """The [1, 3, 3, 1] low-pass filter as [4, 4] float32 with sum 1."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / taps.sum() ** 2


class ResidualBlock(nn.Module):
    """x [N, C, h, w] -> [N, C', h/2, w/2]; the first block takes the image itself."""

    def __init__(self, config: DiscriminatorConfig, height: int):
        super().__init__()
        channels, out = config.channels(height), config.channels(height // 2)
        clamp = config.conv_clamp
        self.reduced_precision = config.half_on_cuda(height)
        self.precision = Precision.of_layer(self.reduced_precision)
        self.register_buffer("resample_filter", binomial_filter())
        if height == config.height:
            self.fromrgb = Conv(config.img_channels, channels, 1, activation=True, clamp=clamp)
        self.conv0 = Conv(channels, channels, 3, activation=True, clamp=clamp)
        self.conv1 = Conv(channels, out, 3, activation=True, down=2, clamp=clamp)
        self.skip = Conv(channels, out, 1, bias=False, down=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.precision.of(x))
        if hasattr(self, "fromrgb"):
            x = self.fromrgb(x)
        skip = self.skip(x, gain=math.sqrt(0.5))
        return self.conv1(self.conv0(x), gain=math.sqrt(0.5)) + skip


def minibatch_std(x: torch.Tensor, group_size: int | None, num_channels: int) -> torch.Tensor:
    """Append `num_channels` maps to x [N, C, h, w]: the mean standard deviation over a group of the batch.

    Sample j is in a group with j + N/G, j + 2N/G, ... (Karras et al. 2018). N must be a multiple of the group size G.
    """
    n, c, h, w = x.shape
    group = n if group_size is None else min(group_size, n)
    if n % group:
        raise InputError(f"discriminator: batch {n} is not a multiple of the minibatch-std group {group}")
    y = x.reshape(group, -1, num_channels, c // num_channels, h, w)
    y = (y - y.mean(0)).square().mean(0)
    y = (y + 1e-8).sqrt().mean((2, 3, 4))  # [N/G, num_channels]
    y = y[:, :, None, None].repeat(group, 1, h, w)
    return torch.cat([x, y], dim=1)


class Epilogue(nn.Module):
    """x [N, C, h, w] -> logits [N, 1], or [N, cmap_dim] features that the label is projected on."""

    def __init__(self, config: DiscriminatorConfig, cmap_dim: int):
        super().__init__()
        self.size = config.last_size
        channels = config.channels(self.size[0])
        self.group_size, self.num_channels = config.mbstd_group_size, config.mbstd_num_channels
        extra = self.num_channels
        self.conv = Conv(channels + extra, channels, 3, activation=True, clamp=config.conv_clamp)
        self.fc = FullyConnected(channels * math.prod(self.size), channels, activation=True)
        self.out = FullyConnected(channels, cmap_dim if cmap_dim > 0 else 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(torch.float32)
        if self.num_channels > 0:
            x = minibatch_std(x, self.group_size, self.num_channels)
        x = self.conv(x).contiguous()  # flattened as [C, h, w], whatever the memory format
        return self.out(self.fc(x.flatten(1)))


class Discriminator(nn.Module):
    """images [N, img_channels, height, width] float, -1..1, and labels c [N, c_dim] -> logits [N, 1], high = real."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        self.heights = config.heights
        cmap_dim = config.cmap_dim
        if cmap_dim is None:
            cmap_dim = config.channels(self.heights[-1])
        if config.c_dim == 0:
            cmap_dim = 0
        for height in self.heights[:-1]:
            setattr(self, f"b{height}", ResidualBlock(config, height))
        if config.c_dim > 0:
            self.mapping = MappingNetwork(0, config.c_dim, cmap_dim, None, num_layers=config.mapping_layers)
        setattr(self, f"b{self.heights[-1]}", Epilogue(config, cmap_dim))

    def forward(self, images: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [N, 1] float32; with labels, the projection on the embedded label."""
        shape = (self.config.img_channels, self.config.height, self.config.width)
        if images.ndim != 4 or images.shape[1:] != shape:
            raise InputError(
                f"discriminator: images have shape {tuple(images.shape)}, expected [N, {', '.join(map(str, shape))}]"
            )
        x = images.contiguous(memory_format=torch.channels_last)
        for height in self.heights:
            x = getattr(self, f"b{height}")(x)
        if self.config.c_dim == 0:
            return x
        label = self.mapping(None, c)
        return (x * label).sum(1, keepdim=True) / math.sqrt(label.shape[1])


# Keywords of the reference with the only values that this code computes. None stands for the reference's default.
# Training freezes layers and averages w; it has no effect on a finished network.
MAPPING_VALUES = {"activation": ("lrelu",), "lr_multiplier": (0.01,), "embed_features": (None,)}
MAPPING_VALUES |= {"layer_features": (None,), "w_avg_beta": None}
BLOCK_VALUES = {"activation": ("lrelu",), "resample_filter": ([1, 3, 3, 1],), "freeze_layers": None}
BLOCK_VALUES |= {"fp16_channels_last": None}


def check_reference_values(network: str, keywords: dict, known: dict) -> None:
    """Raise `InputError` for a keyword that `known` lacks, or with a value that is not among the keyword's.

    `known`: keyword -> the possible values, or None where the value does not matter.
    """
    for key, value in keywords.items():
        value = list(value) if isinstance(value, tuple) else value
        if key not in known:
            raise InputError(f"{network} keyword {str(key)[:40]} is not known: is this a StyleGAN network?")
        if known[key] is not None and value not in known[key]:
            text = " or ".join(map(str, known[key]))
            raise InputError(f"{network}: {key} is {str(value)[:40]}, and only {text} is known here")


def reference_discriminator_config(*, img_resolution: int, square: bool = True, **keywords) -> DiscriminatorConfig:
    """The `DiscriminatorConfig` of the reference's constructor keywords. Raises `InputError` on an unknown one.

    The keywords are those of the repositories of StyleGAN3, StyleGAN2-ADA and StyleGAN-Human; `square=False` of the
    last one is a width of half the height, and maps that end as 4 x 2.
    """
    values: dict = {"height": img_resolution, "width": img_resolution if square else img_resolution // 2}
    if not square:
        values["last_height"] = 4
    mapping, epilogue = (dict(keywords.pop(f"{part}_kwargs", {})) for part in ("mapping", "epilogue"))
    block = dict(keywords.pop("block_kwargs", {}))
    layers = mapping.pop("num_layers", 8)
    if keywords.get("c_dim", 0):
        values["mapping_layers"] = layers
        check_reference_values("discriminator", mapping, MAPPING_VALUES)
    else:
        values["mapping_layers"] = layers or 8  # of a mapping network that does not exist
    check_reference_values("discriminator", block, BLOCK_VALUES)
    check_reference_values("discriminator", {"activation": epilogue.pop("activation", "lrelu")}, BLOCK_VALUES)
    values.update(epilogue)
    if keywords.pop("architecture", "resnet") != "resnet":
        raise InputError("discriminator: only the residual architecture of StyleGAN3 is known here")
    values.update(keywords)
    unknown = sorted(set(values) - set(DiscriminatorConfig.__dataclass_fields__))
    if unknown:
        raise InputError(f"discriminator keywords {unknown} are not known: is this a StyleGAN3 network?")
    return DiscriminatorConfig(**values)
