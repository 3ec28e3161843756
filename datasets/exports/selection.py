"""Which images of a run an export takes, which identities and cameras they get, and the bytes that are written."""

import dataclasses
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.exports.manifest import RunManifest
from datasets.people.market_tree import DecodingError, decode
from datasets.runs.plan import Unit
from passersby.errors import InputError
from passersby.options import flag

FORMATS = ("market1501", "webdataset", "folder", "table")
FILES_OF_MANY = ("webdataset", "table")
SPLITS = ("train", "query", "gallery")
MOST_IMAGES_A_FILE = 10_000
MOST_PIXEL_BYTES_A_FILE = 1_000_000_000  # encoded, a file is a quarter of that or less


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything that decides the bytes of an export, beside the run itself. Raises InputError for bad values."""

    format: str
    per_person: int | None = None
    people: int | None = None
    first_identity: int | None = None
    compact_ids: bool = False
    camera: int = 1
    cameras: int = 1
    test_people: int = 0
    jpeg_quality: int | None = None
    images_per_file: int | None = None
    recipe: int = 1  # raised whenever a change of this code changes bytes

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"--format {self.format}: give {', '.join(FORMATS)}")
        if self.first_identity is not None and self.first_identity < 1:
            raise InputError(
                f"--first-identity {self.first_identity}: give 1 or more; Market-1501 means distractors by 0 and junk "
                "by -1"
            )
        for name in ("per_person", "people", "camera", "cameras", "images_per_file"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{flag(name)} {value}: give 1 or more")
        if self.test_people < 0:
            raise InputError(f"--test-people {self.test_people}: give 0 or more")
        if self.test_people and self.format != "market1501":
            raise InputError(f"--test-people {self.test_people}: only --format market1501 has query and gallery")
        if self.images_per_file and self.format not in FILES_OF_MANY:
            raise InputError(f"--images-per-file {self.images_per_file}: it belongs to {' and '.join(FILES_OF_MANY)}")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise InputError(f"--jpeg-quality {self.jpeg_quality}: give 1 to 100")

    def completed(self, image_bytes: int, image_format: str) -> "Options":
        """These options for a run of images of so many raw bytes, stored as jpeg or png.

        Raises InputError where images would have to be converted and were not asked to be, or the reverse.
        """
        if image_format == "jpeg" and self.jpeg_quality is not None:
            raise InputError(
                f"--jpeg-quality {self.jpeg_quality}: the run's images are JPEG, whose bytes are passed on as they "
                "are; leave it away"
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
    """Every person that a manifest judges, ascending; what an export takes of each. Arrays of [P] int64.

    seed is -1 where there is none; kept counts what passed the filters, images what is exported; identity is 0
    where no image is; split is an index into SPLITS (train, or query for people of the test splits). names: what the
    data call the people of a run that was made from real ones, empty for artificial people.
    """

    person: np.ndarray
    seed: np.ndarray
    kept: np.ndarray
    images: np.ndarray
    identity: np.ndarray
    split: np.ndarray
    cameras: frozenset[int]  # stored with the kept images of the run
    cameraless: bool  # whether some kept images have none
    names: tuple[str, ...] = ()

    @property
    def exported(self) -> np.ndarray:
        """[P] bool: has at least one image in the export."""
        return self.images > 0

    def short(self, wanted: int) -> np.ndarray:
        """[P] bool: fewer than `wanted` kept images, among the people up to the last one exported."""
        last = np.flatnonzero(self.exported)[-1]
        return (self.kept < wanted) & (np.arange(len(self.person)) <= last)


def assign(manifest: RunManifest, options: Options) -> People:
    """Count the kept images of every person and give identities to those that have some.

    Person i becomes `first_identity` + i, by default 1 + i; with `compact_ids` the people who have images are numbered
    one after the other. Without either, variants of real people keep the numbers that their data set calls them by, so
    that they can lie beside its own pictures. Raises InputError when nothing is kept, and for test people that cannot
    be.
    """
    found: list[list[np.ndarray]] = [[], [], []]
    cameras: set[int | None] = set()
    for table in manifest.pieces(["verdict", "seed", "camera"]):
        person, kept = table["person"].to_numpy(), _kept(table)
        starts = np.flatnonzero(np.diff(person, prepend=person[0] - 1))
        seeds = table["seed"].fill_null(-1).to_numpy()
        for column, values in zip(found, (person[starts], seeds[starts], np.add.reduceat(kept, starts)), strict=True):
            column.append(values)
        cameras.update(table["camera"].filter(pa.array(kept)).unique().to_pylist())
    person, seed, kept = (np.concatenate(column).astype(np.int64) if column else np.zeros(0, int) for column in found)
    images = np.minimum(kept, options.per_person or np.iinfo(np.int64).max)
    if options.people:
        images[np.cumsum(images > 0) > options.people] = 0
    count = int((images > 0).sum())
    if not count:
        raise InputError(f"nothing to export: {manifest.address} holds no kept image")
    order = np.cumsum(images > 0)  # 1 for the first person with images
    names = (
        tuple(manifest.plan.configuration.origins[number].name for number in person)
        if manifest.plan.configuration.origins
        else ()
    )
    first, own = options.first_identity or 1, _own_numbers(names)
    if options.compact_ids:
        identity = first + order - 1
    else:
        identity = own if options.first_identity is None and own is not None else first + person
    test = order > count - options.test_people
    people = People(
        person, seed, kept, images, np.where(images > 0, identity, 0), np.where(test, SPLITS.index("query"), 0),
        frozenset(camera for camera in cameras if camera is not None), None in cameras, names,
    )  # fmt: skip
    _check_test_people(options, people, count)
    return people


def _own_numbers(names: tuple[str, ...]) -> np.ndarray | None:
    """[P] int64, where all names are numbers above 0 in ascending order, as those of re-ID data sets are; else None."""
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
    given = range(options.camera, options.camera + options.cameras) if people.cameraless else ()
    return {*people.cameras, *given}


def _kept(table: pa.Table) -> np.ndarray:
    return pc.call_function("equal", [table["verdict"], "kept"]).fill_null(False).to_numpy()  # [n] bool


@dataclasses.dataclass(frozen=True)
class Piece:
    """Images that an export takes out of one unit: `rows` are their indices in its shard, [n] int64.

    table [n rows]: the asked columns of the manifest, with `camera` filled, and `identity` and `split` (one of
    SPLITS).
    """

    unit: Unit
    rows: np.ndarray
    table: pa.Table

    def slice(self, first: int, count: int) -> "Piece":
        """Some of the images."""
        return Piece(self.unit, self.rows[first : first + count], self.table.slice(first, count))


def select(manifest: RunManifest, options: Options, people: People, columns: list[str]) -> Iterator[Piece]:
    """The images of an export in the order of the plan, one piece a unit that has any.

    Of each person the first images by variant that were kept. Images without a camera get `camera` + variant modulo
    `cameras`: it depends on the variant alone, so other thresholds never move an image to another camera.
    """
    units, variants = manifest.units(), manifest.plan.configuration.variants
    for table in manifest.pieces([*columns, "verdict", "camera"]):
        person, variant, kept = table["person"].to_numpy(), table["variant"].to_numpy(), _kept(table)
        index = np.searchsorted(people.person, person)
        first = np.searchsorted(person, person)  # row where the person begins
        total = np.cumsum(kept)
        rank = total - (total - kept)[first]  # among the kept images of the person, from 1
        chosen = kept & (rank <= people.images[index])
        split = np.where(people.split[index] == 0, 0, np.where(rank == 1, 1, 2))
        given = pa.array(options.camera + variant % options.cameras)
        table = table.set_column(
            table.column_names.index("camera"), "camera", pc.call_function("coalesce", [table["camera"], given])
        ).append_column("identity", pa.array(people.identity[index]))
        table = table.append_column("split", pa.array(np.array(SPLITS)[split]))
        here = np.flatnonzero(chosen)
        numbers = table["unit"].to_numpy()[here]
        for rows in np.split(here, np.flatnonzero(np.diff(numbers)) + 1) if len(here) else ():
            number = table["unit"][int(rows[0])].as_py()
            unit = next((unit for unit in units if unit.unit == number), Unit(number, 0, 0))
            places = (person[rows] - unit.first_person) * variants + variant[rows]
            if places.min() < 0 or places.max() >= unit.people * variants:
                raise InputError(
                    f"{manifest.address} belongs to another plan than plan.json beside it: derive it again"
                )
            yield Piece(unit, places, table.take(pa.array(rows)))


# ---- The bytes of the images: as the run's shards hold them, or converted from PNG to JPEG where the options say so.


@dataclasses.dataclass(frozen=True)
class ExportImages:
    """Reads the images of a piece. JPEG is never encoded again: `jpeg_quality` is for runs of PNG images only."""

    manifest: RunManifest
    jpeg_quality: int | None = None

    @property
    def suffix(self) -> str:
        """jpg or png."""
        return "png" if self.manifest.plan.configuration.format == "png" and self.jpeg_quality is None else "jpg"

    def read(self, piece: Piece, indices: Sequence[int] | None = None) -> list[bytes]:
        """The bytes of all images of a piece, or of those with the given indices, in that order.

        Raises InputError when the shard is missing or damaged, or an image cannot be converted.
        """
        rows = piece.rows if indices is None else piece.rows[list(indices)]
        found = self.manifest.images(piece.unit, rows)
        if self.jpeg_quality is None:
            return found
        try:
            return [_to_jpeg(image, self.jpeg_quality) for image in found]
        except DecodingError as error:
            raise InputError(
                f"unit {piece.unit.unit} of {self.manifest.run.root_address}: {error}; remove its shard and run "
                "jobs/generate.py again"
            ) from error


def _to_jpeg(image: bytes, quality: int) -> bytes:
    pixels = decode(image)  # [H, W, 3] uint8 RGB
    _, content = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])  # OpenCV takes BGR
    return content.tobytes()
