"""Train a StyleGAN3 on people, on one or more Ray Train workers."""

import dataclasses
import os
import sys
import threading
import time
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from datasets.gan_images import ImageSource
from jobs.common import MALLOC_VARIABLES, connect, run_job
from models import weights
from models.errors import InputError
from pipeline.cluster import resources
from training.gan_config import GanConfig
from training.gan_data import command_line
from training.gan_fid import images_wanted
from training.gan_images import list_data, load_data
from training.gan_loop import REFUSAL, pick_device, train, train_loop
from training.gan_presets import PRESETS, preset
from training.gan_progress import LOG
from training.gan_snapshot import BEST, claim_folder, last_snapshot

_CPUS_PER_WORKER = 2
# Waiting threads spin for a fraction of a millisecond, then sleep: with endless spinning, training on cores that
# anything else uses is ten times slower, and with none (OMP_WAIT_POLICY=PASSIVE) two threads are no faster than one.
CPU_VARIABLES = MALLOC_VARIABLES | {"GOMP_SPINCOUNT": "50000"}


def main(config: GanConfig) -> None:
    """Check everything that can be checked in seconds, then train in this process or on Ray."""
    config.check()
    config.generator(), config.discriminator()
    config = dataclasses.replace(config, data=config.data.resolve(), out=config.out.resolve())
    source = list_data(config)
    if config.transfer and not config.transfer.is_file():
        raise InputError(f"--transfer {config.transfer}: there is no such file")
    claim_folder(config)
    if config.workers == 0:
        device = pick_device(config.gpus)
        train(config, device, data=load_data(config, source), inception=inception_bytes(config, device.type == "cuda"))
    else:
        train_on_ray(config, source)
    print(f"last snapshot: {last_snapshot(config.out)}")
    if (config.out / BEST).exists():
        print(f"best by FID: {config.out / BEST}")
    print(f"people and mixes: {config.out / 'grids'}\nlosses: {config.out / 'curves.png'}")


def restart_with_settings() -> None:
    """Start this program anew where variables are missing that the C libraries read once, at their start.

    On a CPU they decide: freed memory that is kept makes training more than twice as fast; for the other see
    `CPU_VARIABLES`.
    """
    missing = {name: value for name, value in CPU_VARIABLES.items() if name not in os.environ}
    if missing:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | missing)


def chosen_preset(arguments: list[str]) -> GanConfig:
    """The values that the command line starts from: the preset's that it names, else the first one's."""
    named = [b for a, b in zip(arguments, arguments[1:], strict=False) if a == "--preset"]
    named += [word.partition("=")[2] for word in arguments if word.startswith("--preset=")]
    return preset(named[-1] if named and named[-1] in PRESETS else next(iter(PRESETS)))


def train_on_ray(config: GanConfig, source: ImageSource) -> None:
    """Train on `config.workers` Ray Train workers and show the first one's log while it lasts.

    The driver decodes the images once; workers of a node read them in the node's shared memory.
    """
    connect()
    scaling = plan_resources(config)
    inception = inception_bytes(config, scaling.use_gpu)
    shared = [ray.put(load_data(config, source, on_ray=True)), ray.put(inception)]  # lives as long as this driver
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"config": config.as_json(), "command": command_line(), "shared": shared},
        scaling_config=scaling,
        run_config=RunConfig(
            name=f"train-{time.time_ns()}",
            storage_path=str(config.out / "ray"),
            worker_runtime_env={"env_vars": CPU_VARIABLES},
            failure_config=FailureConfig(max_failures=config.restarts),
        ),
    )
    (config.out / REFUSAL).unlink(missing_ok=True)
    finished = threading.Event()
    reader = threading.Thread(target=follow, args=(config.out / LOG, finished), daemon=True)
    reader.start()
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise_refusal(config.out)
        raise InputError(
            f"workers died {config.restarts + 1} times, the last of {_first_line(error)}: the same command goes on "
            f"from the last checkpoint; the workers' logs are in {config.out / 'ray'}"
        ) from error
    finally:
        finished.set()
        reader.join()
    raise_refusal(config.out)


def raise_refusal(out: Path) -> None:
    """Raise as InputError what a worker refused to go on with, if one did."""
    if (out / REFUSAL).exists():
        raise InputError((out / REFUSAL).read_text())


def _first_line(error: TrainingFailedError) -> str:
    causes = getattr(error, "worker_failures", {}).values()
    cause = next(iter(causes), error)
    return f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0][:200]}"


def inception_bytes(config: GanConfig, on_gpu: bool) -> bytes | None:
    """The inception network's file where FID is wanted, checked; workers need no way to fetch it."""
    if not images_wanted(config, on_gpu):
        return None
    return weights.get("inception-2015", config.inception).read_bytes()


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
    run_job(main, GanConfig, default=chosen_preset(sys.argv[1:]))
