"""The stage that commits a unit: it writes the images as one shard and returns one small row to the driver."""

import time

import pyarrow as pa

from datasets.runs.rows import images_of
from datasets.runs.shards import WorkerFolder, shard_table, unit_report, write_shard
from datasets.runs.verdicts import Thresholds, count_verdicts, verdicts

STAGES = ("generate", "detect", "similarity", "identity", "write")


class ShardWriter:
    """A stage that writes the unit's shard below `address` and returns counts for the driver.

    Its row (`unit_report`) has these counts: unit, images and one count for each of VERDICTS at the run's thresholds.
    """

    def __init__(self, address: str, plan_hash: str, thresholds: Thresholds):
        self.folder = WorkerFolder(address, plan_hash)
        self.thresholds = thresholds

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One unit with all its columns -> one row with counts."""
        start = time.perf_counter()
        unit, folder = batch["unit"][0].as_py(), self.folder
        images = shard_table(unit, images_of(batch))
        problem = folder.problem(lambda: write_shard(folder.output, folder.plan_hash, unit, images))
        counts = {"unit": unit, "images": images.num_rows} | count_verdicts(verdicts(images, self.thresholds))
        return unit_report(batch, counts, STAGES, start, problem)
