"""How long one iteration of GAN training takes, and how much memory: no data, no augmentation, one device.

    python benchmarks/training_iteration.py --device cuda
    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 python benchmarks/training_iteration.py \
        --sizes 64x64 --configs r t --channel-base 2048 --channel-max 64 --batch 8 --threads 2
    python benchmarks/training_iteration.py --device cuda --sizes 128x64 --configs t --profile 25

An iteration is the generator's and the discriminator's phase with their steps and the moving average; every
sixteenth has R1 too, and every fourth of a StyleGAN2 the path lengths. All kinds are measured, in turns, and added up
as a training meets them.
"""

import dataclasses
import gc
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from passersby import stylegan2
from passersby.errors import InputError
from passersby.stylegan3 import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
from passersby.stylegan3.generator import set_kernel
from passersby.stylegan3.mapping import set_precision
from passersby.stylegan3.ops.filtered_lrelu import Kernel
from training.gan.inputs import Inputs, Latents, Noise
from training.gan.step import StepSettings, TrainingState, new_state, train_iteration


@dataclasses.dataclass(frozen=True)
class Config:
    """Seconds and memory of a training iteration of StyleGAN3 or StyleGAN2."""

    sizes: tuple[str, ...] = ("128x64", "128x128", "256x256")
    """Height x width of the images."""
    configs: tuple[Literal["t", "r", "2"], ...] = ("t", "r")
    """Config 2 is StyleGAN2, with path lengths in every fourth iteration."""
    channel_base: int = 32768
    channel_max: int = 512
    margin_size: int = 10
    """Samples beyond the image's edges in configs t and r; the preset tiny has 4."""
    one_pass: bool = False
    """Both networks learn from the same generated images."""
    batch: int = 32
    rounds: int = 1
    """Parts that the batch is worked on in: less memory."""
    precision: Literal["float16", "bfloat16", "float32"] = "float16"
    """Number format of the highest resolutions; a CPU computes in float32 whatever is asked."""
    kernel: Kernel = "auto"
    """Of the filtered leaky ReLUs of configs t and r."""
    cudnn_benchmark: bool = True
    """Let cuDNN try its algorithms in the first iterations."""
    warm_up: int = 2
    repeats: int = 5
    """Measured iterations of each kind (with and without R1)."""
    profile: int = 0
    """Print the so many operations that took longest, with R1."""
    threads: int = 2
    device: Literal["cpu", "cuda"] = "cpu"


def make(config: Config, name: str, height: int, width: int) -> tuple[TrainingState, StepSettings, Inputs]:
    """New networks with their optimisers, and one batch of noise, all on the device."""
    torch.manual_seed(0)
    channels = {"channel_base": config.channel_base, "channel_max": config.channel_max}
    if name == "2":
        generator = stylegan2.Generator(stylegan2.GeneratorConfig(height, width, **channels))
    else:
        make = getattr(GeneratorConfig, f"config_{name}")
        generator = Generator(make(height, width, margin_size=config.margin_size, **channels))
    last = 4 if name == "2" and width < height else None
    discriminator = Discriminator(DiscriminatorConfig(height, width, **channels, last_height=last))
    for network in (generator, discriminator):
        set_precision(network.to(config.device), getattr(torch, config.precision))
    set_kernel(generator, config.kernel)
    weight = 2.0 if name == "2" else 0.0
    settings = StepSettings(gamma=1.0, rounds=config.rounds, path_length_weight=weight, one_pass=config.one_pass)
    state = new_state(generator, discriminator, path_length_interval=settings.path_length_interval if weight else None)
    places = torch.arange(config.batch)
    z = torch.randn(3, config.batch, generator.z_dim, device=config.device)
    latents = (
        Latents(z[i], noise=Noise(i, config.batch, places).to(z.device) if name == "2" else None) for i in range(3)
    )
    reals = torch.rand(config.batch, 3, height, width, device=config.device) * 2 - 1
    return state, settings, Inputs(reals, tuple(latents))


