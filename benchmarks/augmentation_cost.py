"""What augmentation costs: milliseconds a batch for the draws, forward, backward, and R1's second backward.

    OMP_NUM_THREADS=1 python benchmarks/augmentation_cost.py
    python benchmarks/augmentation_cost.py --device cuda --batch 32

Each figure is the median over `repeats` batches, all cases in turn. Measured figures: see RESULTS below.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
import tyro

from training.gan.augment import apply, draw

RESULTS = """The first command, p = 0.3, 1 core of an AMD EPYC shared with other work, PyTorch 2.14:
set      batch  size      draw  forward  backward  second backward   (ms)
upright      8  64x32      0.8      1.1       0.4              0.4
upright      8  128x64     0.8      3.0       1.2              2.0
upright     32  64x32      0.7      2.1       0.9              1.4
upright     32  128x64     0.8     10.4       5.2             10.1
bgc          8  64x32      0.7      3.3       3.3              6.3
bgc          8  128x64     0.7     19.4      22.8             47.7
bgc         32  64x32      0.8     23.1      34.6             52.0
bgc         32  128x64     0.8    109.2     141.4            279.3
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Time one batch of augmentation."""

    sets: tuple[str, ...] = ("upright", "bgc")
    batch: tuple[int, ...] = (8, 32)
    sizes: tuple[str, ...] = ("64x32", "128x64")
    """height x width."""
    p: float = 0.3
    repeats: int = 15
    threads: int = 1
    device: str = "cpu"


def stages(config: Config, name: str, batch: int, height: int, width: int, seed: int) -> Iterator[float]:
    """Seconds since the epoch: at the start, after the draws, forward, backward, second backward."""

    def now() -> float:
        if config.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    images = torch.rand(batch, 3, height, width, device=config.device, requires_grad=True)
    yield now()
    draws = draw(name, config.p, batch, height, width, np.random.default_rng(seed)).to(config.device)
    yield now()
    augmented = apply(images, draws)
    yield now()
    (gradient,) = torch.autograd.grad(augmented.square().sum(), images, create_graph=True)
    yield now()
    torch.autograd.grad(gradient.square().sum(), images)
    yield now()


def main(config: Config) -> None:
    """Measure and print."""
    torch.set_num_threads(config.threads)
    sizes = [tuple(int(side) for side in size.split("x")) for size in config.sizes]
    cases = [(name, batch, *size) for name in config.sets for batch in config.batch for size in sizes]
    times: dict[tuple, list[np.ndarray]] = {case: [] for case in cases}
    for repeat in range(config.repeats + 1):
        for case in cases:
            taken = np.diff(list(stages(config, *case, seed=repeat)))
            if repeat:  # the first warms up
                times[case].append(taken)
    print("set      batch  size      draw  forward  backward  second backward   (ms)")
    for (name, batch, height, width), taken in times.items():
        middle = [1000 * statistics.median(column) for column in zip(*taken, strict=True)]
        size = f"{height}x{width}"
        print(f"{name:8} {batch:5}  {size:7} {middle[0]:6.1f} {middle[1]:8.1f} {middle[2]:9.1f} {middle[3]:16.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
