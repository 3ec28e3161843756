"""What a re-ID training starts from: its network and optimiser, its teacher, the order of its images."""

import torch

from datasets.reid.training_set import TrainingImages
from passersby.errors import InputError
from passersby.reid.checkpoint import load_imagenet, load_reid
from passersby.reid.network import ReidNetwork
from training.reid.config import ReidTraining
from training.reid.data import ReidBatches
from training.reid.start import last_checkpoint
from training.reid.step import ReidState, make_optimizer

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_batches(config: ReidTraining, data: TrainingImages, real_only_from: int | None = None) -> ReidBatches:
    """Which images make every step's batch. Raises InputError where the data cannot fill them."""
    return ReidBatches(
        data.classes, data.sources, config.batch, config.seed, config.sampler, config.instances,
        config.generated_share, real_only_from,
    )  # fmt: skip


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of the backbone's products, None for float32. Raises InputError for float16 on a CPU."""
    if precision == "auto":
        good = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if good else None
    if precision == "float16" and device.type == "cpu":
        raise InputError("--precision float16: CPUs have none; give float32 or bfloat16")
    return _DTYPES[precision]


def start(config: ReidTraining, classes: int, device: torch.device, dtype) -> tuple[ReidState, tuple[str, ...]]:
    """Networks and optimiser at step 0, and what there is to say about their weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = ReidNetwork(config.network(classes))
    notes: tuple[str, ...] = ()
    if config.pretrained and last_checkpoint(config.out) is None:
        notes = load_imagenet(network, config.weights)
    network = network.to(device, memory_format=torch.channels_last)
    optimizer, rates = make_optimizer(config, network)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    return ReidState(network, optimizer, scaler, rates), notes


def load_teacher(config: ReidTraining, data: TrainingImages, device: torch.device) -> ReidNetwork | None:
    """The teacher of `--variants-labels teacher`, None where none is asked for.

    Raises InputError for one of another size or of other people: its classes must be this training's real ones.
    """
    if config.variants_labels != "teacher" or not config.variants:
        return None
    loaded = load_reid(config.teacher)
    if loaded.class_names != data.class_names[: data.real_classes]:
        raise InputError(
            f"--teacher {config.teacher} knows {len(loaded.class_names):,} people, or others than the "
            f"{data.real_classes:,} of --data: train it on the same data, without --people"
        )
    sizes = [(about.height, about.width) for about in (loaded.network.config, config)]
    if sizes[0] != sizes[1]:
        raise InputError(f"--teacher {config.teacher} takes images of {sizes[0]}, this training has {sizes[1]}")
    return loaded.network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
