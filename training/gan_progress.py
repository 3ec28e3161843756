"""What a GAN training says while it runs: the status line, the log, TensorBoard."""

import resource
import sys
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from training.gan import Scalars
from training.gan_config import GanConfig

LOG = "log.txt"


class Progress:
    """Collects the scalars of iterations and tells them every `status_seconds`. For one worker: the first.

    Losses and scores are this worker's means since the last status line.
    """

    def __init__(self, config: GanConfig, device: torch.device, images_seen: int):
        self.config, self.device = config, device
        self.log = open(Path(config.out) / LOG, "a", buffering=1)  # noqa: SIM115 (closed by close)
        self.board = SummaryWriter(str(Path(config.out) / "tensorboard"), purge_step=images_seen)
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.shown: dict[str, float] = {}
        self.started = time.monotonic()
        self.seconds_per_kimg = float("nan")
        self._restart_clock(images_seen)

    def _restart_clock(self, images_seen: int) -> None:
        self.clock, self.clock_images = time.monotonic(), images_seen

    def say(self, line: str) -> None:
        """One line to the terminal and to the log."""
        print(line, flush=True)
        self.log.write(line + "\n")

    def add(self, scalars: Scalars) -> None:
        """Take in one iteration's scalars; they stay on the device, so that a GPU need not be waited for."""
        for name, values in scalars.items():
            self.sums[name] = self.sums.get(name, 0) + values.float().sum()
            self.counts[name] = self.counts.get(name, 0) + values.numel()

    def due(self) -> bool:
        """Whether it is time for a status line."""
        return time.monotonic() - self.clock >= self.config.status_seconds

    def tell(self, images_seen: int) -> dict[str, float]:
        """Write the status line and TensorBoard's values; returns the values and starts new means."""
        means = {name: (self.sums[name] / self.counts[name]).item() for name in self.sums}
        shown = self.shown = self.shown | means  # R1 runs so seldom that its last value may be older
        self.sums, self.counts = {}, {}
        trained = images_seen - self.clock_images
        if trained:
            self.seconds_per_kimg = (time.monotonic() - self.clock) / trained * 1000
        left = max(self.config.kimg - images_seen / 1000, 0) * self.seconds_per_kimg
        memory = self._memory_gb()
        self.say(
            f"kimg {images_seen / 1000:.1f}/{self.config.kimg:g}  {self.seconds_per_kimg:.1f} s/kimg  "
            f"ETA {_duration(left)}  loss G {shown.get('G/loss', float('nan')):.3f} "
            f"D {shown.get('D/loss', float('nan')):.3f} R1 {shown.get('D/r1', float('nan')):.4f}  "
            f"score real {shown.get('scores/real', float('nan')):+.2f} "
            f"fake {shown.get('scores/fake', float('nan')):+.2f}  memory {memory:.1f} GB"
        )
        values = means | {"time/seconds_per_kimg": self.seconds_per_kimg, "memory/gb": memory}
        for name, value in values.items():
            self.board.add_scalar(name, value, images_seen)
        self._restart_clock(images_seen)
        return shown | values

    def skip(self, images_seen: int) -> None:
        """Leave the time since the last status out of s/kimg: a snapshot is no training."""
        self._restart_clock(images_seen)

    def _memory_gb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

    def close(self) -> None:
        """Flush and close the log and TensorBoard's file."""
        self.board.close()
        self.log.close()


def _duration(seconds: float) -> str:
    if seconds != seconds:  # not yet known
        return "?"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}"
