"""Train a ReStyle-pSp encoder, which turns pictures into codes of a generator, on one or more Ray Train workers."""

import dataclasses
import sys
from pathlib import Path

import ray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.people.readers import full_path
from jobs.common import CPU_VARIABLES, connect, preset_defaults, run_job, training_begun
from passersby.devices import pick_device
from passersby.errors import InputError
from passersby.stylegan2 import AnyGeneratorConfig
from pipeline.ray_training import plan_resources, restart_with, train_on_workers
from training.encoder.config import FREE_TO_CHANGE, PATHS, EncoderTraining
from training.encoder.presets import PRESETS, preset
from training.encoder.run import VALIDATION_PICTURE, train
from training.encoder.start import ENCODER, claim_folder, is_begun, load_data, load_generator, load_networks
from training.log import CURVES
from training.workers import command_line


def main(config: EncoderTraining) -> None:
    """Check everything that can be checked in seconds, then train in this process or on Ray."""
    config.check()
    config = dataclasses.replace(
        config, **{name: full_path(getattr(config, name)) for name in PATHS if getattr(config, name)}
    )
    for name in PATHS[2:]:
        path = getattr(config, name)
        if path and not path.is_file():
            raise InputError(f"--{name.replace('_', '-')} {path}: there is no such file")
    if (config.out / ENCODER).exists():
        claim_folder(config)
        print(f"{config.out / ENCODER} is finished: nothing to do")
        return
    generator = load_generator(config).generator.config
    claim_folder(config)
    if config.workers == 0:
        train(config, pick_device(config.gpus), data=load_data(config, generator))
    else:
        load_networks(config, pick_device(0))  # a wrong file is one line here, and a traceback in a worker
        train_on_ray(config, generator)
    if (config.out / ENCODER).exists():
        for name, file in (("encoder", ENCODER), ("pictures", VALIDATION_PICTURE), ("curves", CURVES)):
            print(f"{name}: {config.out / file}")
    else:
        print(f"stopped after --max-minutes {config.max_minutes:g}: the same command goes on")


def train_on_ray(config: EncoderTraining, generator: AnyGeneratorConfig) -> None:
    """Train on `config.workers` Ray Train workers and show the first one's log while it lasts.

    The driver decodes the pictures once; workers of a node read them in the node's shared memory.
    """
    connect()
    scaling = plan_resources(config)
    data = ray.put(load_data(config, generator))  # lives as long as this driver
    train_on_workers(train, config, command_line(), scaling, CPU_VARIABLES, {"data": data})


if __name__ == "__main__":
    restart_with(CPU_VARIABLES)  # freed memory that is kept makes training on CPUs more than twice as fast
    folder_options = training_begun(EncoderTraining, FREE_TO_CHANGE, is_begun)
    run_job(main, EncoderTraining, preset_defaults(sys.argv[1:], PRESETS, preset), folder_options)
