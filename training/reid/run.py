"""A re-ID training, in this process alone or in each of several workers."""

import functools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from datasets.reid.training_set import FURTHER, REAL, SINGLES, SOURCES, TrainingImages, load_training_images
from passersby.devices import exact_numbers
from passersby.reid.checkpoint import save_reid
from passersby.reid.network import ReidNetwork
from reporting.curves import Panel
from reporting.palette import BLUE, GREEN, INK, VERMILION
from training.log import Interval, TrainingLog, duration
from training.memory import check_memory
from training.reid.changes import Changes
from training.reid.config import ReidTraining
from training.reid.data import Feeder
from training.reid.stages import Stage
from training.reid.start import (
    NETWORK,
    ORIGINS,
    autocast_type,
    load_teacher,
    make_batches,
    make_stages,
    resume,
    save_checkpoint,
    start,
)
from training.reid.step import ReidState, StepSettings, autocast, train_step
from training.trainer import Trainer, check_loss, crosses, millions
from training.workers import Report, StepScalars, Worker, command_line, workers

# ---- Loss and Rank-1 error on validation images, which are images of the training people that no step sees.

_AT_ONCE = 256


class Validation:
    """Validation images uint8 [V, H, W, 3] and their classes [V], one image a person as in the study's baseline."""

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


# ---- The curves of a re-ID training.

