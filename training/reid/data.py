"""Which images make the batch of a step: a function of the seed and the step, so exact resume needs no stored state."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, get_args

import numpy as np
import torch

from datasets.reid.training_set import TrainingImages
from passersby.errors import InputError
from training.reid.augment import draw
from training.reid.config import ReidTraining
from training.reid.labels import REAL
from training.reid.step import Batch

Sampler = Literal["shuffle", "pk"]
# One independent stream for each list: no list sees the numbers of another. 3 and up are free for other uses.
_MIXED, _GENERATED, _LAST = 0, 1, 2


class ReidBatches:
    """The batches of a training; the same in every worker.

    classes, sources: [N] int64 of all images. batch: images of a step, over all workers.
    sampler: how real images follow each other. "shuffle": every epoch another permutation, its partial last batch
        skipped. "pk": P people times `instances` images of each (Hermans et al. 2017), see `people_schedule`.
    generated_share: at most this share of a batch is generated, in a shuffled list of their own; with "pk" rounded
        down so that whole people are left. None: one list of all images, as the study did.
    real_only_from: from this step on batches hold real images only, in a new epoch; None: never.

    Raises InputError where no batch can be made so.
    """

    def __init__(
        self,
        classes: np.ndarray,
        sources: np.ndarray,
        batch: int,
        seed: int,
        sampler: Sampler = "shuffle",
        instances: int = 4,
        generated_share: float | None = None,
        real_only_from: int | None = None,
    ):
        self.batch_size, self.seed, self.sampler, self.instances = batch, seed, sampler, instances
        self.real_only_from = real_only_from
        self._classes = classes
        real, generated = np.flatnonzero(sources == REAL), np.flatnonzero(sources != REAL)
        self._check(generated, generated_share)
        self.generated_per_batch = self._generated_count(generated, generated_share)
        one_list = np.arange(len(classes)) if generated_share is None else real
        self._main = self._source(one_list, batch - self.generated_per_batch, _MIXED)
        self._extra = None
        if self.generated_per_batch:
            self._extra = _Epochs(*_shuffled(generated, self.generated_per_batch, seed, _GENERATED))
        self._last = None if real_only_from is None else self._source(real, batch, _LAST)
        self._layout = _spread(self._blocks(batch - self.generated_per_batch), self.generated_per_batch)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which the list of real images (or the one list of all) is gone through once."""
        return self._main.steps

    def batch(self, step: int) -> np.ndarray:
        """The images of a step, [batch] int64. With "pk" the images of one person stand together."""
        if self._last is not None and self.real_only_from is not None and step >= self.real_only_from:
            return self._last.at(step - self.real_only_from)
        if self._extra is None:
            return self._main.at(step)
        return np.concatenate([self._main.at(step), self._extra.at(step)])[self._layout]

    def share(self, step: int, rank: int, workers: int) -> np.ndarray:
        """The part of worker `rank`, [batch / workers]; the parts in order make the batch.

        Generated images are spread evenly over the batch, so that workers hold equally many where that divides.
        Raises InputError where the batch, or with "pk" its people, cannot be shared out equally.
        """
        part, left = divmod(self.batch_size, workers)
        if left:
            raise InputError(f"a batch of {self.batch_size} does not divide among {workers} workers: change one")
        if self.sampler == "pk":
            last = self.real_only_from is not None and step >= self.real_only_from
            people = (self.batch_size - (0 if last else self.generated_per_batch)) // self.instances
            if people % workers:
                raise InputError(
                    f"{people} people of {self.instances} images in a batch of {self.batch_size} "
                    f"do not divide among {workers} workers: change batch, generated share or workers"
                )
        return self.batch(step)[rank * part : (rank + 1) * part]

    def _check(self, generated: np.ndarray, share: float | None) -> None:
        if self.sampler not in get_args(Sampler):
            raise InputError(f"sampler {self.sampler!r} is not known: {', '.join(get_args(Sampler))}")
        if self.batch_size < 1:
            raise InputError(f"batch {self.batch_size}: give at least 1 image")
        if share is not None and not 0 <= share < 1:
            raise InputError(f"generated share {share}: give a share of the batch, at least 0 and below 1")
        people = len(np.unique(self._classes))
        if people < 2:
            raise InputError(f"the training images show {people} people: give at least 2 to tell apart")
        if self.sampler == "pk":
            if self.instances < 2:
                raise InputError(f"instances {self.instances}: sampler 'pk' needs at least 2 images of a person")
            if self.batch_size % self.instances:
                raise InputError(f"batch {self.batch_size} is no multiple of {self.instances} instances: change one")
            if len(generated) and share is None:
                raise InputError("sampler 'pk' draws real images: give the share of generated ones in a batch")

    def _generated_count(self, generated: np.ndarray, share: float | None) -> int:
        if share is None or share == 0 or not len(generated):
            return 0
        count = min(math.floor(share * self.batch_size + 1e-9), len(generated))
        if self.sampler == "pk":
            count -= count % self.instances
        if count == 0:
            group = self.instances if self.sampler == "pk" else 1
            raise InputError(
                f"a share of {share} of a batch of {self.batch_size} out of {len(generated)} generated images is less "
                f"than {group}: give a larger batch or share, or share 0 for none"
            )
        return count

    def _source(self, images: np.ndarray, count: int, stream: int) -> "_Epochs":
        if self.sampler == "pk":
            return _Epochs(*_people(images, self._classes[images], count, self.instances, self.seed, stream))
        return _Epochs(*_shuffled(images, count, self.seed, stream))

    def _blocks(self, count: int) -> np.ndarray:
        """Sizes of what must stand together in a batch."""
        size = self.instances if self.sampler == "pk" else 1
        return np.full(count // size, size)


class _Epochs:
    """Endless epochs of `steps` batches each; `build(epoch)` gives all of one, [steps, count] int64."""

    def __init__(self, steps: int, build: Callable[[int], np.ndarray]):
        self.steps, self._build = steps, build
        self._epoch = (-1, np.empty((0, 0), np.int64))

    def at(self, step: int) -> np.ndarray:
        epoch, place = divmod(step, self.steps)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._build(epoch))
        return self._epoch[1][place]


