"""Files of a re-ID training: the finished network, and checkpoints named by their step.

OUT/network.safetensors                        the network at the end, its classes and its record
OUT/checkpoints/000004000/network.safetensors  the network of a step, and ...
OUT/checkpoints/000004000/training_state.pt    ... optimiser and counters; the last two are kept
"""

from pathlib import Path

import torch

from datasets.reid.training_set import TrainingImages
from passersby.errors import InputError
from passersby.options import defaults
from passersby.reid.checkpoint import load_imagenet, load_reid, save_reid
from passersby.reid.network import ReidNetwork
from training.checkpoints import claim, commit_checkpoint, damage_named, last_checkpoint, read_state
from training.reid.config import FREE_TO_CHANGE, ReidTraining
from training.reid.data import ReidBatches
from training.reid.step import ReidState, make_optimizer

NETWORK = "network.safetensors"


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
    return extra


# ---- The start of a re-ID training: its network and optimiser, its teacher, the order of its images.

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_batches(config: ReidTraining, data: TrainingImages, real_only_from: int | None = None) -> ReidBatches:
    """The images of every step's batch. Raises InputError where the data cannot fill a batch."""
    return ReidBatches(
        data.classes, data.sources, config.batch, config.seed, config.sampler, config.instances,
        config.generated_share, real_only_from,
    )  # fmt: skip


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
) -> tuple[ReidState, tuple[str, ...]]:
    """Network and optimiser at step 0, and notes on the network's weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = ReidNetwork(config.network(classes))
    notes: tuple[str, ...] = ()
    if config.pretrained and last_checkpoint(config.out) is None:
        notes = load_imagenet(network, config.weights)
    network = _on_device(network, device)
    optimizer, rates = make_optimizer(config, network)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    return ReidState(network, optimizer, scaler, rates), notes


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
