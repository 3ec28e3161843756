"""Units through stages: how Ray Data runs the actor classes of a job."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import ray
import ray.exceptions
from ray.actor import ActorProxy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from passersby.errors import InputError
from pipeline.cluster import resources
from pipeline.pools import Pool
from pipeline.retries import Attempts, guarded

# Every unit is a separate block, and Ray Data takes about 1 ms to admit a block. A pipeline of so many units starts
# quickly.
UNITS_OF_A_PIPELINE = 4000
STUCK_SECONDS = 120.0  # without a row, after the loss of a node


def run_units(
    units: Sequence[dict],
    actors: Sequence[tuple[type, dict]],
    pools: Sequence[Pool],
    plan_again: Callable[[int], Sequence[Pool]],
    unit_bytes: int,
) -> Iterator[dict]:
    """Put units, one Ray Data row each, through one actor class after the other; yields the rows of the last class.

    actors: classes with their constructor's keywords, in the order of `pools`. plan_again: takes a number of units and
    returns pools on the cluster as it is then; it is called for the next UNITS_OF_A_PIPELINE, and where the loss of
    nodes has left units unfinished. unit_bytes: raw pixels of a unit. Rows come as units finish, each unit once; a unit
    that failed for good comes as `failed_row`. Raises the actor's InputError where its constructor failed.
    """
    on_this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    attempts = ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=on_this_node).remote()
    try:
        for first in range(0, len(units), UNITS_OF_A_PIPELINE):
            missing = {unit["unit"]: unit for unit in units[first : first + UNITS_OF_A_PIPELINE]}
            while missing:
                pools = pools or plan_again(len(missing))
                data = pipeline_of(list(missing.values()), actors, pools, attempts, unit_bytes)
                for row in rows_until_stuck(data, pools):
                    del missing[row["unit"]]
                    yield row
                pools = ()
    except ray.exceptions.RayError as error:
        # Ray carries the exception of an actor's constructor as text only.
        message = re.search(rf"{InputError.__module__}\.{InputError.__name__}: (.+)", str(error))
        raise InputError(message[1]) if message else error from error


def pipeline_of(
    units: list[dict],
    actors: Sequence[tuple[type, dict]],
    pools: Sequence[Pool],
    attempts: ActorProxy[Attempts],
    unit_bytes: int,
) -> "ray.data.Dataset":
    """The pipeline, which starts when its rows are asked for."""
    import ray.data  # it takes 2 s, and a job that finds nothing to do should end at once

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # jobs print their own line
    # Without a limit a fast stage runs ahead until the object store is full, and a crash loses all of this work.
    # Encoded images take about an eighth of the bytes of their pixels. Four units for each actor keep all actors busy.
    room = 64e6 + 4 * sum(pool.actors for pool in pools) * unit_bytes / 8
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=room)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data = ray.data.from_items(units, override_num_blocks=len(units))
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
    return data


def rows_until_stuck(data: "ray.data.Dataset", pools: Sequence[Pool]) -> Iterator[dict]:
    """The rows of a pipeline. They end early where a node of its pools is lost and STUCK_SECONDS brought no row.

    Actors of a lost node wait for room on the other nodes. Detectors may then take the room that generators need, so
    that nothing moves again.
    """
    homes, last, ended = {node for pool in pools for node in pool.nodes}, time.monotonic(), threading.Event()

    def watch() -> None:
        while not ended.wait(STUCK_SECONDS / 10):
            executor = data._current_executor  # Ray 2.60 has no public way from another thread
            if executor is None or time.monotonic() - last <= STUCK_SECONDS:
                continue
            if homes - {node.id for node in resources().nodes}:
                executor.shutdown(force=True)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        for row in data.iter_rows():
            yield row
            last = time.monotonic()
    finally:
        ended.set()
