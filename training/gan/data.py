"""Inputs of a GAN training: real images, codes and augmentation are functions of the seed and the images seen.

Every draw is made for the whole batch; then worker r of W takes samples r, r + W, r + 2W, ... With this stride the
groups of the minibatch deviation hold the same samples for every W (where a worker's share is a multiple of the group).
So a training does not depend on the number of its workers, except for rounding. It continues from a checkpoint without
a stored random state.
"""

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import torch

from passersby.devices import pinned, send
from passersby.stylegan3.mapping import who_size
from training.gan.augment import AdaController, Draws, draw, rows_of
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
        host = self.on_host(images_seen, z_dim, num_ws)
        return host.to(device, self.draws(images_seen, p), self.pair_draws(images_seen, pairs_p))

    def on_host(self, images_seen: int, z_dim: int, num_ws: int) -> "HostInputs":
        """The inputs of the iteration after `images_seen` images, as far as they do not depend on probabilities."""
        indices = self.order.indices(images_seen, self.config.batch)[self.share]
        reals, labels = self.reals(images_seen, indices), self.labels
        host = HostInputs(
            reals,
            self.latents(images_seen, z_dim, num_ws),
            None if labels is None else torch.from_numpy(labels[indices]),
        )
        if self.pairs is None:
            return host
        indices = self.pairs.indices(images_seen)[self.share]
        pair_labels = None if labels is None else torch.from_numpy(labels[indices])
        return dataclasses.replace(host, pairs=self._pair_pictures(images_seen, indices), pair_labels=pair_labels)

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

    def _pair_pictures(self, images_seen: int, indices: np.ndarray) -> torch.Tensor:
        # This worker's real pairs, uint8 [4 P, 3, H, W], channels last.
        assert self.pairs is not None
        assert self.pair_reader is not None  # with `pairs` comes `pair_reader`
        images = self.pair_reader.read(2 * images_seen, indices)
        if self.config.mirror:
            random = np.random.default_rng([self.config.seed, _PAIRS_MIRROR, images_seen])
            mirrored = (random.random(4 * self.pairs.count) < 0.5)[self.share]
            images[mirrored] = images[mirrored, :, ::-1]
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def pair_draws(self, images_seen: int, p: float) -> dict[str, Draws]:
        """The augmentation of this worker's pairs, by name of PAIRS_AUGMENTED; without entries where `p` is 0.

        Geometry is drawn for each picture. Colours are those of the pair: a generator must not learn that a person's
        clothes change their colour from picture to picture.
        """
        if p == 0 or self.pairs is None:
            return {}
        config, draws = self.config, {}
        for index, name in enumerate(PAIRS_AUGMENTED):
            stream = np.random.default_rng([config.seed, _PAIRS_AUGMENT + index, images_seen])
            whole = draw(config.augment_set, p, config.batch, config.height, config.width, stream)
            draws[name] = whole.alike_in_pairs().share(self.share, 2)
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


@dataclasses.dataclass(frozen=True)
class HostInputs:
    """`Inputs` on the CPU, without augmentation; pictures are uint8 [.., 3, H, W], channels last."""

    reals: torch.Tensor
    latents: tuple[Latents, ...]
    labels: torch.Tensor | None = None
    pairs: torch.Tensor | None = None  # [4 P, 3, H, W], in the order of `PairOrder`
    pair_labels: torch.Tensor | None = None  # [4 P, c_dim]

    def pinned(self) -> "HostInputs":
        """The same in pinned memory, from which a GPU reads without the host's waiting."""
        labels, pairs, pair_labels = (
            None if part is None else pinned(part) for part in (self.labels, self.pairs, self.pair_labels)
        )
        latents = tuple(latents.pinned() for latents in self.latents)
        return HostInputs(pinned(self.reals), latents, labels, pairs, pair_labels)

    def to(self, device: torch.device, draws: dict[str, Draws], pair_draws: dict[str, Draws]) -> Inputs:
        """The inputs on the device, with their augmentation. The call does not wait for the device."""
        pairs, (labels, pair_labels) = (
            None,
            (None if part is None else send(part, device) for part in (self.labels, self.pair_labels)),
        )
        if self.pairs is not None:
            kinds = (None, None) if pair_labels is None else _kinds(pair_labels)
            on_device = {name: draws.to(device) for name, draws in pair_draws.items()}
            pairs = PairInputs(*_kinds(to_float(self.pairs, device)), *kinds, on_device)
        return Inputs(
            to_float(self.reals, device),
            tuple(latents.to(device) for latents in self.latents),
            labels,
            {name: draws.to(device) for name, draws in draws.items()},
            pairs,
        )


