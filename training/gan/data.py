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

from passersby.stylegan3.mapping import who_size
from training.gan.augment import Draws, draw, rows_of
from training.gan.config import GanTraining
from training.gan.inputs import AUGMENTED, OF_FAKES, Inputs, Latents, Noise
from training.gan.pairs import PAIRS_AUGMENTED, PairInputs, RealPairs

# Each use has an independent stream of random numbers.
_ORDER, _MIRROR, _LATENTS, _AUGMENT = 0, 1, 2, 3  # _AUGMENT + k: stream of the k-th name of AUGMENTED
_PATH_LENGTHS, _NOISE = _AUGMENT + len(AUGMENTED), _AUGMENT + len(AUGMENTED) + 1
_PAIRS, _PAIRS_MIRROR, _PAIRS_AUGMENT = 100, 101, 102  # _PAIRS_AUGMENT + k: of the k-th name of PAIRS_AUGMENTED


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


class PairOrder:
    """The real pairs of every iteration of `batch` images: a function of the seed and the images seen."""

    def __init__(self, pairs: RealPairs, batch: int, seed: int):
        self.pairs, self.count, self.seed = pairs, batch // 2, seed

    def indices(self, images_seen: int) -> np.ndarray:
        """Indices of the pictures of P pairs of one person and P pairs of two people, [4 P] int64.

        They are the first pictures of the pairs of one person, then the second ones, then the first and the second
        pictures of the pairs of two people: so a worker that takes every W-th picture gets whole pairs.
        """
        random = np.random.default_rng([self.seed, _PAIRS, images_seen])
        kinds = [self.pairs.same(random, self.count), self.pairs.strangers(random, self.count)]  # each [P, 2]
        return np.stack(kinds).swapaxes(1, 2).flatten()


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
    """This worker's share of every iteration's inputs. `labels`: [N, c_dim] float32 of all images.

    With `pairs` the fakes 2i and 2i + 1 are a pair, whose codes have the same `who`, and no share parts them. Beside
    the real images come as many pictures in real pairs of one person, and as many in pairs of two people; `pair_reader`
    reads them.
    """

    def __init__(
        self,
        reader: Reader,
        order: Order,
        config: GanTraining,
        rank: int = 0,
        world_size: int = 1,
        labels: np.ndarray | None = None,
        pairs: PairOrder | None = None,
        pair_reader: Reader | None = None,
    ):
        self.reader, self.order, self.config, self.labels = reader, order, config, labels
        self.pairs, self.pair_reader = pairs, pair_reader
        self.share = slice(rank, None, world_size)
        self.fake_size = 1 if pairs is None else 2  # fakes of one sample

    def inputs(
        self, images_seen: int, p: float, z_dim: int, num_ws: int, device: torch.device, pairs_p: float = 0.0
    ) -> Inputs:
        """All random inputs of the iteration after `images_seen` images.

        p, pairs_p: probabilities of the augmentation of single images and of pairs.
        """
        indices = self.order.indices(images_seen, self.config.batch)[self.share]
        reals = to_float(self.reals(images_seen, indices), device)
        return Inputs(
            reals,
            tuple(latents.to(device) for latents in self.latents(images_seen, z_dim, num_ws)),
            None if self.labels is None else torch.from_numpy(self.labels[indices]).to(device),
            {name: draws.to(device) for name, draws in self.draws(images_seen, p).items()},
            None if self.pairs is None else self.pair_inputs(self.pairs, images_seen, pairs_p, device),
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
        places = rows_of(torch.arange(config.batch), self.share, self.fake_size)
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
            name: draw(config.augment_set, p, config.batch, config.height, config.width, stream).share(
                self.share, self.fake_size if name in OF_FAKES else 1
            )
            for name, stream in zip(AUGMENTED, streams, strict=True)
        }

    def pair_inputs(self, pairs: PairOrder, images_seen: int, p: float, device: torch.device) -> PairInputs:
        """This worker's real pairs of the iteration after `images_seen` images, augmented with probability `p`."""
        assert self.pair_reader is not None  # with `pairs` comes `pair_reader`
        indices = pairs.indices(images_seen)[self.share]
        images = self.pair_reader.read(2 * images_seen, indices)
        if self.config.mirror:
            flips = np.random.default_rng([self.config.seed, _PAIRS_MIRROR, images_seen]).random(4 * pairs.count) < 0.5
            mirrored = flips[self.share]
            images[mirrored] = images[mirrored, :, ::-1]
        pictures = to_float(torch.from_numpy(images).permute(0, 3, 1, 2), device)
        reals, strangers = _kinds(pictures)
        labels = (None, None)
        if self.labels is not None:
            labels = _kinds(torch.from_numpy(self.labels[indices]).to(device))
        return PairInputs(reals, strangers, *labels, self._pair_draws(images_seen, p, device))

    def _pair_draws(self, images_seen: int, p: float, device: torch.device) -> dict[str, Draws]:
        # Geometry is drawn for each picture. Colours are those of the pair: a generator must not learn that a person's
        # clothes change their colour from picture to picture.
        if p == 0:
            return {}
        config, draws = self.config, {}
        for index, name in enumerate(PAIRS_AUGMENTED):
            stream = np.random.default_rng([config.seed, _PAIRS_AUGMENT + index, images_seen])
            whole = draw(config.augment_set, p, config.batch, config.height, config.width, stream)
            draws[name] = whole.alike_in_pairs().share(self.share, 2).to(device)
        return draws

    def _phase(self, stream: np.random.Generator, z_dim: int, num_ws: int) -> Latents:
        batch, who = self.config.batch, 0 if self.pairs is None else who_size(z_dim)
        z = stream.standard_normal((batch, z_dim), np.float32)
        if who:
            z[1::2, :who] = z[::2, :who]
        mix_z = mix_from = labels = None
        probability = self.config.style_mixing_probability
        if probability > 0:
            mix_z = stream.standard_normal((batch, z_dim), np.float32)
            mix_z[:, :who] = z[:, :who]  # with pairs, mixing changes how a person is seen, not who it is
            mixed = stream.random(batch) < probability
            mix_from = np.where(mixed, stream.integers(1, num_ws, batch), num_ws)
        if self.labels is not None:  # labels of fakes are as frequent as those of real images
            labels = self.labels[stream.integers(len(self.labels), size=batch)]
        codes, crossing, rows = (None if part is None else torch.from_numpy(part) for part in (mix_z, mix_from, labels))
        return Latents(torch.from_numpy(z), codes, crossing, rows).share(self.share, self.fake_size)


def to_float(reals: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [n, 3, H, W] -> float32 on the device, -1..1."""
    return reals.to(device, non_blocking=True).to(torch.float32).div_(127.5).sub_(1)


def _kinds(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of one person and of two people, each [P, 2 C, ...], from [4 P, C, ...] in the order of `PairOrder`."""
    same, strangers = rows.unflatten(0, (2, 2, -1)).transpose(1, 2).flatten(2, 3)
    return same, strangers
