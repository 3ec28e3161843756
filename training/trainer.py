"""The rhythm of a training in steps: status lines, validations, checkpoints, the clock, the end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from passersby.errors import InputError
from training.log import RunLog
from training.workers import decided_by_first, workers

ASK_EVERY = 16  # steps between two looks at the clock that all workers share


class SteppedRun:
    """One worker's part of a training; the first one (`progress` is not None) also tells and writes.

    A training says what a step is (`_step`), when and how it validates (`_validation_is_due`, `_validate`), what a
    status line says (`_status`) and what is kept (`_write_checkpoint`, `_write_finished`). config: has out,
    max_minutes, checkpoint_minutes. state: has step. report: gets the figures after every validation, equally often in
    all workers.
    """

    config: Any
    state: Any
    progress: RunLog | None = None

    def __init__(self, config: Any, device: torch.device, report: Callable[[dict], None] | None):
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
                    self._status()
            if last or self._validation_is_due(before):
                self._validate()
            if not last and self._checkpoint_is_due():
                self._checkpoint(must=False)
        if state.step > begun_at:
            self._checkpoint(must=True)
        return self._write_finished() if state.step == steps and self.progress else None

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
            self._status()  # a network that has diverged must not replace the last good one
        try:
            self.progress.write_history()
            self._write_checkpoint()
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
