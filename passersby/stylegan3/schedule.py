"""The layer schedule of StyleGAN3: cutoffs, sampling rates, sizes and channels of its 15 modulated layers.

Karras et al., "Alias-Free Generative Adversarial Networks", 2021, section 3.2 and appendix F. A network for tall images
(height = width * 2^k) has the schedule of a square network of the same height; only its maps are narrower.
"""

import dataclasses
import math

import numpy as np
from scipy import special

from passersby.errors import InputError

# ---- Low-pass filters: Kaiser-windowed sinc, separable or radially symmetric (jinc).


def lowpass_filter(taps: int, cutoff: float, half_width: float, rate: float, radial: bool = False) -> np.ndarray | None:
    """A low-pass FIR filter with DC gain 1 (Karras et al. 2021, appendix B).

    `cutoff`, `half_width` (of the transition band) and `rate` have the same unit. Returns float32 [taps], or
    [taps, taps] if `radial`. Returns None for one tap, which does not filter.
    """
    if taps == 1:
        return None
    centred = np.arange(taps) - (taps - 1) / 2
    beta = _kaiser_beta(taps, half_width * 2 / (rate / 2))
    if not radial:
        edge = cutoff / (rate / 2)
        kernel = edge * np.sinc(edge * centred) * _kaiser_window(taps, beta)
    else:
        x = centred / rate
        r = np.hypot(*np.meshgrid(x, x))  # never 0: `taps` is even
        window = np.kaiser(taps, beta)
        kernel = special.j1(2 * cutoff * (np.pi * r)) / (np.pi * r) * np.outer(window, window)
    return (kernel / kernel.sum()).astype(np.float32)


# SciPy's `firwin` and `kaiser_beta`, whose results these are to the bit (a test compares them). Its module of signals
# would take as long to load as everything else that an actor needs to make images, PyTorch left out.


def _kaiser_beta(taps: int, width: float) -> float:
    """The shape of a Kaiser window. width: of the transition band, as a part of half the sampling rate."""
    attenuation = 2.285 * (taps - 1) * np.pi * width + 7.95  # Kaiser 1974 [dB]
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return 0.0


def _kaiser_window(taps: int, beta: float) -> np.ndarray:
    half = (taps - 1) / 2
    return special.i0(beta * np.sqrt(1 - ((np.arange(taps) - half) / half) ** 2.0)) / special.i0(beta)


