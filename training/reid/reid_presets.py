"""Named settings of re-ID training: the bag of tricks, the study, and both for CPUs."""

import tyro

from training.reid.config import ReidTraining

# Z. Luo et al., Bag of tricks and a strong baseline for deep person re-identification, 2019 (without center loss):
# ReidTraining's own defaults. The study: Z. Zheng's baseline of October 2022 with a ReLU after the embedding's batch
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
# Without ImageNet weights the backbone starts from nothing, so that it learns at the head's rate.
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
PRESETS: dict[str, dict] = {
    "strong": {},
    "study": _STUDY,
    # Few epochs leave little time to learn from half-erased images.
    "strong-small": _SMALL
    | {"epochs": 10.0, "milestones": (6.0, 8.5), "warmup_epochs": 1.0, "lr": 0.001, "erasing": 0.25},
    "study-small": _STUDY | _SMALL | {"epochs": 6.0, "milestones": (4.0,), "batch": 32},
    "tiny": _STUDY | _SMALL | {"height": 32, "width": 16, "epochs": 4.0, "milestones": (3.0,), "embedding": 32},
}


def preset(name: str) -> ReidTraining:
    """The preset's values, with data and out still missing: defaults for the command line. KeyError if unknown."""
    return ReidTraining(data=tyro.MISSING, out=tyro.MISSING, preset=name, **PRESETS[name])
