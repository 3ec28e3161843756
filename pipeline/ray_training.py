"""Training on Ray Train workers: what they ask of the cluster, starting them again, showing the first one's log."""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from passersby.errors import InputError
from pipeline.cluster import resources
from training.encoder.config import EncoderTraining
from training.encoder.run import train as train_encoder
from training.gan.config import GanConfig
from training.gan.run import train as train_gan
from training.log import LOG, REFUSAL
from training.reid.config import ReidTraining
from training.reid.run import train as train_reid
from training.workers import Report

# ---- How Ray Train enters a training in every worker.


class WorkerValues(TypedDict):
    """What the driver hands to every worker: plain values, and references to what all workers of a node share.

    config: `as_json()` of the training's configuration. command: the driver's. data: reference to the images.
    """

    config: dict[str, Any]
    command: str
    data: ray.ObjectRef


class GanWorkerValues(WorkerValues):
    """Of a GAN training. inception: reference to the bytes of its network, or to None where FID is not wanted."""

    inception: ray.ObjectRef


Values = TypeVar("Values", bound=WorkerValues)


class WorkerArguments(TypedDict):
    """Keyword arguments that every `train` takes from Ray Train."""

    device: torch.device
    rank: int
    command: str
    report: Report


def train_gan_loop(values: GanWorkerValues) -> None:
    """Ray Train's entry of a GAN training."""
    config = GanConfig.from_json(values["config"])
    _enter(
        config.out,
        lambda: train_gan(
            config, data=ray.get(values["data"]), inception=ray.get(values["inception"]), **_arguments(values)
        ),
    )


def train_encoder_loop(values: WorkerValues) -> None:
    """Ray Train's entry of an encoder training."""
    config = EncoderTraining.from_json(values["config"])
    _enter(config.out, lambda: train_encoder(config, data=ray.get(values["data"]), **_arguments(values)))


def train_reid_loop(values: WorkerValues) -> None:
    """Ray Train's entry of a re-ID training."""
    config = ReidTraining.from_json(values["config"])
    _enter(config.out, lambda: train_reid(config, data=ray.get(values["data"]), **_arguments(values)))


def _arguments(values: WorkerValues) -> WorkerArguments:
    return {
        "device": ray.train.torch.get_device(),
        "rank": ray.train.get_context().get_world_rank(),
        "command": values["command"],
        "report": ray.train.report,
    }


def _enter(out: Path, train: Callable[[], Path | None]) -> None:
    """Call `train` in a Ray Train worker, unless a worker before it refused.

    Ray Train starts workers again whatever they died of. Bad input does not get better by that: it is written down,
    and workers that find it there end at once.
    """
    refusal = out / REFUSAL
    if refusal.exists():
        return
    try:
        train()
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


def plan_resources(workers: int, gpus: int | None, threads: int | None) -> ScalingConfig:
    """What the workers ask of the cluster, printed; `gpus` None: one a worker where there are that many.

    Raises InputError where the cluster has less.
    """
    cluster = resources()
    if gpus is None:
        gpus = workers if cluster.gpus >= workers else 0
    cpus = threads or _CPUS_PER_WORKER
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
    train_loop: Callable[[Values], None],
    values: Values,
    out: Path,
    scaling: ScalingConfig,
    restarts: int,
    variables: dict[str, str],
) -> None:
    """Run `train_loop(values)` on Ray Train's workers and print what the first one writes to the log in `out`.

    Workers that die are started again `restarts` times. A worker refuses bad input by writing why into
    `out/refused.txt`: that is raised here as InputError, as is what killed the workers too often.
    """
    trainer = TorchTrainer(
        cast(Callable[[dict[str, Any]], None], train_loop),  # a TypedDict is a dictionary
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
