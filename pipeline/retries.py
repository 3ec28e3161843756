"""Retries of a stage: a unit that keeps raising, or keeps ending its worker, becomes a row that says why."""

import os
import traceback
from collections import Counter

import pyarrow as pa
import ray
from ray.actor import ActorProxy

TRIES = 3  # of one stage with one unit, in a worker that lives on
ENDED_WORKERS = 4  # workers that may end over one unit; more than TRIES, because spot nodes also end for other reasons


class Attempts:
    """A Ray actor beside the driver that counts how often a stage has begun a unit without ending it.

    Ray starts an ended worker and its unit again without limit. Only an actor outside of the worker can tell that every
    worker ended over the same unit.
    """

    def __init__(self) -> None:
        self.begun: Counter[tuple[str, int]] = Counter()

    def begin(self, stage: str, unit: int) -> int:
        """Count a start of the unit; returns the number of starts, including this start."""
        self.begun[stage, unit] += 1
        return self.begun[stage, unit]

    def end(self, stage: str, unit: int) -> None:
        """Forget the unit, which the stage has finished or given up: only units in flight are remembered."""
        self.begun.pop((stage, unit), None)


class Guarded:
    """A stage in which an error of one unit becomes data and does not end the run.

    A unit whose stage raises is tried TRIES times. A unit that ends its worker (out of memory, a crash in native code)
    is tried on ENDED_WORKERS workers. Then the unit becomes a row (unit int64, failed_stage, failure, details string),
    which later stages pass on unchanged. An error in a stage's constructor concerns every unit and still ends the run.
    """

    stage: type

    def __init__(self, attempts: ActorProxy[Attempts], arguments: dict):
        self.attempts, self.name = attempts, self.stage.__name__
        self.called = self.stage(**arguments)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One unit through the stage -> its row, or the row of a failed unit."""
        if "failure" in batch.column_names:
            return batch
        unit = batch["unit"][0].as_py()
        started: ray.ObjectRef[int] = self.attempts.begin.remote(self.name, unit)
        starts = ray.get(started)
        result = self._ended(unit, starts - 1) if starts > ENDED_WORKERS else self._tried(unit, batch)
        self.attempts.end.remote(self.name, unit)
        return result

    def _tried(self, unit: int, batch: pa.Table) -> pa.Table:
        for last in [False] * (TRIES - 1) + [True]:
            try:
                return self.called(batch)
            # No error of one unit may stop the other units; the record of the unit holds the whole error.
            except Exception as error:  # noqa: BLE001
                if _spoils_the_process(error):
                    os._exit(1)  # Ray starts a fresh worker, and this unit again
                if last:
                    reason = f"{type(error).__name__}: {error}, {TRIES} times"
                    return failed_row(unit, self.name, reason, traceback.format_exc())
                _free_device_memory()
        raise AssertionError("the last try returns")

    def _ended(self, unit: int, workers: int) -> pa.Table:
        reason = f"{workers} workers ended while they had this unit (out of memory, or a crash in native code)"
        return failed_row(unit, self.name, reason, "")


def failed_row(unit: int, stage: str, failure: str, details: str) -> pa.Table:
    """The row of a unit that failed for good."""
    texts = {"failed_stage": stage, "failure": " ".join(failure.split()), "details": details}
    return pa.table({"unit": pa.array([unit], pa.int64())} | {n: pa.array([t], pa.string()) for n, t in texts.items()})


def _spoils_the_process(error: Exception) -> bool:
    # After such an error every further CUDA call of the process fails. Running out of memory is no such error.
    import torch

    return isinstance(error, torch.AcceleratorError)


def _free_device_memory() -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def guarded(stage: type) -> type:
    """The stage's class under guard; it keeps its name, which Ray shows to people."""
    return type(stage.__name__, (Guarded,), {"stage": stage})