# ---- The layers, and the configuration that determines them.


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One modulated layer. Rates, cutoffs and half-widths are in samples (cycles) per image height."""

    name: str
    critically_sampled: bool
    to_rgb: bool
    in_channels: int
    out_channels: int
    in_size: tuple[int, int]  # height, width
    out_size: tuple[int, int]
    in_rate: int
    out_rate: int
    rate: int  # of the map that the non-linearity is applied to
    in_cutoff: float
    out_cutoff: float
    in_half_width: float
    out_half_width: float
    kernel: int
    up: int
    down: int
    up_taps: int  # 1: no filter
    down_taps: int

    @property
    def padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(low, high) padding of the up-sampled map for (height, width), in samples at `rate`; may be negative.

        It places the output's samples so that the centre of the output falls on the centre of the input.
        """
        height, width = (self._pad(o, i) for o, i in zip(self.out_size, self.in_size, strict=True))
        return height, width

    def rate_is_high(self, height: int, octaves: int) -> bool:
        """Whether this layer's output rate lies within the last `octaves` octaves of an image of that height."""
        return self.out_rate * 2**octaves > height

    def _pad(self, out_size: int, in_size: int) -> tuple[int, int]:
        total = (out_size - 1) * self.down + 1 - (in_size + self.kernel - 1) * self.up
        total += self.up_taps + self.down_taps - 2
        low = (total + self.up) // 2
        return low, total - low


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The whole configuration of a generator; the defaults are those of the reference's config T.

    `height` and `width` are powers of two with height >= width. With `c_dim` > 0 the generator takes a label
    [N, c_dim] beside z. `conv_clamp=None` switches clamping off (float32 only).
    """

    height: int
    width: int
    z_dim: int = 512
    c_dim: int = 0
    w_dim: int = 512
    mapping_layers: int = 2
    img_channels: int = 3
    channel_base: int = 32768
    channel_max: int = 512
    conv_kernel: int = 3
    use_radial_filters: bool = False
    num_layers: int = 14
    num_critical: int = 2
    first_cutoff: float = 2.0
    first_stopband: float = 2**2.1
    last_stopband_rel: float = 2**0.3
    margin_size: int = 10
    output_scale: float = 0.25
    filter_size: int = 6
    lrelu_upsampling: int = 2
    conv_clamp: float | None = 256.0
    num_fp16_res: int = 4
    magnitude_ema_beta: float = 0.999

    def __post_init__(self):
        check_size(self.height, self.width)
        for name in ("z_dim", "w_dim", "mapping_layers", "img_channels", "channel_base", "channel_max"):
            if getattr(self, name) < 1:
                raise InputError(f"generator: {name}={getattr(self, name)} must be at least 1")
        if self.c_dim < 0 or self.num_layers < 2 or self.conv_kernel not in (1, 3):
            raise InputError(
                f"generator: c_dim={self.c_dim}, num_layers={self.num_layers}, conv_kernel={self.conv_kernel}: "
                "labels cannot be negative, layers are at least 2, kernels 1 or 3"
            )

    @classmethod
    def config_t(cls, height: int, width: int, channel_base=32768, channel_max=512, **options):
        """StyleGAN3-T, translation equivariant: 3x3 convolutions and separable filters."""
        return cls(height, width, channel_base=channel_base, channel_max=channel_max, **options)

    @classmethod
    def config_r(cls, height: int, width: int, channel_base=32768, channel_max=512, **options):
        """StyleGAN3-R, also rotation equivariant: 1x1 convolutions, radial filters, twice the channels.

        Give `channel_base` and `channel_max` as for config T and the discriminator: this method doubles them.
        """
        return cls(
            height,
            width,
            channel_base=channel_base * 2,
            channel_max=channel_max * 2,
            conv_kernel=1,
            use_radial_filters=True,
            **options,
        )

    @property
    def num_ws(self) -> int:
        """Number of w inputs: the Fourier input, `num_layers` layers and ToRGB."""
        return self.num_layers + 2

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the Fourier features, margin included."""
        return self._size(self._rate(0))

    def cutoff(self, i: int) -> float:
        """Cutoff frequency of layer i, cycles per image height."""
        last = self.height / 2
        return self.first_cutoff * (last / self.first_cutoff) ** self._progress(i)

    def half_width(self, i: int) -> float:
        """Transition half-width of layer i's filters, cycles per image height."""
        return max(self._stopband(i), self._rate(i) / 2) - self.cutoff(i)

    def layers(self) -> list[LayerSpec]:
        """All modulated layers; the last is ToRGB."""
        return [self._layer(i) for i in range(self.num_layers + 1)]

    def _progress(self, i: int) -> float:
        return min(i / (self.num_layers - self.num_critical), 1)

    def _stopband(self, i: int) -> float:
        last = self.height / 2 * self.last_stopband_rel
        return self.first_stopband * (last / self.first_stopband) ** self._progress(i)

    def _rate(self, i: int) -> int:
        return int(2 ** math.ceil(math.log2(min(2 * self._stopband(i), self.height))))

    def _channels(self, i: int) -> int:
        if i == self.num_layers:
            return self.img_channels
        return round(min(self.channel_base / 2 / self.cutoff(i), self.channel_max))  # half to even

    def _size(self, rate: int) -> tuple[int, int]:
        margin = 2 * self.margin_size
        return rate + margin, rate * self.width // self.height + margin

    def _out_size(self, i: int) -> tuple[int, int]:
        if i >= self.num_layers - 1:
            return self.height, self.width
        return self._size(self._rate(i))

    def _layer(self, i: int) -> LayerSpec:
        previous = max(i - 1, 0)
        to_rgb = i == self.num_layers
        in_rate, out_rate = self._rate(previous), self._rate(i)
        rate = max(in_rate, out_rate) * (1 if to_rgb else self.lrelu_upsampling)
        up, down = rate // in_rate, rate // out_rate
        out_size, channels = self._out_size(i), self._channels(i)
        return LayerSpec(
            name=f"L{i}_{out_size[0]}_{channels}",
            critically_sampled=i >= self.num_layers - self.num_critical,
            to_rgb=to_rgb,
            in_channels=self._channels(previous),
            out_channels=channels,
            in_size=self.input_size if i == 0 else self._out_size(previous),
            out_size=out_size,
            in_rate=in_rate,
            out_rate=out_rate,
            rate=rate,
            in_cutoff=self.cutoff(previous),
            out_cutoff=self.cutoff(i),
            in_half_width=self.half_width(previous),
            out_half_width=self.half_width(i),
            kernel=1 if to_rgb else self.conv_kernel,
            up=up,
            down=down,
            up_taps=self.filter_size * up if up > 1 and not to_rgb else 1,
            down_taps=self.filter_size * down if down > 1 and not to_rgb else 1,
        )


def check_size(height: int, width: int) -> None:
    """Raise `InputError` unless height and width are powers of two with 16 <= height <= 4096, 4 <= width <= height."""
    for name, value in (("height", height), ("width", width)):
        if not isinstance(value, int) or value < 4 or value & (value - 1):
            raise InputError(f"network {name} {value} is not a power of two of at least 4: take e.g. 128 x 64")
    if height < 16 or height > 4096 or width > height:
        raise InputError(f"network size {height} x {width}: height is 16 to 4096 and width at most the height")
