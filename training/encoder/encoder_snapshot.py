"""What an encoder training keeps: the best encoder, and checkpoints named by their step.

OUT/encoder.safetensors                        at the end: the encoder with the least LPIPS on validation pictures
OUT/best.safetensors                           the same so far
OUT/checkpoints/000004000/encoder.safetensors  the encoder of a step, and ...
OUT/checkpoints/000004000/training_state.pt    ... optimiser and counters; the last two are kept
"""

import io
import pickle
from pathlib import Path

import torch

from passersby.errors import InputError
from passersby.options import defaults
from passersby.restyle.checkpoint import load_encoder, save_encoder
from training.checkpoints import claim, commit, keep_newest, newest, write_synced
from training.encoder.config import FREE_TO_CHANGE, EncoderTraining
from training.encoder.step import EncoderState

ENCODER, BEST, STATE = "encoder.safetensors", "best.safetensors", "training_state.pt"
CHECKPOINTS_KEPT = 2


def claim_folder(config: EncoderTraining) -> None:
    """Write `config.json` into the output folder; refuse to go on in that of another training (`claim`)."""
    begun = bool(last_checkpoint(config.out)) or (config.out / ENCODER).exists()
    claim(config.out, config.as_json(), defaults(EncoderTraining), FREE_TO_CHANGE, begun)


def last_checkpoint(out: Path) -> Path | None:
    """The newest folder that training can go on from, None at the start."""
    return newest(out, f"checkpoints/[0-9]*/{STATE}")


def save_checkpoint(out: Path, state: EncoderState, average, generator: dict, record: dict, extra: dict) -> Path:
    """Write everything that training needs to go on; `extra`: values and tensors that `resume` gives back.

    Of the checkpoints before, one is kept. Raises InputError where it cannot be written; earlier ones stay.
    """

    def write(folder: Path) -> None:
        save_encoder(folder / ENCODER, state.encoder, average, generator=generator, record=record)
        # Through memory: torch.save reports a full disk as RuntimeError, a plain write as OSError.
        buffer = io.BytesIO()
        values = {
            "step": state.step,
            "images_seen": state.images_seen,
            "best": state.best,
            "optimizer": state.optimizer.state_dict(),
            "extra": extra,
        }
        torch.save(values, buffer)
        write_synced(folder / STATE, buffer.getbuffer())

    folder = commit(Path(out) / "checkpoints" / f"{state.step:09d}", write)
    keep_newest(folder.parent, CHECKPOINTS_KEPT)
    return folder


def resume(state: EncoderState, folder: Path) -> dict:
    """Put a checkpoint's weights, optimiser and counters into `state`; returns its `extra`.

    Raises InputError for a damaged one.
    """
    loaded = load_encoder(folder / ENCODER)
    try:
        values = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        state.encoder.load_state_dict(loaded.encoder.state_dict())
        state.optimizer.load_state_dict(values["optimizer"])
        state.step, state.images_seen, state.best = (values[name] for name in ("step", "images_seen", "best"))
        return values["extra"]
    except (RuntimeError, ValueError, KeyError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"cannot go on from {folder} ({reason}): remove that folder to go on from the one before"
        ) from error
