"""The StyleGAN2 generator (Karras et al. 2020) in plain PyTorch: skip architecture, noise inputs, square and tall.

The state dict has the names and shapes of the reference implementation. Tall networks have the layout of
StyleGAN-Human (Fu et al. 2022): the constant input is 4 x 2, and a layer of height h has noise of [h, h / 2]; blocks
are named by their height.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import nn

from passersby.errors import InputError
from passersby.stylegan3 import generator as stylegan3
from passersby.stylegan3.discriminator import MAPPING_VALUES, binomial_filter, check_reference_values
from passersby.stylegan3.mapping import FullyConnected, Precision
from passersby.stylegan3.ops.convolution import conv2d, upsample2d, upsampling_conv2d
from passersby.stylegan3.ops.filtered_lrelu import leaky_clamp_
from passersby.stylegan3.schedule import check_size

# draw(layer, (height, width)) gives the noise of a layer, [N, height, width] float32 of variance 1. Layers count from
# 0; the number is that of the convolution's w.
DrawNoise = Callable[[int, tuple[int, int]], torch.Tensor]

FIRST_HEIGHT = 4  # of the constant input


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The whole configuration of a generator; the defaults are those of the reference's config F.

    `height` and `width` are powers of two, and the height is 1, 2 or 4 times the width. With `c_dim` > 0 the generator
    takes a label [N, c_dim] beside z. `conv_clamp=None` switches clamping off (float32 only).
    """

    height: int
    width: int
    z_dim: int = 512
    c_dim: int = 0
    w_dim: int = 512
    mapping_layers: int = 8
    img_channels: int = 3
    channel_base: int = 32768
    channel_max: int = 512
    conv_clamp: float | None = 256.0
    num_fp16_res: int = 4

    def __post_init__(self):
        check_size(self.height, self.width)
        if self.height > FIRST_HEIGHT * self.width:
            raise InputError(
                f"network size {self.height} x {self.width}: a StyleGAN2 is at most 4 times as high as wide"
            )
        for name in ("z_dim", "w_dim", "mapping_layers", "img_channels", "channel_base", "channel_max"):
            if getattr(self, name) < 1:
                raise InputError(f"generator: {name}={getattr(self, name)} must be at least 1")
        if self.c_dim < 0 or self.channel_base < self.height:
            raise InputError(
                f"generator: c_dim={self.c_dim}, channel_base={self.channel_base}: labels cannot be negative, and a "
                f"layer of height {self.height} needs a channel"
            )

    @property
    def heights(self) -> list[int]:
        """Heights of the blocks, from the constant input to the image."""
        return [FIRST_HEIGHT << i for i in range(int(math.log2(self.height // FIRST_HEIGHT)) + 1)]

    @property
    def num_ws(self) -> int:
        """Number of w inputs: one for each convolution, and one for the last ToRGB.

        The ToRGB of another block shares its w with the convolution that comes after it.
        """
        return 2 * len(self.heights)

    def channels(self, height: int) -> int:
        """Channels of the block of that height."""
        return min(self.channel_base // height, self.channel_max)

    def size(self, height: int) -> tuple[int, int]:
        """Height and width of the maps of the block of that height."""
        return height, height * self.width // self.height

    def half_on_cuda(self, height: int) -> bool:
        """Whether the block of that height runs in float16 on a GPU: the `num_fp16_res` highest ones."""
        return height >= max(2 ** (int(math.log2(self.height)) + 1 - self.num_fp16_res), 8)


# ---- Layers. Styles scale the input of a convolution, demodulation scales its output, and all samples share one
# weight: on a CPU this is faster than a kernel for each sample, and it has gradients of any order.


class StyledConvolution(nn.Module):
    """Modulated 3 x 3 convolution, noise, bias, leaky ReLU: x [N, C, h, w], w [N, w_dim] -> [N, C', h', w'].

    `up` doubles height and width. x and w may hold one sample for all N.
    """

    noise_const: torch.Tensor
    resample_filter: torch.Tensor

    def __init__(self, config: GeneratorConfig, height: int, in_channels: int, up: bool):
        super().__init__()
        out_channels, self.size = config.channels(height), config.size(height)
        self.up, self.clamp = up, config.conv_clamp
        self.affine = FullyConnected(config.w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("noise_const", torch.randn(self.size))
        self.register_buffer("resample_filter", binomial_filter())

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """noise: [N, 1, h', w'] or [h', w'] float32."""
        style, weight = self.affine(w), self.weight
        if x.dtype == torch.float16:
            # Values near 1 keep the maps in float16's range. The demodulation cancels both factors.
            fan_in = weight[0].numel()
            weight = weight / (weight.abs().amax((1, 2, 3), keepdim=True) * math.sqrt(fan_in))
            style = style / style.abs().amax(1, keepdim=True)
        demodulation = (style.square() @ weight.square().sum((2, 3)).t() + 1e-8).rsqrt()
        x, weight = x * style.to(x.dtype)[:, :, None, None], weight.to(x.dtype)
        x = upsampling_conv2d(x, weight, self.resample_filter) if self.up else conv2d(x, weight, padding=1)
        # A leaky ReLU is positively homogeneous: its gain goes into all parts of its input.
        gain = math.sqrt(2)
        noise = (noise * (self.noise_strength * gain)).to(x.dtype)
        bias = (self.bias * gain).to(x.dtype)[:, None, None]
        x = torch.addcmul(bias, x, (demodulation * gain).to(x.dtype)[:, :, None, None]).add_(noise)
        return leaky_clamp_(x, 0.2, self.clamp)


class ToRgb(nn.Module):
    """Modulated 1 x 1 convolution without demodulation: x [N, C, h, w], w [N, w_dim] -> [N, img_channels, h, w]."""

    def __init__(self, config: GeneratorConfig, height: int):
        super().__init__()
        channels, self.clamp = config.channels(height), config.conv_clamp
        self.affine = FullyConnected(config.w_dim, channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(config.img_channels, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.img_channels))
        self.weight_gain = 1 / math.sqrt(channels)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        # A matrix for each sample: its three outputs would not fill the vectors of a convolution's kernel.
        style = self.affine(w) * self.weight_gain
        matrix = (self.weight[:, :, 0, 0] * style[:, None]).transpose(1, 2)  # [N, C, img_channels]
        n, (height, width) = max(len(x), len(w)), x.shape[2:]
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2).expand(n, -1, -1)  # [N, h * w, C]
        y = torch.baddbmm(self.bias.to(x.dtype), pixels, matrix.to(x.dtype).expand(n, -1, -1))
        y = y if self.clamp is None else y.clamp(-self.clamp, self.clamp)
        return y.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class SynthesisBlock(nn.Module):
    """One or two convolutions and a ToRGB, whose output is added to the enlarged image of the blocks before."""

    const: torch.Tensor
    resample_filter: torch.Tensor

    def __init__(self, config: GeneratorConfig, height: int):
        super().__init__()
        channels, self.is_first = config.channels(height), height == FIRST_HEIGHT
        self.reduced_precision = config.half_on_cuda(height)
        self.precision = Precision.of_layer(self.reduced_precision)
        self.register_buffer("resample_filter", binomial_filter())
        if self.is_first:
            self.const = nn.Parameter(torch.randn(channels, *config.size(height)))
        else:
            self.conv0 = StyledConvolution(config, height, config.channels(height // 2), up=True)
        self.conv1 = StyledConvolution(config, height, channels, up=False)
        self.torgb = ToRgb(config, height)

    @property
    def convolutions(self) -> list[StyledConvolution]:
        """The block's convolutions in their order."""
        return [self.conv1] if self.is_first else [self.conv0, self.conv1]


class SynthesisNetwork(nn.Module):
    """ws [N, num_ws, w_dim] -> images [N, img_channels, height, width] float32, nominally -1..1, not clamped."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.num_ws, self.w_dim, self.heights = config.num_ws, config.w_dim, config.heights
        for height in self.heights:
            setattr(self, f"b{height}", SynthesisBlock(config, height))

    @property
    def kernel_names(self) -> list[str]:
        """Names of the convolutions' weights, without ToRGB's."""
        names = [("conv0.weight", "conv1.weight")[height == FIRST_HEIGHT :] for height in self.heights]
        return [f"b{height}.{name}" for height, parts in zip(self.heights, names, strict=True) for name in parts]

    def forward(
        self,
        ws: torch.Tensor,
        update_emas: bool = False,
        shared: int = 0,
        trunk: stylegan3.SharedTrunk | None = None,
        noise: DrawNoise | None = None,
    ) -> torch.Tensor:
        """Images of `ws`.

        Without `noise` every layer has its constant noise, so that the image is a function of w alone; training draws
        noise. `shared=k` promises that ws[:, :k] are equal in all samples, as in style mixing from index k on. The
        layers that depend only on these are then computed once; the result is the same. With a `trunk` they are equal
        in all samples of each person, and computed once for each person. This network has no averages, so
        `update_emas` has no effect.
        """
        del update_emas
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise InputError(f"synthesis: ws has shape {tuple(ws.shape)}, expected [N, {self.num_ws}, {self.w_dim}]")
        if noise is not None:
            shared = 0  # every sample has its own noise
        ws = ws.to(torch.float32)
        common = ws[:1] if trunk is None else ws[trunk.first]
        styles = [common[:, i] if i < shared else ws[:, i] for i in range(self.num_ws)]

        def fitted(x: torch.Tensor, index: int) -> torch.Tensor:
            # The maps of people become those of their samples at the first style input that is not shared.
            return x if trunk is None or index < shared or len(x) != len(trunk.first) else x[trunk.person]

        x = image = None
        index = 0
        for height in self.heights:
            block: SynthesisBlock = getattr(self, f"b{height}")
            if x is None:
                x = block.const[None].contiguous(memory_format=torch.channels_last)
            x = x.to(block.precision.of(x))
            for layer in block.convolutions:
                values = layer.noise_const if noise is None else noise(index, layer.size)[:, None]
                x = layer(fitted(x, index), styles[index], values)
                index += 1
            rgb = block.torgb(fitted(x, index), styles[index]).to(torch.float32)
            image = rgb if image is None else fitted(upsample2d(image, block.resample_filter), index) + rgb
        assert image is not None  # a network has at least three blocks
        return fitted(image, shared).expand(len(ws), -1, -1, -1)


class Generator(stylegan3.Generator):
    """z [N, z_dim] (and labels c [N, c_dim]) -> images [N, 3, height, width] float32, nominally -1..1.

    Mapping, truncation and `images` are those of the StyleGAN3 generator; `synthesis` is StyleGAN2's.
    """

    config: GeneratorConfig
    synthesis: SynthesisNetwork

    @classmethod
    def new_synthesis(cls, config: GeneratorConfig) -> SynthesisNetwork:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A new synthesis network."""
        return SynthesisNetwork(config)


# ---- The reference's constructor keywords.

_SYNTHESIS_VALUES = {"architecture": ("skip",), "use_noise": (True,), "activation": ("lrelu",)}
_SYNTHESIS_VALUES |= {"resample_filter": ([1, 3, 3, 1],), "fused_modconv_default": None}
_SYNTHESIS_VALUES |= {"fp16_channels_last": None, "channels_last": None}
_FIELDS = ("z_dim", "c_dim", "w_dim", "img_channels", "channel_base", "channel_max", "conv_clamp", "num_fp16_res")


def reference_generator_config(
    *,
    img_resolution: int,
    square: bool = True,
    mapping_kwargs: dict | None = None,
    synthesis_kwargs: dict | None = None,
    **keywords,
) -> GeneratorConfig:
    """The `GeneratorConfig` of the reference's constructor keywords. Raises `InputError` for what is not known here.

    The keywords are those of the repositories of StyleGAN3, StyleGAN2-ADA and StyleGAN-Human. The last two give those
    of the synthesis as `synthesis_kwargs`, with other defaults; `square=False` of the last one is a width of half the
    height.
    """
    mapping = dict(mapping_kwargs or {})
    if synthesis_kwargs is not None:
        keywords = {"conv_clamp": None, "num_fp16_res": 0} | dict(synthesis_kwargs) | keywords
    values = {name: keywords.pop(name) for name in _FIELDS if name in keywords}
    layers = mapping.pop("num_layers", 8)
    w_dim = values.get("w_dim", 512)
    check_reference_values(
        "generator", mapping, MAPPING_VALUES | dict.fromkeys(("embed_features", "layer_features"), (None, w_dim))
    )
    check_reference_values("generator", keywords, _SYNTHESIS_VALUES)
    width = img_resolution if square else img_resolution // 2
    return GeneratorConfig(img_resolution, width, mapping_layers=layers, **values)
