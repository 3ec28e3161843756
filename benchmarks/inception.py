"""How fast the features of FID are: our network against the TorchScript that its weights come from.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 OMP_NUM_THREADS=1 python benchmarks/inception.py

Images per second of wall clock and of CPU time (which a busy machine disturbs less), best of all rounds; the cases take
turns, so that a change of the machine's speed meets all of them. Also the greatest difference of the features.
"""

import dataclasses
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from jobs.common import run_job
from passersby import weights
from passersby.perception.inception import load_inception, stretched


@dataclasses.dataclass(frozen=True)
class Config:
    """Images per second of the Inception network, in four forms."""

    images: int = 32
    rounds: int = 5
    threads: int = 1


def cases(images: np.ndarray, batch: int = 16) -> dict[str, Callable[[], np.ndarray]]:
    """Name -> features of all images."""
    path = weights.get("inception-2015")
    warnings.simplefilter("ignore", FutureWarning)  # TorchScript goes
    script = torch.jit.load(str(path)).eval()
    frozen = torch.jit.freeze(torch.jit.load(str(path)).eval())
    optimized = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.load(str(path)).eval()))

    def run(network: torch.jit.ScriptModule) -> np.ndarray:
        parts = torch.from_numpy(images).split(batch)
        with torch.inference_mode():
            return torch.cat([network(stretched(part).contiguous()) for part in parts]).numpy()

    ours = load_inception(path)
    return {
        "TorchScript": lambda: run(script),
        "frozen": lambda: run(frozen),
        "optimize_for_inference": lambda: run(optimized),
        "passersby/perception/inception.py": lambda: ours(images),
    }


def main(config: Config) -> None:
    """Measure and print."""
    torch.set_num_threads(config.threads)
    images = np.random.default_rng(0).integers(0, 256, (config.images, 128, 64, 3), dtype=np.uint8)
    runs = cases(images)
    expected = runs["TorchScript"]()
    differences = {name: float(np.abs(run() - expected).max()) for name, run in runs.items()}
    best = {name: [float("inf")] * 2 for name in runs}
    for _ in range(config.rounds):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            took = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = [min(pair) for pair in zip(best[name], took, strict=True)]
    for name, (wall, cpu) in best.items():
        rates = f"{config.images / wall:6.1f} images/s, {config.images / cpu:6.1f} per CPU second"
        print(f"{name:24}{rates}, features differ by {differences[name]:.1e}")


if __name__ == "__main__":
    run_job(main, Config)
