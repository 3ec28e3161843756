"""The rhythm of a training in steps: status lines, validations, checkpoints, the clock, the end."""

import abc
import time
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch

from passersby.errors import InputError
from training.workers import Report, Scalars, decided_by_first, workers

ASK_EVERY = 16  # steps between two looks at the clock that all workers share


class SteppedConfig(Protocol):
    """What every training in steps is told."""

    @property
    def out(self) -> Path: ...
    @property
    def max_minutes(self) -> float | None: ...
    @property
    def checkpoint_minutes(self) -> float: ...


class SteppedState(Protocol):
    """What every step changes."""

    step: int


class SteppedProgress(Protocol):
    """What the first worker tells and writes: a `RunLog` that counts steps."""

    clock: float
    clock_step: int

    def add(self, scalars: Scalars) -> None: ...
    def due(self) -> bool: ...
    def say(self, line: str) -> None: ...
    def write_history(self) -> None: ...
    def close(self) -> None: ...


Config = TypeVar("Config", bound=SteppedConfig)
State = TypeVar("State", bound=SteppedState)
Progress = TypeVar("Progress", bound=SteppedProgress)


class SteppedRun(abc.ABC, Generic[Config, State, Progress]):
    """One worker's part of a training; the first one (`progress` is not None) also tells and writes.

    A training says what a step is (`_step`), when and how it validates (`_validation_is_due`, `_validate`), what a
    status line says (`_status`) and what is kept (`_write_checkpoint`, `_write_finished`). report: gets the figures
    after every validation, equally often in all workers.
    """

    state: State
    progress: Progress | None = None

    def __init__(self, config: Config, device: torch.device, report: Report | None):
        self.config, self.device, self.report = config, device, report
        self.started = self.checkpoint_clock = time.monotonic()
        self.seconds_before = 0.0
        self.figures: dict[str, float] = {}

    def to_the_end(self, steps: int) -> Path | None:
        """Step until there is enough or no time left; returns the finished network's file in the first worker."""
        state = self.state
        begun_at = state.step
        while state.step < steps and not self._out_of_time():
            before = state.step
            scalars = self._step(before)
            last = state.step == steps
            if self.progress:
                self.progress.add(scalars)
                if self.progress.due() or last:
                    self._status(self.progress)
            if last or self._validation_is_due(before):
                self._validate()
            if not last and self._checkpoint_is_due():
                self._checkpoint(must=False)
        if state.step > begun_at:
            self._checkpoint(must=True)
        return self._write_finished(self.progress) if state.step == steps and self.progress else None

    @abc.abstractmethod
    def _step(self, before: int) -> Scalars:
        """Do the step after `before` steps; returns this worker's scalars."""

    @abc.abstractmethod
    def _status(self, progress: Progress) -> None:
        """Write a status line. Raises InputError where the training has diverged."""

    @abc.abstractmethod
    def _validation_is_due(self, before: int) -> bool:
        """Whether to validate after the step that followed `before` steps."""

    @abc.abstractmethod
    def _validate(self) -> None:
        """Measure, tell and report."""

    @abc.abstractmethod
    def _write_checkpoint(self, progress: Progress) -> None:
        """Write everything that training needs to go on."""

    @abc.abstractmethod
    def _write_finished(self, progress: Progress) -> Path:
        """Write the finished network, and return its file."""

    def close(self) -> None:
        """Close the log."""
        if self.progress:
            self.progress.close()

    def seconds(self) -> float:
        """Of training so far, earlier starts included."""
        return self.seconds_before + time.monotonic() - self.started

    def _checkpoint_is_due(self) -> bool:
        if self.state.step % ASK_EVERY:
            return False
        due = time.monotonic() - self.checkpoint_clock > self.config.checkpoint_minutes * 60
        return decided_by_first(due, self.device)

    def _checkpoint(self, must: bool) -> None:
        self.checkpoint_clock = time.monotonic()
        if not self.progress:
            return
        if self.state.step > self.progress.clock_step:
            self._status(self.progress)  # a network that has diverged must not replace the last good one
        try:
            self.progress.write_history()
            self._write_checkpoint(self.progress)
        except InputError as error:
            if must:
                raise
            self.progress.say(f"warning: {error}; training goes on, the last checkpoint is {self._last_checkpoint()}")
        self.progress.clock += time.monotonic() - self.checkpoint_clock

    def _last_checkpoint(self) -> str:
        return max((folder.name for folder in (self.config.out / "checkpoints").glob("[0-9]*")), default="none")

    def _out_of_time(self) -> bool:
        # Workers must leave the loop together, so the first one's clock decides for all.
        if self.config.max_minutes is None or (workers() > 1 and self.state.step % ASK_EVERY):
            return False
        return decided_by_first(time.monotonic() - self.started > self.config.max_minutes * 60, self.device)
