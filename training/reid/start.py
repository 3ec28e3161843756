"""Files of a re-ID training: the finished network, and checkpoints named by their step.

OUT/network.safetensors                        the network at the end, its classes and its record
OUT/checkpoints/000004000/network.safetensors  the network of a step, and ...
OUT/checkpoints/000004000/training_state.pt    ... optimiser and counters; the last two are kept
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.reid.training_set import TrainingImages
from passersby.errors import InputError
from passersby.options import defaults
from passersby.reid.checkpoint import LoadedReid, load_imagenet, load_reid, load_timm, save_reid
from passersby.reid.network import ReidNetwork
from passersby.reid.timm_backbone import is_timm
from training.checkpoints import claim, commit_checkpoint, damage_named, last_checkpoint, read_state
from training.reid.config import FREE_TO_CHANGE, ReidTraining
from training.reid.data import ReidBatches, StageBatches
from training.reid.stages import stages_of
from training.reid.step import ReidState, make_optimizer

NETWORK = "network.safetensors"
WITHOUT_OPTION = ("pooling", "non_local", "neck_feature", "mean", "deviation")  # of a network: they stay as in --start
ORIGINS = ("transferred_from", "backbone_weights")  # what the record says about the weights of step 0


def is_begun(out: Path) -> bool:
    """Whether the folder holds anything of a training that could be lost."""
    return bool(last_checkpoint(out)) or (out / NETWORK).exists()


def claim_folder(config: ReidTraining) -> None:
    """Write `config.json` into the output folder; refuse to continue in the folder of another training (`claim`)."""
    claim(config.out, config.as_json(), defaults(ReidTraining), FREE_TO_CHANGE, is_begun(config.out))


def save_checkpoint(out: Path, state: ReidState, class_names: tuple[str, ...], record: dict, extra: dict) -> Path:
    """Write everything that training needs to continue; `extra`: values and tensors that `resume` returns.

    The checkpoint before the new one is kept. Raises InputError where the new checkpoint cannot be written; then all
    earlier checkpoints stay.
    """

    def write(folder: Path) -> None:
        save_reid(folder / NETWORK, state.network, class_names=class_names, record=record)

    values = {
        "step": state.step,
        "images_seen": state.images_seen,
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "extra": extra,
    }
    return commit_checkpoint(out, state.step, write, values)


def resume(state: ReidState, folder: Path, class_names: tuple[str, ...]) -> dict:
    """Put a checkpoint's weights, optimiser and counters into `state`; returns its `extra`.

    Where the training began from another network, the key "transferred_from" has that network's record; where its
    backbone is timm's, "backbone_weights" has the name and the licence of the weights that it began with.

    Raises InputError for a damaged checkpoint, and for a checkpoint of other classes.
    """
    loaded = load_reid(folder / NETWORK)
    if loaded.class_names != class_names:
        raise InputError(
            f"the checkpoint {folder} knows {len(loaded.class_names):,} classes, this training has "
            f"{len(class_names):,}, or others: give the same data and options, or another --out"
        )
    with damage_named(folder):
        values = read_state(folder)
        state.network.load_state_dict(loaded.network.state_dict())
        state.optimizer.load_state_dict(values["optimizer"])
        state.scaler.load_state_dict(values["scaler"])
        state.step, state.images_seen, extra = (values[name] for name in ("step", "images_seen", "extra"))
    return extra | {name: loaded.record[name] for name in ORIGINS if name in loaded.record}


# ---- The start of a re-ID training: its network and optimiser, its teacher, the order of its images.

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_batches(
    config: ReidTraining, classes: np.ndarray, sources: np.ndarray, real_only_from: int | None = None, stage: int = 0
) -> ReidBatches:
    """The images of every step's batch, of images of these classes and sources, each [N] int64.

    Raises InputError where the images cannot fill a batch.
    """
    return ReidBatches(
        classes, sources, config.batch, config.seed, config.sampler, config.instances, config.generated_share,
        real_only_from, stage,
    )  # fmt: skip


def make_stages(
    config: ReidTraining, classes: np.ndarray, sources: np.ndarray, total_steps: int
) -> tuple[StageBatches, ...]:
    """The batches of every stage of a training. Raises InputError where a stage's images cannot fill a batch."""
    stages = []
    for number, stage in enumerate(stages_of(config, total_steps)):
        images = np.arange(len(sources))
        if stage.sources is not None:
            images = np.flatnonzero(np.isin(sources, stage.sources))
        real_only_from = None
        if config.real_only_epochs:
            real_only_from = config.step_of(config.epochs - config.real_only_epochs, total_steps)
        batches = make_batches(stage.config, classes[images], sources[images], real_only_from, number)
        stages.append(StageBatches(stage, batches, images))
    return tuple(stages)


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of the backbone's products, None for float32. Raises InputError for float16 on a CPU."""
    if precision == "auto":
        supported = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if supported else None
    if precision == "float16" and device.type == "cpu":
        raise InputError("--precision float16: CPUs have none; give float32 or bfloat16")
    return _DTYPES[precision]


