"""The images of each step's batch: a function of the seed and the step, so exact resume needs no stored state."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, get_args

import numpy as np
import torch

from datasets.reid.training_set import GENERATED, REAL, TrainingImages
from passersby.devices import pinned, send
from passersby.errors import InputError
from training.reid.augment import draw
from training.reid.changes import Changes, draw_changes
from training.reid.config import ReidTraining
from training.reid.stages import Stage
from training.reid.step import Batch, Halves

Sampler = Literal["shuffle", "pk"]
# Each list of images has an independent stream of random numbers. Later stages have streams from _LATER on.
_MIXED, _GENERATED, _LAST = 0, 1, 2
_AUGMENT, _CHANGE = 4, 5
_LATER = 16


class ReidBatches:
    """The batches of a training; the same in every worker.

    classes, sources: [N] int64 of all images. batch: images of a step, over all workers.
    sampler: the order of real images. "shuffle": every epoch is another permutation, whose partial last batch is
        skipped. "pk": P people times `instances` images of each (Hermans et al. 2017), see `people_schedule`.
    generated_share: at most this share of a batch is generated images, which come from a separate shuffled list; with
        "pk" the number is rounded down so that whole people fill the batch. None: one list of all images, as in the
        study.
    real_only_from: from this step on batches hold real images only, in a new epoch; None: never.
    stage: number of the training's stage; each has other random numbers.

    "Generated" images are all that are not of the source REAL.

    Raises InputError where these values allow no batch.
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
        stage: int = 0,
    ):
        streams = stage * _LATER
        self.batch_size, self.seed, self.sampler, self.instances = batch, seed, sampler, instances
        self.real_only_from = real_only_from
        self._classes = classes
        real, generated = np.flatnonzero(sources == REAL), np.flatnonzero(sources != REAL)
        self._check(generated, generated_share)
        self.generated_per_batch = self._generated_count(generated, generated_share)
        one_list = np.arange(len(classes)) if generated_share is None else real
        self._main = self._source(one_list, batch - self.generated_per_batch, streams + _MIXED)
        self._extra = None
        if self.generated_per_batch:
            self._extra = _Epochs(*_shuffled(generated, self.generated_per_batch, seed, streams + _GENERATED))
        self._last = None if real_only_from is None else self._source(real, batch, streams + _LAST)
        self._layout = _spread(self._blocks(batch - self.generated_per_batch), self.generated_per_batch)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the list of real images (or over the one list of all images)."""
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

        Generated images are spread evenly over the batch, so workers hold equally many where the number divides.
        Raises InputError where workers cannot share the batch, or with "pk" its people, equally.
        """
        part, remainder = divmod(self.batch_size, workers)
        if remainder:
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
        """Sizes of the blocks of images that must stand together in a batch."""
        size = self.instances if self.sampler == "pk" else 1
        return np.full(count // size, size)


@dataclasses.dataclass(frozen=True)
class StageBatches:
    """The batches of a stage. images: [M] int64, the indices of its images; a step counts from the stage's first."""

    stage: Stage
    batches: ReidBatches
    images: np.ndarray

    def batch(self, step: int) -> np.ndarray:
        """The images of a step of the training, [batch] int64."""
        return self.images[self.batches.batch(step - self.stage.first)]

    def share(self, step: int, rank: int, workers: int) -> np.ndarray:
        """The part of worker `rank`, as `ReidBatches.share` gives it."""
        return self.images[self.batches.share(step - self.stage.first, rank, workers)]


class _Epochs:
    """Endless epochs of `steps` batches each; `build(epoch)` gives all batches of an epoch, [steps, count] int64."""

    def __init__(self, steps: int, build: Callable[[int], np.ndarray]):
        self.steps, self._build = steps, build
        self._epoch = (-1, np.empty((0, 0), np.int64))

    def at(self, step: int) -> np.ndarray:
        epoch, index = divmod(step, self.steps)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._build(epoch))
        return self._epoch[1][index]


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
    groups, people_per_step = np.maximum(sizes // instances, 1), count // instances
    if people_per_step < 2:
        raise InputError(
            f"{count} real images of a batch are {people_per_step} people of {instances}: give a batch for 2"
        )
    if people_per_step > len(sizes):
        raise InputError(
            f"a batch needs {people_per_step} people of {instances} images, the data have {len(sizes)}: "
            "give a smaller batch"
        )
    steps = most_steps(groups, people_per_step)
    starts = np.cumsum(sizes) - sizes

    def build(epoch: int) -> np.ndarray:
        rng = np.random.default_rng([seed, stream, epoch])
        order = rng.permutation(len(images))
        order = order[np.argsort(people[order], kind="stable")]  # by person, in random order within a person
        shown_people, shown_groups = people_schedule(
            groups, people_per_step, steps, rng
        )  # each [steps, people_per_step]
        within = shown_groups[..., None] * instances + np.arange(instances)
        return images[order[starts[shown_people][..., None] + within % sizes[shown_people][..., None]]].reshape(
            steps, count
        )

    return steps, build


def most_steps(groups: np.ndarray, people_per_step: int) -> int:
    """Greatest number of steps that each show `people_per_step` different people, person i in at most groups[i] steps.

    groups: [people] int64, each at least 1. The result is the largest S with
    sum(min(groups, S)) >= S * people_per_step.
    """
    low, high = 0, int(groups.sum()) // people_per_step
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if np.minimum(groups, middle).sum() >= middle * people_per_step else (low, middle - 1)
        )
    return low


