"""The StyleGAN3 generator (Karras et al. 2021) in plain PyTorch, configs T and R, square and tall.

The state dict of a square network has the names and shapes of the reference implementation.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from passersby.errors import InputError
from passersby.stylegan3.mapping import FullyConnected, MappingNetwork, Precision
from passersby.stylegan3.ops.convolution import modulated_conv2d
from passersby.stylegan3.ops.filtered_lrelu import FilterPlan, Kernel, filtered_lrelu, kernel_on
from passersby.stylegan3.schedule import GeneratorConfig, LayerSpec, lowpass_filter

if TYPE_CHECKING:
    from passersby import stylegan2

CHANNEL_MULTIPLE = 8  # of a GPU's maps: tensor cores read 16 bytes at a time, which are 8 channels of float16
IMAGES_AT_ONCE = 16  # images in a chunk of `Generator.images`: some hundred megabytes of maps


class FourierInput(nn.Module):
    """Fourier features, rotated and shifted by a transform that depends on w (section 3.1 of the paper).

    w [N, w_dim] -> [N, C, H, W] float32, channels last. One unit of the grid is the image height. `transform` [3, 3] is
    the inverse of a user's transform; its default is the identity.
    """

    transform: torch.Tensor
    freqs: torch.Tensor
    phases: torch.Tensor

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        first = config.layers()[0]
        self.size, self.rate, self.bandwidth = config.input_size, first.in_rate, first.in_cutoff
        channels = first.in_channels
        freqs = torch.randn(channels, 2)
        radii = freqs.square().sum(1, keepdim=True).sqrt()
        freqs = freqs / (radii * radii.square().exp().pow(0.25)) * self.bandwidth  # uniform in a disc
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.affine = FullyConnected(config.w_dim, 4, weight_init=0, bias_init=[1.0, 0.0, 0.0, 0.0])
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", freqs)
        self.register_buffer("phases", torch.rand(channels) - 0.5)

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        t = self.affine(w)  # [N, 4] cos, sin, x, y
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        zero, one = torch.zeros_like(t[:, 0]), torch.ones_like(t[:, 0])
        rows = [t[:, 0], -t[:, 1], zero, t[:, 1], t[:, 0], zero, zero, zero, one]
        rotation = torch.stack(rows, 1).view(-1, 3, 3)
        rows = [one, zero, -t[:, 2], zero, one, -t[:, 3], zero, zero, one]
        translation = torch.stack(rows, 1).view(-1, 3, 3)
        transform = rotation @ translation @ self.transform
        phases = self.phases + (self.freqs @ transform[:, :2, 2:]).squeeze(2)  # [N, C]
        freqs = self.freqs @ transform[:, :2, :2]  # [N, C, 2]
        # A scaling transform may push frequencies beyond the limit of the grid: these fade out.
        over = (freqs.norm(dim=2) - self.bandwidth) / (self.rate / 2 - self.bandwidth)
        amplitudes = (1 - over).clamp(0, 1)
        y, x = (self._axis(n, w) for n in self.size)
        waves = y[:, None, None] * freqs[:, None, None, :, 1] + x[:, None] * freqs[:, None, None, :, 0]
        waves = torch.sin((waves + phases[:, None, None]) * (2 * math.pi)) * amplitudes[:, None, None]
        out = waves @ (self.weight / math.sqrt(self.weight.shape[0])).t()  # [N, H, W, C]
        return out.permute(0, 3, 1, 2)

    def _axis(self, n: int, like: torch.Tensor) -> torch.Tensor:
        return (torch.arange(n, device=like.device, dtype=torch.float32) + (0.5 - n / 2)) / self.rate


class SynthesisLayer(nn.Module):
    """Modulated convolution, bias and filtered leaky ReLU: x [N, C, H, W], w [N, w_dim] -> [N, C', H', W'].

    x may hold one sample while w holds N (the shared trunk of several styles), and the other way round.
    """

    magnitude_ema: torch.Tensor
    up_filter: torch.Tensor | None
    down_filter: torch.Tensor | None

    def __init__(self, spec: LayerSpec, config: GeneratorConfig):
        super().__init__()
        self.spec = spec
        self.plan = FilterPlan.of_layer(spec, config.conv_clamp)
        self.magnitude_ema_beta = config.magnitude_ema_beta
        # The last `num_fp16_res` octaves run in float16 on a GPU, because they take most of the time.
        self.reduced_precision = spec.rate_is_high(config.height, config.num_fp16_res)
        self.precision = Precision.of_layer(self.reduced_precision)
        self.scaled_kernels = True  # `set_scaled_kernels`
        self.padded_channels = True  # `set_padded_channels`
        self.kernel: Kernel = "auto"  # `set_kernel`
        self.affine = FullyConnected(config.w_dim, spec.in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(spec.out_channels, spec.in_channels, spec.kernel, spec.kernel))
        self.bias = nn.Parameter(torch.zeros(spec.out_channels))
        self.register_buffer("magnitude_ema", torch.ones([]))
        self.register_buffer("up_filter", self._filter(spec.up_taps, spec.in_cutoff, spec.in_half_width, False))
        radial = config.use_radial_filters and not spec.critically_sampled
        self.register_buffer("down_filter", self._filter(spec.down_taps, spec.out_cutoff, spec.out_half_width, radial))

    def _filter(self, taps, cutoff, half_width, radial):
        kernel = lowpass_filter(taps, cutoff, half_width, self.spec.rate, radial)
        return None if kernel is None else torch.from_numpy(kernel)

    def forward(self, x: torch.Tensor, w: torch.Tensor, update_emas: bool = False) -> torch.Tensor:
        if update_emas:
            # The norms of pixels need one pass over x without a copy, and their sums are short.
            norms = torch.linalg.vector_norm(x.detach().permute(0, 2, 3, 1), dim=-1, dtype=torch.float32)
            magnitude = norms.square().mean() / self.spec.in_channels  # x may have further channels of zeros
            self.magnitude_ema.copy_(magnitude.lerp(self.magnitude_ema, self.magnitude_ema_beta))
        weight, style, demodulation = self._modulation(w)
        x, bias = x.to(self.precision.of(x)), self.bias
        if self.padded_channels and (multiple := channel_multiple(x.device)) > 1:
            x, weight, style, demodulation, bias = self._padded(x, weight, style, demodulation, multiple)
        x = modulated_conv2d(x, weight, style, demodulation, bias, self.scaled_kernels)
        return filtered_lrelu(x, self.up_filter, self.down_filter, self.plan, self.kernel)

    def _padded(self, x, weight, style, demodulation, multiple):
        # The arguments of the convolution, with channels of zeros up to a multiple: their maps are 0, and 0 after it.
        outputs = 0 if self.spec.to_rgb else -self.spec.out_channels % multiple
        inputs = -self.spec.in_channels % multiple
        weight = F.pad(weight, (0, 0, 0, 0, 0, inputs, 0, outputs))
        style, demodulation = F.pad(style, (0, inputs)), F.pad(demodulation, (0, outputs))
        x = F.pad(x, (0, 0, 0, 0, 0, weight.shape[1] - x.shape[1]))  # of the first layer; others have them already
        return x, weight, style, demodulation, F.pad(self.bias, (0, outputs))

    def _modulation(self, w):
        # With weights W, styles s [N, I] and output scales d [N, O], the modulated, demodulated convolution is
        # d * conv(s * x; W). W and s are normalised first. This only keeps float16 in range: the demodulation cancels
        # it. Styles are normalised for each sample, so that an image does not depend on its batch. (The reference
        # normalises over the batch; only its 1e-8 makes a difference.)
        style = self.affine(w)
        if self.spec.to_rgb:
            style = style * (1 / math.sqrt(self.weight[0].numel()))
            return (
                self.weight,
                style * self.magnitude_ema.rsqrt(),
                style.new_ones(len(w), self.spec.out_channels),
            )
        weight = self.weight * self.weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
        style = style * style.square().mean(1, keepdim=True).rsqrt()
        demodulation = (style.square() @ weight.square().sum((2, 3)).t() + 1e-8).rsqrt()
        return weight, style * self.magnitude_ema.rsqrt(), demodulation


class SharedTrunk(NamedTuple):
    """The people of a batch whose images share the layers below some style input, fewer than the images."""

    first: torch.Tensor  # [P] int64: a sample of each person
    person: torch.Tensor  # [N] int64: each sample's person, as an index of `first`


class SynthesisNetwork(nn.Module):
    """ws [N, num_ws, w_dim] -> images [N, img_channels, height, width] float32, nominally -1..1, not clamped."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.num_ws, self.w_dim, self.output_scale = config.num_ws, config.w_dim, config.output_scale
        self.input = FourierInput(config)
        self.layer_names = [spec.name for spec in config.layers()]
        for spec in config.layers():
            setattr(self, spec.name, SynthesisLayer(spec, config))

    @property
    def kernel_names(self) -> list[str]:
        """Names of the convolutions' weights, without ToRGB's."""
        return [f"{name}.weight" for name in self.layer_names if not getattr(self, name).spec.to_rgb]

    def forward(
        self, ws: torch.Tensor, update_emas: bool = False, shared: int = 0, trunk: SharedTrunk | None = None
    ) -> torch.Tensor:
        """Images of `ws`.

        `shared=k` promises that ws[:, :k] are equal in all samples, as in style mixing from index k on. The layers that
        depend only on these are then computed once; the result is the same. With a `trunk` they are equal in all
        samples of each person, and computed once for each person.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise InputError(f"synthesis: ws has shape {tuple(ws.shape)}, expected [N, {self.num_ws}, {self.w_dim}]")
        ws = ws.to(torch.float32)
        common = ws[:1] if trunk is None else ws[trunk.first]
        x = self.input(common[:, 0] if shared > 0 else ws[:, 0])
        for i, name in enumerate(self.layer_names, start=1):
            if trunk is not None and i == shared:
                x = x[trunk.person]
            x = getattr(self, name)(x, common[:, i] if i < shared else ws[:, i], update_emas)
        if len(x) != len(ws):
            x = x.expand(len(ws), -1, -1, -1) if trunk is None else x[trunk.person]
        return x.to(torch.float32) * self.output_scale


class Generator(nn.Module):
    """z [N, z_dim] (and labels c [N, c_dim]) -> images [N, 3, height, width] float32, nominally -1..1.

    `mapping(z, c, truncation_psi, truncation_cutoff)` gives ws [N, num_ws, w_dim], `synthesis(ws)` the images.
    `passersby.stylegan2.Generator` has another configuration and another synthesis, and all else from this class.
    """

    config: "stylegan2.AnyGeneratorConfig"

    def __init__(self, config: "stylegan2.AnyGeneratorConfig"):
        super().__init__()
        self.config = config
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = (
            config.z_dim,
            config.c_dim,
            config.w_dim,
            config.num_ws,
        )
        self.mapping = MappingNetwork(
            config.z_dim, config.c_dim, config.w_dim, config.num_ws, num_layers=config.mapping_layers
        )
        self.synthesis = self.new_synthesis(config)

    @classmethod
    def new_synthesis(cls, config):
        """A new synthesis network of this class of generators."""
        return SynthesisNetwork(config)

    def forward(self, z, c=None, truncation_psi=1.0, truncation_cutoff=None, update_emas=False) -> torch.Tensor:
        """Mapping, truncation and synthesis in one call."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas=update_emas)
        return self.synthesis(ws, update_emas=update_emas)

    @torch.inference_mode()
    def images(
        self,
        people: Sequence[int] | np.ndarray,
        others: Sequence[int] | np.ndarray | None = None,
        layers: Iterable[int] = (),
        truncation_psi: float = 1.0,
    ) -> np.ndarray:
        """Pictures of people [N, height, width, 3], uint8 (RGB where the network makes three channels).

        people: seeds, or z [N, z_dim]. A seed gives the same person as in the reference's tools and in our runs.
        others: people for style mixing, one for all or one for each; they give the style inputs `layers`, counted
        from 0. Raises InputError for arguments that do not fit together, and for a network that needs labels.
        """
        ws = self._ws_of(people, truncation_psi)
        indices = list(layers)
        if others is not None:
            donor_ws = self._ws_of(others, truncation_psi)
            if len(donor_ws) not in (1, len(ws)):
                raise InputError(f"{len(donor_ws)} others for {len(ws)} people: give one, or one for each")
            if not indices or not 0 <= min(indices) <= max(indices) < self.num_ws:
                raise InputError(f"layers {indices}: give one or more of the style inputs 0 to {self.num_ws - 1}")
            ws[:, indices] = donor_ws[:, indices]
        elif indices:
            raise InputError(f"layers {indices} without people to mix with: give others")
        return np.concatenate([to_uint8(self.synthesis(part)).cpu().numpy() for part in ws.split(IMAGES_AT_ONCE)])

    def _ws_of(self, people: Sequence[int] | np.ndarray, truncation_psi: float) -> torch.Tensor:
        values = np.asarray(people)
        if not len(values):
            raise InputError("no people: give one seed or z, or more")
        if values.ndim == 1 and values.dtype.kind in "iu":
            values = z_of_seeds(values.tolist(), self.z_dim)
        z = torch.as_tensor(values, dtype=torch.float32, device=self.mapping.w_avg.device)
        return self.mapping(z, truncation_psi=truncation_psi)


def set_scaled_kernels(generator: Generator, scaled: bool) -> None:
    """Whether float16 convolutions scale their kernels by the fan-in, as new networks do.

    Scaled kernels have the range of the reference's. Without, a map of 512 channels overflows at outputs of 963. Runs
    of recipe 1 have images of unscaled kernels. Other number formats give the same bits either way.
    """
    for layer in generator.synthesis.modules():
        if isinstance(layer, SynthesisLayer):  # StyleGAN2's layers keep their values near 1 in another way
            layer.scaled_kernels = scaled


def set_padded_channels(generator: Generator, padded: bool) -> None:
    """Whether a GPU computes maps with channels of zeros up to a multiple of CHANNEL_MULTIPLE, as new networks do.

    The channel numbers of the last layers, such as 683, are no multiples: tensor cores would not be used, or maps would
    be copied. Images differ by rounding alone. Runs before recipe 4 have images without these channels.
    """
    for layer in generator.synthesis.modules():
        if isinstance(layer, SynthesisLayer):  # the channels of a StyleGAN2 are powers of two
            layer.padded_channels = padded


def channel_multiple(device: torch.device) -> int:
    """The number that the channels of a layer's maps are a multiple of on this device."""
    return CHANNEL_MULTIPLE if device.type == "cuda" else 1


def set_kernel(generator: Generator, kernel: Kernel) -> None:
    """Let the filtered leaky ReLUs of a StyleGAN3 compute with this kernel: `filtered_lrelu.kernel_on`.

    Kernels differ by rounding alone. Runs of recipes 1 and 2 have images of the kernel `plain`. A StyleGAN2 has no such
    layer. Raises InputError for a kernel that cannot run on the generator's device.
    """
    for layer in generator.synthesis.modules():
        if isinstance(layer, SynthesisLayer):
            kernel_on(layer.weight.device, kernel)
            layer.kernel = kernel


def z_of_seeds(seeds: Iterable[int], z_dim: int) -> np.ndarray:
    """[N, z_dim] float64: the z of each seed, drawn as the reference's tools draw it, independent of other seeds."""
    random, rows = np.random.RandomState(0), []  # noqa: NPY002 (a new object for each seed takes twice as long)
    for seed in seeds:
        random.seed(seed)
        rows.append(random.randn(1, z_dim))
    return np.concatenate(rows)


# Keywords of the reference without a meaning in this code: they choose kernels or memory layout, and change no numbers.
_IGNORED_KEYWORDS = {"channels_last"}


def reference_generator_config(
    *, img_resolution: int, mapping_kwargs: dict | None = None, **keywords
) -> GeneratorConfig:
    """The `GeneratorConfig` of the reference's constructor keywords. Raises `InputError` on an unknown keyword."""
    mapping = dict(mapping_kwargs or {})
    values = {
        "height": img_resolution,
        "width": img_resolution,
        "mapping_layers": mapping.pop("num_layers", 2),
    }
    fields = set(GeneratorConfig.__dataclass_fields__) - set(values)
    unknown = sorted((set(keywords) - fields - _IGNORED_KEYWORDS) | set(mapping))
    if unknown:
        raise InputError(f"generator keywords {unknown} are not StyleGAN3's: is this a changed StyleGAN3?")
    return GeneratorConfig(**values, **{k: v for k, v in keywords.items() if k in fields})


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images [N, C, H, W] float, -1..1 -> uint8 [N, H, W, C], truncated as the reference does when it generates."""
    return (images.permute(0, 2, 3, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
