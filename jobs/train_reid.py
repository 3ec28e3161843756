"""Train a re-identification network on real and generated people, on one or more Ray Train workers."""

import dataclasses
import sys
from pathlib import Path

import ray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.people.readers import full_path
from jobs.common import CPU_VARIABLES, connect, preset_defaults, run_job, training_begun
from passersby.devices import pick_device
from passersby.errors import InputError
from pipeline.ray_training import plan_resources, restart_with, train_on_workers
from training.log import CURVES
from training.reid.config import FREE_TO_CHANGE, ReidTraining
from training.reid.presets import PRESETS, preset
from training.reid.run import load_data, train
from training.reid.start import NETWORK, claim_folder, is_begun
from training.workers import command_line


def main(config: ReidTraining) -> None:
    """Check everything that can be checked in seconds, then train in this process or on Ray."""
    config.check()
    config = with_full_paths(config)
    for name in ("weights", "teacher", "start"):
        path = getattr(config, name)
        if path and not path.is_file() and not (name == "start" and is_begun(config.out)):
            raise InputError(f"--{name} {path}: there is no such file")
    claim_folder(config)
    if (config.out / NETWORK).exists():
        print(f"{config.out / NETWORK} is finished: nothing to do")
        return
    if config.workers == 0:
        train(config, pick_device(config.gpus), data=load_data(config))
    else:
        train_on_ray(config)
    if (config.out / NETWORK).exists():
        print(f"network: {config.out / NETWORK}\ncurves: {config.out / CURVES}")
    else:
        print(f"stopped after --max-minutes {config.max_minutes:g}: the same command goes on")


def with_full_paths(config: ReidTraining) -> ReidTraining:
    """The configuration with paths that hold in every worker's folder."""
    names = ("data", "out", "weights", "teacher", "start")
    paths = {name: full_path(getattr(config, name)) for name in names if getattr(config, name)}
    # Runs may lie on an object store.
    many = {name: tuple(full_path(path) for path in getattr(config, name)) for name in ("people", "variants", "donors")}
    return dataclasses.replace(config, **paths, **many)


def train_on_ray(config: ReidTraining) -> None:
    """Train on `config.workers` Ray Train workers and show the first one's log while it lasts.

    The driver decodes the images once; workers of a node read them in the node's shared memory.
    """
    connect()
    scaling = plan_resources(config)
    data = ray.put(load_data(config))  # lives as long as this driver
    train_on_workers(train, config, command_line(), scaling, CPU_VARIABLES, {"data": data})


if __name__ == "__main__":
    restart_with(CPU_VARIABLES)  # freed memory that is kept makes training on CPUs more than twice as fast
    folder_options = training_begun(ReidTraining, FREE_TO_CHANGE, is_begun)
    run_job(main, ReidTraining, preset_defaults(sys.argv[1:], PRESETS, preset), folder_options)
