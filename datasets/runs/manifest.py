"""The manifest: every image's row without its pixels, with a verdict, derived from shards and thresholds."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.runs.plan import Unit
from datasets.runs.run import GenerationRun, shard_name
from datasets.runs.shards import SCHEMA, SCHEMA_VERSION, read_shard
from datasets.runs.verdicts import VERDICTS, Thresholds, add_counts, count_verdicts, verdicts
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.files import manifest_name, manifest_rows

COLUMNS = [name for name in SCHEMA.names if name != "image"]
MANIFEST_SCHEMA = (
    pa.schema([SCHEMA.field(name) for name in COLUMNS])
    .append(pa.field("verdict", pa.string()))
    .append(pa.field("shard", pa.string()))
)
U = TypeVar("U")
SHARDS_AT_ONCE = 64  # and in one row group: few enough for any memory, enough for fast reading
READERS = 8  # object stores answer slowly and many at a time


def write_manifest(
    run: GenerationRun, units: Iterable[Unit], thresholds: Thresholds, name: str | None = None
) -> dict[str, int]:
    """Derive a manifest from the shards of `units`, and return the number of images with each verdict.

    Rows have the order of the plan; `shard` is the path below the output. Shards are read some at a
    time, so memory does not grow with their number. Raises InputError for a shard that is damaged or does
    not match the plan.
    """
    counts = dict.fromkeys(VERDICTS, 0)
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "plan_hash": run.hash,
        "thresholds": json.dumps(dataclasses.asdict(thresholds)),
    }
    with (
        run.output.replacing(manifest_name(name)) as path,
        pq.ParquetWriter(path, MANIFEST_SCHEMA.with_metadata(metadata), compression="zstd") as writer,
    ):
        for table in in_groups(iter(units), lambda unit: read_shard(run, unit, COLUMNS)):
            column = verdicts(table, thresholds)
            counts = add_counts(counts, count_verdicts(column))
            shards = pa.array([shard_name(unit) for unit in table["unit"].to_pylist()], pa.string())
            columns = [*table.columns, column, shards]
            writer.write_table(pa.table(columns, schema=MANIFEST_SCHEMA.with_metadata(metadata)))
    return counts


def thresholds_of(table: pa.Table) -> Thresholds:
    """The thresholds of a manifest's verdicts. Raises InputError where its metadata do not hold them."""
    try:
        return Thresholds(**json.loads((table.schema.metadata or {})[b"thresholds"]))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError("the manifest does not say its thresholds: run the command that made it again") from error


def in_groups(units: Iterator[U], read: Callable[[U], pa.Table]) -> Iterator[pa.Table]:
    """The rows of all units, one table for SHARDS_AT_ONCE units. READERS shards are read at a time."""
    with ThreadPoolExecutor(READERS) as readers:
        while group := list(itertools.islice(units, SHARDS_AT_ONCE)):
            yield pa.concat_tables(readers.map(read, group))


def read_manifest(output: Output, name: str | None = None, columns: list[str] | None = None) -> pa.Table:
    """A manifest's rows, all columns or the named ones. Raises InputError when the file is missing or damaged."""
    with output.open(manifest_name(name)) as file:
        return manifest_rows(file, output.address(manifest_name(name)), columns)
