"""The images and labels of a GAN training, ready for its workers: decoded in memory, or streamed."""

import dataclasses

import numpy as np

from datasets.people.decoding import Target, decode_items, load_images
from datasets.people.image_source import ImageSource, open_images
from datasets.people.labels import Labels, colour_features, labels
from datasets.people.listing import Reader as FileReader
from passersby.errors import InputError
from training.gan.config import GanConfig
from training.gan.data import InMemory, Order, Reader
from training.gan.stream import ImageStream, survey_images
from training.workers import available_memory, fits, smallest_object_store

_SAMPLE = 10_000  # images decoded for FID and pictures where the training's own are streamed


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a training is made of. Arrays are uint8 [N, H, W, 3] RGB, and read-only where workers share them.

    `sample` is all training images where they fit in memory (`streamed` is False), else some of them.
    """

    source: ImageSource
    target: Target
    sample: np.ndarray
    validation: np.ndarray
    streamed: bool
    labels: np.ndarray | None  # [N, c_dim] float32 of the training images
    validation_labels: np.ndarray | None
    label_record: dict
    notes: tuple[str, ...]  # for people: what was left out, and where the images are

    @property
    def label_size(self) -> int:
        """c_dim of the networks."""
        return 0 if self.labels is None else self.labels.shape[1]

    def order(self, config: GanConfig) -> Order:
        """Which images follow each other."""
        return Order(len(self.source.training), config.seed)

    def reader(self, config: GanConfig, rank: int, world_size: int) -> Reader:
        """Where this worker's images come from."""
        if not self.streamed:
            return InMemory(self.sample)
        order, batch = self.order(config), config.batch
        return Streamed(
            ImageStream(
                self.source,
                self.target,
                lambda seen: order.indices(seen, batch),
                batch,
                rank=rank,
                world_size=world_size,
            ),
            batch,
        )


class Streamed:
    """A stream as a reader of one batch after the other; a jump begins a new stream."""

    def __init__(self, stream: ImageStream, batch: int):
        self.stream, self.batch = stream, batch
        self.next, self.batches = -1, iter(())

    def read(self, images_seen: int, indices: np.ndarray) -> np.ndarray:
        """The images of the batch after `images_seen` images, uint8 [n, H, W, 3]."""
        if images_seen != self.next:
            self.batches, self.next = self.stream.batches(images_seen), images_seen
        self.next += self.batch
        return next(self.batches)


def load_data(config: GanConfig, source: ImageSource, on_ray: bool = False) -> TrainingData:
    """Decode and label what `list_data` listed; on Ray, images that do not fit in memory are streamed.

    Raises InputError for data that cannot be used, and without Ray for more than fits.
    """
    target = Target(config.height, config.width, config.fit, config.enlarge)
    images = len(source.training) + len(source.validation)
    store = smallest_object_store() if on_ray else None
    if fits(images, config.height, config.width, available_memory(), store):
        loaded = load_images(source, target)
        features = _features(config, [loaded.training, loaded.validation])
        return _assemble(config, loaded.source, target, loaded.training, loaded.validation, features, loaded.unreadable)
    if not on_ray:
        raise InputError(
            f"{images} images of {config.height}x{config.width} do not fit in this machine's memory: "
            "give --workers 1, which streams them"
        )
    survey = survey_images(source, target, features=config.condition == "cluster")
    index = np.linspace(0, len(survey.source.training) - 1, min(_SAMPLE, len(survey.source.training))).astype(int)
    some = [survey.source.training[place] for place in index]
    sample, _ = decode_items(FileReader(source.root), some, target)
    features = None
    if survey.features is not None:
        features = np.concatenate([survey.features, colour_features(survey.validation)])
    return _assemble(
        config, survey.source, target, sample, survey.validation, features, survey.unreadable, streamed=True
    )


def list_data(config: GanConfig) -> ImageSource:
    """The listing of `config.data`, split, not decoded. Raises InputError where there is too little of it."""
    source = open_images(config.data, config.validation_people)
    _require_enough(config, source)
    return source


def _assemble(config, source, target, sample, validation, features, unreadable, streamed=False) -> TrainingData:
    _require_enough(config, source)
    notes = []
    if unreadable:
        notes.append(f"left out, unreadable: {len(unreadable)} images, the first is {unreadable[0]}")
    if streamed:
        notes.append("the images do not fit in half of a node's memory: they are streamed through Ray Data")
    conditional = config.condition != "none"
    rows = _labels(config, source, features)
    count = len(source.training)
    return TrainingData(
        source,
        target,
        sample,
        validation,
        streamed,
        rows.rows[:count] if conditional else None,
        rows.rows[count:] if conditional else None,
        {"labels": rows.meaning} if conditional else {},
        tuple(notes),
    )


def _require_enough(config: GanConfig, source: ImageSource) -> None:
    if len(source.training) < config.batch:
        raise InputError(
            f"--batch {config.batch} is more than the {len(source.training)} training images in {config.data}"
        )


def _features(config: GanConfig, parts: list[np.ndarray]) -> np.ndarray | None:
    return np.concatenate([colour_features(part) for part in parts]) if config.condition == "cluster" else None


def _labels(config: GanConfig, source: ImageSource, features: np.ndarray | None) -> Labels:
    # Validation images get labels of the same meaning: losses on them would say nothing otherwise.
    everybody = dataclasses.replace(source, training=source.training + source.validation)
    return labels(everybody, config.condition, features=features, clusters=config.clusters, seed=config.seed)
