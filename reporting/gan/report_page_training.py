"""A GAN training for the page of what it made: its curves and its best FID, out of its own folder."""

import base64
import dataclasses
import json
import tempfile
from pathlib import Path

from passersby.errors import InputError
from reporting.curves import read_history, save_curves
from reporting.gan.fid_table import TOY, FidRow

HISTORY, CONFIG = "history.jsonl", "config.json"


@dataclasses.dataclass(frozen=True)
class Training:
    """One training: its name, a sentence about it, its curves as base64 of a PNG, and its FID if one was measured."""

    name: str
    said: str
    png: str
    fid: FidRow | None


def read_training(folder: Path, toy: bool) -> Training:
    """The training that jobs/train_gan.py left in a folder. toy: it learned from the drawn toy crowd.

    Raises InputError where there is no history with a value to draw.
    """
    history = read_history(folder / HISTORY)
    if not history:
        raise InputError(f"--training {folder}: no {HISTORY} there: give a folder that jobs/train_gan.py wrote")
    config = _read_config(folder / CONFIG)
    name = folder.resolve().name
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "curves.png"
        save_curves(path, history, title=name)
        png = base64.b64encode(path.read_bytes()).decode()
    length = max(record["kimg"] for record in history)
    scored = [record for record in history if isinstance(record.get("fid"), int | float)]
    said = f"{length:,.4g} thousand images seen"
    if not scored:
        return Training(name, f"{said}, no FID was measured", png, None)
    best = min(scored, key=lambda record: record["fid"])
    said += f", FID {best['fid']:.2f} at its best, after {best['kimg']:,.4g} thousand"
    data_set = TOY if toy else Path(str(config.get("data", "not stated"))).name
    size = f"{config['height']}x{config['width']}" if {"height", "width"} <= config.keys() else "size not stated"
    reference = {"validation": "held-out people", "training": "training people"}.get(config.get("fid_reference"), "")
    compared_with = f"{reference or 'people of its data'}, {size}"
    return Training(name, said, png, FidRow(name, float(best["fid"]), data_set, compared_with, "measured in training"))


def _read_config(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # the curves can be shown without it
    return content if isinstance(content, dict) else {}
