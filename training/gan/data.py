"""Inputs of a GAN training: real images, codes and augmentation are functions of the seed and the images seen.

Every draw is made for the whole batch; then worker r of W takes samples r, r + W, r + 2W, ... With this stride the
groups of the minibatch deviation hold the same samples for every W (where a worker's share is a multiple of the group).
So a training does not depend on the number of its workers, except for rounding. It continues from a checkpoint without
a stored random state.
"""

import dataclasses
from typing import Protocol

import numpy as np
import torch

from training.gan.augment import Draws, draw
from training.gan.config import GanTraining
from training.gan.inputs import AUGMENTED, Inputs, Latents, Noise

# Each use has an independent stream of random numbers.
_ORDER, _MIRROR, _LATENTS, _AUGMENT = 0, 1, 2, 3  # _AUGMENT + k: stream of the k-th name of AUGMENTED
_PATH_LENGTHS, _NOISE = _AUGMENT + len(AUGMENTED), _AUGMENT + len(AUGMENTED) + 1


class Order:
    """The order of the images: every epoch is another permutation, a function of the seed and the epoch's number."""

    def __init__(self, images: int, seed: int):
        self.images, self.seed = images, seed
        self._epoch = (-1, np.empty(0, np.int64))

    def indices(self, start: int, count: int) -> np.ndarray:
        """Indices of the `count` images that come after `start` images, [count] int64."""
        epochs, positions = np.divmod(np.arange(start, start + count), self.images)
        return np.concatenate([self._permutation(epoch)[positions[epochs == epoch]] for epoch in np.unique(epochs)])

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            shuffled = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(self.images)
            self._epoch = (epoch, shuffled)
        return self._epoch[1]


class Reader(Protocol):
    """The source of real images: an array in memory, or a stream."""

    def read(self, images_seen: int, indices: np.ndarray) -> np.ndarray:
        """This worker's images `indices` of the batch after `images_seen` images, uint8 [n, H, W, 3]."""
        ...


@dataclasses.dataclass(frozen=True)
class InMemory:
    """All images decoded in one array, uint8 [N, H, W, 3], which may be shared and read-only."""

    images: np.ndarray

    def read(self, images_seen: int, indices: np.ndarray) -> np.ndarray:
        """A copy of some of the images, [n, H, W, 3]."""
        return self.images[indices]


class Batches:
    """This worker's share of every iteration's inputs. `labels`: [N, c_dim] float32 of all images."""

    def __init__(
        self,
        reader: Reader,
        order: Order,
        config: GanTraining,
        rank: int = 0,
        world_size: int = 1,
        labels: np.ndarray | None = None,
    ):
        self.reader, self.order, self.config, self.labels = reader, order, config, labels
        self.share = slice(rank, None, world_size)

    def inputs(self, images_seen: int, p: float, z_dim: int, num_ws: int, device: torch.device) -> Inputs:
        """All random inputs of the iteration after `images_seen` images, augmented with probability `p`."""
        indices = self.order.indices(images_seen, self.config.batch)[self.share]
        reals = to_float(self.reals(images_seen, indices), device)
        return Inputs(
            reals,
            tuple(latents.to(device) for latents in self.latents(images_seen, z_dim, num_ws)),
            None if self.labels is None else torch.from_numpy(self.labels[indices]).to(device),
            {name: draws.to(device) for name, draws in self.draws(images_seen, p).items()},
        )

    def reals(self, images_seen: int, indices: np.ndarray) -> torch.Tensor:
        """This worker's real images, uint8 [n, 3, H, W], channels last; `to_float` converts them."""
        flips = np.random.default_rng([self.config.seed, _MIRROR, images_seen]).random(self.config.batch) < 0.5
        batch = self.reader.read(images_seen, indices)
        if self.config.mirror:
            mirrored = flips[self.share]
            batch[mirrored] = batch[mirrored, :, ::-1]
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def latents(self, images_seen: int, z_dim: int, num_ws: int) -> tuple[Latents, ...]:
        """This worker's codes for the generator's phase, the discriminator's, and perhaps that of the path lengths."""
        config = self.config
        stream = np.random.default_rng([config.seed, _LATENTS, images_seen])
        phases = [self._phase(stream, z_dim, num_ws), self._phase(stream, z_dim, num_ws)]
        if config.path_length > 0:
            stream = np.random.default_rng([config.seed, _PATH_LENGTHS, images_seen])
            phases.append(self._phase(stream, z_dim, num_ws))
        if not config.has_noise:
            return tuple(phases)
        seeds = np.random.default_rng([config.seed, _NOISE, images_seen]).integers(2**48, size=3)
        places = torch.arange(config.batch)[self.share]
        noises = (Noise(int(seed), config.batch, places) for seed in seeds)
        return tuple(dataclasses.replace(phase, noise=noise) for phase, noise in zip(phases, noises, strict=False))

    def draws(self, images_seen: int, p: float) -> dict[str, Draws]:
        """The augmentation of this worker's images, by name of AUGMENTED; without entries where `p` is 0."""
        if p == 0:
            return {}
        config = self.config
        streams = [
            np.random.default_rng([config.seed, _AUGMENT + index, images_seen]) for index in range(len(AUGMENTED))
        ]
        return {
            name: draw(config.augment_set, p, config.batch, config.height, config.width, stream).share(self.share)
            for name, stream in zip(AUGMENTED, streams, strict=True)
        }

    def _phase(self, stream: np.random.Generator, z_dim: int, num_ws: int) -> Latents:
        batch = self.config.batch
        z = stream.standard_normal((batch, z_dim), np.float32)
        mix_z = mix_from = labels = None
        probability = self.config.style_mixing_probability
        if probability > 0:
            mix_z = stream.standard_normal((batch, z_dim), np.float32)
            mixed = stream.random(batch) < probability
            mix_from = np.where(mixed, stream.integers(1, num_ws, batch), num_ws)
        if self.labels is not None:  # labels of fakes are as frequent as those of real images
            labels = self.labels[stream.integers(len(self.labels), size=batch)]
        codes, crossing, rows = (None if part is None else torch.from_numpy(part) for part in (mix_z, mix_from, labels))
        return Latents(torch.from_numpy(z), codes, crossing, rows).share(self.share)


def to_float(reals: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [n, 3, H, W] -> float32 on the device, -1..1."""
    return reals.to(device, non_blocking=True).to(torch.float32).div_(127.5).sub_(1)
