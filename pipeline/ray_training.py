"""Training on Ray Train workers: what they ask of the cluster, starting them again, showing the first one's log."""

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
    """What the driver hands to every worker.

    command: the driver's. shared: further keyword arguments of `train`, as references to what all workers of a node
    share: "data", the images; "inception", the bytes of its network file, or None where FID is not wanted.
    """

    train: Train
    config: TrainingConfig
    command: str
    shared: Mapping[str, ray.ObjectRef]


def enter_training(values: WorkerValues) -> None:
    """Ray Train's entry: train in this worker, unless one before it refused.

    Ray Train starts workers again whatever they died of. Bad input does not get better by that: it is written down,
    and workers that find it there end at once.
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
        refusal.write_text(str(error))
        raise


# ---- Ray Train as the driver uses it.

_CPUS_PER_WORKER = 2


def restart_with(variables: dict[str, str]) -> None:
    """Start this program anew where variables are missing that the C libraries read once, at their start."""
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    if missing:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | missing)


def plan_resources(config: TrainingConfig) -> ScalingConfig:
    """What a training's workers ask of the cluster, printed. Without --gpus: one a worker where there are that many.

    Raises InputError where the cluster has less.
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
    """Train on Ray Train's workers, each with these environment variables, and print what the first one logs.

    command, shared: as of `WorkerValues`. Workers that die are started again `config.restarts` times. A worker refuses
    bad input by writing why into `refused.txt`: that is raised here as InputError, as is what killed the workers too
    often.
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
    """Raise as InputError what a worker refused to go on with, if one did."""
    if (out / REFUSAL).exists():
        raise InputError((out / REFUSAL).read_text())


def _first_line(error: TrainingFailedError) -> str:
    causes = getattr(error, "worker_failures", {}).values()
    cause = next(iter(causes), error)
    return f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0][:200]}"


def follow(path: Path, finished: threading.Event) -> None:
    """Print what is added to a log, until `finished` is set and the log is read to its end."""
    position = path.stat().st_size if path.exists() else 0
    while True:
        last_look = finished.wait(0.5)
        if path.exists():
            with open(path) as log:
                log.seek(position)
                print(log.read(), end="", flush=True)
                position = log.tell()
        if last_look:
            return
