"""Real images that do not fit in memory, decoded by Ray Data while the networks train.

The order is the same as in memory: the images of a batch are a function of the images seen (`Batches.indices`), and
pipelines decode that sequence, one stretch after the other. So a training is the same from memory and from a stream.
Every worker runs pipelines for its share of each batch. The tasks of a pipeline run on any node, and all nodes must see
the source under the same path. The tasks claim none of Ray's CPUs, because the training's workers may hold all of them.
Instead the number of tasks at a time is bounded.
"""

import dataclasses
import functools
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import ray.data

from datasets.people.decoding import Problem, Reader, Target, decode_bytes, peculiarities, remarks
from datasets.people.image_source import ImageSource, check_problems, decode_target, require_training
from datasets.people.labels import colour_features
from datasets.people.listing import Content, Listing, joined
from passersby.errors import InputError
from pipeline.cluster import smallest_object_store
from training.gan.config import GanTraining
from training.gan.images import TrainingData, assemble, decode, image_target, in_memory

STRETCH_IMAGES = 8192  # over all workers; fewer where images are large, because ...
STRETCH_BYTES = 256 << 20  # ... a whole stretch and the whole next stretch can lie in the object store at once
TASKS = 2  # tasks of one worker that run at a time
_SAMPLE = 10_000  # images decoded for FID and pictures where the training images are streamed
Row = dict[str, str | bytes]  # an image of a listing: its name, and its path as bytes or its name in the archive
_PIECE_IMAGES, _PIECE_BYTES = 128, 16 << 20  # at most so much for one task, about 30 ms of work


@dataclasses.dataclass(frozen=True)
class SurveyedImages:
    """A source without its unreadable images, as `LoadedImages`, but with undecoded training images.

    features: `colour_features` of the training images; None where they are not asked for. remarks: as `LoadedImages`.
    """

    source: ImageSource
    validation: np.ndarray
    unreadable: tuple[str, ...]
    features: np.ndarray | None
    remarks: tuple[str, ...] = ()


def survey_images(source: ImageSource, target: Target, *, features: bool = False, tasks: int = 2) -> SurveyedImages:
    """Decode every image once on the cluster, `tasks` pieces at a time, and keep only the problems of bad images.

    Unreadable images must be known before the first batch: otherwise each would change the order of the images after
    it. Needs a connected Ray. Raises InputError as `load_images` does.
    """
    examine = functools.partial(_examine, archive=source.training.archive, target=target, features=features)
    data = _pipeline(_rows(source.training, range(len(source.training))), examine, tasks, _piece(target))
    parts = list(data.iter_batches(batch_size=None, batch_format="numpy"))
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    sizes = zip(columns["kind"], columns["height"], columns["width"], strict=True)
    problems = [_problem(str(kind), int(height), int(width)) for kind, height, width in sizes]
    peculiar = Counter(kind for kinds in columns["peculiarities"] for kind in str(kinds).split())
    validation, more_problems = decode_target(source.validation, target, peculiar=peculiar)
    unreadable = check_problems(joined([source.training, source.validation]), problems + more_problems, target)
    usable = source.without(unreadable)
    require_training(usable)
    readable = np.array([problem is None for problem in problems])
    colours = columns["features"][readable] if features else None
    return SurveyedImages(usable, validation, unreadable, colours, tuple(remarks(peculiar)))


