"""Files of a GAN training. Its folders are complete or absent, and named by the number of real images seen.

OUT/snapshots/000100000/network.safetensors     averaged and training generator, discriminator, record; all kept
OUT/checkpoints/000104000/network.safetensors   the same, and ...
OUT/checkpoints/000104000/training_state.pt     ... optimisers, counters, adaptation; the last two are kept
OUT/best.safetensors                            the snapshot with the lowest FID so far
"""

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from passersby.errors import InputError
from passersby.options import defaults
from passersby.perception.efficientnet import load_efficientnet
from passersby.reid.identity_features import load_identity
from passersby.stylegan3 import Discriminator, Generator
from passersby.stylegan3.checkpoint import load_network, save_network
from passersby.stylegan3.config_limits import generator_class
from passersby.stylegan3.generator import set_kernel
from passersby.stylegan3.mapping import set_precision
from passersby.stylegan3.transfer import freeze_discriminator_layers, transfer
from reporting.curves import Record
from training.checkpoints import (
    STATE,
    claim,
    commit,
    commit_checkpoint,
    damage_named,
    last_checkpoint,
    newest,
    read_state,
)
from training.gan.config import BEFORE, FREE_TO_CHANGE, GanTraining
from training.gan.data import to_float
from training.gan.identity_loss import IdentityLoss
from training.gan.intraclass_loss import new_intraclass_loss
from training.gan.optimizers import new_adam
from training.gan.pairs import PairTraining
from training.gan.projected import ProjectedTraining, new_projected
from training.gan.step import TrainingState, new_state

NETWORK, BEST = "network.safetensors", "best.safetensors"


def is_begun(out: Path) -> bool:
    """Whether the folder holds anything of a training that could be lost."""
    return bool(last_snapshot(out) or last_checkpoint(out))


def claim_folder(config: GanTraining) -> None:
    """Write `config.json` into the output folder; refuse to continue in the folder of another training (`claim`)."""
    claim(config.out, config.as_json(), defaults(GanTraining) | BEFORE, FREE_TO_CHANGE, is_begun(config.out))


def last_snapshot(out: Path) -> Path | None:
    """The newest snapshot's folder; None at the start."""
    return newest(out, f"snapshots/[0-9]*/{NETWORK}")


def save_snapshot(out: Path, state: TrainingState, record: dict) -> Path:
    """Write a snapshot and return its folder; the networks are stored in float32. Raises InputError where it
    cannot be written; earlier snapshots stay unchanged.
    """
    return commit(_snapshot_folder(out, state), lambda folder: _write_networks(folder / NETWORK, state, record))


def save_checkpoint(out: Path, state: TrainingState, record: dict, extra: dict) -> Path:
    """Write everything that training needs to continue; `extra`: values and tensors that `resume` returns.

    A snapshot with the same images seen shares its network file. The checkpoint before the new one is kept. Raises
    InputError where the checkpoint cannot be written; earlier checkpoints stay.
    """
    snapshot = _snapshot_folder(out, state) / NETWORK

    def write(folder: Path) -> None:
        with contextlib.suppress(OSError):  # no such snapshot, or a file system without links
            os.link(snapshot, folder / NETWORK)
        if not (folder / NETWORK).exists():
            _write_networks(folder / NETWORK, state, record)

    values = {
        "iteration": state.step,
        "images_seen": state.images_seen,
        "generator_optimizer": state.generator_optimizer.state_dict(),
        "discriminator_optimizer": state.discriminator_optimizer.state_dict(),
        "ada": state.ada.state_dict(),
        "real_signs": state.real_signs.cpu(),
        "path_length": state.path_length.cpu(),
        "extra": extra,
    }
    if state.pairs is not None:
        values["pairs"] = state.pairs.state_dict()
    if state.projected is not None:
        values["projected"] = state.projected.state_dict()
    return commit_checkpoint(out, state.images_seen, write, values)


def keep_best(out: Path, snapshot: Path) -> None:
    """Make `OUT/best.safetensors` the network of this snapshot."""
    part = Path(out) / f".{BEST}.part"
    try:
        part.unlink(missing_ok=True)
        try:
            os.link(snapshot / NETWORK, part)
        except OSError:  # a file system without links
            shutil.copyfile(snapshot / NETWORK, part)
        os.replace(part, Path(out) / BEST)
    except OSError as error:
        raise InputError(f"cannot write {Path(out) / BEST}: {error.strerror}") from error


def is_best(history: Sequence[Record], fid: float) -> bool:
    """Whether this FID is lower than every FID in the history."""
    earlier = [score for record in history if (score := record.get("fid")) is not None]
    return math.isfinite(fid) and all(fid < score for score in earlier)


