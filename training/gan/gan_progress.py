"""What a GAN training says while it runs: the status line, and the records of its history."""

import time

import torch

from training.gan.config import GanConfig
from training.gan.step import Scalars
from training.log import Means, RunLog, duration, memory_gb


class Progress(RunLog):
    """Collects the scalars of iterations and tells them every `status_seconds`. For one worker: the first.

    Losses and scores are this worker's means since the last status line, in the history since its last record.
    """

    def __init__(self, config: GanConfig, device: torch.device, images_seen: int):
        super().__init__(config.out, images_seen)
        self.config, self.device = config, device
        self.status, self.since_record = Means(), Means()
        self.shown: dict[str, float] = {}
        self.seconds_per_kimg = float("nan")
        self.skip(images_seen)

    def skip(self, images_seen: int) -> None:
        """Leave the time since the last status out of s/kimg: a snapshot is no training."""
        self.clock, self.clock_images = time.monotonic(), images_seen

    def add(self, scalars: Scalars) -> None:
        """Take in one iteration's scalars."""
        self.status.add(scalars)
        self.since_record.add(scalars)

    def due(self) -> bool:
        """Whether it is time for a status line."""
        return time.monotonic() - self.clock >= self.config.status_seconds

    def tell(self, images_seen: int, p: float) -> dict[str, float]:
        """Write the status line and TensorBoard's values; returns the values and starts new means."""
        means = self.status.take()
        shown = self.shown = self.shown | means  # R1 runs so seldom that its last value may be older
        trained = images_seen - self.clock_images
        if trained:
            self.seconds_per_kimg = (time.monotonic() - self.clock) / trained * 1000
        left = max(self.config.kimg - images_seen / 1000, 0) * self.seconds_per_kimg
        memory = memory_gb(self.device)
        self.say(
            f"kimg {images_seen / 1000:.1f}/{self.config.kimg:g}  {self.seconds_per_kimg:.1f} s/kimg  "
            f"ETA {duration(left)}  loss G {shown.get('G/loss', float('nan')):.3f} "
            f"D {shown.get('D/loss', float('nan')):.3f} R1 {shown.get('D/r1', float('nan')):.4f}  "
            f"score real {shown.get('scores/real', float('nan')):+.2f} "
            f"fake {shown.get('scores/fake', float('nan')):+.2f}  augment {p:.3f}  "
            f"{'GPU ' if self.device.type == 'cuda' else ''}memory {memory:.1f} GB"
        )
        values = means | {
            "augment/p": p,
            "time/seconds_per_kimg": self.seconds_per_kimg,
            "memory/gb": memory,
        }
        self.show(values, images_seen)
        self.skip(images_seen)
        return shown | values

    def record(self, images_seen: int, measured: dict[str, float]) -> dict[str, float]:
        """Add the means since the last record and `measured` to the history; draw the curves; return the record."""
        self.show(measured, images_seen)
        return self.add_record(images_seen, self.since_record.take() | measured)