class ImageStream:
    """This worker's real images, batch after batch, the same as from an array in memory.

    indices: takes the number of images seen and returns the whole batch's indices in `source.training`, as
    `Batches.indices`. Of each batch worker `rank` of `world_size` takes the images rank, rank + world_size, ...
    """

    def __init__(
        self,
        source: ImageSource,
        target: Target,
        indices: Callable[[int], np.ndarray],
        batch: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        stretch_images: int = STRETCH_IMAGES,
        tasks: int = TASKS,
    ):
        self._listing = source.training
        decode = functools.partial(_decode, archive=source.training.archive, target=target)
        self._pipeline = functools.partial(_pipeline, work=decode, tasks=tasks, piece=_piece(target))
        self._root = source.root
        self._indices = indices
        self._batch = batch
        self._share = slice(rank, None, world_size)
        most = min(stretch_images, STRETCH_BYTES // (target.height * target.width * 3))
        self._stretch = max(1, most // batch)  # batches

    def batches(self, images_seen: int) -> Iterator[np.ndarray]:
        """uint8 [n, H, W, 3] RGB of every batch from `images_seen` on, without end; the caller may change each array.

        Close the iterator to stop the pipelines. Raises InputError where an image can no longer be read.
        """
        # A pipeline takes a moment until its first batch. So the next pipeline starts while the current one is used up.
        with ThreadPoolExecutor(1) as starter:
            upcoming = self._begin(starter, images_seen)
            try:
                while True:
                    stretch = upcoming.result()
                    images_seen += self._stretch * self._batch
                    upcoming = self._begin(starter, images_seen)
                    yield from stretch
            finally:
                upcoming.result().close()

    def _begin(self, starter: ThreadPoolExecutor, images_seen: int) -> "Future[_Stretch]":
        # Only the consumer's thread may call `indices`, because `indices` may keep an epoch's order.
        seen = range(images_seen, images_seen + self._stretch * self._batch, self._batch)
        batches = [_rows(self._listing, self._indices(start)[self._share]) for start in seen]
        return starter.submit(_Stretch, batches, self._pipeline, self._root)


class _Stretch:
    """The batches of one pipeline; the constructor waits for the first batch."""

    def __init__(self, rows: Sequence[list[Row]], pipeline: Callable, root: Path):
        self._names, self._root = [[row["name"] for row in batch] for batch in rows], root
        data = pipeline(list(itertools.chain.from_iterable(rows)))
        batches = data.iter_batches(batch_size=len(rows[0]), batch_format="numpy", prefetch_batches=2)
        self._batches = iter(batches)
        self._first = next(self._batches)

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            for number, part in enumerate(itertools.chain([self._first], self._batches)):
                expected = self._names[number]
                if list(part["name"]) != expected:
                    raise RuntimeError("Ray Data changed the order of the images")
                if not part["readable"].all():
                    lost = expected[int(np.argmin(part["readable"]))]
                    raise InputError(f"{lost} of {self._root} could be read at the start and no longer can: restore it")
                yield np.array(part["image"])  # blocks are read-only
        finally:
            self.close()

    def close(self) -> None:
        """Stop the pipeline."""
        self._batches.close()


class Streamed:
    """A reader of one batch after the other from a stream (a `StreamFactory`); a jump starts a new stream."""

    def __init__(
        self,
        source: ImageSource,
        target: Target,
        indices: Callable[[int], np.ndarray],
        batch: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.stream = ImageStream(source, target, indices, batch, rank=rank, world_size=world_size)
        self.batch = batch
        self.next, self.batches = -1, iter(())

    def read(self, images_seen: int, indices: np.ndarray) -> np.ndarray:
        """The images of the batch after `images_seen` images, uint8 [n, H, W, 3]."""
        if images_seen != self.next:
            self.batches, self.next = self.stream.batches(images_seen), images_seen
        self.next += self.batch
        return next(self.batches)


def load_data(config: GanTraining, source: ImageSource) -> TrainingData:
    """Decode and label the images of `list_data` for Ray Train's workers; stream images that do not fit in memory.

    Needs a connected Ray. Raises InputError for data that cannot be used.
    """
    if in_memory(config, source, smallest_object_store()):
        return decode(config, source)
    target = image_target(config)
    survey = survey_images(source, target, features=config.condition == "cluster")
    index = np.linspace(0, len(survey.source.training) - 1, min(_SAMPLE, len(survey.source.training))).astype(int)
    sample, _ = decode_target(survey.source.training.take(index), target)
    features = None
    if survey.features is not None:
        features = np.concatenate([survey.features, colour_features(survey.validation)])
    return assemble(
        config, survey.source, sample, survey.validation, features, survey.unreadable, survey.remarks, Streamed
    )


def _problem(kind: str, height: int, width: int) -> Problem | None:
    """The problem that `_examine` wrote for one image; None for a good image."""
    if not kind:
        return None
    if kind not in ("unreadable", "aspect", "small"):
        raise ValueError(f"no such problem of an image: {kind}")
    return Problem(kind, height, width)


def _piece(target: Target) -> int:
    return max(1, min(_PIECE_IMAGES, _PIECE_BYTES // (target.height * target.width * 3)))


def _rows(listing: Listing, indices: Iterable[int]) -> list[Row]:
    return [{"name": listing.names[index], "content": _row_content(listing.contents[index])} for index in indices]


def _row_content(content: Content) -> str | bytes:
    return os.fsencode(content) if isinstance(content, Path) else str(content)


def _content(value: str | bytes) -> str:
    """What `_row_content` wrote, as a Reader takes it: paths travel as bytes, as their names need not be UTF-8."""
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


def _pipeline(rows: list[Row], work: Callable[[dict], dict], tasks: int, piece: int) -> "ray.data.Dataset":
    """A pipeline, not yet started, that applies `work` to pieces of these rows in order."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    pieces = -(-len(rows) // piece)
    data = ray.data.from_items(rows, override_num_blocks=pieces)
    data.context.enable_progress_bars = False
    data.context.execution_options.preserve_order = True
    compute = ray.data.TaskPoolStrategy(size=min(tasks, pieces))
    # Ray's type wants a function of every format of a batch; its default format is a dictionary.
    return data.map_batches(work, batch_size=None, num_cpus=0, compute=compute)  # pyright: ignore[reportArgumentType]


@functools.lru_cache(maxsize=2)
def _reader(archive: Path | None) -> Reader:
    # A long archive's list of members takes seconds to read: each process reads it once, not once a task.
    return Reader(archive)


def _decode(rows: dict[str, np.ndarray], archive: Path | None, target: Target) -> dict[str, np.ndarray]:
    read = _reader(archive)
    images = np.zeros((len(rows["name"]), target.height, target.width, 3), np.uint8)
    readable = np.zeros(len(images), bool)
    for index, content in enumerate(rows["content"]):
        image = decode_bytes(read(_content(content)), target)
        if not isinstance(image, Problem):
            images[index], readable[index] = image, True
    return {"name": rows["name"], "image": images, "readable": readable}


def _examine(
    rows: dict[str, np.ndarray], archive: Path | None, target: Target, features: bool
) -> dict[str, np.ndarray]:
    read = _reader(archive)
    contents = [read(_content(content)) for content in rows["content"]]
    results = [decode_bytes(content, target) for content in contents]
    problems = [result if isinstance(result, Problem) else None for result in results]
    columns = {
        "kind": np.array([problem.kind if problem else "" for problem in problems]),
        "height": np.array([problem.height if problem else 0 for problem in problems]),
        "width": np.array([problem.width if problem else 0 for problem in problems]),
        "peculiarities": np.array(
            [
                "" if problem else " ".join(peculiarities(content or b""))
                for content, problem in zip(contents, problems, strict=True)
            ]
        ),
    }
    if features:
        blank = np.zeros((target.height, target.width, 3), np.uint8)
        images = [blank if isinstance(result, Problem) else result for result in results]
        columns["features"] = colour_features(np.stack(images))
    return columns
