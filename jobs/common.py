"""What every job needs: its command line, its exit codes, its connection to Ray."""

import dataclasses
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import ray
import ray.exceptions
import tyro

from models.errors import InputError

Config = TypeVar("Config")

# glibc gives large freed blocks back to the system at once and faults every page in again at the next image:
# keeping them makes synthesis on a CPU about twice as fast (benchmarks/stylegan3.py measures both ways).
MALLOC_VARIABLES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}

# Every unit is a block of its own, and Ray Data takes about 1 ms to admit one: a pipeline of this many
# starts quickly.
UNITS_OF_A_PIPELINE = 4000


def run_job(main: Callable[[Config], int | None], config_class: type[Config]) -> None:
    """Read the command line into `config_class` (a frozen dataclass), call `main` with it, and exit.

    Exit codes: what `main` returns (None is 0); 2 for bad input, with one line on stderr; 130 when
    interrupted.
    """
    try:
        config = tyro.cli(config_class, description=config_class.__doc__)
        code = main(config) or 0
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        code = 130
    sys.stdout.flush()
    sys.exit(code)


def connect() -> None:
    """Join the cluster of `RAY_ADDRESS` (set by `ray job submit`), or start a private local Ray.

    A plain `ray.init()` would join any cluster that happens to run on the machine.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side reports harmless things as errors
    address = os.environ.get("RAY_ADDRESS", "local")
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": MALLOC_VARIABLES},
            log_to_driver=False,
            include_dashboard=False if address == "local" else None,  # a joined cluster has its own
            logging_level="error",
        )
    except ConnectionError as error:
        raise InputError(f"RAY_ADDRESS {address}: no Ray cluster answers there; unset it for a local Ray") from error


@dataclasses.dataclass(frozen=True)
class Resources:
    """What the connected cluster has in all: logical CPUs and GPUs, and its number of nodes."""

    cpus: float
    gpus: float
    nodes: int


def resources() -> Resources:
    """The connected cluster's resources, summed over its living nodes."""
    total = ray.cluster_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return Resources(cpus=total.get("CPU", 0.0), gpus=total.get("GPU", 0.0), nodes=nodes)


@dataclasses.dataclass(frozen=True)
class Pool:
    """The actors of one stage, each with a share of CPUs and GPUs; as a request, None lets `fit_pools`
    choose.

    A request with `cpus` is a light stage that goes along with the work; one without is where the time goes.
    """

    stage: str
    size: int | None = None
    cpus: float | None = None
    gpus: float | None = None

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.stage} {self.size} x ({self.cpus:g} CPU{gpus})"


def fit_pools(requests: Sequence[Pool], available: Resources, on_gpu: bool, units: int) -> list[Pool]:
    """Pools that fit the cluster together, never larger than the number of units.

    On GPUs each heavy stage gets one actor a GPU, and the heavy stages share each GPU evenly. On CPUs each heavy
    stage gets one actor a CPU, of one thread: together they want more than there is, so whichever stage lags has
    processes enough to use every CPU, and no ratio of costs has to be guessed. (Fewer actors with two threads
    each: on a busy machine their threads wait for each other, at 2 to 100 times the CPU time.) What light stages
    leave of the logical CPUs is divided among the heavy ones. Raises InputError when more is asked for than the
    cluster has.
    """
    if available.cpus < 1 or (on_gpu and available.gpus < 1):
        raise InputError(f"the cluster has {available.cpus:g} CPUs and {available.gpus:g} GPUs: nothing can run on it")
    per_stage = int(available.gpus) if on_gpu else int(available.cpus)
    heavy = [pool.stage for pool in requests if pool.cpus is None]
    pools = []
    for pool in requests:
        if pool.size is not None and not 1 <= pool.size <= 16 * available.cpus:
            raise InputError(f"{pool.size} {pool.stage}: give 1 to {16 * available.cpus:g} on {available.cpus:g} CPUs")
        if pool.gpus is not None and not 0 <= pool.gpus <= available.gpus:
            raise InputError(f"{pool.gpus:g} GPUs for each {pool.stage}: the cluster has {available.gpus:g}")
        chosen = per_stage if pool.stage in heavy else max(1, int(available.cpus // 8))
        gpus = pool.gpus if pool.gpus is not None else 1 / len(heavy) if on_gpu and pool.stage in heavy else 0.0
        pools.append(dataclasses.replace(pool, size=min(pool.size or chosen, max(1, units)), gpus=gpus))
    return _share_cpus(pools, available)


def _share_cpus(pools: list[Pool], available: Resources) -> list[Pool]:
    light = sum(pool.size * pool.cpus for pool in pools if pool.cpus is not None)
    heavy = sum(pool.size for pool in pools if pool.cpus is None)
    squeeze = min(1.0, available.cpus / 2 / light) if light else 1.0  # at least half is for the heavy stages
    each = min(1.0, (available.cpus - light * squeeze) / max(1, heavy))
    # Rounded down, so that the sum is never a hair above what there is.
    shares = [math.floor((each if p.cpus is None else p.cpus * squeeze) * 1000) / 1000 for p in pools]
    pools = [dataclasses.replace(pool, cpus=share) for pool, share in zip(pools, shares, strict=True)]
    free = [1.0] * int(available.gpus)
    for gpus in sorted((pool.gpus for pool in pools for _ in range(pool.size) if pool.gpus), reverse=True):
        room = [index for index, left in enumerate(free) if left >= min(gpus, 1.0) - 1e-6]
        needed = math.ceil(gpus)  # Ray takes fractions of one GPU, or whole ones
        if len(room) < needed or (gpus > 1 and gpus != needed):
            asked = sum(pool.size * pool.gpus for pool in pools)
            raise InputError(
                f"the pools ({'; '.join(map(str, pools))}) ask for {asked:g} GPUs and the cluster has "
                f"{available.gpus:g}: give fewer actors or smaller shares of a GPU"
            )
        for index in room[:needed]:
            free[index] -= min(gpus, 1.0)
    return pools


def run_units(
    units: list[dict], actors: Sequence[tuple[type, dict]], pools: Sequence[Pool], unit_bytes: int
) -> Iterator[dict]:
    """Put units, one Ray Data row each, through one actor class after the other; yields the last one's rows.

    actors: classes with their constructor's keywords, in the order of `pools`. unit_bytes: raw pixels of
    a unit. Rows come as they are finished. Raises the actor's InputError where one was the cause of a
    failure.
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
    try:
        for first in range(0, len(units), UNITS_OF_A_PIPELINE):
            part = units[first : first + UNITS_OF_A_PIPELINE]
            data = ray.data.from_items(part, override_num_blocks=len(part))
            for (actor, arguments), pool in zip(actors, pools, strict=True):
                data = data.map_batches(
                    actor,
                    fn_constructor_kwargs=arguments,
                    compute=ray.data.ActorPoolStrategy(size=pool.size),
                    num_cpus=pool.cpus,
                    num_gpus=pool.gpus or None,
                    batch_format="pyarrow",
                    batch_size=1,
                )
            yield from data.iter_rows()
    except ray.exceptions.RayError as error:
        # Ray carries the exception of an actor's constructor as text only.
        found = re.search(rf"{InputError.__module__}\.{InputError.__name__}: (.+)", str(error))
        raise InputError(found[1]) if found else error from error
