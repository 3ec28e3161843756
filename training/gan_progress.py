"""What a GAN training says while it runs: the status line, the log, TensorBoard, the history and its curves.

A full disk costs lines of the log and values of TensorBoard, never the training. The history is complete again as
soon as there is room.
"""

import contextlib
import resource
import sys
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from models.errors import InputError
from reporting.curves import append_history, rewind_history, save_curves
from training.gan import Scalars
from training.gan_config import GanConfig

LOG, HISTORY, CURVES = "log.txt", "history.jsonl", "curves.png"


class Means:
    """Means of per-image scalars; the sums stay on the device, so that a GPU need not be waited for."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, scalars: Scalars) -> None:
        """Take in one iteration's scalars."""
        for name, values in scalars.items():
            self.sums[name] = self.sums.get(name, 0) + values.float().sum()
            self.counts[name] = self.counts.get(name, 0) + values.numel()

    def take(self) -> dict[str, float]:
        """The means so far; starts new ones."""
        means = {name: (self.sums[name] / self.counts[name]).item() for name in self.sums}
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict:
        """The sums and counts, on the CPU."""
        return {"sums": {name: value.cpu() for name, value in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, values: dict, device: torch.device) -> None:
        """Go on from the sums of a checkpoint."""
        self.sums = {name: value.to(device) for name, value in values["sums"].items()}
        self.counts = dict(values["counts"])


class Progress:
    """Collects the scalars of iterations and tells them every `status_seconds`. For one worker: the first.

    Losses and scores are this worker's means since the last status line, in the history since its last record.
    """

    def __init__(self, config: GanConfig, device: torch.device, images_seen: int):
        self.config, self.device = config, device
        self.out = Path(config.out)
        self.log = open(self.out / LOG, "a", buffering=1)  # noqa: SIM115 (closed by close)
        self.board: SummaryWriter | None = None
        self.status, self.since_record = Means(), Means()
        self.shown: dict[str, float] = {}
        self.seconds_per_kimg = float("nan")
        self.history = rewind_history(self.out / HISTORY, images_seen / 1000)
        self.unwritten: list[dict] = []  # records that the disk had no room for
        self.skip(images_seen)

    def skip(self, images_seen: int) -> None:
        """Leave the time since the last status out of s/kimg: a snapshot is no training."""
        self.clock, self.clock_images = time.monotonic(), images_seen

    def say(self, line: str) -> None:
        """One line to the terminal and to the log."""
        print(line, flush=True)
        with contextlib.suppress(OSError):
            self.log.write(line + "\n")

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
        memory = self._memory_gb()
        self.say(
            f"kimg {images_seen / 1000:.1f}/{self.config.kimg:g}  {self.seconds_per_kimg:.1f} s/kimg  "
            f"ETA {_duration(left)}  loss G {shown.get('G/loss', float('nan')):.3f} "
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
        self._show(values, images_seen)
        self.skip(images_seen)
        return shown | values

    def record(self, images_seen: int, measured: dict[str, float]) -> dict[str, float]:
        """Add the means since the last record and `measured` to the history; draw the curves; return the record."""
        record = {"kimg": images_seen / 1000} | self.since_record.take() | measured
        self.history.append(record)
        self.unwritten.append(record)
        self._show(measured, images_seen)
        try:
            self.write_history()
            save_curves(self.out / CURVES, self.history, title=f"{self.out.name}: {images_seen / 1000:.1f} kimg")
        except InputError as error:
            self.say(f"warning: {error}; training goes on, the history is kept in memory until there is room")
        return record

    def write_history(self) -> None:
        """Put the records that are still in memory into the file. Raises InputError where it cannot be written."""
        while self.unwritten:
            append_history(self.out / HISTORY, self.unwritten[0])
            del self.unwritten[0]

    def _show(self, values: dict[str, float], images_seen: int) -> None:
        try:
            if self.board is None:
                self.board = SummaryWriter(str(self.out / "tensorboard"), purge_step=images_seen)
            for name, value in values.items():
                self.board.add_scalar(name, value, images_seen)
        except OSError:  # its thread has died of a full disk: the next values try a new file
            self.board = None

    def _memory_gb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

    def close(self) -> None:
        """Flush and close the log and TensorBoard's file."""
        with contextlib.suppress(OSError):
            if self.board is not None:
                self.board.close()
        with contextlib.suppress(OSError):
            self.log.close()


def _duration(seconds: float) -> str:
    if seconds != seconds:  # not yet known
        return "?"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}"
