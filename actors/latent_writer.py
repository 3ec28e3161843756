"""The stage that commits a unit of an inversion: the deltas of its people, then its shard."""

import hashlib
import time

import pyarrow as pa

from datasets.latents.shards import LATENTS, WHO_LATENTS, count_errors
from datasets.latents.table import delta_name
from datasets.runs.rows import images_of
from datasets.runs.shards import WorkerFolder, shard_table, unit_report, write_shard

STAGES = ("read", "encode", "refine", "pivotal", "write")


class LatentWriter:
    """A stage that writes the codes and deltas of an Inverter below `address` and returns counts for the driver.

    Its row (`unit_report`) has these counts: unit, images and error (the number of pictures that could not be
    inverted). A person's delta is written before the shard that names it, so a shard that exists is complete.
    """

    def __init__(self, address: str, plan_hash: str):
        self.folder = WorkerFolder(address, plan_hash)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One unit with all its columns -> one row with counts."""
        start = time.perf_counter()
        unit, folder = batch["unit"][0].as_py(), self.folder
        pictures = images_of(batch)
        contents = _by_person(pictures)
        kind = WHO_LATENTS if "who" in pictures.column_names else LATENTS
        table = shard_table(unit, _with_deltas(pictures.drop_columns(["delta_content"]), contents), kind)

        def write() -> None:
            for person, content in contents.items():
                folder.output.write(delta_name(person), content)
            write_shard(folder.output, folder.plan_hash, unit, table, kind)

        problem = folder.problem(write)
        counts = {"unit": unit, "images": table.num_rows, "error": count_errors(table)}
        return unit_report(batch, counts, STAGES, start, problem)


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
