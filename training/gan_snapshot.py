"""Snapshots of a GAN training: folders with networks and training state, complete or not there at all.

    OUT/snapshots/000012000/network.safetensors   averaged and training generator, discriminator, record
    OUT/snapshots/000012000/training_state.pt     optimisers and counters; kept in the last two snapshots

The number counts the real images seen. The folder is written under another name and renamed: that commits it.
"""

import io
import os
import shutil
from pathlib import Path

import torch

from models.errors import InputError
from models.stylegan3 import Discriminator, Generator
from models.stylegan3.checkpoint import load_network, save_network
from training.gan import TrainingState, new_state
from training.gan_config import GanConfig

NETWORK, STATE = "network.safetensors", "training_state.pt"
_STATES_KEPT = 2


def last_snapshot(out: Path) -> Path | None:
    """The newest snapshot folder that training can go on from, None at the start."""
    folders = [path.parent for path in Path(out).glob(f"snapshots/[0-9]*/{STATE}")]
    return max(folders, key=lambda folder: int(folder.name), default=None)


def save_snapshot(out: Path, state: TrainingState, record: dict) -> Path:
    """Write a snapshot and return its folder; the networks are stored in float32. Raises InputError where it
    cannot be written; earlier snapshots stay as they are.
    """
    folder = Path(out) / "snapshots" / f"{state.images_seen:09d}"
    if folder.exists():
        return folder
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        _write_state(temporary / STATE, state)
        save_network(
            temporary / NETWORK,
            state.generator_ema,
            discriminator=state.discriminator,
            training_generator=state.generator,
            record=record,
        )
        os.replace(temporary, folder)
        _drop_old_states(folder.parent)
    except OSError as error:
        raise InputError(f"cannot write the snapshot {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_state(path: Path, state: TrainingState) -> None:
    # Through memory: torch.save reports a full disk as RuntimeError, a plain write as OSError.
    buffer = io.BytesIO()
    values = {
        "iteration": state.iteration,
        "images_seen": state.images_seen,
        "generator_optimizer": state.generator_optimizer.state_dict(),
        "discriminator_optimizer": state.discriminator_optimizer.state_dict(),
    }
    torch.save(values, buffer)
    with open(path, "wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def _drop_old_states(snapshots: Path) -> None:
    states = sorted(snapshots.glob(f"[0-9]*/{STATE}"), key=lambda path: int(path.parent.name))
    for path in states[:-_STATES_KEPT]:
        path.unlink()


def start(config: GanConfig, device: torch.device) -> TrainingState:
    """A new training, its weights fixed by the seed; or the last snapshot's, with optimisers and counters."""
    with torch.random.fork_rng(devices=[]):  # drawn on the CPU: the same weights on every device
        torch.manual_seed(config.seed)
        generator, discriminator = Generator(config.generator()), Discriminator(config.discriminator())
    state = new_state(
        generator.to(device),
        discriminator.to(device),
        generator_lr=config.generator_lr,
        discriminator_lr=config.discriminator_lr,
        r1_interval=config.step_settings().r1_interval,
    )
    folder = last_snapshot(config.out)
    if folder is not None:
        resume(state, folder)
    return state


def resume(state: TrainingState, folder: Path) -> None:
    """Put a snapshot's weights, optimisers and counters into `state`. Raises InputError for a damaged one."""
    loaded = load_network(folder / NETWORK)
    try:
        values = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        state.generator_ema.load_state_dict(loaded.generator.state_dict())
        state.generator.load_state_dict(loaded.training_generator.state_dict())
        state.discriminator.load_state_dict(loaded.discriminator.state_dict())
        state.generator_optimizer.load_state_dict(values["generator_optimizer"])
        state.discriminator_optimizer.load_state_dict(values["discriminator_optimizer"])
        state.iteration, state.images_seen = values["iteration"], values["images_seen"]
    except (RuntimeError, ValueError, KeyError, EOFError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"cannot go on from {folder} ({reason}): remove that folder to go on from the one before"
        ) from error
