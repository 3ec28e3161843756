"""The images and labels of a GAN training, ready for its workers: decoded in memory, or streamed."""

import contextlib
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
from training.gan.data import InMemory, Order, PairOrder, Reader
from training.gan.pairs import RealPairs
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
        """A reader of this worker's share of each batch; indices(images seen) are its images in `source.training`."""
        ...


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The data of a training. Image arrays are uint8 [N, H, W, 3] RGB, and read-only where workers share them.

    `sample` holds all training images where they fit in memory (`stream` is None), else some of them.
    """

    source: ImageSource
    target: Target
    sample: np.ndarray
    validation: np.ndarray
    stream: StreamFactory | None  # for images that do not fit in memory
    labels: np.ndarray | None  # [N, c_dim] float32 of the training images
    validation_labels: np.ndarray | None
    label_record: dict
    notes: tuple[str, ...]  # lines for the user: images that are left out, and whether images are streamed

    @property
    def label_size(self) -> int:
        """c_dim of the networks."""
        return 0 if self.labels is None else self.labels.shape[1]

    def order(self, config: GanTraining) -> Order:
        """The order of the training images."""
        return Order(len(self.source.training), config.seed)

    def pair_order(self, config: GanTraining) -> PairOrder | None:
        """The real pairs of every iteration; None in a training without pairs."""
        pairs = _real_pairs(config, self.source)
        return None if pairs is None else PairOrder(pairs, config.batch, config.seed)

    def validation_pairs(self, config: GanTraining) -> RealPairs | None:
        """Pairs of people set aside; None in a training without pairs, and where fewer than two people make pairs."""
        if not config.pairs:
            return None
        with contextlib.suppress(InputError):
            listing = self.source.validation
            return RealPairs(listing, listing.named_people(), config.pair_cameras == "different")
        return None

    def reader(self, config: GanTraining, rank: int, world_size: int) -> Reader:
        """The source of this worker's images."""
        order, batch = self.order(config), config.batch
        return self._reader(lambda seen: order.indices(seen, batch), batch, rank, world_size)

    def pair_reader(self, config: GanTraining, rank: int, world_size: int) -> Reader | None:
        """The source of this worker's real pairs, twice as many pictures; None in a training without pairs."""
        order = self.pair_order(config)
        if order is None:
            return None
        return self._reader(lambda seen: order.indices(seen // 2), 2 * config.batch, rank, world_size)

    def _reader(self, indices: Callable[[int], np.ndarray], batch: int, rank: int, world_size: int) -> Reader:
        if self.stream is None:
            return InMemory(self.sample)
        return self.stream(self.source, self.target, indices, batch, rank=rank, world_size=world_size)


def load_data(config: GanTraining, source: ImageSource) -> TrainingData:
    """Decode and label the images of `list_data`.

    Raises InputError for data that cannot be used, and for images that do not fit in memory, which
    `pipeline.image_stream.load_data` can stream.
    """
    if not in_memory(config, source):
        images = len(source.training) + len(source.validation)
        raise InputError(
            f"{images} images of {config.height}x{config.width} do not fit in this machine's memory: "
            "give --workers 1, which streams them"
        )
    return decode(config, source)


def in_memory(config: GanTraining, source: ImageSource, object_store: int | None = None) -> bool:
    """Whether the images stay in memory; object_store: as for `training.memory.fits`."""
    images = len(source.training) + len(source.validation)
    return fits(images, config.height, config.width, available_memory(), object_store)


def decode(config: GanTraining, source: ImageSource) -> TrainingData:
    """Decode all images, and label them."""
    loaded = load_images(source, image_target(config))
    features = None
    if config.condition == "cluster":
        features = np.concatenate([colour_features(part) for part in (loaded.training, loaded.validation)])
    return assemble(
        config, loaded.source, loaded.training, loaded.validation, features, loaded.unreadable, loaded.remarks
    )


def image_target(config: GanTraining) -> Target:
    """The size of every training image, and how an image of another size or shape is changed."""
    return Target(config.height, config.width, config.fit, config.enlarge)


def list_data(config: GanTraining) -> ImageSource:
    """The listing of `config.data`, split, not decoded. Raises InputError for too few images."""
    source = open_images(config.data, config.validation_people, config.labels_used)
    _require_enough(config, source)
    return source


def assemble(
    config: GanTraining,
    source: ImageSource,
    sample: np.ndarray,
    validation: np.ndarray,
    features: np.ndarray | None,
    unreadable: Sequence[str],
    remarks: Sequence[str] = (),
    stream: StreamFactory | None = None,
) -> TrainingData:
    """Label the decoded images. features: `colour_features` of training and validation images, for clusters.

    remarks: lines for the user about peculiar pictures.
    """
    _require_enough(config, source)
    notes = [*(note for note in source.training.notes if note), *remarks]
    if unreadable:
        notes.append(f"left out, unreadable: {len(unreadable)} images, the first is {unreadable[0]}")
    if source.labelled is not None:
        people = source.labelled.identities
        count, others = len(source.training.of_people(people)), len(source.training)
        notes.append(f"identity labels of {len(people)} people: {count} of {others} images; all others have none")
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


def _real_pairs(config: GanTraining, source: ImageSource) -> RealPairs | None:
    if source.labelled is None:
        return None
    return RealPairs(source.training, source.labelled.identities, config.pair_cameras == "different")


def _require_enough(config: GanTraining, source: ImageSource) -> None:
    _real_pairs(config, source)
    if len(source.training) < config.batch:
        raise InputError(
            f"--batch {config.batch} is more than the {len(source.training)} training images in {config.data}"
        )


def _labels(config: GanTraining, source: ImageSource, features: np.ndarray | None) -> Labels:
    # Labels of validation images must have the same meaning: otherwise the losses on them would mean nothing.
    all_images = dataclasses.replace(source, training=joined([source.training, source.validation]))
    return labels(all_images, config.condition, features=features, clusters=config.clusters, seed=config.seed)
