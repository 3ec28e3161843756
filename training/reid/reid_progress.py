"""What a re-ID training says while it runs: the status line, and the records of its history."""

import time

import torch

from reporting.curves import Panel
from training.log import Means, RunLog, duration, memory_gb
from training.reid.config import ReidTraining
from training.reid.step import Scalars

_REAL, _VALIDATION, _GENERATED, _INK = "#0072b2", "#009e73", "#d55e00", "#202124"
PANELS = (
    Panel(
        "Cross-entropy",
        "loss",
        (
            ("loss/real", "training, real", _REAL),
            ("loss/generated", "training, generated", _GENERATED),
            ("validation/loss", "validation", _VALIDATION),
        ),
    ),
    Panel(
        "Rank-1 error of the classes",
        "share of images given a wrong person",
        (("error/real", "training, real", _REAL), ("validation/error", "validation", _VALIDATION)),
    ),
    Panel("Triplet loss", "loss", (("loss/triplet", "", _INK),)),
    Panel("Learning rate of the head", "rate", (("rate", "", _INK),), logarithmic=True),
)


class Progress(RunLog):
    """Collects the scalars of steps and tells them every `status_seconds`. For one worker: the first.

    Losses and errors are this worker's means since the last status line, in the history since its last record.
    """

    def __init__(self, config: ReidTraining, device: torch.device, step: int, images_seen: int, total_steps: int):
        super().__init__(config.out, images_seen, PANELS)
        self.config, self.device, self.total_steps = config, device, total_steps
        self.status, self.since_record = Means(), Means()
        self.images_per_second = float("nan")
        self.skip(step, 0.0)

    def skip(self, step: int, waited: float) -> None:
        """Leave the time since the last status out of the rate: validation and checkpoints are no training."""
        self.clock, self.clock_step, self.clock_waited = time.monotonic(), step, waited

    def add(self, scalars: Scalars) -> None:
        """Take in one step's scalars."""
        self.status.add(scalars)
        self.since_record.add(scalars)

    def due(self) -> bool:
        """Whether it is time for a status line."""
        return time.monotonic() - self.clock >= self.config.status_seconds

    def tell(self, step: int, images_seen: int, rate: float, waited: float) -> dict[str, float]:
        """Write the status line and TensorBoard's values; returns the values and starts new means."""
        means = self.status.take()
        seconds, steps = time.monotonic() - self.clock, step - self.clock_step
        if steps and seconds > 0:
            self.images_per_second = steps * self.config.batch / seconds
        waiting = (waited - self.clock_waited) / seconds if seconds > 0 else 0.0
        left = (self.total_steps - step) * self.config.batch / self.images_per_second
        memory = memory_gb(self.device)
        generated = f" generated {means['loss/generated']:.3f}" if "loss/generated" in means else ""
        triplet = f" triplet {means['loss/triplet']:.3f}" if "loss/triplet" in means else ""
        self.say(
            f"epoch {step / self.total_steps * self.config.epochs:.1f}/{self.config.epochs:g}  "
            f"step {step:,}/{self.total_steps:,}  {self.images_per_second:,.0f} images/s  ETA {duration(left)}  "
            f"loss real {means.get('loss/real', float('nan')):.3f}{generated}{triplet}  "
            f"Rank-1 error {means.get('error/real', float('nan')):.3f}  lr {rate:.2g}  "
            f"waiting for data {waiting:.1%}  {'GPU ' * (self.device.type == 'cuda')}memory {memory:.1f} GB"
        )
        values = means | {
            "rate": rate,
            "time/images_per_second": self.images_per_second,
            "time/waiting_for_data": waiting,
            "memory/gb": memory,
        }
        self.show(values, images_seen)
        self.skip(step, waited)
        return values

    def record(self, images_seen: int, measured: dict[str, float]) -> dict[str, float]:
        """Add the means since the last record and `measured` to the history; draw the curves; return the record."""
        self.show(measured, images_seen)
        return self.add_record(images_seen, self.since_record.take() | measured)