def start(
    config: ReidTraining, classes: int, device: torch.device, dtype: torch.dtype | None
) -> tuple[ReidState, tuple[str, ...], dict[str, Any]]:
    """Network and optimiser at step 0, notes on the network's weights, and the record of the network of --start."""
    checkpoint = last_checkpoint(config.out)
    about, beginning = config.network(classes), None
    if config.start is not None:
        # A network of timm may be built for one size of images: then it is brought to this training's size.
        size = (config.height, config.width) if is_timm(config.backbone) else (None, None)
        beginning = load_reid(config.start if checkpoint is None else checkpoint / NETWORK, None, *size)
        kept = {name: getattr(beginning.network.config, name) for name in WITHOUT_OPTION}
        about = dataclasses.replace(about, **kept)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = ReidNetwork(about)
    notes: tuple[str, ...] = ()
    origin: dict[str, Any] = {}
    if checkpoint is None:
        if beginning is not None:
            origin, notes = _load_start(network, config, beginning)
        elif config.pretrained and is_timm(config.backbone):
            notes, weights = load_timm(network, config.weights)
            origin = {"backbone_weights": weights}
        elif config.pretrained:
            notes = load_imagenet(network, config.weights)
        elif is_timm(config.backbone):
            origin = {"backbone_weights": {"name": config.backbone, "source": "random weights"}}
    network = _on_device(network, device)
    # A scaled step is left out where a gradient has overflown. One kernel that decides so itself saves the host's look.
    fused = True if dtype is torch.float16 and device.type == "cuda" else None
    optimizer, rates = make_optimizer(config, network, fused)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    return ReidState(network, optimizer, scaler, rates), notes, origin


def _load_start(
    network: ReidNetwork, config: ReidTraining, loaded: LoadedReid
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fill backbone and neck with those of --start; returns the origin for the record, and notes.

    The classifier keeps its random weights: the classes are others. With two domains both get the same batch norms.
    Raises InputError for a network of another kind, and names the option that differs.
    """
    path = config.start
    assert path is not None
    old, new = loaded.network.config, network.config
    names = ("backbone", "width_factor", "stem", "neck") + (("embedding",) if new.neck == "embedding" else ())
    for name in names:
        if getattr(old, name) != getattr(new, name):
            raise InputError(
                f"--start {path} has {name.replace('_', ' ')} {getattr(old, name)}, this training "
                f"{getattr(new, name)}: give --{name.replace('_', '-')} {getattr(old, name)}, or another network"
            )
    tensors = {re.sub(r"\.norms\.0\.", ".", key): value for key, value in loaded.network.state_dict().items()}
    for key, value in network.state_dict().items():
        if not key.startswith("classifier."):
            value.copy_(tensors[re.sub(r"\.norms\.[01]\.", ".", key)])
    about = f"starts from {path.name}, sha256 {loaded.sha256}, with new classes"
    record = {"file": path.name, "sha256": loaded.sha256, "record": loaded.record}
    weights = {name: loaded.record[name] for name in ("backbone_weights",) if name in loaded.record}
    return {"transferred_from": record} | weights, (about, *loaded.notes)


def load_teacher(config: ReidTraining, data: TrainingImages, device: torch.device) -> ReidNetwork | None:
    """The teacher of `--variants-labels teacher`; None with other labels or without variants.

    Raises InputError for a teacher of another size or other people: its classes must be this training's real classes.
    """
    if config.variants_labels != "teacher" or not config.variants:
        return None
    if config.teacher is None:
        raise InputError("--variants-labels teacher: give --teacher FILE")
    loaded = load_reid(config.teacher)
    if loaded.class_names != data.class_names[: data.real_classes]:
        raise InputError(
            f"--teacher {config.teacher} knows {len(loaded.class_names):,} people, or others than the "
            f"{data.real_classes:,} of --data: train it on the same data, without --people"
        )
    sizes = [(about.height, about.width) for about in (loaded.network.config, config)]
    if sizes[0] != sizes[1]:
        raise InputError(f"--teacher {config.teacher} takes images of {sizes[0]}, this training has {sizes[1]}")
    return _on_device(loaded.network.eval().requires_grad_(False), device)


def _on_device(network: ReidNetwork, device: torch.device) -> ReidNetwork:
    # torch's stubs leave out the keyword.
    return network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
