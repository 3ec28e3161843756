"""Train a StyleGAN3 or a StyleGAN2 on people, on one or more Ray Train workers."""

import dataclasses
import sys
from pathlib import Path

import ray
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.people.image_source import ImageSource
from datasets.people.readers import full_path
from jobs.common import CPU_VARIABLES, connect, given, named_preset, run_job, training_begun
from passersby import weights
from passersby.devices import pick_device
from passersby.errors import InputError
from pipeline import image_stream
from pipeline.ray_training import plan_resources, restart_with, train_on_workers
from training.gan.config import FREE_TO_CHANGE, GanTraining
from training.gan.images import list_data, load_data
from training.gan.presets import PRESETS, preset
from training.gan.run import train
from training.gan.start import BEST, claim_folder, is_begun, last_snapshot
from training.gan.validation import images_wanted
from training.workers import command_line


def main(config: GanTraining) -> None:
    """Check everything that can be checked in seconds, then train in this process or on Ray."""
    config.check()
    # Both calls check the sizes of a network.
    config.generator()
    config.discriminator()
    config = dataclasses.replace(config, data=full_path(config.data), out=config.out.resolve())
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


def defaults(arguments: list[str]) -> GanTraining:
    """The values of a command line's preset, with those that its --config brings; data and out are missing."""
    config = given(arguments, "config")
    known = config if config in ("t", "r", "2") else None  # the command line itself refuses others
    return preset(named_preset(arguments, PRESETS), tyro.MISSING, tyro.MISSING, known)


def train_on_ray(config: GanTraining, source: ImageSource) -> None:
    """Train on `config.workers` Ray Train workers and show the first one's log while it lasts.

    The driver decodes the images once; workers of a node read them in the node's shared memory.
    """
    connect()
    scaling = plan_resources(config)
    inception = inception_bytes(config, bool(scaling.use_gpu))
    data = ray.put(image_stream.load_data(config, source))  # lives as long as this driver
    shared = {"data": data, "inception": ray.put(inception)}
    train_on_workers(train, config, command_line(), scaling, CPU_VARIABLES, shared)


def inception_bytes(config: GanTraining, on_gpu: bool) -> bytes | None:
    """The checked file of the inception network, None if no FID is computed. Workers never fetch it themselves."""
    if not images_wanted(config, on_gpu):
        return None
    return weights.get("inception-2015", config.inception).read_bytes()


if __name__ == "__main__":
    restart_with(CPU_VARIABLES)  # freed memory that is kept makes training on CPUs more than twice as fast
    folder_options = training_begun(GanTraining, FREE_TO_CHANGE - {"kimg"}, is_begun)
    run_job(main, GanTraining, defaults(sys.argv[1:]), folder_options)
