"""The loop around training iterations: what Ray Train runs in every worker, and what runs without Ray."""

import time
from collections.abc import Callable
from pathlib import Path

import ray.train
import ray.train.torch
import torch
import torch.distributed

from models.errors import InputError
from training.gan import TrainingState, train_iteration, workers
from training.gan_config import GanConfig
from training.gan_data import Batches, TrainingImages, command_line, to_device, to_float
from training.gan_pictures import save_grids, save_reals
from training.gan_progress import Progress
from training.gan_snapshot import save_snapshot, start

_ASK_EVERY = 16  # iterations between two looks at the clock that all workers share


def train_loop(values: dict) -> None:
    """Ray Train's entry point: `values` is `GanConfig.as_json()` and the driver's `command`."""
    values = dict(values)
    command = values.pop("command")
    config = GanConfig(**values | {"data": Path(values["data"]), "out": Path(values["out"])})
    train(
        config,
        ray.train.torch.get_device(),
        rank=ray.train.get_context().get_world_rank(),
        command=command,
        report=ray.train.report,
    )


def train(
    config: GanConfig,
    device: torch.device,
    *,
    rank: int = 0,
    command: str | None = None,
    report: Callable[[dict], None] | None = None,
) -> Path | None:
    """Train until `config.kimg` or `config.max_minutes`; goes on from the last snapshot in `config.out`.

    Inside a `torch.distributed` group every worker calls it with its rank; the first one writes. `report`
    gets the figures after every snapshot, equally often in all workers. Returns the last snapshot's folder
    (None in other workers). Raises InputError for data or folders that cannot be used.
    """
    started = time.monotonic()
    if config.threads:
        torch.set_num_threads(config.threads)
    data = TrainingImages.load(config.data, config.height, config.width)
    batches = Batches(data.images, config, rank, workers())
    state = start(config, device)
    progress = Progress(config, device, state.images_seen) if rank == 0 else None
    record = {"trained_on": data.record, "command": command or command_line()}
    if progress:
        _introduce(progress, config, device, state, data)
    settings, generator = config.step_settings(), state.generator
    end, every = config.kimg * 1000, config.snapshot_kimg * 1000
    snapshot, saved_at, figures = None, state.images_seen, {}

    while state.images_seen < end and not _out_of_time(config, started, state.iteration, device):
        reals = to_float(batches.reals(state.images_seen), device)
        latents = batches.latents(state.images_seen, generator.z_dim, generator.num_ws)
        before = state.images_seen
        phases = (to_device(latents[0], device), to_device(latents[1], device))
        scalars = train_iteration(state, settings, reals, phases)
        if progress:
            progress.add(scalars)
            if progress.due():
                figures = progress.tell(state.images_seen)
        if state.images_seen // every > before // every and state.images_seen < end:
            snapshot, saved_at = _save(config, state, record, figures, progress, report), state.images_seen
    if progress and state.images_seen > progress.clock_images:
        figures = progress.tell(state.images_seen)
    if state.images_seen > saved_at:
        snapshot = _save(config, state, record, figures, progress, report)
    if progress:
        progress.close()
    return snapshot


def _introduce(progress, config: GanConfig, device, state: TrainingState, data: TrainingImages) -> None:
    size = {
        name: sum(parameter.numel() for parameter in getattr(state, name).parameters()) / 1e6
        for name in ("generator", "discriminator")
    }
    on_gpu = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if on_gpu else f"the CPU, {torch.get_num_threads()} threads"
    progress.say(
        f"{data.record['images']} images of {data.record['identities']['count']} people "
        f"at {config.height}x{config.width}; StyleGAN3-{config.config.upper()}, "
        f"{size['generator']:.2f} M parameters, discriminator {size['discriminator']:.2f} M; "
        f"{workers()} worker{'s' * (workers() > 1)} on {where}"
    )
    if data.unreadable:
        progress.say(f"left out, unreadable: {len(data.unreadable)} images, the first is {data.unreadable[0]}")
    if state.images_seen:
        progress.say(f"going on at kimg {state.images_seen / 1000:.1f}")
    else:
        save_reals(config.out, data.images)
    progress.skip(state.images_seen)


def _out_of_time(config: GanConfig, started: float, iteration: int, device: torch.device) -> bool:
    # Workers must leave the loop together, so the first one's clock decides for all.
    if config.max_minutes is None:
        return False
    over = time.monotonic() - started > config.max_minutes * 60
    if workers() == 1:
        return over
    if iteration % _ASK_EVERY:
        return False
    flag = torch.tensor([float(over)], device=device)
    torch.distributed.broadcast(flag, src=0)
    return bool(flag.item())


def _save(config: GanConfig, state: TrainingState, record: dict, figures: dict, progress, report) -> Path | None:
    folder = None
    if progress:
        about = config.as_json() | {"data": config.data.name, "out": config.out.name}
        kimg = {"kimg": state.images_seen / 1000, "iterations": state.iteration}
        folder = save_snapshot(config.out, state, record | kimg | {"figures": figures, "configuration": about})
        save_grids(config.out, state.generator_ema, state.images_seen)
        progress.say(f"snapshot {folder}")
        progress.skip(state.images_seen)
    if report:
        report(figures | {"images_seen": state.images_seen})
    return folder


def pick_device(gpus: int | None) -> torch.device:
    """The device of a training without Ray: the first GPU, or the CPU where there is none or `gpus` is 0.

    Raises InputError where a GPU is asked for and there is none.
    """
    if gpus and not torch.cuda.is_available():
        raise InputError(f"--gpus {gpus}: this machine has no usable CUDA device; give --gpus 0 for the CPU")
    return torch.device("cuda", 0) if gpus != 0 and torch.cuda.is_available() else torch.device("cpu")