def _snapshot_folder(out: Path, state: TrainingState) -> Path:
    return Path(out) / "snapshots" / f"{state.images_seen:09d}"


def _write_networks(path: Path, state: TrainingState, record: dict) -> None:
    save_network(
        path,
        state.generator_ema,
        discriminator=state.discriminator,
        training_generator=state.generator,
        record=record,
    )


def resume(state: TrainingState, folder: Path) -> dict:
    """Put a checkpoint's weights, optimisers and counters into `state`; returns its `extra`.

    Raises InputError for a damaged checkpoint, and for a checkpoint of networks of another shape.
    """
    loaded = load_network(folder / NETWORK)
    if loaded.generator.config != state.generator.config:
        ours, theirs = (f"{c.height} x {c.width}" for c in (state.generator.config, loaded.generator.config))
        raise InputError(
            f"the checkpoint {folder} holds another network ({theirs}) than this training's ({ours}): "
            "give its settings, or another --out and this one as --transfer"
        )
    with damage_named(folder):
        if loaded.training_generator is None or loaded.discriminator is None:
            raise ValueError(f"{NETWORK} holds one network alone")
        values = read_state(folder)
        state.generator_ema.load_state_dict(loaded.generator.state_dict())
        state.generator.load_state_dict(loaded.training_generator.state_dict())
        state.discriminator.load_state_dict(loaded.discriminator.state_dict())
        state.generator_optimizer.load_state_dict(values["generator_optimizer"])
        state.discriminator_optimizer.load_state_dict(values["discriminator_optimizer"])
        state.ada.load_state_dict(values["ada"])
        state.real_signs.copy_(values["real_signs"])
        if "path_length" in values:  # older checkpoints, all of StyleGAN3, have no path lengths
            state.path_length.copy_(values["path_length"])
        if state.pairs is not None:
            state.pairs.load_state_dict(values["pairs"])
        if state.projected is not None:
            state.projected.load_state_dict(values["projected"])
        state.step, state.images_seen, extra = (values[name] for name in ("iteration", "images_seen", "extra"))
    return extra


# ---- The beginning of a GAN training: new networks, another network's weights, or the last checkpoint.

_IMAGES = 40
_PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Start:
    """A training at its beginning, or at its last checkpoint.

    `origin` goes into the record of every network of the training. `extra` holds the checkpoint's values beside the
    state, None at the beginning. `lines` are lines for the log.
    """

    state: TrainingState
    origin: dict
    extra: dict | None
    lines: list[str]


def start(config: GanTraining, device: torch.device, label_size: int = 0, images: np.ndarray | None = None) -> Start:
    """New networks whose weights the seed fixes, or the last checkpoint where there is one.

    With `config.transfer` new networks take another network's weights as far as they fit. `images` [N, H, W, 3] uint8
    are some of the training images: a discriminator that is cut to size keeps the channels that matter for them.

    Raises InputError for files that cannot be read, and where the checkpoint is of other data or networks.
    """
    folder = last_checkpoint(config.out)
    with torch.random.fork_rng(devices=[]):  # drawn on the CPU: the same weights on every device
        torch.manual_seed(config.seed)
        generator_config = config.generator(label_size)
        generator = generator_class(generator_config)(generator_config)
        discriminator = Discriminator(config.discriminator(label_size))
        of_pairs = Discriminator(config.pair_discriminator(label_size)) if config.pairs else None
        projected = None
        if config.projected:
            network = load_efficientnet(config.projected_network)
            projected = new_projected(network, config.projected_ratio, device)
    average, origin, lines = None, {}, []
    if config.transfer and folder is None:
        average, origin, lines = _transfer(config.transfer, generator, discriminator, images)
        if of_pairs is not None:
            lines.append(_transfer_pairs(config.transfer, of_pairs))
        if projected is not None:
            lines.append(_transfer_projected(config.transfer, projected))
    if config.precision != "auto":
        for network in (generator, discriminator, *((of_pairs,) if of_pairs else ())):
            set_precision(network, _PRECISIONS[config.precision])
    set_kernel(generator.to(device), config.kernel)
    frozen = frozenset(freeze_discriminator_layers(discriminator, config.freeze_d))
    settings = config.step_settings()
    state = new_state(
        generator,
        discriminator.to(device),
        generator_lr=config.generator_lr,
        discriminator_lr=config.discriminator_lr,
        r1_interval=settings.r1_interval,
        path_length_interval=settings.path_length_interval if settings.path_length_weight else None,
        ada=config.ada(),
        frozen=frozen,
    )
    if of_pairs is not None:
        state.pairs = _pair_training(config, of_pairs.to(device), device)
    state.projected = projected
    if average is not None:
        state.generator_ema.load_state_dict(average.state_dict())
    if frozen and folder is None:
        count = sum(p.numel() for name, p in discriminator.named_parameters() if name in frozen)
        lines.append(f"--freeze-d {config.freeze_d}: {count:,} of the discriminator's parameters stay as they are")
    if folder is None:
        if projected is not None:
            origin = origin | {"projected": projected.record()}
        return Start(state, origin | identity_record(state), None, lines)
    extra = resume(state, folder)
    _check_identity(config, extra["origin"].get("identity"), identity_record(state).get("identity"))
    return Start(state, extra["origin"], extra, [f"going on at kimg {state.images_seen / 1000:.1f}"])


