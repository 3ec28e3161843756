"""Shards of latents: the one file that a unit of an inversion becomes, and the table that is derived from all."""

import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.latents.plan import WHO, InversionConfiguration, InversionRun, InversionUnit
from datasets.latents.table import LATENTS_FILE, SCHEMA, WHO_SCHEMA
from datasets.runs.manifest import in_groups
from datasets.runs.run import shard_name
from datasets.runs.shards import ADVICE, ShardKind, decode_rows
from passersby.errors import InputError
from passersby.options import Json

LATENTS = ShardKind(SCHEMA, random="w.list.element")
WHO_LATENTS = ShardKind(WHO_SCHEMA, random="w.list.element")


def kind_of(configuration: InversionConfiguration) -> ShardKind:
    """The columns of the shards of an inversion, and of its table."""
    return WHO_LATENTS if configuration.refine == WHO else LATENTS


def read_latents_shard(run: InversionRun, unit: InversionUnit) -> pa.Table:
    """The rows of a unit's shard.

    Raises InputError, which names the shard, when it is missing, damaged, of another plan, or does not hold
    exactly the pictures of the plan.
    """
    name = shard_name(unit.unit)
    address = run.output.address(name)
    with run.output.open(name) as file:
        table = decode_rows(file, address, run.hash, kind_of(run.plan.configuration))
    people = range(unit.first_person, unit.first_person + unit.people)
    expected = [person for person in people for _ in range(run.plan.counts[person])]
    if table["person"].to_pylist() != expected:
        raise InputError(
            f"{address} holds {table.num_rows} pictures that are not the {len(expected)} of its unit: {ADVICE}"
        )
    return table


def write_latents(run: InversionRun, about: Mapping[str, Json]) -> pa.Table:
    """Derive OUT/latents.parquet from the shards. Returns its rows without the codes.

    Rows have the order of the plan. Shards are read some at a time, so memory does not grow with their number.
    Raises InputError for a shard that is damaged or does not match the plan.
    """
    metadata = {"plan_hash": run.hash, "about": json.dumps(about, sort_keys=True, allow_nan=False)}
    small, kind = [], kind_of(run.plan.configuration)
    vectors = [field.name for field in kind.schema if pa.types.is_list(field.type)]
    with run.output.replacing(LATENTS_FILE) as path, kind.writer(path, metadata) as writer:
        for table in in_groups(run.plan.units(), lambda unit: read_latents_shard(run, unit)):
            writer.write_table(table.cast(writer.schema))
            small.append(table.drop_columns(vectors))
    return pa.concat_tables(small)


def is_complete(run: InversionRun) -> bool:
    """Whether OUT/latents.parquet exists with all rows of this plan. Reads only its last kilobytes."""
    if not run.output.exists(LATENTS_FILE):
        return False
    with run.output.open(LATENTS_FILE) as file:
        try:
            parquet = pq.ParquetFile(file)
        except (pa.ArrowException, OSError):
            return False  # the table is damaged; it can be derived again
        stored_hash = (parquet.schema_arrow.metadata or {}).get(b"plan_hash", b"").decode()
        return stored_hash == run.hash and parquet.metadata.num_rows == run.plan.pictures


def count_errors(table: pa.Table) -> int:
    """The number of pictures that could not be inverted."""
    return pc.call_function("sum", [pc.call_function("not_equal", [table["status"], "ok"])]).as_py() or 0
