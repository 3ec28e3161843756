"""Output of every training while it runs: status lines, TensorBoard's values, the history and its curves.

A full disk loses lines of the log and values of TensorBoard, but does not stop the training. The history is complete
again as soon as there is room. Nor does any other error of TensorBoard or of a picture for people stop the training.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from passersby.errors import InputError
from reporting.curves import PANELS, Panel, append_history, rewind_history, save_curves
from training.memory import memory_gb
from training.workers import Masked, StepScalars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG, HISTORY, CURVES = "log.txt", "history.jsonl", "curves.png"
DRAW_SECONDS = 30.0  # between two drawings of the curves: one takes a second, as long as many a step on a CPU
REFUSAL = "refused.txt"  # the reason why a worker refused its input, which a restart would not improve


class Means:
    """Means of per-image scalars; the sums stay on the device, so that the host does not wait for a GPU."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int | torch.Tensor] = {}

    def add(self, scalars: StepScalars) -> None:
        """Add one iteration's scalars to the sums."""
        for name, values in scalars.items():
            if isinstance(values, Masked):
                total, count = torch.where(values.mask, values.values.float(), 0).sum(), values.mask.sum()
            else:
                total, count = values.float().sum(), values.numel()
            self.sums[name] = self.sums.get(name, 0) + total
            self.counts[name] = self.counts.get(name, 0) + count

    def take(self) -> dict[str, float]:
        """The means of all scalars that had a value since the last call; starts new sums."""
        means = {name: (self.sums[name] / self.counts[name]).item() for name in self.sums if self.counts[name]}
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict:
        """The sums and counts, on the CPU."""
        sums = {name: value.cpu() for name, value in self.sums.items()}
        return {"sums": sums, "counts": {name: int(count) for name, count in self.counts.items()}}

    def load_state_dict(self, values: dict, device: torch.device) -> None:
        """Continue from the sums of a checkpoint."""
        self.sums = {name: value.to(device) for name, value in values["sums"].items()}
        self.counts = dict(values["counts"])


@dataclasses.dataclass(frozen=True)
class Interval:
    """The training since the last status line.

    means: this worker's losses and other scalars. images: number of images seen in the interval, over all workers.
    seconds: duration of the training steps, without validations, snapshots and checkpoints.
    """

    means: dict[str, float]
    images: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """nan where the interval has no images or no time."""
        return self.images / self.seconds if self.images and self.seconds > 0 else float("nan")