def _shuffled(images: np.ndarray, count: int, seed: int, stream: int) -> tuple[int, Callable[[int], np.ndarray]]:
    steps = len(images) // count
    if steps == 0:
        raise InputError(f"{len(images)} images do not fill the {count} places of a batch: give a smaller batch")

    def build(epoch: int) -> np.ndarray:
        order = np.random.default_rng([seed, stream, epoch]).permutation(images)
        return order[: steps * count].reshape(steps, count)

    return steps, build


def _people(
    images: np.ndarray, classes: np.ndarray, count: int, instances: int, seed: int, stream: int
) -> tuple[int, Callable[[int], np.ndarray]]:
    _, people, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    groups, wanted = np.maximum(sizes // instances, 1), count // instances
    if wanted < 2:
        raise InputError(f"{count} real images of a batch are {wanted} people of {instances}: give a batch for 2")
    if wanted > len(sizes):
        raise InputError(
            f"a batch needs {wanted} people of {instances} images, the data have {len(sizes)}: give a smaller batch"
        )
    steps = most_steps(groups, wanted)
    starts = np.cumsum(sizes) - sizes

    def build(epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed, stream, epoch])
        order = rng.permutation(len(images))
        order = order[np.argsort(people[order], kind="stable")]  # by person, in random order inside
        who, which = people_schedule(groups, wanted, steps, rng)  # each [steps, wanted]
        within = which[..., None] * instances + np.arange(instances)
        return images[order[starts[who][..., None] + within % sizes[who][..., None]]].reshape(steps, count)

    return steps, build


def most_steps(groups: np.ndarray, wanted: int) -> int:
    """In how many steps `wanted` different people can be shown, person i in at most groups[i] of them, groups >= 1.

    The largest S with sum(min(groups, S)) >= S * wanted.
    """
    low, high = 0, int(groups.sum()) // wanted
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(groups, middle).sum() >= middle * wanted else (low, middle - 1)
    return low


