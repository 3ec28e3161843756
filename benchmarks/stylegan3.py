"""How fast the generator is: images/s forward, forward + backward, and what sharing layers saves.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 python benchmarks/stylegan3.py
    python benchmarks/stylegan3.py --height 256 --width 256 --channel-base 32768 --channel-max 512 --device cuda

The defaults are the small 64 x 64 networks that the README's figures speak of. Each figure is the median over
`repeats` calls after a warm-up, all cases in turn, so that a change of the machine's speed meets all of them.
"""

import dataclasses
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import tyro

from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.generator import set_kernel
from passersby.stylegan3.ops.filtered_lrelu import Kernel

MIDDLE, FINE = range(5, 12), range(12, 16)


@dataclasses.dataclass(frozen=True)
class Config:
    """Images per second of StyleGAN3 in configs T and R."""

    height: int = 64
    width: int = 64
    channel_base: int = 2048
    channel_max: int = 64
    batch: int = 8
    repeats: int = 7
    threads: int = 2
    device: str = "cpu"
    kernel: Kernel = "auto"


def cases(config: Config, network: Generator) -> dict[str, tuple[int, Callable[[], torch.Tensor | None]]]:
    """Name -> (images a call makes, the call)."""
    device = torch.device(config.device)
    z = torch.randn(config.batch, network.z_dim, device=device)

    @torch.inference_mode()
    def forward(n: int) -> torch.Tensor:
        return network(z[:n])

    def backward() -> None:
        network.zero_grad(set_to_none=True)
        network(z).square().mean().backward()

    @torch.inference_mode()
    def mixed(layers: range, share: bool) -> torch.Tensor:
        ws = network.mapping(z)
        codes = ws[:1].repeat(config.batch, 1, 1)
        codes[:, list(layers)] = ws[:, list(layers)]
        return network.synthesis(codes, shared=layers[0] if share else 0)

    n = config.batch
    return {
        "forward, batch 1": (1, lambda: forward(1)),
        f"forward, batch {n}": (n, lambda: forward(n)),
        f"forward + backward, batch {n}": (n, backward),
        f"mixed 5-11, {n} variants, plain": (n, lambda: mixed(MIDDLE, False)),
        f"mixed 5-11, {n} variants, shared": (n, lambda: mixed(MIDDLE, True)),
        f"mixed 12-15, {n} variants, plain": (n, lambda: mixed(FINE, False)),
        f"mixed 12-15, {n} variants, shared": (n, lambda: mixed(FINE, True)),
    }


def seconds(call: Callable[[], torch.Tensor | None], device: str) -> float:
    """Wall seconds of one call, the device's work included."""
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(config: Config) -> None:
    """Print one table for each config of StyleGAN3."""
    torch.set_num_threads(config.threads)
    where = torch.cuda.get_device_name() if config.device == "cuda" else f"{platform.machine()} CPU"
    malloc = "tuned" if os.environ.get("MALLOC_MMAP_MAX_") == "0" else "as it comes"
    print(f"{where}, {config.threads} threads, malloc {malloc}, torch {torch.__version__}")
    for name in ("r", "t"):
        make = getattr(GeneratorConfig, f"config_{name}")
        torch.manual_seed(0)
        settings = make(config.height, config.width, config.channel_base, config.channel_max)
        network = Generator(settings).eval().to(config.device)
        set_kernel(network, config.kernel)
        calls = cases(config, network)
        times = {case: [] for case in calls}
        for repeat in range(config.repeats + 1):
            for case, (_, call) in calls.items():
                elapsed = seconds(call, config.device)
                if repeat > 0:
                    times[case].append(elapsed)
        print(f"StyleGAN3-{name.upper()} {config.height}x{config.width}, channels {settings.channel_max}")
        for case, (images, _) in calls.items():
            median, best = statistics.median(times[case]), min(times[case])
            print(f"  {case:36s} {images / median:8.2f} images/s (best {images / best:.2f})")


if __name__ == "__main__":
    main(tyro.cli(Config, description=Config.__doc__))
