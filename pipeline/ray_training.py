"""Training on Ray Train workers: their resources, restarts, and the log of the first worker."""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from passersby.errors import InputError
from pipeline.cluster import resources
from training.config import TrainingConfig
from training.log import LOG, REFUSAL

# ---- How Ray Train enters a training in every worker.

# `train` of training/gan/run.py, training/encoder/run.py or training/reid/run.py.
Train = Callable[..., Path | None]


class WorkerValues(TypedDict):
    """The values that the driver hands to every worker.

    command: the driver's command line. shared: further keyword arguments of `train`, as references to objects that all
    workers of a node share: "data", the images; "inception", the bytes of its network file, or None without FID.
    """

    train: Train
    config: TrainingConfig
    command: str
    shared: Mapping[str, ray.ObjectRef]


def enter_training(values: WorkerValues) -> None:
    """Ray Train's entry: train in this worker, unless an earlier worker refused its input.

    Ray Train starts workers again after any error. A restart does not improve bad input: so a worker writes the reason
    into a file, and workers that find this file end at once. One worker alone ends without an error, which saves the
    restart.
    """
    config = values["config"]
    refusal = config.out / REFUSAL
    if refusal.exists():
        return
    try:
        values["train"](
            config,
            ray.train.torch.get_device(),
            rank=ray.train.get_context().get_world_rank(),
            command=values["command"],
            report=ray.train.report,
            **{name: ray.get(reference) for name, reference in values["shared"].items()},
        )
    except InputError as error:
        refusal.write_text(str(error), "utf-8", "backslashreplace")
        if config.workers > 1:  # the others may wait for this one
            raise


# ---- Ray Train as the driver uses it.

_CPUS_PER_WORKER = 2


def restart_with(variables: dict[str, str]) -> None:
    """Start this program anew where variables are missing that C libraries read only at the program's start."""
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    if missing:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | missing)


def plan_resources(config: TrainingConfig) -> ScalingConfig:
    """The resources that a training's workers request from the cluster; also prints them.

    Without --gpus each worker requests one GPU if the cluster has so many, else none. Raises InputError where the
    cluster has less than requested.
    """
    cluster, workers, gpus = resources(), config.workers, config.gpus
    if gpus is None:
        gpus = workers if cluster.gpus >= workers else 0
    cpus = config.threads or _CPUS_PER_WORKER
    if gpus > cluster.gpus:
        raise InputError(f"--gpus {gpus}: the cluster has {cluster.gpus:g}; give --gpus 0 to train on CPUs")
    if workers * cpus > cluster.cpus:
        raise InputError(
            f"--workers {workers} with {cpus} CPUs each: the cluster has {cluster.cpus:g}; give fewer "
            "workers or --threads 1"
        )
    share = {"CPU": cpus} | ({"GPU": 1} if gpus else {})
    print(f"{workers} x {share} of {cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs", flush=True)
    return ScalingConfig(num_workers=workers, use_gpu=bool(gpus), resources_per_worker=share)


def train_on_workers(
    train: Train,
    config: TrainingConfig,
    command: str,
    scaling: ScalingConfig,
    variables: dict[str, str],
    shared: Mapping[str, ray.ObjectRef],
) -> None:
    """Train on Ray Train's workers, each with these environment variables, and print the log of the first worker.

    command, shared: as in `WorkerValues`. Workers that die are started again `config.restarts` times. A worker that
    refuses bad input writes the reason into `refused.txt`. Raises this reason as InputError. Also raises InputError
    where workers died more often than they may be started again.
    """
    out, restarts = config.out, config.restarts
    values: WorkerValues = {"train": train, "config": config, "command": command, "shared": shared}
    trainer = TorchTrainer(
        cast(Callable[[dict[str, Any]], None], enter_training),  # a TypedDict is a dictionary
        train_loop_config={**values},
        scaling_config=scaling,
        run_config=RunConfig(
            name=f"train-{time.time_ns()}",
            storage_path=str(out / "ray"),
            worker_runtime_env={"env_vars": variables},
            failure_config=FailureConfig(max_failures=restarts),
        ),
    )
    (out / REFUSAL).unlink(missing_ok=True)
    finished = threading.Event()
    reader = threading.Thread(target=follow, args=(out / LOG, finished), daemon=True)
    reader.start()
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise_refusal(out)
        raise InputError(
            f"workers died {restarts + 1} times, the last of {_first_line(error)}: the same command goes on "
            f"from the last checkpoint; the workers' logs are in {out / 'ray'}"
        ) from error
    finally:
        finished.set()
        reader.join()
    raise_refusal(out)


def raise_refusal(out: Path) -> None:
    """Raise InputError with the reason in `refused.txt`, if a worker has refused its input."""
    if (out / REFUSAL).exists():
        raise InputError((out / REFUSAL).read_text("utf-8"))


def _first_line(error: TrainingFailedError) -> str:
    causes = getattr(error, "worker_failures", {}).values()
    cause = next(iter(causes), error)
    return f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0][:200]}"


def follow(path: Path, finished: threading.Event) -> None:
    """Print new lines of a log, until `finished` is set and the log is read to its end."""
    position = path.stat().st_size if path.exists() else 0
    while True:
        last_look = finished.wait(0.5)
        if path.exists():
            with open(path, encoding="utf-8", errors="replace") as log:
                log.seek(position)
                print(log.read(), end="", flush=True)
                position = log.tell()
        if last_look:
            return
