"""Commits a unit of an inversion: the deltas of its people, then its shard; a small row goes on to the driver."""

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
    """A stage: writes what an Inverter made below `address` and returns what the driver counts.

    The row out: unit, images and error (how many could not be inverted) as int64, seconds_* float64 of every stage,
    and problem, the reason why nothing could be written, or null. A person's delta is written before the shard that
    names it: a shard that is there is whole.
    """

    def __init__(self, address: str, plan_hash: str):
        self.output = Output(address)
        self.plan_hash = plan_hash
        self.checked = False

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One unit with all its columns -> the small row."""
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
        # The driver writes the plan first: a node that does not see it writes to a disk of its own.
        if self.checked:
            return
        stored = read_inversion_plan(self.output)
        if stored is None or stored.configuration.hash != self.plan_hash:
            raise InputError(
                f"a worker does not see {self.output.address(PLAN_FILE)} as the driver wrote it: give --out a folder "
                "that all nodes share, or a URI such as s3://bucket/run"
            )
        self.checked = True


def _by_person(pictures: pa.Table) -> dict[int, bytes]:
    columns = zip(pictures["person"].to_pylist(), pictures["delta_content"].to_pylist(), strict=True)
    return {person: content for person, content in columns if content is not None}


def _with_deltas(pictures: pa.Table, contents: dict[int, bytes]) -> pa.Table:
    """Every good picture of a person names the person's delta."""
    digests = {person: hashlib.sha256(content).hexdigest() for person, content in contents.items()}
    persons = [
        person if status == "ok" and person in digests else None
        for person, status in zip(pictures["person"].to_pylist(), pictures["status"].to_pylist(), strict=True)
    ]
    named = {
        "delta": [None if person is None else delta_name(person) for person in persons],
        "delta_sha256": [None if person is None else digests[person] for person in persons],
    }
    for name, values in named.items():
        place = pictures.schema.get_field_index(name)
        pictures = pictures.set_column(place, name, pa.array(values, pa.string()))
    return pictures
