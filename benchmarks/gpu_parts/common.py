"""What all parts share: sizes, the clock of a part, times of a device, and figures with their floors."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.gpu_parts.counting import Work
from passersby import stylegan2
from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.generator import set_kernel
from passersby.stylegan3.mapping import set_precision
from passersby.stylegan3.ops.filtered_lrelu import Kernel, fused


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured value. floor: the value that bytes and arithmetic would allow, in the same unit.

    detail: not for the table. note: why there is no value, or what a reader must know.
    """

    name: str
    value: float | None
    unit: str
    floor: float | None = None
    aim: str = ""
    note: str = ""
    detail: bool = False


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of everything that is measured; the defaults are those of a person at 128 x 64 pixels."""

    height: int = 128
    width: int = 64
    channel_base: int = 32768
    channel_max: int = 512
    margin: int = 10
    batches: tuple[int, ...] = (32, 16, 4)
    copied_bytes: int = 4 << 30
    product_side: int = 8192
    repeats: int = 5
    layer_repeats: int = 5
    units: tuple[tuple[int, int], ...] = ((10, 51), (32, 16))  # people x variants
    reid_backbones: tuple[str, ...] = ("resnet50", "osnet_x1_0")
    reid_size: tuple[int, int] = (256, 128)
    reid_batch: int = 64
    reid_images: int = 4096
    reid_steps: int = 30
    encoder: tuple[str, float, int] = ("resnet34", 1.0, 512)  # backbone, width, channels of the heads
    encoder_size: tuple[int, int] = (256, 256)
    encoder_batch: int = 8
    refine_steps: int = 40
    tune_steps: int = 30
    inception_images: int = 2048
    ranking: tuple[int, int, int] = (3368, 19_732, 2048)  # queries, gallery, values of a feature


TINY = Sizes(
    height=32, width=16, channel_base=256, channel_max=16, margin=4, batches=(4,), copied_bytes=1 << 20,
    product_side=64, repeats=1, layer_repeats=1, units=((2, 3),), reid_backbones=("resnet10", "osnet_x0_25"),
    reid_size=(32, 16), reid_batch=8, reid_images=32, reid_steps=2, encoder=("resnet10", 0.125, 8),
    encoder_size=(32, 16), encoder_batch=2, refine_steps=2, tune_steps=2, inception_images=1, ranking=(20, 60, 16),
)  # fmt: skip


class Bench:
    """The device, the sizes, and the speeds that the first part finds; `ends` is when the present part should."""

    def __init__(self, device: str, sizes: Sizes, threads: int = 8):
        self.device, self.sizes, self.threads = torch.device(device), sizes, threads
        self.bytes_per_second = self.flop_per_second = 0.0
        self.ends = float("inf")
        self.slow_layers: set[str] = set()  # configs whose layers one kernel computes far too slowly: "t plain"

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def is_late(self) -> bool:
        """Whether the present part's time is up."""
        return time.monotonic() > self.ends

    def seconds(self, call: Callable[[], object], repeats: int | None = None, warm_up: int = 1) -> float:
        """The median wall seconds of a call, the device's work included; at least one call is measured."""
        taken: list[float] = []
        for index in range(warm_up + (repeats or self.sizes.repeats)):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            if index >= warm_up:
                taken.append(time.perf_counter() - start)
                if self.is_late():
                    break
        return statistics.median(taken)

    def wait(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def work(self, call: Callable[[], object]) -> Work:
        """What a call asks of the device; the call is made."""
        with Work() as work:
            call()
        return work

    def floor(self, work: Work) -> float | None:
        """The least seconds of this work; None before the speeds are known."""
        if not self.bytes_per_second or not self.flop_per_second:
            return None
        return work.floor(self.bytes_per_second, self.flop_per_second)

    def reset_peak(self) -> None:
        """Forget the greatest memory so far, and give back what is free."""
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gigabytes(self) -> float | None:
        """The greatest memory of tensors since the last reset, in 10^9 bytes; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.is_cuda else None

    # ---- networks

    def kernels(self) -> dict[Kernel, str | None]:
        """The kernels in the order in which they are tried, each with the reason why it cannot run here."""
        return {"matmul": None, "triton": fused.reason_against(self.device), "plain": None}

    def generator(self, config: str, kernel: Kernel = "auto", dtype: torch.dtype = torch.float16) -> Generator:
        """A new generator of the config t, r or 2, with fixed weights, on the device."""
        torch.manual_seed(0)
        s, channels = self.sizes, {"channel_base": self.sizes.channel_base, "channel_max": self.sizes.channel_max}
        if config == "2":
            network = stylegan2.Generator(stylegan2.GeneratorConfig(s.height, s.width, **channels))
        else:
            make = getattr(GeneratorConfig, f"config_{config}")
            network = Generator(make(s.height, s.width, margin_size=s.margin, **channels))
        network = network.eval().requires_grad_(False).to(self.device)
        set_precision(network, dtype)
        set_kernel(network, kernel)
        return network


def rate(count: float, seconds: float | None) -> float | None:
    """Count a second; None without seconds."""
    return count / seconds if seconds else None


def scaled(seconds: float | None, factor: float) -> float | None:
    """Seconds in another unit; None stays None."""
    return None if seconds is None else seconds * factor


def short(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "does not fit into the device's memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