def _transfer_pairs(path: Path, of_pairs: Discriminator) -> str:
    """Give a pair discriminator the weights of the checkpoint in which the network `path` lies; a line for the log.

    Files of networks hold no pair discriminator, as only training needs it: without a checkpoint it starts anew.
    """
    if (path.parent / STATE).is_file():
        with damage_named(path.parent):
            pairs = read_state(path.parent).get("pairs")
            weights = {} if pairs is None else pairs["discriminator"]
            ours = of_pairs.state_dict()
            if weights.keys() == ours.keys() and all(weights[name].shape == ours[name].shape for name in ours):
                of_pairs.load_state_dict(weights)
                return "the pair discriminator is the checkpoint's"
    return "the pair discriminator starts anew: give a network in a folder of checkpoints/ to keep its own"


def _transfer_projected(path: Path, projected: ProjectedTraining) -> str:
    """As `_transfer_pairs`, for a projected discriminator with its optimiser: it has the same shapes at every size."""
    if (path.parent / STATE).is_file():
        with damage_named(path.parent):
            values = read_state(path.parent).get("projected")
            if values is not None:
                projected.load_state_dict(values)
                return "the projected discriminator is the checkpoint's"
    return "the projected discriminator starts anew"


def _pair_training(config: GanTraining, discriminator: Discriminator, device: torch.device) -> PairTraining:
    discriminator.train().requires_grad_(False)
    return PairTraining(
        discriminator,
        new_adam(discriminator.parameters(), config.discriminator_lr, config.step_settings().r1_interval),
        config.ada(),
        real_signs=torch.zeros(2, device=device),
        gamma=2 * config.gamma if config.pair_gamma is None else config.pair_gamma,
        stranger_weight=config.pair_strangers,
        identity=_identity_loss(config, device),
        intraclass=new_intraclass_loss(config.intraclass_weight, device) if config.intraclass_weight else None,
    )


def _identity_loss(config: GanTraining, device: torch.device) -> IdentityLoss | None:
    if config.identity_network is None:
        return None
    return IdentityLoss(load_identity(config.identity_network).to(device), config.identity_weight)


def identity_record(state: TrainingState) -> dict:
    """What the networks' files say of the re-ID network of the loss: its file, and what that file says; else {}."""
    if state.pairs is None or state.pairs.identity is None:
        return {}
    features = state.pairs.identity.features
    return {"identity": {"name": features.name, "sha256": features.sha256, "record": dict(features.record)}}


def _check_identity(config: GanTraining, stored: dict | None, given: dict | None) -> None:
    ours, theirs = ((about or {}).get("sha256") for about in (given, stored))
    if ours == theirs:
        return
    began = "without --identity-network" if theirs is None else f"with an --identity-network of sha256 {theirs[:12]}"
    raise InputError(
        f"--identity-network {config.identity_network}: the training in {config.out} began {began}: go on so, or give "
        "another --out"
    )


def _transfer(
    path: Path, generator: Generator, discriminator: Discriminator, images: np.ndarray | None
) -> tuple[Generator | None, dict, list[str]]:
    loaded = load_network(path)
    same = loaded.generator.config == generator.config
    # A network of another shape is cut to size by the importance of its channels. The averaged generator and the
    # training generator must be cut alike, so both start from the averaged generator.
    source = loaded.training_generator if same and loaded.training_generator else loaded.generator
    reports = {"generator": transfer(source, generator)}
    if loaded.discriminator is None:
        raise InputError(
            f"--transfer {path} holds no discriminator: a generator alone cannot go on learning; give the "
            "training's own network file"
        )
    sample = None
    if images is not None:
        index = np.linspace(0, len(images) - 1, min(_IMAGES, len(images))).astype(int)
        sample = to_float(torch.from_numpy(images[index]).permute(0, 3, 1, 2), torch.device("cpu"))
    reports["discriminator"] = transfer(loaded.discriminator, discriminator, sample)
    origin = {
        "transferred_from": {
            "file": path.name,
            "sha256": loaded.sha256,
            "record": loaded.record,
            **{name: report.as_record() for name, report in reports.items()},
        }
    }
    lines = [line for report in reports.values() for line in report.lines()]
    return (loaded.generator if same else None), origin, lines
