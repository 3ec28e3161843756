"""Retries of a stage: a unit that keeps raising, or keeps ending its worker, becomes a row that says why."""

import os
import time
import traceback
from collections import Counter

import pyarrow as pa
import ray
import ray.exceptions
from ray.actor import ActorHandle, ActorProxy

from passersby.errors import InputError

TRIES = 3  # of one stage with one unit, in a worker that lives on
TRIES_OF_A_CARD = 2  # of one unit that breaks the CUDA of its workers; then another card makes it
SETUP_SECONDS = 60.0  # in which workers on other cards are set up
ENDED_WORKERS = 4  # workers that may end over one unit; more than TRIES, because spot nodes also end for other reasons


class Attempts:
    """A Ray actor beside the driver that counts how often a stage has begun a unit without ending it.

    Ray starts an ended worker and its unit again without limit. Only an actor outside of the worker can tell that every
    worker ended over the same unit. It also knows the workers of each stage and their cards, and which cards broke
    workers' CUDA: Ray starts a worker again on the card that it had.
    """

    def __init__(self) -> None:
        self.begun: Counter[tuple[str, int]] = Counter()
        self.workers: dict[str, dict[str, tuple[str, ActorHandle]]] = {}  # stage -> worker -> its card and its handle
        self.spoilt: dict[str, list[tuple[str, int]]] = {}  # card -> stage and unit of each worker that it broke
        self.broken: set[str] = set()

    def begin(self, stage: str, unit: int) -> int:
        """Count a start of the unit; returns the number of starts, including this start."""
        self.begun[stage, unit] += 1
        return self.begun[stage, unit]

    def end(self, stage: str, unit: int) -> None:
        """Forget the unit, which the stage has finished or given up: only units in flight are remembered."""
        self.begun.pop((stage, unit), None)

    def join(self, stage: str, worker: str, card: str, handle: ActorHandle) -> None:
        """A worker of the stage has been set up on its card."""
        self.workers.setdefault(stage, {})[worker] = (card, handle)

    def spoil(self, card: str, stage: str, unit: int | None) -> None:
        """A worker's CUDA broke on the card over the unit; None: while the worker was set up.

        A unit may break the CUDA of every card. So a card is given up for two different units, or for a worker that
        cannot be set up.
        """
        units = self.spoilt.setdefault(card, [])
        if unit is not None:
            units.append((stage, unit))
        if unit is None or len(set(units)) > 1:
            self.broken.add(card)

    def elsewhere(self, card: str, stage: str, unit: int) -> list[ActorHandle]:
        """Workers on other cards that should make the unit; none where the worker's own card should make it."""
        if card not in self.broken and self.spoilt.get(card, []).count((stage, unit)) < TRIES_OF_A_CARD:
            return []
        others = self.workers.get(stage, {}).values()
        return [handle for other, handle in others if other != card and other not in self.broken]


