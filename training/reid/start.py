"""What a re-ID training keeps: the finished network, and checkpoints named by their step.

OUT/network.safetensors                        the network at the end, its classes and its record
OUT/checkpoints/000004000/network.safetensors  the network of a step, and ...
OUT/checkpoints/000004000/training_state.pt    ... optimiser and counters; the last two are kept
"""

import io
import pickle
from pathlib import Path

import torch

from passersby.errors import InputError
from passersby.options import defaults
from passersby.reid.checkpoint import load_reid, save_reid
from training.checkpoints import claim, commit, keep_newest, newest, write_synced
from training.reid.config import FREE_TO_CHANGE, ReidTraining
from training.reid.step import ReidState

NETWORK, STATE = "network.safetensors", "training_state.pt"
CHECKPOINTS_KEPT = 2


def claim_folder(config: ReidTraining) -> None:
    """Write `config.json` into the output folder; refuse to go on in that of another training (`claim`)."""
    begun = bool(last_checkpoint(config.out)) or (config.out / NETWORK).exists()
    claim(config.out, config.as_json(), defaults(ReidTraining), FREE_TO_CHANGE, begun)


def last_checkpoint(out: Path) -> Path | None:
    """The newest folder that training can go on from, None at the start."""
    return newest(out, f"checkpoints/[0-9]*/{STATE}")


def save_checkpoint(out: Path, state: ReidState, class_names: tuple[str, ...], record: dict, extra: dict) -> Path:
    """Write everything that training needs to go on; `extra`: values and tensors that `resume` gives back.

    Of the checkpoints before, one is kept. Raises InputError where it cannot be written; earlier ones stay.
    """

    def write(folder: Path) -> None:
        save_reid(folder / NETWORK, state.network, class_names=class_names, record=record)
        # Through memory: torch.save reports a full disk as RuntimeError, a plain write as OSError.
        buffer = io.BytesIO()
        values = {
            "step": state.step,
            "images_seen": state.images_seen,
            "optimizer": state.optimizer.state_dict(),
            "scaler": state.scaler.state_dict(),
            "extra": extra,
        }
        torch.save(values, buffer)
        write_synced(folder / STATE, buffer.getbuffer())

    folder = commit(Path(out) / "checkpoints" / f"{state.step:09d}", write)
    keep_newest(folder.parent, CHECKPOINTS_KEPT)
    return folder


def resume(state: ReidState, folder: Path, class_names: tuple[str, ...]) -> dict:
    """Put a checkpoint's weights, optimiser and counters into `state`; returns its `extra`.

    Raises InputError for a damaged one, and for one of other classes.
    """
    loaded = load_reid(folder / NETWORK)
    if loaded.class_names != class_names:
        raise InputError(
            f"the checkpoint {folder} knows {len(loaded.class_names):,} classes, this training has "
            f"{len(class_names):,}, or others: give the same data and options, or another --out"
        )
    try:
        values = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        state.network.load_state_dict(loaded.network.state_dict())
        state.optimizer.load_state_dict(values["optimizer"])
        state.scaler.load_state_dict(values["scaler"])
        state.step, state.images_seen = values["step"], values["images_seen"]
        return values["extra"]
    except (RuntimeError, ValueError, KeyError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"cannot go on from {folder} ({reason}): remove that folder to go on from the one before"
        ) from error