def seconds(call: Callable[[], object], device: str) -> float:
    """Wall seconds of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_gigabytes(device: str) -> float:
    """Peak memory in 10^9 bytes: of tensors on a GPU since the last reset; on a CPU of the process so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def measure(config: Config, name: str, height: int, width: int) -> str:
    """One line of the table."""
    state, settings, inputs = make(config, name, height, width)
    if config.device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def iterate(step: int) -> None:
        state.step = step
        train_iteration(state, settings, inputs)

    # Steps 0, 4 and 1 of sixteen: with R1 and path lengths, with path lengths alone, and with neither.
    steps = {0: [], settings.path_length_interval: [], 1: []}
    for repeat in range(config.warm_up + config.repeats):
        for step, taken in steps.items():
            elapsed = seconds(lambda step=step: iterate(step), config.device)
            if repeat >= config.warm_up:
                taken.append(elapsed)
    full, lazy, plain = (statistics.median(taken) for taken in steps.values())
    iteration = (full + 3 * lazy + 12 * plain) / settings.r1_interval
    if config.profile:
        print_profile(config, lambda penalty: iterate(0 if penalty else 1))
    label = f"{name.upper()} {height}x{width}"
    return (
        f"{label:12s} {iteration:9.3f} {full:11.3f} {1000 / config.batch * iteration:9.1f} "
        f"{config.batch / iteration:9.1f} {peak_gigabytes(config.device):8.2f}"
    )


def print_profile(config: Config, iterate: Callable[[bool], None]) -> None:
    """FLOPs of an iteration without R1; then, with R1, the operations by their own time and what they allocate."""
    with FlopCounterMode(display=False) as counter:
        iterate(False)
    teraflops = counter.get_total_flops() / 1e12
    rate = teraflops / seconds(lambda: iterate(False), config.device)
    print(f"{teraflops:.3f} TFLOP of convolutions and matrix products in an iteration, {rate:.3f} a second")
    cuda = config.device == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        iterate(True)
        synchronize(config.device)
    own, memory = ("device_time_total", "device_memory_usage") if cuda else ("cpu_time_total", "cpu_memory_usage")
    rows = [(getattr(row, f"self_{own}"), getattr(row, f"self_{memory}"), row) for row in profile.key_averages()]
    total = sum(spent for spent, _, _ in rows)
    print(f"{'operation':48s} {'calls':>6s} {'ms':>9s} {'share':>6s} {'GB made':>8s}")
    for spent, size, row in sorted(rows, key=lambda item: item[0], reverse=True)[: config.profile]:
        shown = f"{row.key[:48]:48s} {row.count:6d} {spent / 1000:9.2f} {spent / max(total, 1e-9):6.1%}"
        print(f"{shown} {max(size, 0) / 1e9:8.2f}")


def parse_size(size: str) -> tuple[int, int]:
    """ "128x64" -> (128, 64). Raises InputError for anything else."""
    parts = size.split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise InputError(f"--sizes {size} is not height x width: write e.g. 128x64")
    return int(parts[0]), int(parts[1])


def main(config: Config) -> None:
    """Print one line for every size and config."""
    sizes = [parse_size(size) for size in config.sizes]
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA device here; take --device cpu")
    torch.set_num_threads(config.threads)
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    malloc = "tuned" if os.environ.get("MALLOC_MMAP_MAX_") == "0" else "as it comes"
    where = f"{platform.machine()} CPU, {config.threads} threads, malloc {malloc}"
    if config.device == "cuda":
        where = f"{torch.cuda.get_device_name()}, {config.precision}"
    print(f"{where}, torch {torch.__version__}; batch {config.batch} in {config.rounds}, channels {config.channel_max}")
    print(f"{'':12s} {'s/iter':>9s} {'with R1, s':>11s} {'s/kimg':>9s} {'images/s':>9s} {'peak GB':>8s}")
    for height, width in sizes:
        for name in config.configs:
            try:
                print(measure(config, name, height, width), flush=True)
            except torch.OutOfMemoryError:
                print(f"{name.upper()} {height}x{width}: does not fit into memory; take --rounds {config.rounds * 2}")
            gc.collect()
            if config.device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=Config.__doc__))
    except InputError as error:
        sys.exit(f"training_iteration: {error}")
