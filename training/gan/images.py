"""The images and labels of a GAN training, ready for its workers: decoded in memory, or streamed."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from datasets.people.decoding import Target
from datasets.people.image_source import ImageSource, load_images, open_images
from datasets.people.labels import Labels, colour_features, labels
from datasets.people.listing import joined
from passersby.errors import InputError
from training.gan.config import GanTraining
from training.gan.data import InMemory, Order, Reader
from training.memory import available_memory, fits


class StreamFactory(Protocol):
    """Makes a reader that decodes images when they are needed, such as `pipeline.image_stream.Streamed`."""

    def __call__(
        self,
        source: ImageSource,
        target: Target,
        indices: Callable[[int], np.ndarray],
        batch: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> Reader:
        """This worker's share of each batch, whose places in `source.training` are indices(images seen)."""
        ...


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a training is made of. Arrays are uint8 [N, H, W, 3] RGB, and read-only where workers share them.

    `sample` is all training images where they fit in memory (`streamed` is False), else some of them.
    """

    source: ImageSource
    target: Target
    sample: np.ndarray
    validation: np.ndarray
    stream: StreamFactory | None  # for images that do not fit in memory
    labels: np.ndarray | None  # [N, c_dim] float32 of the training images
    validation_labels: np.ndarray | None
    label_record: dict
    notes: tuple[str, ...]  # for people: what was left out, and where the images are

    @property
    def streamed(self) -> bool:
        """Whether the images are decoded when they are needed."""
        return self.stream is not None

    @property
    def label_size(self) -> int:
        """c_dim of the networks."""
        return 0 if self.labels is None else self.labels.shape[1]

    def order(self, config: GanTraining) -> Order:
        """Which images follow each other."""
        return Order(len(self.source.training), config.seed)

    def reader(self, config: GanTraining, rank: int, world_size: int) -> Reader:
        """Where this worker's images come from."""
        if self.stream is None:
            return InMemory(self.sample)
        order, batch = self.order(config), config.batch
        return self.stream(
            self.source,
            self.target,
            lambda seen: order.indices(seen, batch),
            batch,
            rank=rank,
            world_size=world_size,
        )


def load_data(config: GanTraining, source: ImageSource) -> TrainingData:
    """Decode and label what `list_data` listed.

    Raises InputError for data that cannot be used, and for more than fits in memory (`pipeline.image_stream.load_data`
    streams that).
    """
    if not in_memory(config, source):
        images = len(source.training) + len(source.validation)
        raise InputError(
            f"{images} images of {config.height}x{config.width} do not fit in this machine's memory: "
            "give --workers 1, which streams them"
        )
    return decode(config, source)


def in_memory(config: GanTraining, source: ImageSource, object_store: int | None = None) -> bool:
    """Whether the images stay in memory; object_store: as of `training.memory.fits`."""
    images = len(source.training) + len(source.validation)
    return fits(images, config.height, config.width, available_memory(), object_store)


def decode(config: GanTraining, source: ImageSource) -> TrainingData:
    """Decode all images, and label them."""
    loaded = load_images(source, image_target(config))
    features = None
    if config.condition == "cluster":
        features = np.concatenate([colour_features(part) for part in (loaded.training, loaded.validation)])
    return assemble(config, loaded.source, loaded.training, loaded.validation, features, loaded.unreadable)


def image_target(config: GanTraining) -> Target:
    """What every image is made into."""
    return Target(config.height, config.width, config.fit, config.enlarge)


def list_data(config: GanTraining) -> ImageSource:
    """The listing of `config.data`, split, not decoded. Raises InputError where there is too little of it."""
    source = open_images(config.data, config.validation_people)
    _require_enough(config, source)
    return source


def assemble(
    config: GanTraining,
    source: ImageSource,
    sample: np.ndarray,
    validation: np.ndarray,
    features: np.ndarray | None,
    unreadable: Sequence[str],
    stream: StreamFactory | None = None,
) -> TrainingData:
    """Label what was decoded. features: `colour_features` of training and validation images, for clusters."""
    _require_enough(config, source)
    notes = []
    if unreadable:
        notes.append(f"left out, unreadable: {len(unreadable)} images, the first is {unreadable[0]}")
    if stream:
        notes.append("the images do not fit in half of a node's memory: they are streamed through Ray Data")
    conditional = config.condition != "none"
    rows = _labels(config, source, features)
    count = len(source.training)
    return TrainingData(
        source,
        image_target(config),
        sample,
        validation,
        stream,
        rows.rows[:count] if conditional else None,
        rows.rows[count:] if conditional else None,
        {"labels": rows.meaning} if conditional else {},
        tuple(notes),
    )


def _require_enough(config: GanTraining, source: ImageSource) -> None:
    if len(source.training) < config.batch:
        raise InputError(
            f"--batch {config.batch} is more than the {len(source.training)} training images in {config.data}"
        )


def _labels(config: GanTraining, source: ImageSource, features: np.ndarray | None) -> Labels:
    # Validation images get labels of the same meaning: losses on them would say nothing otherwise.
    everybody = dataclasses.replace(source, training=joined([source.training, source.validation]))
    return labels(everybody, config.condition, features=features, clusters=config.clusters, seed=config.seed)
