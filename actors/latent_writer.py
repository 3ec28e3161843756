"""The stage that commits a unit of an inversion: the deltas of its people, then its shard."""

import hashlib
import time

import pyarrow as pa

from datasets.latents.plan import read_inversion_plan
from datasets.latents.shards import count_errors, latents_table, write_latents_shard
from datasets.latents.table import delta_name
from datasets.runs.plan import PLAN_FILE
from datasets.runs.rows import images_of
from datasets.storage.output import Output
from passersby.errors import InputError

STAGES = ("read", "encode", "refine", "pivotal", "write")


class LatentWriter:
    """A stage that writes the codes and deltas of an Inverter below `address` and returns counts for the driver.

    Its row has these columns: unit, images and error (the number of pictures that could not be inverted), int64;
    seconds_* of every stage, float64; problem, the reason why nothing could be written, or null. A person's delta is
    written before the shard that names it, so a shard that exists is complete.
    """

    def __init__(self, address: str, plan_hash: str):
        self.output = Output(address)
        self.plan_hash = plan_hash
        self.checked = False

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One unit with all its columns -> one row with counts."""
        start = time.perf_counter()
        unit = batch["unit"][0].as_py()
        pictures = images_of(batch)
        contents = _by_person(pictures)
        table = latents_table(unit, _with_deltas(pictures.drop_columns(["delta_content"]), contents))
        problem = None
        try:
            self._check_folder()
            for person, content in contents.items():
                self.output.write(delta_name(person), content)
            write_latents_shard(self.output, self.plan_hash, unit, table)
        except InputError as error:
            problem = str(error)
        names = [f"seconds_{stage}" for stage in STAGES]
        seconds = {name: batch[name][0].as_py() for name in names if name in batch.column_names}
        seconds["seconds_write"] = time.perf_counter() - start
        counts = {"unit": unit, "images": table.num_rows, "error": count_errors(table)}
        return pa.table(
            {name: pa.array([value], pa.int64()) for name, value in counts.items()}
            | {name: pa.array([seconds.get(name, 0.0)], pa.float64()) for name in names}
            | {"problem": pa.array([problem], pa.string())}
        )

    def _check_folder(self) -> None:
        # The driver writes the plan first. A node that does not see the plan would write to its own disk.
        if self.checked:
            return
        plan = read_inversion_plan(self.output)
        if plan is None or plan.configuration.hash != self.plan_hash:
            raise InputError(
                f"a worker does not see {self.output.address(PLAN_FILE)} as the driver wrote it: give --out a folder "
                "that all nodes share, or a URI such as s3://bucket/run"
            )
        self.checked = True


def _by_person(pictures: pa.Table) -> dict[int, bytes]:
    columns = zip(pictures["person"].to_pylist(), pictures["delta_content"].to_pylist(), strict=True)
    return {person: content for person, content in columns if content is not None}


def _with_deltas(pictures: pa.Table, contents: dict[int, bytes]) -> pa.Table:
    """Add the columns `delta` and `delta_sha256`: every picture with status "ok" names its person's delta."""
    digests = {person: hashlib.sha256(content).hexdigest() for person, content in contents.items()}
    persons = [
        person if status == "ok" and person in digests else None
        for person, status in zip(pictures["person"].to_pylist(), pictures["status"].to_pylist(), strict=True)
    ]
    columns = {
        "delta": [None if person is None else delta_name(person) for person in persons],
        "delta_sha256": [None if person is None else digests[person] for person in persons],
    }
    for name, values in columns.items():
        index = pictures.schema.get_field_index(name)
        pictures = pictures.set_column(index, name, pa.array(values, pa.string()))
    return pictures
