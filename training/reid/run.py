"""The loop around re-ID steps, in this process alone or in each of several workers."""

import functools
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from datasets.reid.training_set import TrainingImages, load_training_images
from passersby.errors import InputError
from passersby.reid.checkpoint import save_reid
from passersby.reid.network import ReidNetwork
from reporting.curves import Panel
from training.log import Means, RunLog, duration, memory_gb
from training.reid.config import ReidTraining
from training.reid.data import Feeder
from training.reid.start import (
    NETWORK,
    autocast_type,
    last_checkpoint,
    load_teacher,
    make_batches,
    resume,
    save_checkpoint,
    start,
)
from training.reid.step import ReidState, StepSettings, autocast, train_step
from training.trainer import SteppedRun
from training.workers import Report, Scalars, check_memory, command_line, workers

# ---- Loss and Rank-1 error on images of the training people that were set aside.

_AT_ONCE = 256


class Validation:
    """Images uint8 [V, H, W, 3] and their classes [V], as the study's baseline has them (one a person)."""

    def __init__(self, images: np.ndarray, classes: np.ndarray, device: torch.device, dtype: torch.dtype | None):
        self.images, self.device, self.dtype = images, device, dtype
        self.classes = torch.from_numpy(classes).to(device)

    @torch.no_grad()
    def measure(self, network: ReidNetwork) -> dict[str, float]:
        """`validation/loss`: mean cross-entropy; `validation/error`: share whose highest class is another person."""
        network.eval()
        loss = wrong = 0.0
        for first in range(0, len(self.images), _AT_ONCE):
            batch = torch.from_numpy(self.images[first : first + _AT_ONCE]).to(self.device)
            images = batch.permute(0, 3, 1, 2).float().div_(255)
            classes = self.classes[first : first + _AT_ONCE]
            with autocast(self.dtype, self.device):
                logits = network(images).logits.float()
            loss += functional.cross_entropy(logits, classes, reduction="sum").item()
            wrong += (logits.argmax(1) != classes).sum().item()
        return {"validation/loss": loss / len(self.images), "validation/error": wrong / len(self.images)}


# ---- What a re-ID training says while it runs: the status line, and the records of its history.

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


def load_data(config: ReidTraining) -> TrainingImages:
    """List and decode all images of a training. Raises InputError for data that cannot be used."""
    return load_training_images(
        config.data,
        config.people,
        config.variants,
        config.height,
        config.width,
        validation=config.validation,
        most_people=config.most_people,
        most_variants=config.most_variants,
        draw_seed=config.draw_seed,
        filters=config.filters,
        check_memory=functools.partial(check_memory, way_out="--most-people, --most-variants, a smaller"),
    )


