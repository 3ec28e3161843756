"""What a unit becomes: a shard, the Parquet file of its images, origins and scores; or a record of its failure."""

import dataclasses
import json
import re
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.runs.plan import Plan, Unit
from datasets.storage.output import Output
from passersby.errors import InputError

SCHEMA_VERSION = "1"
SHARD_FOLDER = "shards"
SHARD_NAME = re.compile(rf"^{SHARD_FOLDER}/(\d{{3}})/unit-(\d{{6}})\.parquet$")

# Null where a stage did not run: later stages fill columns, they never add any.
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


def shard_name(unit: int) -> str:
    """Name of a unit's shard below the output: a folder for each 1000 units."""
    return f"{SHARD_FOLDER}/{unit // 1000:03d}/unit-{unit:06d}.parquet"


def finished_units(output: Output) -> set[int]:
    """The units whose shards exist. One listing, and nothing is opened: the file's existence is the
    commit."""
    matches = (SHARD_NAME.match(name) for name in output.list(SHARD_FOLDER))
    return {int(match[2]) for match in matches if match and int(match[1]) == int(match[2]) // 1000}


def shard_table(unit: int, images: pa.Table) -> pa.Table:
    """The images of a unit (n rows, columns of SCHEMA in any order, some absent) with every column of SCHEMA.

    Raises ValueError for a column that the schema lacks.
    """
    unknown = set(images.column_names) - set(SCHEMA.names)
    if unknown:
        raise ValueError(f"columns that no shard has: {', '.join(sorted(unknown))}")
    count = images.num_rows
    columns = {name: images[name] for name in images.column_names} | {"unit": pa.array([unit] * count, pa.int64())}
    full = [
        columns[field.name].cast(field.type) if field.name in columns else pa.nulls(count, field.type)
        for field in SCHEMA
    ]
    return pa.table(full, schema=SCHEMA)


def write_shard(output: Output, plan_hash: str, unit: int, table: pa.Table) -> None:
    """Write the rows of a unit, as `shard_table` makes them.

    Equal rows give equal bytes: a unit made twice is the same file. Raises InputError when it cannot be
    written.
    """
    with output.replacing(shard_name(unit)) as path:
        encode_shard(table, plan_hash, path)


def encode_shard(table: pa.Table, plan_hash: str, target: str | pa.NativeFile) -> None:
    """A shard's bytes, to a path or an open file. Every page carries a checksum."""
    metadata = {"schema_version": SCHEMA_VERSION, "plan_hash": plan_hash}
    # Pictures are compressed already; a dictionary or statistics of them would only cost room.
    compression = {name: "none" if name == "image" else "zstd" for name in _leaves(SCHEMA)}
    described = [name for name in _leaves(SCHEMA) if name != "image"]
    pq.write_table(
        table.cast(SCHEMA.with_metadata(metadata)),  # rows that were read name the items of lists otherwise
        target,
        compression=compression,  # pyright: ignore[reportArgumentType]  # pyarrow has no stubs: one for each column too
        use_dictionary=described,  # pyright: ignore[reportArgumentType]  # and columns by name
        write_statistics=described,  # pyright: ignore[reportArgumentType]  # and columns by name
        write_page_checksum=True,
    )


def _leaves(schema: pa.Schema) -> list[str]:
    return [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in schema]


def read_shard(output: Output, plan: Plan, unit: Unit, columns: list[str] | None = None) -> pa.Table:
    """The rows of a unit's shard, all columns or the named ones, in the schema's order.

    Raises InputError, which names the shard, when it is missing, and where `decode_shard` does.
    """
    name = shard_name(unit.unit)
    with output.open(name) as file:
        return decode_shard(file, output.address(name), plan, unit, columns)


def decode_shard(
    file: pa.NativeFile,
    address: str,
    plan: Plan,
    unit: Unit,
    columns: list[str] | None = None,
    checksums: bool = False,
) -> pa.Table:
    """The rows of a unit out of an open shard; see `read_shard`. `checksums`: compare those of the pages read.

    Raises InputError, which names `address`, when the shard is damaged, of another schema or plan, or does
    not hold exactly the images that the plan says.
    """
    advice = "remove it and run the same command again"
    try:
        parquet = pq.ParquetFile(file, page_checksum_verification=checksums)
        schema = parquet.schema_arrow
        metadata = schema.metadata or {}
        version, plan_hash = (metadata.get(key, b"none").decode() for key in (b"schema_version", b"plan_hash"))
        if version != SCHEMA_VERSION:
            raise InputError(f"{address} has schema version {version}, not {SCHEMA_VERSION}: {advice}")
        if plan_hash != plan.configuration.hash:
            raise InputError(f"{address} belongs to another plan than plan.json beside it: {advice}")
        if not schema.equals(SCHEMA):
            raise InputError(f"{address} has other columns than schema version {SCHEMA_VERSION}: {advice}")
        wanted = [c for c in SCHEMA.names if columns is None or c in {*columns, "person", "variant"}]
        table = parquet.read(columns=wanted)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{address} is damaged ({reason}): {advice}") from error
    people = range(unit.first_person, unit.first_person + unit.people)
    variants = range(plan.configuration.variants)
    expected = [(person, variant) for person in people for variant in variants]
    if list(zip(table["person"].to_pylist(), table["variant"].to_pylist(), strict=True)) != expected:
        raise InputError(
            f"{address} holds {table.num_rows} images that are not the {len(expected)} of its unit: {advice}"
        )
    return table if columns is None else table.select([c for c in SCHEMA.names if c in columns])


# ---- Units that failed for good: one record each below OUT/failed, for people and for the next run.

FAILED_FOLDER = "failed"
_NAME = re.compile(rf"^{FAILED_FOLDER}/unit-(\d{{6}})\.json$")


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a unit could not be made: the stage (its class), the reason in a line, and a traceback where there is one."""

    unit: int
    stage: str
    reason: str
    details: str = ""


def failure_name(unit: int) -> str:
    """Name of a unit's record below the output."""
    return f"{FAILED_FOLDER}/unit-{unit:06d}.json"


def write_failure(output: Output, failure: Failure) -> None:
    """Write a unit's record, in place of an older one."""
    output.write(failure_name(failure.unit), (json.dumps(dataclasses.asdict(failure), indent=2) + "\n").encode())


def failed_units(output: Output) -> set[int]:
    """The units that have a record: one listing."""
    return {int(match[1]) for name in output.list(FAILED_FOLDER) if (match := _NAME.match(name))}


def read_failure(output: Output, unit: int) -> Failure | None:
    """A unit's record, or None. Raises InputError when it is not one."""
    text = output.read(failure_name(unit))
    try:
        return None if text is None else Failure(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise InputError(f"{output.address(failure_name(unit))} is not a record of a failed unit: remove it") from error


def forget_failures(output: Output, units: Iterable[int]) -> None:
    """Remove the records of units that have been made after all."""
    for unit in units:
        output.remove(failure_name(unit))
