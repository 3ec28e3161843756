"""What an encoder training says while it runs: the status line, and the records of its history."""

import time

import torch

from reporting.curves import Panel
from training.encoder.config import EncoderTraining
from training.encoder.step import Scalars
from training.log import Means, RunLog, duration, memory_gb

_TRAINING, _VALIDATION, _INK = "#0072b2", "#009e73", "#202124"


def _both(name: str) -> tuple[tuple[str, str, str], ...]:
    return ((f"loss/{name}", "training", _TRAINING), (f"validation/{name}", "validation", _VALIDATION))


PANELS = (
    Panel("Perceptual distance (LPIPS) of the last refinement", "distance", _both("lpips")),
    Panel("Squared error (L2) of the last refinement", "of values -1 to 1", _both("l2")),
    Panel(
        "Identity: reconstruction and picture",
        "cosine",
        (("identity/cosine", "training", _TRAINING), ("validation/identity", "validation", _VALIDATION)),
    ),
    Panel("Error of w where it is known", "1: the variance of w", (("loss/codes", "", _INK),)),
    Panel("Learning rate", "rate", (("rate", "", _INK),), logarithmic=True),
)


class Progress(RunLog):
    """Collects the scalars of steps and tells them every `status_seconds`. For one worker: the first.

    Losses are this worker's means since the last status line, in the history since its last record.
    """

    def __init__(self, config: EncoderTraining, device: torch.device, step: int, images_seen: int):
        super().__init__(config.out, images_seen, PANELS)
        self.config, self.device = config, device
        self.status, self.since_record = Means(), Means()
        self.images_per_second = float("nan")
        self.skip(step)

    def skip(self, step: int) -> None:
        """Leave the time since the last status out of the rate: validation and checkpoints are no training."""
        self.clock, self.clock_step = time.monotonic(), step

    def add(self, scalars: Scalars) -> None:
        """Take in one step's scalars."""
        self.status.add(scalars)
        self.since_record.add(scalars)

    def due(self) -> bool:
        """Whether it is time for a status line."""
        return time.monotonic() - self.clock >= self.config.status_seconds

    def tell(self, step: int, images_seen: int, rate: float) -> dict[str, float]:
        """Write the status line and TensorBoard's values; returns the values and starts new means."""
        means = self.status.take()
        seconds, steps = time.monotonic() - self.clock, step - self.clock_step
        if steps and seconds > 0:
            self.images_per_second = steps * self.config.batch / seconds
        left = (self.config.steps - step) * self.config.batch / self.images_per_second
        memory = memory_gb(self.device)
        identity = f" identity {means['identity/cosine']:.3f}" if "identity/cosine" in means else ""
        codes = f" w {means['loss/codes']:.3f}" if "loss/codes" in means else ""
        self.say(
            f"step {step:,}/{self.config.steps:,}  {self.images_per_second:,.1f} images/s  ETA {duration(left)}  "
            f"loss {means.get('loss/total', float('nan')):.3f}  L2 {means.get('loss/l2', float('nan')):.4f} "
            f"LPIPS {means.get('loss/lpips', float('nan')):.3f}{identity}{codes}  lr {rate:.2g}  "
            f"{'GPU ' * (self.device.type == 'cuda')}memory {memory:.1f} GB"
        )
        values = means | {"rate": rate, "time/images_per_second": self.images_per_second, "memory/gb": memory}
        self.show(values, images_seen)
        self.skip(step)
        return values

    def record(self, images_seen: int, measured: dict[str, float]) -> dict[str, float]:
        """Add the means since the last record and `measured` to the history; draw the curves; return the record."""
        self.show(measured, images_seen)
        return self.add_record(images_seen, self.since_record.take() | measured)