class TrainingLog:
    """The files of one training in its output folder; continues existing files from `images_seen` on.

    The log collects this worker's scalars of every step. Their means go into a status line every `status_seconds`, and
    into every record of the history. Only the first worker has a log.
    """

    def __init__(
        self,
        out: Path,
        device: torch.device,
        images_seen: int,
        status_seconds: float,
        panels: Sequence[Panel] = PANELS,
    ):
        self.out, self.device, self.panels, self.status_seconds = Path(out), device, panels, status_seconds
        self.log = open(self.out / LOG, "a", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self.board: SummaryWriter | None = None
        self.board_works = True
        self.history = rewind_history(self.out / HISTORY, images_seen / 1000)
        self.unwritten: list[dict] = []  # records for which the disk had no room
        self.drawn, self.undrawn = time.monotonic(), False  # when curves were drawn; whether there are records since
        self.since_status, self.since_record = Means(), Means()
        self.skip(images_seen)

    def skip(self, images_seen: int) -> None:
        """Leave the time and the images since the last status line out of the next line's rate."""
        self.clock, self.clock_images = time.monotonic(), images_seen

    def add(self, scalars: StepScalars) -> None:
        """Add one step's scalars to the means."""
        self.since_status.add(scalars)
        self.since_record.add(scalars)

    def status_is_due(self) -> bool:
        """Whether it is time for a status line."""
        return time.monotonic() - self.clock >= self.status_seconds

    def interval(self, images_seen: int) -> Interval:
        """The interval for a status line; starts new means."""
        return Interval(self.since_status.take(), images_seen - self.clock_images, time.monotonic() - self.clock)

    def status(self, images_seen: int, interval: Interval, words: str, values: dict[str, float]) -> dict[str, float]:
        """Write a status line. Its means, `values` and the memory go to TensorBoard, and are returned."""
        memory = memory_gb(self.device)
        self.say(f"{words}  {'GPU ' * (self.device.type == 'cuda')}memory {memory:.1f} GB")
        values = interval.means | values | {"memory/gb": memory}
        self.show(values, images_seen)
        self.skip(images_seen)
        return values

    def say(self, line: str) -> None:
        """Write one line to the terminal and to the log."""
        encoding = sys.stdout.encoding or "utf-8"  # in a Ray worker, that of its file
        print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)
        with contextlib.suppress(OSError):
            self.log.write(line + "\n")

    def record(self, images_seen: int, measured: dict[str, float]) -> dict[str, float]:
        """Add a record of the means since the last record and of `measured` to the history, and write the history.

        The curves are drawn every DRAW_SECONDS and when the log is closed. Returns the record, with its "kimg".
        """
        self.show(measured, images_seen)
        record = {"kimg": images_seen / 1000} | self.since_record.take() | measured
        self.history.append(record)
        self.unwritten.append(record)
        try:
            self.write_history()
        except InputError as error:
            self.say(f"warning: {error}; training goes on, the history is kept in memory until there is room")
        self.undrawn = True
        if time.monotonic() - self.drawn >= DRAW_SECONDS:
            self.draw_curves()
        return record

    def draw_curves(self) -> None:
        """Draw the history, if it has grown since it was drawn."""
        if self.undrawn:
            title = f"{self.out.name}: {self.history[-1]['kimg']:.1f} kimg"
            self.draw(lambda: save_curves(self.out / CURVES, self.history, title=title, panels=self.panels))
            self.drawn, self.undrawn = time.monotonic(), False

    def draw(self, picture: Callable[[], object]) -> None:
        """Draw a picture for people. An error becomes a line of the log: no picture ends a training."""
        try:
            picture()
        except InputError as error:
            self.say(f"warning: {error}; training goes on")
        # A library that draws may fail over fonts, sizes and versions; the networks are worth more.
        except Exception as error:  # noqa: BLE001
            self.say(f"warning: a picture failed ({type(error).__name__}: {error}); training goes on")

    def write_history(self) -> None:
        """Write the records that are not yet in the file. Raises InputError where the file cannot be written."""
        while self.unwritten:
            append_history(self.out / HISTORY, self.unwritten[0])
            del self.unwritten[0]

    def show(self, values: dict[str, float], images_seen: int) -> None:
        """Write values to TensorBoard."""
        if not self.board_works:
            return
        try:
            board = self.board
            if board is None:
                from torch.utils.tensorboard import SummaryWriter  # its packages may be missing, or not go together

                board = self.board = SummaryWriter(str(self.out / "tensorboard"), purge_step=images_seen)
            for name, value in values.items():
                board.add_scalar(name, value, images_seen)
        except OSError:  # a full disk has ended TensorBoard's thread: the next values try a new file
            self.board = None
        except Exception as error:  # noqa: BLE001 (the history has these values too)
            self.board, self.board_works = None, False
            self.say(f"warning: no values for TensorBoard ({type(error).__name__}: {error}); training goes on")

    def close(self) -> None:
        """Draw what is not drawn yet; flush and close the log and TensorBoard's file."""
        self.draw_curves()
        with contextlib.suppress(Exception):
            if self.board is not None:
                self.board.close()
        with contextlib.suppress(OSError):
            self.log.close()


def duration(seconds: float) -> str:
    """Seconds as hours and minutes; "?" while they are unknown (nan)."""
    if seconds != seconds:
        return "?"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}"
