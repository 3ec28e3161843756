"""Checks whether the files derived from the shards (manifests and summary) still agree with the shards."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Collection, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.runs.manifest import COLUMNS, MANIFEST_SCHEMA, manifest_name
from datasets.runs.plan import Plan, Unit
from datasets.runs.run import GenerationRun, shard_name
from datasets.runs.shards import ADVICE, SCHEMA_VERSION
from datasets.runs.verdicts import KEPT, VERDICTS, Thresholds, add_counts, count_verdicts, verdicts
from datasets.runs.verify import Findings
from passersby.errors import InputError

MANIFEST_NAME = re.compile(r"manifest(-[A-Za-z0-9_-]+)?\.parquet")
BATCH_ROWS = 65_536  # about 10 MB; memory holds one batch and the rows of one unit
DAMAGED = (pa.ArrowException, OSError, ValueError, TypeError, KeyError)  # the errors that altered bytes can cause


class ManifestCheck:
    """Compares a manifest with the shards, unit by unit in the plan's order.

    A manifest's rows are the shards' rows without images, with the verdicts of the thresholds in its own
    metadata. `fault` is the first fault, None while there is none; `thresholds` are those of the metadata;
    `absent` counts the units whose rows the manifest lacks.
    """

    def __init__(self, run: GenerationRun, name: str):
        self.name, self.fault, self.thresholds, self.absent = name, None, None, 0
        self._variants = run.plan.configuration.variants
        self._rows = pa.table([pa.array([], field.type) for field in MANIFEST_SCHEMA], schema=MANIFEST_SCHEMA)
        self._batches = iter(())
        try:
            parquet = pq.ParquetFile(run.output.open(name))
            metadata = {key.decode(): value.decode() for key, value in (parquet.schema_arrow.metadata or {}).items()}
            if not parquet.schema_arrow.equals(MANIFEST_SCHEMA) or metadata["schema_version"] != SCHEMA_VERSION:
                self.fault = "has other columns than this program writes"
            elif metadata["plan_hash"] != run.hash:
                self.fault = "belongs to another plan"
            self.thresholds = Thresholds(**json.loads(metadata["thresholds"]))
            self._batches = parquet.iter_batches(BATCH_ROWS)
        except (InputError, *DAMAGED) as error:
            self._damaged(error)

    @property
    def advice(self) -> str:
        """How the user makes the manifest again."""
        if self.name == manifest_name():
            return ADVICE
        return "make it again with jobs/refilter.py"

    def take(self, unit: Unit, shard: pa.Table | None) -> None:
        """Compare the next unit with its shard's rows (with or without images). None: skip the unit's rows."""
        first = None if self.fault else self._first_unit(1)
        if first is None or first > unit.unit:
            self.absent += self.fault is None and shard is not None
            return
        if first < unit.unit:
            self.fault = f"holds unit {first} where unit {unit.unit} should stand"
            return
        count = unit.people * self._variants
        self._first_unit(count)
        manifest_rows, self._rows = self._rows.slice(0, count), self._rows.slice(count)
        if shard is None or self.fault or self.thresholds is None:
            return
        shards = pa.array([shard_name(unit.unit)] * count, pa.string())
        columns = [*shard.select(COLUMNS).columns, verdicts(shard, self.thresholds), shards]
        expected = pa.table(columns, schema=MANIFEST_SCHEMA)
        if manifest_rows.num_rows < count:
            self.fault = f"ends within unit {unit.unit}"
        elif not manifest_rows.equals(expected):
            different = [name for name in MANIFEST_SCHEMA.names if not manifest_rows[name].equals(expected[name])]
            self.fault = f"differs from {shard_name(unit.unit)} in {', '.join(different)}"

    def finish(self) -> None:
        """Called after the last unit: the manifest may have no more rows."""
        if not self.fault and (first := self._first_unit(1)) is not None:
            self.fault = f"holds rows of unit {first} after the last"

    def _first_unit(self, rows: int) -> int | None:
        # Reads until `rows` rows are in memory, or all. Returns the unit of the next row; None at the end.
        try:
            while self._rows.num_rows < rows and (batch := next(self._batches, None)) is not None:
                self._rows = pa.concat_tables([self._rows, pa.table(batch.columns, schema=MANIFEST_SCHEMA)])
            return self._rows["unit"][0].as_py() if self._rows.num_rows else None
        except DAMAGED as error:
            self._damaged(error)
            return None

    def _damaged(self, error: Exception) -> None:
        self.fault = f"is damaged ({str(error).partition(chr(10))[0]})"


def check_summary(summary: Mapping, plan: Plan, counts: Mapping[str, int] | None, manifest: Thresholds | None) -> str:
    """The names of the summary's wrong values, joined by commas; empty where all are right.

    counts: of the verdicts at the summary's thresholds, None where a shard could not be read. manifest: the
    thresholds of manifest.parquet, None without that file. A count that an older summary does not name is 0,
    and a threshold is not set.
    """
    summary = dict(summary)
    with contextlib.suppress(KeyError, TypeError):
        summary["counts"] = dict.fromkeys(VERDICTS, 0) | summary["counts"]
        summary["percent"] = dict.fromkeys(VERDICTS, 0.0) | summary["percent"]
    with contextlib.suppress(KeyError, TypeError, InputError):
        summary["thresholds"] = dataclasses.asdict(Thresholds(**summary["thresholds"]))
    expected = {
        "plan_hash": plan.configuration.hash,
        "people": plan.people,
        "images": plan.images,
        "configuration": json.loads(json.dumps(plan.configuration.settings())),
    }
    if counts is not None:
        expected["counts"] = dict(counts)
        expected["percent"] = {name: round(100 * count / plan.images, 3) for name, count in counts.items()}
    if manifest is not None:
        expected["thresholds"] = dataclasses.asdict(manifest)
    return ", ".join(name for name, value in expected.items() if summary.get(name) != value)


class DerivedChecks:
    """Checks a run's derived files: every manifest among `names`, and the summary `summary_name`."""

    def __init__(self, run: GenerationRun, names: Collection[str], summary_name: str):
        self._run, self._summary_name = run, summary_name
        self._manifests = [ManifestCheck(run, name) for name in sorted(names) if MANIFEST_NAME.fullmatch(name)]
        self._summary, self._fault, self._thresholds, self._complete = None, "", None, True
        try:
            text = run.output.read(summary_name)
            if text is not None:
                self._summary = json.loads(text)
                self._thresholds = Thresholds(**self._summary["thresholds"])
        except (InputError, *DAMAGED):
            self._fault = "things"
        self._counts = dict.fromkeys(VERDICTS, 0)

    def take(self, unit: Unit, shard: pa.Table | None) -> int:
        """Check the next unit with its shard's rows (None where missing). Returns the number of kept images."""
        for manifest in self._manifests:
            manifest.take(unit, shard)
        if shard is None:
            self._complete = False
            return 0
        thresholds = self._thresholds or Thresholds(self._run.plan.configuration.reference_threshold)
        counts = count_verdicts(verdicts(shard, thresholds))
        self._counts = add_counts(self._counts, counts)
        return counts[KEPT]

    def finish(self, findings: Findings) -> None:
        """Called after the last unit: report the files that disagree with the shards."""
        kind = "of the derived files wrong"
        for manifest in self._manifests:
            manifest.finish()
            lacks = f"lacks {manifest.absent:,} of the units that are there: {manifest.advice}"
            if manifest.fault:
                text = f"{self._run.output.address(manifest.name)} {manifest.fault}: {manifest.advice}"
                findings.add(kind, manifest.name, text)
            elif manifest.absent and manifest.name == manifest_name() and self._complete:
                findings.add(kind, manifest.name, f"{self._run.output.address(manifest.name)} {lacks}")
            elif manifest.absent:
                findings.notes.append(f"{manifest.name} {lacks}")
        if self._fault:
            wrong = self._fault
        elif self._summary is None:
            return
        else:
            main = next((m for m in self._manifests if m.name == manifest_name() and not m.fault), None)
            counts = self._counts if self._complete else None
            wrong = check_summary(self._summary, self._run.plan, counts, main and main.thresholds)
        if wrong and self._complete:
            text = f"{self._run.output.address(self._summary_name)} says other {wrong} than the run: {ADVICE}"
            findings.add(kind, self._summary_name, text)
        elif wrong:  # a summary may be out of date while a run is extended
            findings.notes.append(f"{self._summary_name} says other {wrong} than the run: it is made again at its end")
