"""Named settings of GAN training: for people, for the study, for a laptop."""

import tyro

from training.gan.config import GanConfig

# Values that differ from GanConfig's own defaults, which are those of person-128x64-t.
PRESETS: dict[str, dict] = {
    "person-128x64-t": {},
    "person-128x64-r": {"config": "r"},
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


def preset(name: str) -> GanConfig:
    """The preset's values, with data and out still missing: defaults for the command line. KeyError if unknown."""
    return GanConfig(data=tyro.MISSING, out=tyro.MISSING, preset=name, **PRESETS[name])
