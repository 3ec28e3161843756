"""Named settings of re-ID training: the bag of tricks, the study, and both for CPUs."""

import dataclasses
from pathlib import Path
from typing import Any

from training.reid.config import ReidTraining

# Z. Luo et al., Bag of tricks and a strong baseline for deep person re-identification, 2019 (without center loss):
# ReidTraining's defaults. The study: Z. Zheng's baseline of October 2022 with a ReLU after the embedding's batch
# norm; generated images with hard labels, in one list with the real ones.
_STUDY = {
    "neck": "embedding",
    "last_stride": 2,
    "variants_labels": "hard",
    "generated_share": None,
    "epochs": 60.0,
    "batch": 16,
    "sampler": "shuffle",
    "optimizer": "sgd",
    "lr": 0.05,
    "backbone_lr_factor": 0.1,
    "milestones": (40.0,),
    "warmup_epochs": 0.0,
    "label_smoothing": 0.0,
    "triplet_weight": 0.0,
    "erasing": 0.0,
}
# Without ImageNet weights the backbone starts from random weights, so it learns at the head's rate.
_SMALL = {
    "backbone": "resnet10",
    "stem": "small",
    "height": 64,
    "width": 32,
    "pretrained": False,
    "backbone_lr_factor": 1.0,
    "pad": 3,
    "workers": 0,
}
# For few labelled people. What helped on the toy crowd (docs/reid.md): other surroundings and colours and jitter for
# 70% of the steps, then pictures as they are; a shuffled list and cross-entropy alone.
_SCARCE = {
    "sampler": "shuffle",
    "triplet_weight": 0.0,
    "surroundings": 1.0,
    "colours": 0.7,
    "jitter": 0.7,
    "stages": ("0.7", "0.3:plain"),
}
_STRONG_SMALL = _SMALL | {"epochs": 10.0, "milestones": (6.0, 8.5), "warmup_epochs": 1.0, "lr": 0.001, "erasing": 0.25}
PRESETS: dict[str, dict[str, Any]] = {
    "strong": {},
    "study": _STUDY,
    "scarce": _SCARCE,
    # Few epochs leave little time to learn from half-erased images.
    "strong-small": _STRONG_SMALL,
    # So few pictures fill few steps in ten epochs.
    "scarce-small": _STRONG_SMALL | _SCARCE | {"last_stride": 2, "width_factor": 0.5, "steps": 1000},
    "study-small": _STUDY | _SMALL | {"epochs": 6.0, "milestones": (4.0,), "batch": 32},
    "tiny": _STUDY | _SMALL | {"height": 32, "width": 16, "epochs": 4.0, "milestones": (3.0,), "embedding": 32},
}


def preset(name: str, data: Path, out: Path) -> ReidTraining:
    """The preset's values for these data and this folder. KeyError if unknown."""
    return dataclasses.replace(ReidTraining(data, out), preset=name, **PRESETS[name])
