"""Shards of latents: the one file that a unit of an inversion becomes, and the table that is derived from all."""

import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.latents.plan import InversionPlan, InversionUnit
from datasets.latents.table import LATENTS_FILE, SCHEMA, SCHEMA_VERSION
from datasets.runs.manifest import READERS, SHARDS_AT_ONCE
from datasets.runs.shards import shard_name
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.options import Json

# Codes look random to a compressor, and would only cost time there.
_LEAVES = [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in SCHEMA]
_DESCRIBED = [name for name in _LEAVES if not name.startswith("w.")]
_COMPRESSION = {name: "zstd" if name in _DESCRIBED else "none" for name in _LEAVES}


def latents_table(unit: int, pictures: pa.Table) -> pa.Table:
    """The pictures of a unit (n rows, columns of SCHEMA in any order, some absent) with every column of SCHEMA."""
    count = pictures.num_rows
    columns = {name: pictures[name] for name in pictures.column_names} | {"unit": pa.array([unit] * count, pa.int64())}
    full = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(count, f.type) for f in SCHEMA]
    return pa.table(full, schema=SCHEMA)


def write_latents_shard(output: Output, plan_hash: str, unit: int, table: pa.Table) -> None:
    """Write the rows of a unit. Equal rows give equal bytes. Raises InputError when it cannot be written."""
    metadata = {"schema_version": SCHEMA_VERSION, "plan_hash": plan_hash}
    with output.replacing(shard_name(unit)) as path, _writer(path, metadata) as writer:
        writer.write_table(table.cast(writer.schema))


def read_latents_shard(output: Output, plan: InversionPlan, unit: InversionUnit) -> pa.Table:
    """The rows of a unit's shard.

    Raises InputError, which names it, when it is missing, damaged, of another plan, or does not hold exactly the
    pictures that the plan says.
    """
    name = shard_name(unit.unit)
    address, advice = output.address(name), "remove it and run the same command again"
    with output.open(name) as file:
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            schema = parquet.schema_arrow
            metadata = schema.metadata or {}
            found = tuple(metadata.get(key, b"none").decode() for key in (b"schema_version", b"plan_hash"))
            if found != (SCHEMA_VERSION, plan.configuration.hash) or not schema.equals(SCHEMA):
                raise InputError(f"{address} belongs to another plan than plan.json beside it: {advice}")
            table = parquet.read()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{address} is damaged ({reason}): {advice}") from error
    people = range(unit.first_person, unit.first_person + unit.people)
    expected = [person for person in people for _ in range(plan.counts[person])]
    if table["person"].to_pylist() != expected:
        raise InputError(
            f"{address} holds {table.num_rows} pictures that are not the {len(expected)} of its unit: {advice}"
        )
    return table


def write_latents(output: Output, plan: InversionPlan, about: Mapping[str, Json]) -> pa.Table:
    """Derive OUT/latents.parquet from the shards; returns its rows without the codes.

    Rows stand in the order of the plan. Shards are read some at a time, so memory does not grow with their number.
    Raises InputError for a shard that is damaged or does not match the plan.
    """
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "plan_hash": plan.configuration.hash,
        "about": json.dumps(about, sort_keys=True, allow_nan=False),
    }
    small = []
    with output.replacing(LATENTS_FILE) as path, _writer(path, metadata) as writer:
        for table in _groups(output, plan):
            writer.write_table(table.cast(writer.schema))
            small.append(table.drop_columns(["w"]))
    return pa.concat_tables(small)


def _writer(path: str, metadata: Mapping[str, str]) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        SCHEMA.with_metadata(metadata),
        compression=_COMPRESSION,  # pyright: ignore[reportArgumentType]  # pyarrow has no stubs: one for each column too
        use_dictionary=_DESCRIBED,  # pyright: ignore[reportArgumentType]  # and columns by name
        write_statistics=_DESCRIBED,  # pyright: ignore[reportArgumentType]  # and columns by name
        write_page_checksum=True,
    )


def _groups(output: Output, plan: InversionPlan) -> Iterator[pa.Table]:
    units = plan.units()
    with ThreadPoolExecutor(READERS) as readers:
        while group := list(itertools.islice(units, SHARDS_AT_ONCE)):
            yield pa.concat_tables(readers.map(lambda unit: read_latents_shard(output, plan, unit), group))


def is_complete(output: Output, plan: InversionPlan) -> bool:
    """Whether OUT/latents.parquet is there with all rows of this plan. Reads its last kilobytes."""
    if not output.exists(LATENTS_FILE):
        return False
    with output.open(LATENTS_FILE) as file:
        try:
            parquet = pq.ParquetFile(file)
        except (pa.ArrowException, OSError):
            return False  # it is derived, and can be derived again
        found = (parquet.schema_arrow.metadata or {}).get(b"plan_hash", b"").decode()
        return found == plan.configuration.hash and parquet.metadata.num_rows == plan.pictures


def count_errors(table: pa.Table) -> int:
    """How many pictures could not be inverted."""
    return pc.call_function("sum", [pc.call_function("not_equal", [table["status"], "ok"])]).as_py() or 0