class Guarded:
    """A stage in which an error of one unit becomes data and does not end the run.

    A unit whose stage raises is tried TRIES times. A unit that ends its worker (out of memory, a crash in native code)
    is tried on ENDED_WORKERS workers. Then the unit becomes a row (unit int64, failed_stage, failure, details string),
    which later stages pass on unchanged. An error in a stage's constructor concerns every unit and still ends the run.

    A worker whose CUDA breaks ends, and Ray starts it again. If its card breaks it over another unit too, or lets no
    worker be set up, the card is given up: the worker keeps the card from others and hands each of its units to a
    worker on another card.
    """

    stage: type

    def __init__(self, attempts: ActorProxy[Attempts], arguments: dict):
        self.attempts, self.name, self.card = attempts, self.stage.__name__, own_card()
        self.called = None
        try:
            self.called = self.stage(**arguments)
        except RuntimeError as error:
            if self.card is None or not _spoils_the_process(error):
                raise
            ray.get(attempts.spoil.remote(self.card, self.name, None))
            if not self._others(SETUP_SECONDS):
                raise InputError(
                    f"the GPU {self.card} is broken, and no other one makes this stage: {error}"
                ) from error
        if self.called is not None and self.card is not None:
            _here[self.name] = self
            context = ray.get_runtime_context()
            ray.get(attempts.join.remote(self.name, context.get_actor_id(), self.card, context.current_actor))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One unit through the stage -> its row, or the row of a failed unit."""
        if "failure" in batch.column_names:
            return batch
        unit = batch["unit"][0].as_py()
        ended = self._begun(unit)
        result = self._here_or_elsewhere(unit, batch) if ended is None else ended
        self.attempts.end.remote(self.name, unit)
        return result

    def make_for_another(self, batch: pa.Table) -> pa.Table:
        """The row of a unit that a worker on another card hands over; that worker says when the unit is finished."""
        unit = batch["unit"][0].as_py()
        ended = self._begun(unit)
        return self._tried(unit, batch) if ended is None else ended

    def _begun(self, unit: int) -> pa.Table | None:
        """Count a start of the unit; its failed row after ENDED_WORKERS starts."""
        started: ray.ObjectRef[int] = self.attempts.begin.remote(self.name, unit)
        starts = ray.get(started)
        return self._ended(unit, starts - 1) if starts > ENDED_WORKERS else None

    def _here_or_elsewhere(self, unit: int, batch: pa.Table) -> pa.Table:
        others = [] if self.card is None else self._others(0.0 if self.called else SETUP_SECONDS, unit)
        for number in range(len(others)):
            other = others[(unit + number) % len(others)]  # units of one card are spread over the others
            try:
                return ray.get(other.__ray_call__.remote(_made_for_another, self.name, batch))
            except ray.exceptions.RayActorError:
                continue
        if self.called is None:
            raise RuntimeError(f"the GPU {self.card} is broken, and no other one makes {self.name}")
        return self._tried(unit, batch)

    def _others(self, seconds: float, unit: int = -1) -> list[ActorHandle]:
        """The workers that should make the unit in this one's place, waiting so long for the first of them."""
        end = time.monotonic() + seconds
        while True:
            others = ray.get(self.attempts.elsewhere.remote(self.card, self.name, unit))
            if others or time.monotonic() >= end:
                return others
            time.sleep(0.5)

    def _tried(self, unit: int, batch: pa.Table) -> pa.Table:
        assert self.called is not None
        for last in [False] * (TRIES - 1) + [True]:
            try:
                return self.called(batch)
            # No error of one unit may stop the other units; the record of the unit holds the whole error.
            except Exception as error:  # noqa: BLE001
                if _spoils_the_process(error):
                    if self.card is not None:
                        ray.get(self.attempts.spoil.remote(self.card, self.name, unit))
                    os._exit(1)  # Ray starts a fresh worker, and this unit again
                if last:
                    reason = f"{type(error).__name__}: {error}, {TRIES} times"
                    return failed_row(unit, self.name, reason, traceback.format_exc())
            _free_device_memory()  # after the error, which holds on to the tensors of its frames
        raise AssertionError("the last try returns")

    def _ended(self, unit: int, workers: int) -> pa.Table:
        reason = f"{workers} workers ended while they had this unit (out of memory, or a crash in native code)"
        return failed_row(unit, self.name, reason, "")


_here: dict[str, Guarded] = {}  # the stage of this process, by its name


def _made_for_another(worker, stage: str, batch: pa.Table) -> pa.Table:
    # Ray calls this in a worker of another card, with Ray Data's own actor as the first argument.
    del worker
    return _here[stage].make_for_another(batch)


def own_card() -> str | None:
    """The GPU of this worker, as node and number on it; None for a worker without one."""
    context = ray.get_runtime_context()
    numbers = context.get_accelerator_ids().get("GPU", [])
    return f"{','.join(numbers)} of node {context.get_node_id()[:8]}" if numbers else None


def failed_row(unit: int, stage: str, failure: str, details: str) -> pa.Table:
    """The row of a unit that failed for good."""
    texts = {"failed_stage": stage, "failure": " ".join(failure.split()), "details": details}
    return pa.table({"unit": pa.array([unit], pa.int64())} | {n: pa.array([t], pa.string()) for n, t in texts.items()})


# Errors of CUDA's libraries come as a plain RuntimeError.
_CUDA_WORDS = ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "CUDNN_STATUS", "CUSOLVER_STATUS")


def _spoils_the_process(error: Exception) -> bool:
    # After such an error every further CUDA call of the process fails. Running out of memory is no such error.
    import torch

    if isinstance(error, torch.AcceleratorError):
        return True
    if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError):
        return False
    if not any(word in str(error) for word in _CUDA_WORDS):
        return False
    try:  # the library's failure may be its own, such as no memory for a workspace: ask the device
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _free_device_memory() -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def guarded(stage: type) -> type:
    """The stage's class under guard; it keeps its name, which Ray shows to people."""
    return type(stage.__name__, (Guarded,), {"stage": stage})