def people_schedule(
    groups: np.ndarray, people_per_step: int, steps: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """An epoch of a P x K sampler: the people of each step, and the group of each: two [steps, people_per_step] int64.

    As in the usual RandomIdentitySampler (torchreid, bag of tricks), the shuffled images of a person make groups of K.
    The remaining images wait for another epoch; people with fewer than K images have one group. Each step takes
    `people_per_step` different people at random among the people with unused groups. The usual sampler stops once too
    few people have unused groups, at a step that chance decides. Here an epoch always has `steps` steps (`most_steps`,
    never fewer): a person with one unused group for each remaining step must be in the current step.
    """
    unused, people = groups.copy(), np.arange(len(groups))
    shown_people = np.empty((steps, people_per_step), np.int64)
    shown_groups = np.empty_like(shown_people)
    for step in range(steps):
        must = unused[people] >= steps - step
        chosen = people[must]
        if len(chosen) > people_per_step:
            chosen = rng.choice(chosen, people_per_step, replace=False)
        elif len(chosen) == 0:
            chosen = people[rng.choice(len(people), people_per_step, replace=False)]
        else:
            others = people[~must]
            chosen = np.concatenate(
                [chosen, others[rng.choice(len(others), people_per_step - len(chosen), replace=False)]]
            )
        shown_people[step], shown_groups[step] = chosen, groups[chosen] - unused[chosen]
        unused[chosen] -= 1
        if (unused[chosen] == 0).any():
            people = people[unused[people] > 0]
    return shown_people, shown_groups


def _spread(blocks: np.ndarray, singles: int) -> np.ndarray:
    """Order of a batch that spreads blocks and single images evenly; the `singles` single images follow the blocks."""
    middles = np.repeat((np.arange(len(blocks)) + 0.5) / max(len(blocks), 1), blocks)
    return np.argsort(np.concatenate([middles, (np.arange(singles) + 0.5) / max(singles, 1)]), kind="stable")


# ---- Images are decoded once. They stay on the device where they fit, else each batch is sent ahead of its step.

_DEVICE_SHARE = 0.4  # of a GPU's free memory that images may take; the rest is the network's


class Feeder:
    """This worker's part of every step's batch, on the device. The batch of step s is a function of the seed and s.

    A GPU whose memory has room holds all images as uint8, and a batch is one gather. Elsewhere a thread gathers the
    next batch while the device computes; for a GPU it uses pinned memory. `waited` adds up the seconds in which steps
    waited for their images.
    """

    def __init__(
        self, data: TrainingImages, config: ReidTraining, stages: Sequence[StageBatches], device, rank=0, workers=1
    ):
        self.data, self.config, self.stages, self.device = data, config, stages, device
        self.rank, self.workers, self.waited = rank, workers, 0.0
        self.on_device = self.donors_on_device = None
        self.classes, self.sources = (torch.tensor(values, device=device) for values in (data.classes, data.sources))
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            donors = np.empty((0,), np.uint8) if data.donors is None else data.donors
            if data.images.nbytes + donors.nbytes <= _DEVICE_SHARE * free:
                self.on_device = torch.from_numpy(np.ascontiguousarray(data.images)).to(device)
                self.donors_on_device = torch.from_numpy(np.ascontiguousarray(donors)).to(device)
        self.thread = ThreadPoolExecutor(1)
        self.ahead: tuple[int, Future] | None = None

    def batch(self, step: int) -> Batch:
        """The images of a step."""
        clock = time.perf_counter()
        if self.ahead is None or self.ahead[0] != step:
            self.ahead = (step, self.thread.submit(self._gather, step))
        indices, images, donors, draws, changes = self.ahead[1].result()
        self.ahead = (step + 1, self.thread.submit(self._gather, step + 1))
        rows = send(torch.from_numpy(indices), self.device)
        images = self._sent(self.on_device, rows, images)
        if changes is not None and changes.takes.any():
            donors = self._sent(self.donors_on_device, send(torch.from_numpy(changes.donors), self.device), donors)
        halves = None
        if self.config.separate_batchnorm:
            halves = Halves.of(self.data.sources[indices], self.device)
        self.waited += time.perf_counter() - clock
        return Batch(images, self.classes[rows], self.sources[rows], draws, changes, donors, halves)

    def close(self) -> None:
        """End the thread."""
        self.thread.shutdown(cancel_futures=True)

    def _sent(self, on_device: torch.Tensor | None, rows: torch.Tensor, images: torch.Tensor | None) -> torch.Tensor:
        if on_device is not None:
            return on_device[rows]
        assert images is not None
        return send(images, self.device)

    def _gather(self, step: int):
        config = self.config
        stage = next(each for each in reversed(self.stages) if step >= each.stage.first)
        indices = stage.share(step, self.rank, self.workers)
        share = config.batch // self.workers
        mine = slice(self.rank * share, (self.rank + 1) * share)
        stream = np.random.default_rng([config.seed, _AUGMENT, step])
        augmentation = stage.stage.config.augmentation()
        draws = draw(augmentation, config.batch, config.height, config.width, stream).share(mine)
        changes, settings = None, stage.stage.config.changes()
        if any(setting != Changes() for setting in settings):
            kinds = np.isin(self.data.sources[stage.batch(step)], GENERATED).astype(np.int64)
            stream = np.random.default_rng([config.seed, _CHANGE, step])
            changes = draw_changes(settings, kinds, self._donor_count(), stream).share(mine)
        if self.on_device is not None:
            return indices, None, None, draws, changes
        images, donors = torch.from_numpy(self.data.images[indices]), None
        if changes is not None and self.data.donors is not None and changes.takes.any():
            donors = torch.from_numpy(self.data.donors[changes.donors])
        if self.device.type == "cuda":
            images, donors = pinned(images), None if donors is None else pinned(donors)
        return indices, images, donors, draws, changes

    def _donor_count(self) -> int:
        return 0 if self.data.donors is None else len(self.data.donors)
