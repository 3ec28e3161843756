"""Named settings of encoder training: for tall networks, the study's, and one for CPUs."""

import dataclasses
from pathlib import Path
from typing import Any

from training.encoder.config import EncoderTraining

PRESETS: dict[str, dict[str, Any]] = {
    "person-128x64": {},
    # facts of the study: ReStyle-pSp at 256x256, batch 2, 240,000 steps, Ranger at 1e-4, MoCo-v2 as identity.
    "study": {"height": 256, "width": 256, "batch": 2, "steps": 240_000},
    # A thirtieth of the parameters; a higher rate and a fall at the end make up for few steps.
    "tiny": {
        "backbone": "resnet10",
        "width_factor": 0.5,
        "head_channels": 128,
        "height": 64,
        "width": 32,
        "steps": 4_000,
        "lr": 0.001,
        "final_lr": 0.02,
        "validation_steps": 500,
        "workers": 0,
    },
}


def preset(name: str, data: Path, out: Path) -> EncoderTraining:
    """The preset's values for these data and this folder. KeyError if unknown."""
    return dataclasses.replace(EncoderTraining(data, out), preset=name, **PRESETS[name])