def people_schedule(
    groups: np.ndarray, wanted: int, steps: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """An epoch of a P x K sampler: who is shown in each step, and which of their groups: two [steps, wanted] int64.

    As the usual RandomIdentitySampler (torchreid, bag of tricks): the images of a person, shuffled, make groups of K,
    what is left over waits for another epoch, people of fewer than K images have one group; each step takes `wanted`
    different people at random among those who have groups left. That sampler stops once too few people are left, at
    a step that chance decides; here an epoch always has `steps` of them (`most_steps`, never fewer): whoever has a
    group for each of the steps left must come now.
    """
    left, people = groups.copy(), np.arange(len(groups))
    who = np.empty((steps, wanted), np.int64)
    which = np.empty_like(who)
    for step in range(steps):
        must = left[people] >= steps - step
        chosen = people[must]
        if len(chosen) > wanted:
            chosen = rng.choice(chosen, wanted, replace=False)
        elif len(chosen) == 0:
            chosen = people[rng.choice(len(people), wanted, replace=False)]
        else:
            others = people[~must]
            chosen = np.concatenate([chosen, others[rng.choice(len(others), wanted - len(chosen), replace=False)]])
        who[step], which[step] = chosen, groups[chosen] - left[chosen]
        left[chosen] -= 1
        if (left[chosen] == 0).any():
            people = people[left[people] > 0]
    return who, which


def _spread(blocks: np.ndarray, singles: int) -> np.ndarray:
    """Order of a batch in which blocks and single images, `singles` of them after the blocks, are spread evenly."""
    middles = np.repeat((np.arange(len(blocks)) + 0.5) / max(len(blocks), 1), blocks)
    return np.argsort(np.concatenate([middles, (np.arange(singles) + 0.5) / max(singles, 1)]), kind="stable")


# ---- Images of a re-ID training on their way to the device: decoded once, kept there where they fit, else sent ahead.

_AUGMENT = 4  # the stream of random numbers; ReidBatches has 0 to 3
_DEVICE_SHARE = 0.4  # of a GPU's free memory that images may take; the rest is the network's


class Feeder:
    """This worker's part of every step's batch, on the device; what step s gets is a function of the seed and s.

    On a GPU whose memory has room all images live there as uint8, and a batch is one gather. Elsewhere the next batch
    is gathered by a thread while the device computes, on a GPU through pinned memory. `waited` adds up the seconds in
    which the step stood still for its images.
    """

    def __init__(self, data: TrainingImages, config: ReidTraining, batches: ReidBatches, device, rank=0, workers=1):
        self.data, self.config, self.batches, self.device = data, config, batches, device
        self.rank, self.workers, self.waited = rank, workers, 0.0
        self.on_device = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if data.images.nbytes <= _DEVICE_SHARE * free:
                self.on_device = torch.from_numpy(np.ascontiguousarray(data.images)).to(device)
        self.thread = ThreadPoolExecutor(1)
        self.ahead: tuple[int, Future] | None = None

    def batch(self, step: int) -> Batch:
        """The images of a step."""
        clock = time.perf_counter()
        if self.ahead is None or self.ahead[0] != step:
            self.ahead = (step, self.thread.submit(self._gather, step))
        indices, images, draws = self.ahead[1].result()
        self.ahead = (step + 1, self.thread.submit(self._gather, step + 1))
        if self.on_device is not None:
            images = self.on_device[torch.from_numpy(indices).to(self.device)]
        else:
            images = images.to(self.device, non_blocking=True)
        classes, sources = (
            torch.from_numpy(values[indices]).to(self.device) for values in (self.data.classes, self.data.sources)
        )
        self.waited += time.perf_counter() - clock
        return Batch(images, classes, sources, draws)

    def close(self) -> None:
        """End the thread."""
        self.thread.shutdown(cancel_futures=True)

    def _gather(self, step: int):
        config = self.config
        indices = self.batches.share(step, self.rank, self.workers)
        share = config.batch // self.workers
        mine = slice(self.rank * share, (self.rank + 1) * share)
        stream = np.random.default_rng([config.seed, _AUGMENT, step])
        draws = draw(config.augmentation(), config.batch, config.height, config.width, stream).share(mine)
        if self.on_device is not None:
            return indices, None, draws
        images = torch.from_numpy(self.data.images[indices])
        return indices, images.pin_memory() if self.device.type == "cuda" else images, draws
