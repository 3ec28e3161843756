"""Read a finished run for an export: its manifest in pieces of whole units, and the images that the manifest names."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.runs.manifest import MANIFEST_SCHEMA, manifest_name
from datasets.runs.plan import Unit
from datasets.runs.run import GenerationRun
from datasets.runs.shards import read_shard
from passersby.errors import InputError

ORDER_COLUMNS = ["unit", "person", "variant"]


class RunManifest:
    """A manifest of a run of jobs/generate.py, and the shards of its rows.

    Raises InputError if there is no such manifest, and if the manifest is damaged or of another plan. Pieces of the
    manifest are read when they are needed, so memory does not grow with the run.
    """

    def __init__(self, run: GenerationRun, name: str | None = None):
        self.run, self.name = run, manifest_name(name)
        self.address = run.output.address(self.name)
        if not run.output.exists(self.name):
            way = (
                f"make it with jobs/refilter.py --name {name}"
                if name
                else "finish the run with jobs/generate.py, or judge the finished part with jobs/refilter.py and give "
                "its name as --manifest"
            )
            raise InputError(f"{self.address} does not exist: {way}")
        with self._open() as parquet:
            schema, self.rows = parquet.schema_arrow, parquet.metadata.num_rows
        if (schema.metadata or {}).get(b"plan_hash", b"").decode() != run.hash:
            raise InputError(f"{self.address} belongs to another plan than plan.json beside it: derive it again")
        if schema.names != MANIFEST_SCHEMA.names:
            raise InputError(f"{self.address} does not have the columns of a manifest: derive it again")

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.run.output.open(self.name))
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{self.address} is damaged: remove it and derive it again") from error

    def sha256(self) -> str:
        """sha256 of the manifest's file."""
        digest = hashlib.sha256()
        with self.run.output.open(self.name) as file:
            while piece := file.read(4 << 20):
                digest.update(piece)
        return digest.hexdigest()

    def pieces(self, columns: list[str]) -> Iterator[pa.Table]:
        """The rows in the order of the plan, some whole units at a time, with `columns` and ORDER_COLUMNS.

        Raises InputError if rows are damaged, out of order or there twice.
        """
        names = list(dict.fromkeys([*ORDER_COLUMNS, *columns]))
        remainder, last = MANIFEST_SCHEMA.empty_table().select(names), -1
        with self._open() as parquet:
            for group in range(parquet.num_row_groups):
                try:
                    table = parquet.read_row_group(group, columns=names).select(names)
                except (pa.ArrowInvalid, OSError) as error:
                    raise InputError(f"{self.address} is damaged: remove it and derive it again") from error
                last = self._check_order(table, last)
                # The next row group may continue a unit, and people must be counted with all their images.
                table = pa.concat_tables([remainder, table.replace_schema_metadata()]).combine_chunks()
                units = table["unit"].to_numpy()
                whole = int(np.searchsorted(units, units[-1])) if len(units) else 0
                remainder = table.slice(whole)
                if whole:
                    yield table.slice(0, whole)
        if remainder.num_rows:
            yield remainder

    def _check_order(self, table: pa.Table, last: int) -> int:
        if not table.num_rows:
            return last
        key = table["person"].to_numpy() * self.run.plan.configuration.variants + table["variant"].to_numpy()
        units = table["unit"].to_numpy()
        if key[0] <= last or (np.diff(key) <= 0).any() or (np.diff(units) < 0).any():
            raise InputError(f"{self.address} does not hold the images in the order of the plan: derive it again")
        return int(key[-1])

    def units(self) -> Iterator[Unit]:
        """The units of the plan, in order."""
        return self.run.plan.units()

    def images(self, unit: Unit, rows: np.ndarray) -> list[bytes]:
        """The stored bytes of some images: `rows` are indices into the unit's shard, [n] int64.

        Raises InputError if the shard is missing or damaged, or has no bytes for one of the images.
        """
        column = read_shard(self.run, unit, ["image"])["image"]
        contents = column.take(pa.array(rows)).to_pylist()
        if any(not image for image in contents):
            raise InputError(
                f"unit {unit.unit} of {self.run.output.root_address} has no bytes for an image that {self.name} calls "
                "kept: derive the manifest again"
            )
        return contents
