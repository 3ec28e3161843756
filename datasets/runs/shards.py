"""Shards: the Parquet file of one unit, with its images, their origins and scores, or with its pictures' codes."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.runs.plan import PLAN_FILE, Plan, Unit
from datasets.runs.run import GenerationRun, shard_name
from datasets.storage.output import Output
from passersby.errors import InputError

SCHEMA_VERSION = "1"
ADVICE = "remove it and run the same command again"

# A value is null where its stage did not run. Later stages fill columns and never add any.
SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("person", pa.int64()),
        ("variant", pa.int64()),  # 0 is the base image
        ("source", pa.string()),  # seed | latent
        ("source_path", pa.string()),
        ("camera", pa.int64()),
        ("seed", pa.int64()),
        ("mix_seed", pa.int64()),
        ("method", pa.string()),  # mix | interpolate
        ("mix_layers", pa.list_(pa.int64())),
        ("amount", pa.float32()),
        ("truncation_psi", pa.float32()),
        ("image", pa.binary()),  # JPEG or PNG
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("status", pa.string()),  # ok | error
        ("message", pa.string()),
        ("detector_score", pa.float32()),
        ("ssim", pa.float32()),
        ("reference_variant", pa.int64()),
        ("identity_cosine", pa.float32()),
        ("nearest_identity", pa.int64()),
        ("identity_margin", pa.float32()),
    ]
)


@dataclasses.dataclass(frozen=True)
class ShardKind:
    """The columns of a shard, with one row an image, and the column that cannot be compressed: pictures or codes.

    random: that column, as Parquet names its values. Its values look random to a compressor, so compression, a
    dictionary and statistics would only cost time and room.
    """

    schema: pa.Schema
    random: str

    @functools.cached_property
    def leaves(self) -> list[str]:
        """The names that Parquet gives to the values of the columns."""
        return [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in self.schema]

    def writer(self, target: str | pa.NativeFile, metadata: Mapping[str, str]) -> pq.ParquetWriter:
        """A writer of tables of this kind to a path or an open file. Every page carries a checksum."""
        described = [name for name in self.leaves if name != self.random]
        compression = {name: "none" if name == self.random else "zstd" for name in self.leaves}
        return pq.ParquetWriter(
            target,
            self.schema.with_metadata({"schema_version": SCHEMA_VERSION, **metadata}),
            compression=compression,  # pyright: ignore[reportArgumentType]  # pyarrow has no stubs: one for each column too
            use_dictionary=described,  # pyright: ignore[reportArgumentType]  # and columns by name
            write_statistics=described,  # pyright: ignore[reportArgumentType]  # and columns by name
            write_page_checksum=True,
        )


IMAGES = ShardKind(SCHEMA, random="image")


def shard_table(unit: int, images: pa.Table, kind: ShardKind = IMAGES) -> pa.Table:
    """Return the images of a unit with every column of the schema; columns missing in `images` are null.

    images: n rows, with columns of the schema in any order. Raises ValueError for a column that the schema lacks.
    """
    unknown = set(images.column_names) - set(kind.schema.names)
    if unknown:
        raise ValueError(f"columns that no shard has: {', '.join(sorted(unknown))}")
    count = images.num_rows
    columns = {name: images[name] for name in images.column_names} | {"unit": pa.array([unit] * count, pa.int64())}
    full = [
        columns[field.name].cast(field.type) if field.name in columns else pa.nulls(count, field.type)
        for field in kind.schema
    ]
    return pa.table(full, schema=kind.schema)


def write_shard(output: Output, plan_hash: str, unit: int, table: pa.Table, kind: ShardKind = IMAGES) -> None:
    """Write the rows of a unit, which `shard_table` has made.

    Equal rows give equal bytes: a unit made twice is the same file. Raises InputError when it cannot be written.
    """
    with output.replacing(shard_name(unit)) as path:
        encode_shard(table, plan_hash, path, kind)


def encode_shard(table: pa.Table, plan_hash: str, target: str | pa.NativeFile, kind: ShardKind = IMAGES) -> None:
    """Write a shard's bytes to a path or an open file."""
    with kind.writer(target, {"plan_hash": plan_hash}) as writer:
        writer.write_table(table.cast(writer.schema))  # rows read from a file have other names for the items of lists


def read_shard(run: GenerationRun, unit: Unit, columns: list[str] | None = None) -> pa.Table:
    """The rows of a unit's shard, all columns or the named ones, in the schema's order.

    Raises InputError, which names the shard, when the file is missing, and as `decode_shard` does.
    """
    name = shard_name(unit.unit)
    with run.output.open(name) as file:
        return decode_shard(file, run.output.address(name), run.plan, unit, columns)


