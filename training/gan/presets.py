"""Named settings of GAN training: for people, for the study, for a laptop."""

import dataclasses
from pathlib import Path
from typing import Any

from training.gan.config import GanTraining

# Values that differ from GanTraining's defaults. The defaults are the preset person-128x64-t.
PRESETS: dict[str, dict[str, Any]] = {
    "person-128x64-t": {},
    "person-128x64-r": {"config": "r"},
    "person-128x64-2": {"config": "2"},
    # The study: train.py --cfg=stylegan3-r --gpus=1 --batch=16 --gamma=2 --kimg=5000 --snap=20, resumed from another
    # network, FID of 50,000 images against its own training set; people were stretched to squares.
    "study": {
        "config": "r",
        "height": 64,
        "width": 64,
        "fit": "stretch",
        "batch": 16,
        "gamma": 2.0,
        "mirror": False,
        "style_mixing_probability": 0.0,
        "augment_set": "bgc",
        "snapshot_kimg": 80.0,
        "validation_people": 0,
        "fid_images": 50_000,
        "fid_reference": "training",
    },
    "tiny": {
        "height": 64,
        "width": 32,
        "channel_base": 1024,
        "channel_max": 64,
        "margin_size": 4,
        "batch": 8,
        "gamma": 0.1,
        "kimg": 100.0,
        "snapshot_kimg": 5.0,
        "validation_kimg": 1.0,
        "workers": 0,
    },
}
PRESETS["tiny-2"] = {name: value for name, value in PRESETS["tiny"].items() if name != "margin_size"} | {"config": "2"}
# Measured with 60 labelled people of the toy crowd (docs/demo-network.md).
PRESETS["tiny-pairs"] = PRESETS["tiny-2"] | {
    "pairs": True,
    "batch": 16,
    "mapping_layers": 2,
    "style_mixing_probability": 0.0,
    "path_length_weight": 0.0,
    "one_pass": True,
    "gamma": 0.05,
    "pair_gamma": 0.2,
    "ada_kimg": 100.0,
    "kimg": 500.0,
    "snapshot_kimg": 10.0,
}

# Values of config 2 that differ from GanTraining's defaults, which are for StyleGAN3: train.py --cfg=stylegan2.
_STYLEGAN2_VALUES: dict[str, Any] = {"generator_lr": 0.002, "style_mixing_probability": 0.9}


def preset(name: str, data: Path, out: Path, config: str | None = None) -> GanTraining:
    """The preset's values for these data and this folder. KeyError if unknown.

    config: a config that takes the place of the preset's. With config 2 the rates are StyleGAN2's, where the preset
    has none of its own.
    """
    values = PRESETS[name] | ({} if config is None else {"config": config})
    if values.get("config") == "2":
        values = _STYLEGAN2_VALUES | values
    return dataclasses.replace(GanTraining(data, out), preset=name, **values)
