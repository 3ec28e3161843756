"""The configuration of a GAN training: one frozen dataclass, from which the command line is made."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Literal

from models.errors import InputError
from models.stylegan3 import DiscriminatorConfig, GeneratorConfig
from training.gan import StepSettings

MINIBATCH_GROUP = 4  # images that share one minibatch deviation in the discriminator

# What may change when a training goes on: how long, how often, on what; never what is learned from what.
FREE_TO_CHANGE = frozenset(
    ["data", "out", "kimg", "max_minutes", "snapshot_kimg", "status_seconds", "workers", "gpus", "threads"]
)


@dataclasses.dataclass(frozen=True)
class GanConfig:
    """Train a StyleGAN3 on the training people of a Market-1501 tree. The same command again goes on."""

    data: Path
    """Market-1501 tree; only its bounding_box_train is ever read."""
    out: Path
    """Folder for snapshots, grids and logs; with several machines, one that all of them see."""
    height: int = 128
    """Image height: a power of two, at least 16. Images of other sizes are resized."""
    width: int = 64
    """Image width: the height, or the height divided by a power of two."""
    config: Literal["t", "r"] = "t"
    """StyleGAN3-T (3x3 convolutions) or -R (1x1, radial filters, twice the generator's channels)."""
    channel_base: int = 32768
    """Channels of a layer are about this divided by its resolution ..."""
    channel_max: int = 512
    """... and at most this."""
    margin_size: int = 10
    """Samples that layers compute beyond the image's edges. Fewer are faster (4: a third less work at 64x32), at
    the price of edges that the image can see: fit for small demonstrations."""
    batch: int = 16
    """Images of one iteration, over all workers."""
    kimg: float = 5000.0
    """Thousands of real images to train on in all."""
    gamma: float = 1.0
    """Weight of R1: more is stabler and blurrier. Small images and large batches want less."""
    generator_lr: float = 0.0025
    """Adam's rate for the generator."""
    discriminator_lr: float = 0.002
    """Adam's rate for the discriminator (before its correction for lazy R1)."""
    style_mixing_probability: float = 0.5
    """Share of training images made from two codes (the reference trains with 0: mixes are foreign to it)."""
    mirror: bool = True
    """Mirror every second real image, left to right."""
    seed: int = 0
    """Fixes initial weights, order of the data and every latent code, whatever the number of workers."""
    workers: int = 1
    """Ray Train workers; 0 trains in this process, without Ray."""
    gpus: int | None = None
    """GPUs in all: 0 or one a worker. Not given: one a worker where there are that many, else the CPU."""
    threads: int | None = None
    """CPU threads of a worker. Not given: PyTorch's choice in this process, 2 in a Ray Train worker."""
    snapshot_kimg: float = 100.0
    """A snapshot (network, training state, grids) after every so many thousand images, and at the end."""
    max_minutes: float | None = None
    """Stop with a snapshot after so many minutes; the same command goes on from there."""
    status_seconds: float = 30.0
    """Time between status lines."""

    def check(self) -> None:
        """Raises InputError naming the first value that cannot work. Needs neither data nor networks."""
        for name in ("channel_base", "channel_max", "batch", "kimg", "snapshot_kimg", "status_seconds"):
            _require(getattr(self, name) > 0, f"--{_flag(name)} is {getattr(self, name)}: it must be positive")
        for name in ("generator_lr", "discriminator_lr"):
            _require(getattr(self, name) > 0, f"--{_flag(name)} is {getattr(self, name)}: it must be positive")
        for name in ("gamma", "workers", "seed", "gpus", "max_minutes", "margin_size"):
            value = getattr(self, name)
            _require(value is None or value >= 0, f"--{_flag(name)} is {value}: it must not be negative")
        _require(self.threads is None or self.threads > 0, f"--threads is {self.threads}: it must be positive")
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, float):
                _require(math.isfinite(value), f"--{_flag(name)} is {value}: it must be finite")
        probability = self.style_mixing_probability
        _require(0 <= probability <= 1, f"--style-mixing-probability is {probability}: it must lie between 0 and 1")
        sizes = f"--height {self.height} --width {self.width}"
        _require(
            _is_power_of_two(self.height) and self.height >= 16,
            f"{sizes}: the height must be 16, 32, 64, ...",
        )
        _require(
            _is_power_of_two(self.width) and 8 <= self.width <= self.height,
            f"{sizes}: the width must be the height divided by 1, 2, 4, ... and at least 8",
        )
        share, rest = divmod(self.batch, max(self.workers, 1))
        _require(rest == 0, f"--batch {self.batch} cannot be split over --workers {self.workers}: take a multiple")
        _require(
            share % min(MINIBATCH_GROUP, share) == 0,
            f"--batch {self.batch} gives each worker {share} images: take less than {MINIBATCH_GROUP} "
            f"or a multiple of {MINIBATCH_GROUP}",
        )
        _require(
            self.gpus in (None, 0, max(self.workers, 1)),
            f"--gpus {self.gpus} with --workers {self.workers}: give 0 or one GPU a worker",
        )

    def generator(self) -> GeneratorConfig:
        """The generator's configuration; its magnitude average halves every 20,000 images."""
        make = GeneratorConfig.config_r if self.config == "r" else GeneratorConfig.config_t
        return make(
            self.height,
            self.width,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            margin_size=self.margin_size,
            magnitude_ema_beta=0.5 ** (self.batch / 20_000),
        )

    def discriminator(self) -> DiscriminatorConfig:
        """The discriminator's configuration: the channels as given, for T and R alike."""
        return DiscriminatorConfig(
            self.height,
            self.width,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            mbstd_group_size=MINIBATCH_GROUP,
        )

    def step_settings(self) -> StepSettings:
        """The iteration's numbers: those that the reference derives from the batch are derived here."""
        return StepSettings(
            gamma=self.gamma,
            blur_start_sigma=10.0 if self.config == "r" else 0.0,
            blur_fade_images=self.batch * 200_000 / 32,
            ema_half_life_images=self.batch * 10_000 / 32,
        )

    def as_json(self) -> dict:
        """Plain values for JSON and for Ray Train; `GanConfig(**values)` reads them back."""
        values = dataclasses.asdict(self)
        return values | {"data": str(self.data), "out": str(self.out)}


def claim_folder(config: GanConfig) -> None:
    """Write `config.json` into a new output folder; refuse to go on in the folder of another training.

    Raises InputError naming the first key that differs, or where the folder cannot be written.
    """
    path = Path(config.out) / "config.json"
    values = config.as_json()
    try:
        if path.exists():
            before = json.loads(path.read_text())
            for key, value in values.items():
                if key not in FREE_TO_CHANGE and before.get(key) != value:
                    raise InputError(
                        f"{config.out} holds a training with --{_flag(key)} {before.get(key)}, not {value}: "
                        "give the old value, or another --out"
                    )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"cannot write --out {config.out}: {error.strerror}") from error


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)