def decode_shard(
    file: pa.NativeFile,
    address: str,
    plan: Plan,
    unit: Unit,
    columns: list[str] | None = None,
    checksums: bool = False,
) -> pa.Table:
    """The rows of a unit from an open shard; see `read_shard`. checksums: whether to compare the pages' checksums.

    Raises InputError, which names `address`, when the shard is damaged, of another schema or plan, or does
    not hold exactly the images that the plan says.
    """
    columns_to_read = [c for c in SCHEMA.names if columns is None or c in {*columns, "person", "variant"}]
    table = decode_rows(file, address, plan.configuration.hash, IMAGES, columns_to_read, checksums)
    people = range(unit.first_person, unit.first_person + unit.people)
    variants = range(plan.configuration.variants)
    expected = [(person, variant) for person in people for variant in variants]
    if list(zip(table["person"].to_pylist(), table["variant"].to_pylist(), strict=True)) != expected:
        raise InputError(
            f"{address} holds {table.num_rows} images that are not the {len(expected)} of its unit: {ADVICE}"
        )
    return table if columns is None else table.select([c for c in SCHEMA.names if c in columns])


def decode_rows(
    file: pa.NativeFile,
    address: str,
    plan_hash: str,
    kind: ShardKind,
    columns: list[str] | None = None,
    checksums: bool = True,
) -> pa.Table:
    """The rows of an open shard of this kind, all columns or the named ones.

    Raises InputError, which names `address`, when the shard is damaged, or of another schema or plan.
    """
    try:
        parquet = pq.ParquetFile(file, page_checksum_verification=checksums)
        schema = parquet.schema_arrow
        metadata = schema.metadata or {}
        version, stored_hash = (metadata.get(key, b"none").decode() for key in (b"schema_version", b"plan_hash"))
        if version != SCHEMA_VERSION:
            raise InputError(f"{address} has schema version {version}, not {SCHEMA_VERSION}: {ADVICE}")
        if stored_hash != plan_hash:
            raise InputError(f"{address} belongs to another plan than plan.json beside it: {ADVICE}")
        if not schema.equals(kind.schema):
            raise InputError(f"{address} has other columns than schema version {SCHEMA_VERSION}: {ADVICE}")
        return parquet.read(columns=columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{address} is damaged ({reason}): {ADVICE}") from error


# ---- A worker's access to the run's folder, and its reports to the driver.


class WorkerFolder:
    """The folder of a run on a worker's machine, which may be another machine than the driver's."""

    def __init__(self, address: str, plan_hash: str):
        self.output, self.plan_hash = Output(address), plan_hash
        self._seen = False

    def problem(self, write: Callable[[], None]) -> str | None:
        """Call `write`. Returns None, or the reason why the file could not be written.

        The reason is data and no exception: the user can mend it (no space, no permission), and reads one line
        instead of a worker's traceback.
        """
        try:
            self._check()
            write()
        except InputError as error:
            return str(error)
        return None

    def _check(self) -> None:
        # The driver writes the plan first. A node that does not see the plan would write to a disk of its own.
        if self._seen:
            return
        try:
            stored = json.loads(self.output.read(PLAN_FILE) or b"{}")["hash"]
        except (ValueError, KeyError, TypeError):
            stored = None
        if stored != self.plan_hash:
            raise InputError(
                f"a worker does not see {self.output.address(PLAN_FILE)} as the driver wrote it: give --out a folder "
                "that all nodes share, or a URI such as s3://bucket/run"
            )
        self._seen = True


def unit_report(
    batch: pa.Table, counts: Mapping[str, int], stages: Sequence[str], start: float, problem: str | None
) -> pa.Table:
    """The small row that a worker sends to the driver after it has written a unit.

    Its columns: counts as int64; seconds_* of every stage as float64 (0.0 where the stage did not run);
    problem as text or null. start: the `time.perf_counter` at which the last stage, the writer, began.
    """
    names = [f"seconds_{stage}" for stage in stages]
    seconds = {name: batch[name][0].as_py() for name in names if name in batch.column_names}
    seconds[names[-1]] = time.perf_counter() - start
    return pa.table(
        {name: pa.array([value], pa.int64()) for name, value in counts.items()}
        | {name: pa.array([seconds.get(name, 0.0)], pa.float64()) for name in names}
        | {"problem": pa.array([problem], pa.string())}
    )
