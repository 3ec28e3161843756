"""The beginning of a GAN training: new networks, another network's weights, or the last checkpoint."""

import dataclasses

import numpy as np
import torch

from passersby.errors import InputError
from passersby.stylegan3 import Discriminator, Generator
from passersby.stylegan3.checkpoint import load_network
from passersby.stylegan3.precision import set_precision
from passersby.stylegan3.transfer import freeze_discriminator_layers, transfer
from training.gan.config import GanConfig
from training.gan.data import to_float
from training.gan.start import last_checkpoint, resume
from training.gan.step import TrainingState, new_state

_IMAGES = 40
_PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Start:
    """A training at its beginning or where it stopped. `origin` goes into the record of every network made from it;
    `extra` is what the checkpoint held beside the state, None at the beginning; `lines` are to be said.
    """

    state: TrainingState
    origin: dict
    extra: dict | None
    lines: list[str]


def start(config: GanConfig, device: torch.device, label_size: int = 0, images: np.ndarray | None = None) -> Start:
    """New networks, their weights fixed by the seed; with `config.transfer` another network's as far as they fit;
    or, where there is a checkpoint, everything as it was then. `images` [N, H, W, 3] uint8 are some of those to be
    learned: a discriminator that is cut to size keeps what matters for them.

    Raises InputError for files that cannot be read, and where the checkpoint is of other data or networks.
    """
    folder = last_checkpoint(config.out)
    with torch.random.fork_rng(devices=[]):  # drawn on the CPU: the same weights on every device
        torch.manual_seed(config.seed)
        generator = Generator(config.generator(label_size))
        discriminator = Discriminator(config.discriminator(label_size))
    average, origin, lines = None, {}, []
    if config.transfer and folder is None:
        average, origin, lines = _transfer(config, generator, discriminator, images)
    if config.precision != "auto":
        for network in (generator, discriminator):
            set_precision(network, _PRECISIONS[config.precision])
    frozen = frozenset(freeze_discriminator_layers(discriminator, config.freeze_d))
    state = new_state(
        generator.to(device),
        discriminator.to(device),
        generator_lr=config.generator_lr,
        discriminator_lr=config.discriminator_lr,
        r1_interval=config.step_settings().r1_interval,
        ada=config.ada(),
        frozen=frozen,
    )
    if average is not None:
        state.generator_ema.load_state_dict(average.state_dict())
    if frozen and folder is None:
        count = sum(p.numel() for name, p in discriminator.named_parameters() if name in frozen)
        lines.append(f"--freeze-d {config.freeze_d}: {count:,} of the discriminator's parameters stay as they are")
    if folder is None:
        return Start(state, origin, None, lines)
    extra = resume(state, folder)
    return Start(state, extra["origin"], extra, [f"going on at kimg {state.images_seen / 1000:.1f}"])


def _transfer(config: GanConfig, generator: Generator, discriminator: Discriminator, images: np.ndarray | None):
    loaded = load_network(config.transfer)
    same = loaded.generator.config == generator.config
    # A network of another shape is cut to size by the importance of its channels. The average and the network that
    # trains must be cut alike, so both start as the average then.
    source = loaded.training_generator if same and loaded.training_generator else loaded.generator
    reports = {"generator": transfer(source, generator)}
    if loaded.discriminator is None:
        raise InputError(
            f"--transfer {config.transfer} holds no discriminator: a generator alone cannot go on learning; give the "
            "training's own network file"
        )
    some = None
    if images is not None:
        index = np.linspace(0, len(images) - 1, min(_IMAGES, len(images))).astype(int)
        some = to_float(torch.from_numpy(images[index]).permute(0, 3, 1, 2), torch.device("cpu"))
    reports["discriminator"] = transfer(loaded.discriminator, discriminator, some)
    origin = {
        "transferred_from": {
            "file": config.transfer.name,
            "sha256": loaded.sha256,
            "record": loaded.record,
            **{name: report.as_record() for name, report in reports.items()},
        }
    }
    lines = [line for report in reports.values() for line in report.lines()]
    return (loaded.generator if same else None), origin, lines
