"""What goes into a GAN training: real images and latent codes, functions of the seed and the images seen.

Every draw is made for the whole batch and then shared out: worker r of W takes samples r, r + W, r + 2W, ...
With that stride the groups of the minibatch deviation hold the same samples whatever W is (where a worker's
share is a multiple of the group), so a training does not depend on the number of its workers beyond rounding,
and going on from a snapshot needs no stored random state.
"""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

from datasets.image_tree import decode, identities, identities_sha256, list_split
from models.errors import InputError
from training.gan import Latents
from training.gan_config import GanConfig

# One independent stream for each use: no use sees the numbers of another.
_ORDER, _MIRROR, _LATENTS = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class TrainingImages:
    """The decoded training split and what it is, for the network's record."""

    images: np.ndarray  # [N, H, W, 3] uint8, RGB
    record: dict
    unreadable: tuple[str, ...]

    @classmethod
    def load(cls, root: Path, height: int, width: int) -> "TrainingImages":
        """Decode `bounding_box_train` of a Market-1501 tree; the query and gallery folders are never opened.

        Raises InputError for a missing folder or one without a readable image.
        """
        decoded = decode(list_split(root, "train"), height, width)
        people = identities(decoded.files)
        record = {
            "name": Path(root).resolve().name,
            "split": "train",
            "images": len(decoded.files),
            "identities": {"count": len(people), "sha256": identities_sha256(people)},
        }
        toy = Path(root) / "toy_crowd.json"
        if toy.exists():
            record["toy_crowd"] = _small_json(toy)
        return cls(decoded.images, record, tuple(file.path.name for file in decoded.unreadable))


def _small_json(path: Path) -> dict:
    """The scalars of a JSON object: versions and hashes, not the lists it may also hold."""
    try:
        values = json.loads(path.read_text())
        return {key: value for key, value in values.items() if isinstance(value, str | int | float)}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is no JSON object: make the toy crowd again") from error


def command_line() -> str:
    """The command that runs, with folders of this machine cut down to their last part."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    return shlex.join(words)


class Batches:
    """Real images and latent codes of every iteration, this worker's share of them."""

    def __init__(self, images: np.ndarray, config: GanConfig, rank: int = 0, world_size: int = 1):
        if len(images) < config.batch:
            raise InputError(f"--batch {config.batch} is more than the {len(images)} training images there are")
        self.images = images
        self.config = config
        self.share = slice(rank, None, world_size)
        self._epoch = (-1, np.empty(0, np.int64))

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            shuffled = np.random.default_rng([self.config.seed, _ORDER, epoch]).permutation(len(self.images))
            self._epoch = (epoch, shuffled)
        return self._epoch[1]

    def indices(self, images_seen: int) -> np.ndarray:
        """Which images the whole batch after `images_seen` images holds: every epoch is a new permutation."""
        positions = np.arange(images_seen, images_seen + self.config.batch)
        epochs, places = np.divmod(positions, len(self.images))
        return np.concatenate([self._order(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs)])

    def reals(self, images_seen: int) -> torch.Tensor:
        """This worker's real images, uint8 [n, 3, H, W], channels last; `to_float` makes floats of them."""
        index = self.indices(images_seen)
        flips = np.random.default_rng([self.config.seed, _MIRROR, images_seen]).random(len(index)) < 0.5
        batch = self.images[index[self.share]]
        if self.config.mirror:
            mine = flips[self.share]
            batch[mine] = batch[mine, :, ::-1]
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def latents(self, images_seen: int, z_dim: int, num_ws: int) -> tuple[Latents, Latents]:
        """This worker's codes of the generator's and the discriminator's phase."""
        stream = np.random.default_rng([self.config.seed, _LATENTS, images_seen])
        return self._phase(stream, z_dim, num_ws), self._phase(stream, z_dim, num_ws)

    def _phase(self, stream: np.random.Generator, z_dim: int, num_ws: int) -> Latents:
        batch = self.config.batch
        z = stream.standard_normal((batch, z_dim), np.float32)
        probability = self.config.style_mixing_probability
        if probability == 0:
            return Latents(torch.from_numpy(z[self.share]))
        mix_z = stream.standard_normal((batch, z_dim), np.float32)
        mixed = stream.random(batch) < probability
        mix_from = np.where(mixed, stream.integers(1, num_ws, batch), num_ws)
        return Latents(*(torch.from_numpy(draw[self.share]) for draw in (z, mix_z, mix_from)))


def to_float(reals: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [n, 3, H, W] -> float32 on the device, -1..1."""
    return reals.to(device, non_blocking=True).to(torch.float32).div_(127.5).sub_(1)


def to_device(latents: Latents, device: torch.device) -> Latents:
    """The same codes on the device."""
    parts = (latents.z, latents.mix_z, latents.mix_from)
    return Latents(*(None if part is None else part.to(device) for part in parts))