class Feeder:
    """The inputs of one iteration after the other on the device: the same as those of `batches`.

    ahead: a thread makes the inputs of the next iteration, in pinned memory, while the device computes. By default for
    a GPU. Its augmentation is drawn for each probability that the next iteration can have.
    """

    def __init__(self, batches: Batches, z_dim: int, num_ws: int, device: torch.device, ahead: bool | None = None):
        self.batches, self.shape, self.device = batches, (z_dim, num_ws), device
        ahead = device.type == "cuda" if ahead is None else ahead
        self.thread = ThreadPoolExecutor(1) if ahead else None  # one thread: a stream is read in one order
        self.next: tuple[int, Future[_Ahead]] | None = None

    def inputs(self, images_seen: int, ada: AdaController, pairs_ada: AdaController | None, step: int) -> Inputs:
        """The inputs of the iteration `step`, counted from 0, after `images_seen` images.

        ada, pairs_ada: the controllers of the augmentation of single images and of pairs.
        """
        p, pairs_p = ada.p, pairs_ada.p if pairs_ada else 0.0
        if self.thread is None:
            return self.batches.inputs(images_seen, p, *self.shape, self.device, pairs_p)
        if self.next is None or self.next[0] != images_seen:
            self._begin(self.thread, images_seen, (p,), (pairs_p,))
        assert self.next is not None
        made = self.next[1].result()
        draws, pair_draws = made.draws.get(p), made.pair_draws.get(pairs_p)
        if draws is None or pair_draws is None:
            draws, pair_draws = self.batches.draws(images_seen, p), self.batches.pair_draws(images_seen, pairs_p)
        inputs = made.host.to(self.device, draws, pair_draws)
        batch = self.batches.config.batch
        coming = (() if each is None else _possible(each, step, batch) for each in (ada, pairs_ada))
        self._begin(self.thread, images_seen + batch, *coming)
        return inputs

    def close(self) -> None:
        """End the thread."""
        if self.thread:
            self.thread.shutdown(cancel_futures=True)

    def _begin(
        self, thread: ThreadPoolExecutor, images_seen: int, values: tuple[float, ...], pair_values: tuple[float, ...]
    ) -> None:
        self.next = images_seen, thread.submit(self._made, images_seen, values, pair_values or (0.0,))

    def _made(self, images_seen: int, values: tuple[float, ...], pair_values: tuple[float, ...]) -> "_Ahead":
        def on_the_way(draws: dict[str, Draws]) -> dict[str, Draws]:
            return {name: part.pinned() for name, part in draws.items()} if self.device.type == "cuda" else draws

        batches = self.batches
        host = batches.on_host(images_seen, *self.shape)
        return _Ahead(
            host.pinned() if self.device.type == "cuda" else host,
            {p: on_the_way(batches.draws(images_seen, p)) for p in values},
            {p: on_the_way(batches.pair_draws(images_seen, p)) for p in pair_values},
        )


class _Ahead(NamedTuple):
    """The inputs of an iteration that is to come; draws: by probability."""

    host: HostInputs
    draws: dict[float, dict[str, Draws]]
    pair_draws: dict[float, dict[str, Draws]]


def _possible(ada: AdaController, step: int, batch: int) -> tuple[float, ...]:
    """The probabilities that the iteration after `step` can have."""
    moves = ada.adapts and (step + 1) % ada.interval == 0
    return ada.next_values(batch * ada.interval) if moves else (ada.p,)


def to_float(reals: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [n, 3, H, W] -> float32 on the device, -1..1. The call does not wait for the device."""
    return send(reals, device).to(torch.float32).div_(127.5).sub_(1)


def _kinds(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of one person and of two people, each [P, 2 C, ...], from [4 P, C, ...] in the order of `PairOrder`."""
    same, strangers = rows.unflatten(0, (2, 2, -1)).transpose(1, 2).flatten(2, 3)
    return same, strangers