def train(
    config: ReidTraining,
    device: torch.device,
    *,
    rank: int = 0,
    data: TrainingImages | None = None,
    command: str | None = None,
    report: Report | None = None,
) -> Path | None:
    """Train to the end, or for `config.max_minutes`; goes on from the last checkpoint in `config.out`.

    Inside a `torch.distributed` group every worker calls it with its rank; the first one writes. `report` gets the
    figures after every record, equally often in all workers. Returns the finished network's file, None where it is not
    finished and in other workers. Raises InputError for data or folders that cannot be used, and where the loss is no
    number any more.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    run = Run(config, device, data or load_data(config), rank, command or command_line(), report)
    try:
        return run.to_the_end(run.steps)
    finally:
        run.close()


class Run(SteppedRun[ReidTraining, ReidState, Progress]):
    """One worker's part of a re-ID training."""

    def __init__(
        self,
        config: ReidTraining,
        device: torch.device,
        data: TrainingImages,
        rank: int,
        command: str,
        report: Report | None,
    ):
        super().__init__(config, device, report)
        self.data, self.rank, self.command = data, rank, command
        classes = config.labelling(1).class_count(data.real_classes, len(data.class_names))
        self.class_names = data.class_names[:classes]
        self.dtype = autocast_type(config.precision, device)
        self.state, notes = start(config, classes, device, self.dtype)
        self.teacher = load_teacher(config, data, device)
        batches = make_batches(config, data)
        self.steps = config.steps or math.ceil(config.epochs * batches.steps_per_epoch)
        if config.real_only_epochs:
            batches = make_batches(config, data, config.step_of(config.epochs - config.real_only_epochs, self.steps))
        self.settings = StepSettings(
            config.labelling(self.steps), config.triplet_weight, config.margin, config.generated_triplet,
            config.separate_batchnorm, config.temperature, self.dtype,
        )  # fmt: skip
        extra = self._resume()
        self.feeder = Feeder(data, config, batches, device, rank, workers())
        self.seconds_before = extra["seconds"] if extra else 0.0
        self.validation = None
        if rank == 0:
            if len(data.validation_images):
                self.validation = Validation(data.validation_images, data.validation_classes, device, self.dtype)
            self.progress = Progress(config, device, self.state.step, self.state.images_seen, self.steps)
            if extra:
                self.progress.since_record.load_state_dict(extra["means"], device)
            self._introduce(self.progress, notes, extra)

    def close(self) -> None:
        """End the thread that gathers images, and close the log."""
        self.feeder.close()
        super().close()

    def _step(self, before: int) -> Scalars:
        state, config = self.state, self.config
        batch = self.feeder.batch(before)
        # Dropout draws from PyTorch's own stream: begun anew for each step, it is the same after a restart.
        torch.manual_seed(int(np.random.SeedSequence([config.seed, before, self.rank]).generate_state(1)[0]))
        scalars = train_step(state, self.settings, batch, config.rate_factor(before, self.steps), self.teacher)
        state.images_seen += config.batch
        return scalars

    # ---- what the first worker says

    def _introduce(self, progress: Progress, notes: tuple[str, ...], extra: dict | None) -> None:
        config, data, say = self.config, self.data, progress.say
        size = sum(parameter.numel() for parameter in self.state.network.parameters()) / 1e6
        on_gpu = self.device.type == "cuda"
        where = torch.cuda.get_device_name(self.device) if on_gpu else f"the CPU, {torch.get_num_threads()} threads"
        counts = [(data.sources == source).sum() for source in range(3)]
        say(
            f"{counts[0]:,} real images of {data.real_classes:,} people, {counts[1]:,} of "
            f"{len(data.class_names) - data.real_classes:,} artificial ones, {counts[2]:,} variants, "
            f"{len(data.validation_images):,} for validation, at {config.height}x{config.width}; {config.backbone}, "
            f"{size:.1f} M parameters, {len(self.class_names):,} classes; {self.steps:,} steps of {config.batch}; "
            f"{workers()} worker{'s' * (workers() > 1)} on {where}, {self.dtype or torch.float32}".replace("torch.", "")
        )
        for line in [*data.notes, *notes]:
            say(f"note: {line}")
        if extra:
            say(f"going on from step {self.state.step:,}")

    def _status(self, progress: Progress) -> None:
        state = self.state
        rate = state.optimizer.param_groups[-1]["lr"]
        self.figures |= progress.tell(state.step, state.images_seen, rate, self.feeder.waited)
        loss = self.figures.get("loss/real", 0.0)
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {state.step:,}: the training has diverged; take a lower --lr than "
                f"{self.config.lr:g}, in another --out"
            )

    def _validation_is_due(self, before: int) -> bool:
        a_record = max(self.config.validation_epochs / self.config.epochs * self.steps, 1)
        return self.state.step // a_record > before // a_record

    def _validate(self) -> None:
        if self.progress:
            clock = time.monotonic()
            measured = {"rate": self.state.optimizer.param_groups[-1]["lr"]}
            if self.validation:
                measured |= self.validation.measure(self.state.network)
            record = self.progress.record(self.state.images_seen, measured)
            self.figures |= {name: value for name, value in record.items() if name != "kimg"}
            self.progress.clock += time.monotonic() - clock
            if self.validation:
                self.progress.say(
                    f"validation at step {self.state.step:,}: loss {measured['validation/loss']:.3f}, "
                    f"Rank-1 error {measured['validation/error']:.3f}"
                )
        if self.report:
            self.report(self.figures | {"step": self.state.step})

    # ---- what is kept

    def _resume(self) -> dict | None:
        folder = last_checkpoint(self.config.out)
        if folder is None:
            return None
        extra = resume(self.state, folder, self.class_names)
        if extra["fingerprint"] != self.data.fingerprint:
            raise InputError(
                f"--data {self.config.data}: these are other images than this training began with: give those, "
                "or another --out"
            )
        return extra

    def _record(self) -> dict:
        about = self.config.as_json()
        for key in ("data", "out", "weights", "teacher"):
            about[key] = about[key] and Path(about[key]).name
        for key in ("people", "variants"):
            about[key] = [Path(path).name for path in about[key]]
        return {
            "trained_on": self.data.record,
            "command": self.command,
            "steps": self.state.step,
            "minutes": self.seconds() / 60,
            "figures": self.figures,
            "configuration": about,
        }

    def _write_checkpoint(self, progress: Progress) -> None:
        extra = {
            "fingerprint": self.data.fingerprint,
            "means": progress.since_record.state_dict(),
            "seconds": self.seconds(),
        }
        save_checkpoint(self.config.out, self.state, self.class_names, self._record(), extra)

    def _write_finished(self, progress: Progress) -> Path:
        path = self.config.out / NETWORK
        if not path.exists():
            save_reid(path, self.state.network, class_names=self.class_names, record=self._record())
            progress.say(f"finished after {self.seconds() / 60:.1f} minutes: {path}")
        return path
