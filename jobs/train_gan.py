"""Train a StyleGAN3 on the training people of a Market-1501 tree, on one or more Ray Train workers."""

import dataclasses
import os
import sys
import threading
import time
from pathlib import Path

from ray.train import RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from datasets.image_tree import list_split
from jobs.common import MALLOC_VARIABLES, connect, run_job
from models.errors import InputError
from pipeline.cluster import resources
from training.gan_config import GanConfig, claim_folder
from training.gan_data import command_line
from training.gan_loop import pick_device, train, train_loop
from training.gan_progress import LOG
from training.gan_snapshot import last_snapshot

_CPUS_PER_WORKER = 2
# Waiting threads spin for a fraction of a millisecond, then sleep: with endless spinning, training on cores that
# anything else uses is ten times slower, and with none (OMP_WAIT_POLICY=PASSIVE) two threads are no faster than one.
CPU_VARIABLES = MALLOC_VARIABLES | {"GOMP_SPINCOUNT": "50000"}


def main(config: GanConfig) -> None:
    """Check everything that can be checked in seconds, then train in this process or on Ray."""
    config.check()
    config.generator(), config.discriminator()
    config = dataclasses.replace(config, data=config.data.resolve(), out=config.out.resolve())
    count = len(list_split(config.data, "train"))
    if count < config.batch:
        raise InputError(f"--batch {config.batch} is more than the {count} training images in {config.data}")
    claim_folder(config)
    if config.workers == 0:
        train(config, pick_device(config.gpus))
    else:
        train_on_ray(config)
    folder = last_snapshot(config.out)
    print(f"last snapshot: {folder}\npeople and mixes: {config.out / 'grids'}")


def restart_with_settings() -> None:
    """Start this program anew where variables are missing that the C libraries read once, at their start.

    On a CPU they decide: freed memory that is kept makes training more than twice as fast; for the other see
    `CPU_VARIABLES`.
    """
    missing = {name: value for name, value in CPU_VARIABLES.items() if name not in os.environ}
    if missing:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | missing)


def train_on_ray(config: GanConfig) -> None:
    """Train on `config.workers` Ray Train workers and show the first one's log while it lasts."""
    connect()
    scaling = plan_resources(config)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=config.as_json() | {"command": command_line()},
        scaling_config=scaling,
        run_config=RunConfig(
            name=f"train-{time.time_ns()}",
            storage_path=str(config.out / "ray"),
            worker_runtime_env={"env_vars": CPU_VARIABLES},
        ),
    )
    finished = threading.Event()
    reader = threading.Thread(target=follow, args=(config.out / LOG, finished), daemon=True)
    reader.start()
    try:
        trainer.fit()
    except TrainingFailedError as error:
        causes = getattr(error, "worker_failures", {}).values()
        bad_input = next((cause for cause in causes if isinstance(cause, InputError)), None)
        raise bad_input or error from error
    finally:
        finished.set()
        reader.join()


def plan_resources(config: GanConfig) -> ScalingConfig:
    """What the workers ask of the cluster, printed. Raises InputError where the cluster has less."""
    cluster = resources()
    gpus = config.gpus
    if gpus is None:
        gpus = config.workers if cluster.gpus >= config.workers else 0
    cpus = config.threads or _CPUS_PER_WORKER
    if gpus > cluster.gpus:
        raise InputError(f"--gpus {gpus}: the cluster has {cluster.gpus:g}; give --gpus 0 to train on CPUs")
    if config.workers * cpus > cluster.cpus:
        raise InputError(
            f"--workers {config.workers} with {cpus} CPUs each: the cluster has {cluster.cpus:g}; give fewer "
            "workers or --threads 1"
        )
    share = {"CPU": cpus} | ({"GPU": 1} if gpus else {})
    print(f"{config.workers} x {share} of {cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs", flush=True)
    return ScalingConfig(num_workers=config.workers, use_gpu=bool(gpus), resources_per_worker=share)


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


if __name__ == "__main__":
    restart_with_settings()
    run_job(main, GanConfig)
