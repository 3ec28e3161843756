"""Units through stages: how Ray Data runs the actor classes of a job, and what a failing unit becomes."""

import logging
import os
import re
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datasets.failures import FAILED_FOLDER, Failure, failed_units, forget_failures, read_failure, write_failure
from datasets.lease import Lease
from datasets.output import Output
from datasets.shards import finished_units
from datasets.verdicts import KEPT
from jobs.pools import Pool
from models.errors import InputError
from reporting.metrics import RunMetrics
from reporting.progress import ProgressLine

# Every unit is a block of its own, and Ray Data takes about 1 ms to admit one: a pipeline of this many
# starts quickly.
UNITS_OF_A_PIPELINE = 4000
TRIES = 3  # of one stage with one unit, in a worker that lives on
HOPELESS = 32  # units that fail before the first is made: the reason is not in them
ENDED_WORKERS = 4  # workers that may end over one unit; more than TRIES, as spot nodes end for reasons of their own


class Attempts:
    """A Ray actor beside the driver that counts how often a stage has begun a unit without ending it.

    Ray starts a worker that ended, and its unit, again and for ever; only somebody outside of the worker can tell
    that it was always the same unit.
    """

    def __init__(self) -> None:
        self.begun: Counter[tuple[str, int]] = Counter()

    def begin(self, stage: str, unit: int) -> int:
        """Count a start; returns how many there were, this one included."""
        self.begun[stage, unit] += 1
        return self.begun[stage, unit]

    def end(self, stage: str, unit: int) -> None:
        """The stage came through, one way or the other: only units in flight are remembered."""
        self.begun.pop((stage, unit), None)


class Guarded:
    """A stage in which what goes wrong with one unit is data, and never the end of the run.

    A unit whose stage raises is tried TRIES times; one that ends its worker (out of memory, a crash in native code) on
    ENDED_WORKERS workers. Then the unit goes on as a row (unit int64, failed_stage, failure, details string) that later
    stages let pass. An error in a stage's constructor is everybody's and still ends the run.
    """

    stage: type

    def __init__(self, attempts: ray.actor.ActorHandle, arguments: dict):
        self.attempts, self.name = attempts, self.stage.__name__
        self.called = self.stage(**arguments)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One unit through the stage -> its row, or the row of a failed unit."""
        if "failure" in batch.column_names:
            return batch
        unit = batch["unit"][0].as_py()
        begun = ray.get(self.attempts.begin.remote(self.name, unit))
        result = self._ended(unit, begun - 1) if begun > ENDED_WORKERS else self._tried(unit, batch)
        self.attempts.end.remote(self.name, unit)
        return result

    def _tried(self, unit: int, batch: pa.Table) -> pa.Table:
        for last in [False] * (TRIES - 1) + [True]:
            try:
                return self.called(batch)
            # Whatever it is, the other units shall not suffer: the reason is kept whole in the record.
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
    # After such an error every further CUDA call of the process fails; running out of memory is not among them.
    import torch

    return isinstance(error, torch.AcceleratorError)


def _free_device_memory() -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def guarded(stage: type) -> type:
    """The stage's class under guard; it keeps its name, which Ray shows to people."""
    return type(stage.__name__, (Guarded,), {"stage": stage})


def run_units(
    units: list[dict], actors: Sequence[tuple[type, dict]], pools: Sequence[Pool], unit_bytes: int
) -> Iterator[dict]:
    """Put units, one Ray Data row each, through one actor class after the other; yields the last one's rows.

    actors: classes with their constructor's keywords, in the order of `pools`. unit_bytes: raw pixels of a unit. Rows
    come as they are finished; a unit that failed for good comes as `failed_row`. Raises the actor's InputError where
    its constructor failed.
    """
    import ray.data  # it takes 2 s, and a job that finds nothing to do should end at once

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # jobs print their own line
    # Without a limit a fast stage runs ahead until the object store is full, and all of that is lost with
    # a crash. Encoded images are about an eighth of their pixels; four units for each actor keep
    # everybody busy.
    room = 64e6 + 4 * sum(pool.size for pool in pools) * unit_bytes / 8
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=room)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    attempts = ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote()
    try:
        for first in range(0, len(units), UNITS_OF_A_PIPELINE):
            part = units[first : first + UNITS_OF_A_PIPELINE]
            data = ray.data.from_items(part, override_num_blocks=len(part))
            for (actor, arguments), pool in zip(actors, pools, strict=True):
                data = data.map_batches(
                    guarded(actor),
                    fn_constructor_kwargs={"attempts": attempts, "arguments": arguments},
                    compute=ray.data.ActorPoolStrategy(size=pool.size),
                    num_cpus=pool.cpus,
                    num_gpus=pool.gpus or None,
                    batch_format="pyarrow",
                    batch_size=1,
                    ray_remote_args_fn=pool.placement(),
                )
            yield from data.iter_rows()
    except ray.exceptions.RayError as error:
        # Ray carries the exception of an actor's constructor as text only.
        found = re.search(rf"{InputError.__module__}\.{InputError.__name__}: (.+)", str(error))
        raise InputError(found[1]) if found else error from error


def committed(
    rows: Iterable[dict], output: Output, lease: Lease, line: ProgressLine, metrics: RunMetrics
) -> Iterator[dict]:
    """The rows of units that were written, counted; units that failed for good are recorded below `output`.

    rows: of `run_units`, whose last stage is a ShardWriter. Ends early when HOPELESS units failed and none was made.
    Raises InputError when nothing can be written, or when the lease is lost.
    """
    failed_before = failed_units(output)
    forget_failures(output, failed_before & finished_units(output))
    for row in rows:
        lease.check()
        if "failure" in row:
            write_failure(output, Failure(row["unit"], row["failed_stage"], row["failure"], row["details"]))
            line.fail()
            metrics.failed(row["unit"])
            if line.failed >= HOPELESS and not line.images:
                return
        elif row["problem"]:
            raise InputError(row["problem"])
        else:
            if row["unit"] in failed_before:
                forget_failures(output, [row["unit"]])
            line.update(row["images"], row[KEPT])
            metrics.update(row)
            yield row


def failure_advice(output: Output, failed: int) -> str:
    """What happened to the units that failed for good, and what to do, in a line."""
    first, units = read_failure(output, min(failed_units(output))), "units" if failed > 1 else "unit"
    return (
        f"{failed:,} {units} failed, the first in {first.stage}: {first.reason}. Reasons: "
        f"{output.address(FAILED_FOLDER)}. The same command tries them again; `python jobs/refilter.py` makes a "
        "manifest of the others"
    )
