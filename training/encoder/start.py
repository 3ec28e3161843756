"""The start of an encoder training: generator, losses, encoder, optimiser and pictures; and its checkpoints."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch

from datasets.people.listing import TRAIN
from datasets.people.readers import address, published_root, read_split
from datasets.reid.training_set import TrainingImages, load_training_images
from passersby import weights
from passersby.errors import InputError
from passersby.options import defaults
from passersby.perception.perceptual import load_perceptual
from passersby.reid.identity_features import load_identity
from passersby.restyle.checkpoint import load_encoder, save_encoder
from passersby.restyle.encoder import RestyleEncoder, load_backbone, working_size
from passersby.restyle.losses import InversionLoss
from passersby.restyle.refinement import w_statistics
from passersby.stylegan2 import AnyGeneratorConfig
from passersby.stylegan3.checkpoint import LoadedNetwork, load_network
from training.checkpoints import claim, commit_checkpoint, damage_named, last_checkpoint, read_state
from training.encoder.config import FREE_TO_CHANGE, EncoderTraining
from training.encoder.step import EncoderState, Frozen, Ranger
from training.memory import check_memory

# ---- Files of an encoder training: the best encoder, and checkpoints named by their step.
#
# OUT/encoder.safetensors                        at the end: the encoder with the least LPIPS on validation pictures
# OUT/best.safetensors                           the same so far
# OUT/checkpoints/000004000/encoder.safetensors  the encoder of a step, and ...
# OUT/checkpoints/000004000/training_state.pt    ... optimiser and counters; the last two are kept

ENCODER, BEST = "encoder.safetensors", "best.safetensors"


def is_begun(out: Path) -> bool:
    """Whether the folder holds anything of a training that could be lost."""
    return bool(last_checkpoint(out)) or (out / ENCODER).exists()


def claim_folder(config: EncoderTraining) -> None:
    """Write `config.json` into the output folder; refuse to continue in the folder of another training (`claim`)."""
    claim(config.out, config.as_json(), defaults(EncoderTraining), FREE_TO_CHANGE, is_begun(config.out))


def save_checkpoint(
    out: Path, state: EncoderState, average: torch.Tensor, generator: dict, record: dict, extra: dict
) -> Path:
    """Write everything that training needs to continue; `extra`: values and tensors that `resume` returns.

    The checkpoint before the new one is kept. Raises InputError where the new checkpoint cannot be written; then all
    earlier checkpoints stay.
    """

    def write(folder: Path) -> None:
        save_encoder(folder / ENCODER, state.encoder, average, generator=generator, record=record)

    values = {
        "step": state.step,
        "images_seen": state.images_seen,
        "best": state.best,
        "optimizer": state.optimizer.state_dict(),
        "extra": extra,
    }
    return commit_checkpoint(out, state.step, write, values)


def resume(state: EncoderState, folder: Path, hashes: Mapping[str, str | None]) -> dict:
    """Put a checkpoint's weights, optimiser and counters into `state`; returns its `extra`.

    hashes: of the generator and the losses' networks (`Networks.hashes`). Raises InputError for a damaged checkpoint,
    and for one of other networks.
    """
    loaded = load_encoder(folder / ENCODER)
    with damage_named(folder):
        values = read_state(folder)
        extra: dict = values["extra"]
        stored: Mapping[str, str | None] = extra["networks"]
    _check_networks(stored, hashes, folder)  # first: codes of another generator would look like damage
    with damage_named(folder):
        state.encoder.load_state_dict(loaded.encoder.state_dict())
        state.optimizer.load_state_dict(values["optimizer"])
        state.step, state.images_seen, state.best = (values[name] for name in ("step", "images_seen", "best"))
    return extra


def _check_networks(stored: Mapping[str, str | None], given: Mapping[str, str | None], folder: Path) -> None:
    if stored == given:
        return
    former = weights.former_demo_network(stored.get("generator") or "")
    if former and stored["generator"] != given["generator"]:
        raise InputError(f"--out {folder.parents[1]} was begun with {former}")
    raise InputError(
        "the generator or the networks of the losses are others than this training began with: give those, "
        "or another --out"
    )


@dataclasses.dataclass(frozen=True)
class Networks:
    """The frozen networks, and their record."""

    frozen: Frozen
    generator: dict  # file, sha256
    record: dict

    @property
    def hashes(self) -> dict[str, str | None]:
        """What identifies the generator and the networks of the losses."""
        return {
            "generator": self.generator["sha256"],
            "perceptual": self.record["perceptual"],
            "identity": (self.record["identity"] or {}).get("sha256"),
        }


def generator_file(config: EncoderTraining) -> Path:
    """The file of the generator."""
    return config.network or weights.DEMO_NETWORK


def load_generator(config: EncoderTraining) -> LoadedNetwork:
    """The generator. Raises InputError for a generator with labels, or without exactly three channels."""
    loaded = load_network(generator_file(config))
    about = loaded.generator.config
    if about.c_dim or about.img_channels != 3:
        raise InputError(
            f"--network {generator_file(config).name} has {about.c_dim} labels and {about.img_channels} channels: give "
            "one without labels and with 3 channels"
        )
    return loaded


def load_networks(config: EncoderTraining, device: torch.device) -> Networks:
    """Generator and losses on the device. Raises InputError for files that cannot be used."""
    loaded = load_generator(config)
    generator = loaded.generator.eval().requires_grad_(False).to(device)
    loss_weights = config.loss_weights
    perceptual = load_perceptual(config.alexnet)  # validation needs the network also at weight 0
    identity = load_identity(config.identity_network) if config.identity_network else None
    measured = InversionLoss(loss_weights, perceptual, identity).to(device)
    loss = InversionLoss(
        loss_weights, perceptual if loss_weights.lpips else None, identity if loss_weights.identity else None
    )
    about = {"file": generator_file(config).name, "sha256": loaded.sha256}
    record = {
        "generator": about | {"trained_on": loaded.record.get("trained_on", "unknown")},
        "perceptual": perceptual.name,
        "identity": None if identity is None else {"name": identity.name, "sha256": identity.sha256},
    }
    with torch.no_grad():
        average = generator.mapping.w_avg.expand(generator.num_ws, -1)
        image = generator.synthesis(average[None])[0]
    return Networks(
        Frozen(generator, loss, measured, average.contiguous(), w_statistics(generator).spread, image), about, record
    )


def load_data(config: EncoderTraining, generator: AnyGeneratorConfig) -> TrainingImages:
    """List and decode the training images, the first of each person set aside. Raises InputError."""
    _refuse_test_people(config.data)
    height, width = working_size(config.encoder(generator), generator)
    data = load_training_images(config.data, height=height, width=width, validation="images", check_memory=check_memory)
    if not len(data.validation_images):
        raise InputError(
            f"--data {config.data}: no person has two pictures, so none can be kept for validation: give a data set "
            "with several pictures of a person"
        )
    return data


def _refuse_test_people(data: Path) -> None:
    """Variants of people are made by an encoder, so like a generator it must see nobody of a test."""
    root = address(data)
    if isinstance(root, Path):
        root = published_root(root.resolve())
        read_split(root, TRAIN).below(root.parent if root.is_file() else root).training(generator_data=root)


def start(
    config: EncoderTraining, generator: AnyGeneratorConfig, device: torch.device
) -> tuple[EncoderState, tuple[str, ...]]:
    """(state, notes): encoder and optimiser at step 0, and notes on the encoder's weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = RestyleEncoder(config.encoder(generator))
    notes: tuple[str, ...] = ("the backbone starts from random weights: --weights FILE gives it ImageNet's",)
    if config.weights is not None:
        notes = tuple(load_backbone(encoder, config.weights)) if last_checkpoint(config.out) is None else ()
    encoder = encoder.to(device)
    return EncoderState(encoder, Ranger(encoder.parameters(), lr=config.lr)), notes