_REAL, _VALIDATION, _GENERATED = BLUE, GREEN, VERMILION
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
    Panel("Triplet loss", "loss", (("loss/triplet", "", INK),)),
    Panel("Learning rate of the head", "rate", (("rate", "", INK),), logarithmic=True),
)


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
        labelled=config.labelled,
        donors=config.donors if config.needs_donors() else None,
        most_donors=config.most_donors,
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
    """Train to the end, or for `config.max_minutes`; continues from the last checkpoint in `config.out`.

    Inside a `torch.distributed` group every worker calls `train` with its rank; the first worker writes. `report` gets
    the figures after every record, equally often in all workers. Returns the finished network's file; None where the
    training is not finished, and in other workers. Raises InputError for data or folders that cannot be used, and where
    the loss becomes infinite or undefined.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    worker = Worker(device, rank, command or command_line(), report)
    data = data or load_data(config)
    with exact_numbers(tf32=config.tf32):
        trainer = ReidTrainer(config, worker, data)
        return trainer.to_the_end(trainer.steps * config.batch)


class ReidTrainer(Trainer[ReidTraining, ReidState]):
    """One worker's part of a re-ID training. steps: number of steps of the whole training."""

    def __init__(self, config: ReidTraining, worker: Worker, data: TrainingImages):
        super().__init__(config, worker)
        device = self.device
        self.data, self.about = data, {"trained_on": data.record}
        classes = config.labelling(1).class_count(data.real_classes, len(data.class_names))
        self.class_names = data.class_names[:classes]
        self.dtype = autocast_type(config.precision, device)
        self.state, notes, origin = start(config, classes, device, self.dtype)
        self.teacher = load_teacher(config, data, device)
        self.steps = config.steps or math.ceil(
            config.epochs * make_batches(config, data.classes, data.sources).steps_per_epoch
        )
        stages = make_stages(config, data.classes, data.sources, self.steps)
        self.stages = [each.stage for each in stages]
        checkpoint = self.resume(lambda folder: resume(self.state, folder, self.class_names), data.fingerprint)
        self.about |= origin
        self.about |= {name: checkpoint[name] for name in ORIGINS if checkpoint and name in checkpoint}
        self.feeder = Feeder(data, config, stages, device, worker.rank, workers())
        self.waited = 0.0  # seconds, until the last status line
        self.validation = None
        if worker.rank == 0:
            if len(data.validation_images):
                self.validation = Validation(data.validation_images, data.validation_classes, device, self.dtype)
            lines = [self._introduction(), *(f"note: {line}" for line in (*data.notes, *notes))]
            changed = any(change != Changes() for change in config.changes())
            if config.stages or changed:
                lines += [f"stage {number} of {len(stages)}: {stage}" for number, stage in enumerate(self.stages, 1)]
            if checkpoint:
                lines.append(f"going on from step {self.state.step:,}")
            self.open_log(checkpoint, lines, PANELS)

    def _introduction(self) -> str:
        config, data = self.config, self.data
        counts = [(data.sources == source).sum() for source in range(len(SOURCES))]
        precision = str(self.dtype or torch.float32).removeprefix("torch.")
        others = f", {counts[FURTHER]:,} of further people" if counts[FURTHER] else ""
        others += f", {counts[SINGLES]:,} single ones" if counts[SINGLES] else ""
        others += f", {len(data.donors):,} that give surroundings and colours" if data.donors is not None else ""
        people = len(np.unique(data.classes[data.sources == REAL]))
        return (
            f"{counts[REAL]:,} real images of {people:,} people{others}, {counts[1]:,} of "
            f"{len(data.class_names) - data.real_classes:,} artificial ones, {counts[2]:,} variants, "
            f"{len(data.validation_images):,} for validation, at {config.height}x{config.width}; {config.backbone}, "
            f"{millions(self.state.network):.1f} M parameters, {len(self.class_names):,} classes; "
            f"{self.steps:,} steps of {config.batch}; {self.worker}, {precision}"
        )

    def close(self) -> None:
        """End the thread that gathers images, and close the log."""
        self.feeder.close()
        super().close()

    def _step(self) -> StepScalars:
        state, config, step = self.state, self.config, self.state.step
        batch = self.feeder.batch(step)
        # Dropout draws from PyTorch's global stream. A new seed for each step makes it the same after a restart.
        torch.manual_seed(int(np.random.SeedSequence([config.seed, step, self.worker.rank]).generate_state(1)[0]))
        stage = next(stage for stage in reversed(self.stages) if step >= stage.first)
        if step == stage.first and step and not stage.continued:
            state.optimizer.state.clear()  # also of a checkpoint that was written just before
        factor = stage.rate_factor(step, config, self.steps)
        scalars = train_step(state, self._settings(stage), batch, factor, self.teacher)
        state.images_seen += config.batch
        return scalars

    def _settings(self, stage: Stage) -> StepSettings:
        config = stage.config
        return StepSettings(
            config.labelling(self.steps), config.triplet_weight, config.margin, config.generated_triplet,
            config.separate_batchnorm, config.temperature, self.dtype,
        )  # fmt: skip

    # ---- status lines

    def _rate(self) -> float:
        return self.state.optimizer.param_groups[-1]["lr"]

    def _status_words(self, interval: Interval) -> tuple[str, dict[str, float]]:
        config, step, means, seconds = self.config, self.state.step, interval.means, interval.seconds
        speed = interval.images_per_second
        waiting = (self.feeder.waited - self.waited) / seconds if seconds > 0 else 0.0
        self.waited = self.feeder.waited
        time_left = (self.steps - step) * config.batch / speed
        generated = f" generated {means['loss/generated']:.3f}" if "loss/generated" in means else ""
        triplet = f" triplet {means['loss/triplet']:.3f}" if "loss/triplet" in means else ""
        words = (
            f"epoch {step / self.steps * config.epochs:.1f}/{config.epochs:g}  "
            f"step {step:,}/{self.steps:,}  {speed:,.0f} images/s  ETA {duration(time_left)}  "
            f"loss real {means.get('loss/real', float('nan')):.3f}{generated}{triplet}  "
            f"Rank-1 error {means.get('error/real', float('nan')):.3f}  lr {self._rate():.2g}  "
            f"waiting for data {waiting:.1%}"
        )
        values = {"time/images_per_second": speed, "time/waiting_for_data": waiting}
        return words, {"rate": self._rate()} | values

    def _stop_if_diverged(self) -> None:
        check_loss(self.figures.get("loss/real", 0.0), self.state.step, self.config.lr)

    # ---- validation

    def _validation_is_due(self) -> bool:
        interval = max(self.config.validation_epochs / self.config.epochs * self.steps, 1)
        return crosses(self.state.step - 1, self.state.step, interval)

    def _validate(self) -> None:
        if self.log:
            log, clock = self.log, time.monotonic()
            measured = {"rate": self._rate()}
            if self.validation:
                measured |= self.validation.measure(self.state.network)
            self.add_record(log, measured)
            log.clock += time.monotonic() - clock  # measuring and drawing are no training time
            if self.validation:
                log.say(
                    f"validation at step {self.state.step:,}: loss {measured['validation/loss']:.3f}, "
                    f"Rank-1 error {measured['validation/error']:.3f}"
                )
        self.send_figures(step=self.state.step)

    # ---- checkpoints and the finished network

    def _write_checkpoint(self, means: dict[str, Any]) -> Path:
        extra = {"fingerprint": self.data.fingerprint, "means": means, "seconds": self.seconds()}
        return save_checkpoint(self.config.out, self.state, self.class_names, self.record(), extra)

    def _finish(self, log: TrainingLog) -> Path:
        path = self.config.out / NETWORK
        if not path.exists():
            save_reid(path, self.state.network, class_names=self.class_names, record=self.record())
            log.say(f"finished after {self.seconds() / 60:.1f} minutes: {path}")
        return path
