"""The selection of an export: the images of a run that it takes, their identities and cameras, and their bytes."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.exports.manifest import RunManifest
from datasets.people.decoding import DecodingError, decode
from datasets.runs.plan import Unit
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError

FORMATS = ("market1501", "webdataset", "folder", "table", "fiftyone", "huggingface")
FILES_OF_MANY = ("webdataset", "table")
SPLITS = ("train", "query", "gallery")
MOST_IMAGES_A_FILE = 10_000
MOST_PIXEL_BYTES_A_FILE = 1_000_000_000  # encoded, a file is a quarter of that or less


@dataclasses.dataclass(frozen=True)
class Options:
    """All options that decide the bytes of an export of a run. Raises InputError for bad values."""

    format: str
    per_person: Annotated[int | None, Bound(ge=1)] = None
    people: Annotated[int | None, Bound(ge=1)] = None
    first_identity: Annotated[
        int | None, Bound(ge=1, note="in Market-1501 the identity 0 means distractors and -1 means junk")
    ] = None
    compact_ids: bool = False
    camera: Annotated[int, Bound(ge=1)] = 1
    cameras: Annotated[int, Bound(ge=1)] = 1
    test_people: Annotated[int, Bound(ge=0)] = 0
    jpeg_quality: Annotated[int | None, Bound(ge=1, le=100)] = None
    images_per_file: Annotated[int | None, Bound(ge=1)] = None
    recipe: int = 1  # a change of this code that changes bytes must increase this number

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"--format {self.format}: give {', '.join(FORMATS)}")
        check_bounds(self)
        if self.test_people and self.format != "market1501":
            raise InputError(f"--test-people {self.test_people}: only --format market1501 has query and gallery")
        if self.images_per_file and self.format not in FILES_OF_MANY:
            raise InputError(
                f"--images-per-file {self.images_per_file}: it is an option of {' and '.join(FILES_OF_MANY)}"
            )

    def completed(self, image_bytes: int, image_format: str) -> "Options":
        """These options, completed for a run whose images have `image_bytes` raw bytes and are stored as jpeg or png.

        Raises InputError if images must be converted and no option asks for it, and if an option asks for a conversion
        that cannot be done.
        """
        if image_format == "jpeg" and self.jpeg_quality is not None:
            raise InputError(
                f"--jpeg-quality {self.jpeg_quality}: the run's images are JPEG, whose bytes do not change; leave the "
                "option out"
            )
        if image_format == "png" and self.jpeg_quality is None and self.format == "market1501":
            raise InputError(
                "the run's images are PNG, and loaders of Market-1501 trees read *.jpg only: give --jpeg-quality 95 to "
                "convert them"
            )
        if self.images_per_file or self.format not in FILES_OF_MANY:
            return self
        fitting = max(1, min(MOST_IMAGES_A_FILE, MOST_PIXEL_BYTES_A_FILE // image_bytes))
        return dataclasses.replace(self, images_per_file=fitting)


@dataclasses.dataclass(frozen=True)
class People:
    """Every person in a manifest, ascending, and what an export takes of each. Arrays are [P] int64.

    seed: -1 for people without a seed. kept: the number of images that passed the filters. images: the number of
    exported images. identity: 0 for people without an exported image. split: an index into SPLITS (train, or query for
    people of the test splits). names: the data set's names of real people; empty for artificial people.
    """

    person: np.ndarray
    seed: np.ndarray
    kept: np.ndarray
    images: np.ndarray
    identity: np.ndarray
    split: np.ndarray
    cameras: frozenset[int]  # the cameras of the run's kept images
    cameraless: bool  # whether some kept images have no camera
    names: tuple[str, ...] = ()

    @property
    def exported(self) -> np.ndarray:
        """[P] bool: whether the person has an image in the export."""
        return self.images > 0

    def short(self, images_per_person: int) -> np.ndarray:
        """[P] bool: whether the person has fewer kept images; False for people after the last exported person."""
        last = np.flatnonzero(self.exported)[-1]
        return (self.kept < images_per_person) & (np.arange(len(self.person)) <= last)


def assign(manifest: RunManifest, options: Options) -> People:
    """Count the kept images of every person and give identities to people with images.

    Person i becomes `first_identity` + i, by default 1 + i. With `compact_ids` the people with images are numbered one
    after the other. Without both options, variants of real people keep their numbers in the data set, so that exported
    images can be added to the pictures of the data set. Raises InputError if no image is kept, and if there cannot be
    so many test people.
    """
    columns: list[list[np.ndarray]] = [[], [], []]
    cameras: set[int | None] = set()
    for table in manifest.pieces(["verdict", "seed", "camera"]):
        person, is_kept = table["person"].to_numpy(), _kept(table)
        starts = np.flatnonzero(np.diff(person, prepend=person[0] - 1))
        seeds = table["seed"].fill_null(-1).to_numpy()
        counts = np.add.reduceat(is_kept, starts)
        for column, values in zip(columns, (person[starts], seeds[starts], counts), strict=True):
            column.append(values)
        cameras.update(table["camera"].filter(pa.array(is_kept)).unique().to_pylist())
    person, seed, kept = (np.concatenate(column).astype(np.int64) if column else np.zeros(0, int) for column in columns)
    images = np.minimum(kept, options.per_person or np.iinfo(np.int64).max)
    if options.people:
        images[np.cumsum(images > 0) > options.people] = 0
    count = int((images > 0).sum())
    if not count:
        raise InputError(f"nothing to export: {manifest.address} holds no kept image")
    order = np.cumsum(images > 0)  # 1 for the first person with images
    names = (
        tuple(manifest.run.plan.configuration.origins[number].name for number in person)
        if manifest.run.plan.configuration.origins
        else ()
    )
    first, numbers = options.first_identity or 1, _numbers_of_names(names)
    if options.compact_ids:
        identity = first + order - 1
    else:
        identity = numbers if options.first_identity is None and numbers is not None else first + person
    test = order > count - options.test_people
    people = People(
        person, seed, kept, images, np.where(images > 0, identity, 0), np.where(test, SPLITS.index("query"), 0),
        frozenset(camera for camera in cameras if camera is not None), None in cameras, names,
    )  # fmt: skip
    _check_test_people(options, people, count)
    return people


def _numbers_of_names(names: tuple[str, ...]) -> np.ndarray | None:
    """The names as numbers [P] int64. None unless all are numbers above 0 in ascending order, as in re-ID data sets."""
    if not names or not all(name.isascii() and name.isdecimal() and len(name) < 10 for name in names):
        return None
    numbers = np.array([int(name) for name in names], np.int64)
    return numbers if numbers[0] > 0 and (np.diff(numbers) > 0).all() else None


def _check_test_people(options: Options, people: People, count: int) -> None:
    if options.test_people >= count:
        raise InputError(f"--test-people {options.test_people}: the export has {count} people; leave some to train on")
    if options.test_people and len(cameras_of(options, people)) < 2:
        raise InputError(
            f"--test-people {options.test_people}: only matches across cameras count, and every image has the same "
            "camera; give --cameras 2 or more"
        )


def cameras_of(options: Options, people: People) -> set[int]:
    """The camera numbers that an export may contain."""
    numbers = range(options.camera, options.camera + options.cameras) if people.cameraless else ()
    return {*people.cameras, *numbers}


def _kept(table: pa.Table) -> np.ndarray:
    return pc.call_function("equal", [table["verdict"], "kept"]).fill_null(False).to_numpy()  # [n] bool


@dataclasses.dataclass(frozen=True)
class Piece:
    """The images that an export takes from one unit.

    rows: their indices in the unit's shard, [n] int64. table [n rows]: the selected columns of the manifest, with
    `camera` filled, and the columns `identity` and `split` (one of SPLITS).
    """

    unit: Unit
    rows: np.ndarray
    table: pa.Table

    def slice(self, first: int, count: int) -> "Piece":
        """`count` images from index `first` on."""
        return Piece(self.unit, self.rows[first : first + count], self.table.slice(first, count))


def select(manifest: RunManifest, options: Options, people: People, columns: list[str]) -> Iterator[Piece]:
    """The images of an export in the order of the plan: one piece for each unit with such images.

    The export takes the first kept images of each person, by variant. Images without a camera get the camera `camera` +
    variant modulo `cameras`. It depends on the variant alone, so other thresholds never change an image's camera.
    """
    units, variants = manifest.units(), manifest.run.plan.configuration.variants
    for table in manifest.pieces([*columns, "verdict", "camera"]):
        person, variant, is_kept = table["person"].to_numpy(), table["variant"].to_numpy(), _kept(table)
        index = np.searchsorted(people.person, person)
        first = np.searchsorted(person, person)  # row where the person begins
        total = np.cumsum(is_kept)
        rank = total - (total - is_kept)[first]  # among the kept images of the person, from 1
        is_exported = is_kept & (rank <= people.images[index])
        split = np.where(people.split[index] == 0, 0, np.where(rank == 1, 1, 2))
        cameras = pa.array(options.camera + variant % options.cameras)
        table = table.set_column(
            table.column_names.index("camera"), "camera", pc.call_function("coalesce", [table["camera"], cameras])
        ).append_column("identity", pa.array(people.identity[index]))
        table = table.append_column("split", pa.array(np.array(SPLITS)[split]))
        positions = np.flatnonzero(is_exported)
        numbers = table["unit"].to_numpy()[positions]
        for rows in np.split(positions, np.flatnonzero(np.diff(numbers)) + 1) if len(positions) else ():
            number = table["unit"][int(rows[0])].as_py()
            unit = next((unit for unit in units if unit.unit == number), Unit(number, 0, 0))
            shard_rows = (person[rows] - unit.first_person) * variants + variant[rows]
            if shard_rows.min() < 0 or shard_rows.max() >= unit.people * variants:
                raise InputError(
                    f"{manifest.address} belongs to another plan than plan.json beside it: derive it again"
                )
            yield Piece(unit, shard_rows, table.take(pa.array(rows)))


# ---- The bytes of the images: those of the run's shards, or converted from PNG to JPEG if the options ask for it.


@dataclasses.dataclass(frozen=True)
class ExportImages:
    """Reads the images of a piece. It never encodes JPEG again: `jpeg_quality` is for runs of PNG images only."""

    manifest: RunManifest
    jpeg_quality: int | None = None

    @property
    def suffix(self) -> str:
        """jpg or png."""
        return "png" if self.manifest.run.plan.configuration.format == "png" and self.jpeg_quality is None else "jpg"

    def read(self, piece: Piece, indices: Sequence[int] | None = None) -> list[bytes]:
        """The bytes of the images of a piece, of all or of those at `indices`, in that order.

        Raises InputError if the shard is missing or damaged, or an image cannot be converted.
        """
        rows = piece.rows if indices is None else piece.rows[list(indices)]
        contents = self.manifest.images(piece.unit, rows)
        if self.jpeg_quality is None:
            return contents
        try:
            return [_to_jpeg(image, self.jpeg_quality) for image in contents]
        except DecodingError as error:
            raise InputError(
                f"unit {piece.unit.unit} of {self.manifest.run.output.root_address}: {error}; remove its shard and run "
                "jobs/generate.py again"
            ) from error


def _to_jpeg(image: bytes, quality: int) -> bytes:
    pixels = decode(image)  # [H, W, 3] uint8 RGB
    _, content = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])  # OpenCV takes BGR
    return content.tobytes()
