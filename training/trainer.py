"""One loop for all trainings: steps, status lines, validations, checkpoints, the clock, resuming, the end.

A training is a `Trainer`, which defines a step, a validation and the content of a checkpoint. A trainer knows no Ray:
its `Worker` holds the rank, the device, and the function that takes the figures.
"""

import abc
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import nn

from passersby.errors import InputError
from reporting.curves import PANELS, Panel
from training.checkpoints import check_images, last_checkpoint
from training.config import TrainingConfig
from training.log import Interval, TrainingLog
from training.memory import is_out_of_memory
from training.workers import StepScalars, Worker, decided_by_first, workers

ASK_EVERY = 16  # steps after which all workers ask the first worker's clock again


class TrainingState(Protocol):
    """The counters that every step changes; images are counted over all workers."""

    step: int
    images_seen: int


Config = TypeVar("Config", bound=TrainingConfig)
State = TypeVar("State", bound=TrainingState)
Written = TypeVar("Written")


class Trainer(abc.ABC, Generic[Config, State]):
    """One worker's part of a training; the first worker (`log` is not None) also prints and writes.

    A training sets `state` and `about` (the training data as the records name them), and calls `open_log`. figures: the
    newest value of every measured figure. snapshot: the folder of the last snapshot, in a training that keeps them.
    """

    state: State
    about: dict[str, Any]
    log: TrainingLog | None = None
    snapshot: Path | None = None

    def __init__(self, config: Config, worker: Worker):
        self.config, self.worker, self.device = config, worker, worker.device
        self.started = self.checkpoint_clock = time.monotonic()
        self.seconds_before = 0.0
        self.figures: dict[str, float] = {}

    def resume(self, read: Callable[[Path], dict[str, Any]], fingerprint: str) -> dict[str, Any] | None:
        """Continue from the last checkpoint; returns its values beside the state, or None without a checkpoint.

        read: puts the checkpoint of a folder into the state and returns its other values. fingerprint: fingerprint of
        the images. Raises InputError for a checkpoint that is damaged, or of other images.
        """
        folder = last_checkpoint(self.config.out)
        if folder is None:
            return None
        checkpoint = read(folder)
        check_images(checkpoint["fingerprint"], fingerprint, self.config.data)
        return checkpoint

    def open_log(
        self, checkpoint: dict[str, Any] | None, lines: Sequence[str], panels: Sequence[Panel] = PANELS
    ) -> None:
        """In the first worker: open the log, continue with the means of a checkpoint, and print these lines.

        checkpoint: its values beside the state; None at the beginning.
        """
        if self.worker.rank:
            return
        config, images_seen = self.config, self.state.images_seen
        self.log = TrainingLog(config.out, self.device, images_seen, config.status_seconds, panels)
        if checkpoint:
            self.seconds_before = checkpoint.get("seconds", 0.0)
            self.log.since_record.load_state_dict(checkpoint["means"], self.device)
        for line in lines:
            self.log.say(line)

    def to_the_end(self, images: float) -> Path | None:
        """Do steps until so many images are seen, or until the time is over.

        Returns the finished network's file, or else the last snapshot's folder, or else None. Workers after the first
        always return None.
        """
        try:
            return self._loop(images)
        finally:
            self.close()

    def _loop(self, images: float) -> Path | None:
        state = self.state
        first = state.images_seen
        if self.log:
            self.log.skip(first)  # the time before the first step is no training time
        while state.images_seen < images and not self._out_of_time():
            scalars = self._step_in_memory()
            last = state.images_seen >= images
            if self.log:
                self.log.add(scalars)
                if self._status_is_due(self.log, last):
                    self._status(self.log)
            if last or self._validation_is_due():
                self._validate()
            if not last and self._snapshot_is_due():
                self._snapshot(must=False)
                self._checkpoint(must=False)
            elif not last and self._checkpoint_is_due():
                self._checkpoint(must=False)
        if state.images_seen > first:
            self._snapshot(must=True)
            self._checkpoint(must=True)
        return self._finish(self.log) if self.log and state.images_seen >= images else self.snapshot

    def close(self) -> None:
        """Close the log."""
        if self.log:
            self.log.close()

    # ---- methods that each training defines

    @abc.abstractmethod
    def _step(self) -> StepScalars:
        """Do a step; returns this worker's scalars."""

    @abc.abstractmethod
    def _status_words(self, interval: Interval) -> tuple[str, dict[str, float]]:
        """The status line without the memory, and those of its values that are no means of scalars."""

    @abc.abstractmethod
    def _stop_if_diverged(self) -> None:
        """Raises InputError where the figures show that the training has diverged."""

    @abc.abstractmethod
    def _validation_is_due(self) -> bool:
        """Whether to validate after the last step."""

    @abc.abstractmethod
    def _validate(self) -> None:
        """Measure the network, and print the figures in the first worker."""

    @abc.abstractmethod
    def _write_checkpoint(self, means: dict[str, Any]) -> Path:
        """Write everything that training needs to continue, including these means of scalars; returns the folder."""

    def _snapshot_is_due(self) -> bool:
        """Whether to keep a snapshot after the last step."""
        return False

    def _snapshot(self, must: bool) -> None:
        """Keep a snapshot. must: a snapshot that cannot be written ends the training."""

    def _finish(self, log: TrainingLog) -> Path | None:
        """Write the files that only a finished training has; returns the result."""
        return self.snapshot

    def _status_is_due(self, log: TrainingLog, last: bool) -> bool:
        """Whether to write a status line after the last step. last: the training is finished."""
        return last or log.status_is_due()

    def _progress(self) -> dict[str, float]:
        """The progress of the training, for the records."""
        return {"steps": self.state.step, "minutes": self.seconds() / 60}

    # ---- methods that are the same in all trainings

    def seconds(self) -> float:
        """Seconds of training so far, earlier starts included."""
        return self.seconds_before + time.monotonic() - self.started

    def record(self) -> dict[str, Any]:
        """The record of the training in a network's file."""
        about = self.about | {"command": self.worker.command} | self._progress()
        return about | {"figures": self.figures, "configuration": self.config.as_record()}

    def add_record(self, log: TrainingLog, measured: dict[str, float]) -> dict[str, float]:
        """Add measured values to the history and to the figures; returns the record."""
        record = log.record(self.state.images_seen, measured)
        self.figures |= {name: value for name, value in record.items() if name != "kimg"}
        return record

    def send_figures(self, **progress: int) -> None:
        """Hand the figures to `worker.report`, if there is one. All workers must call `send_figures` equally often."""
        if self.worker.report:
            self.worker.report(self.figures | progress)

    def attempt(self, log: TrainingLog, must: bool, write: Callable[[], Written]) -> Written | None:
        """The result of `write`. If it fails, the log warns and training continues; with `must` the error is raised."""
        try:
            return write()
        except InputError as error:
            if must:
                raise
            # A full disk must not end a training, whose networks are in memory: the next attempt may succeed.
            folder = last_checkpoint(self.config.out)
            log.say(f"warning: {error}; training goes on, the last checkpoint is {folder.name if folder else 'none'}")
            return None

    def _step_in_memory(self) -> StepScalars:
        try:
            return self._step()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise InputError(f"the GPU's memory is full: {self._smaller()}") from error
            if "deterministic" in str(error):  # PyTorch names the operation
                reason = str(error).split(",")[0]
                raise InputError(f"--deterministic: {reason}: leave it out, or the option that needs this") from error
            raise

    def _smaller(self) -> str:
        """What to give for a training that needs less memory of a GPU."""
        return "give a smaller --batch in another --out, or more --workers, each with a GPU"

    def status_before_saving(self) -> None:
        """Check the losses since the last status line: diverged networks must not replace the last good networks."""
        if self.log and self.state.images_seen > self.log.clock_images:
            self._status(self.log)

    def _status(self, log: TrainingLog) -> None:
        interval = log.interval(self.state.images_seen)
        words, values = self._status_words(interval)
        self.figures |= log.status(self.state.images_seen, interval, words, values)
        self._stop_if_diverged()

    def _checkpoint_is_due(self) -> bool:
        if self.state.step % ASK_EVERY:
            return False
        due = time.monotonic() - self.checkpoint_clock > self.config.checkpoint_minutes * 60
        return decided_by_first(due, self.device)

    def _checkpoint(self, must: bool) -> None:
        self.status_before_saving()
        self.checkpoint_clock = time.monotonic()
        if not self.log:
            return
        log = self.log

        def write() -> Path:
            log.write_history()  # without the history a training could not continue exactly
            return self._write_checkpoint(log.since_record.state_dict())

        self.attempt(log, must, write)
        log.clock += time.monotonic() - self.checkpoint_clock

    def _out_of_time(self) -> bool:
        # Workers must leave the loop together, so the first worker's clock decides for all workers.
        if self.config.max_minutes is None or (workers() > 1 and self.state.step % ASK_EVERY):
            return False
        return decided_by_first(time.monotonic() - self.started > self.config.max_minutes * 60, self.device)


def crosses(before: float, after: float, interval: float) -> bool:
    """Whether a multiple of the interval lies above `before` and at or below `after`."""
    return after // interval > before // interval


def millions(network: nn.Module) -> float:
    """A network's parameters, in millions."""
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def check_loss(loss: float, step: int, lr: float) -> None:
    """Raises InputError where the loss is infinite or undefined: such a training does not recover."""
    if not math.isfinite(loss):
        raise InputError(
            f"the loss is {loss} at step {step:,}: the training has diverged; take a lower --lr than {lr:g}, in "
            "another --out"
        )
