"""The stage that commits a unit: it writes the images as one shard and returns one small row to the driver."""

import time

import pyarrow as pa

from datasets.runs.plan import PLAN_FILE, read_plan
from datasets.runs.rows import images_of
from datasets.runs.shards import shard_table, write_shard
from datasets.runs.verdicts import Thresholds, count_verdicts, verdicts
from datasets.storage.output import Output
from passersby.errors import InputError

STAGES = ("generate", "detect", "similarity", "identity", "write")


class ShardWriter:
    """A stage that writes the unit's shard below `address` and returns counts for the driver.

    Its row has these columns: unit, images and one count for each of VERDICTS at the run's thresholds, int64;
    seconds_* of every stage, float64, 0.0 where the stage did not run; problem, the reason why nothing could be
    written, or null. A problem is data, not an exception, because the user has to solve it (no space, no permission):
    the user reads one line instead of a worker's traceback.
    """

    def __init__(self, address: str, plan_hash: str, thresholds: Thresholds):
        self.output = Output(address)
        self.plan_hash = plan_hash
        self.thresholds = thresholds
        self.checked = False

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One unit with all its columns -> one row with counts."""
        start = time.perf_counter()
        unit = batch["unit"][0].as_py()
        images = shard_table(unit, images_of(batch))
        problem = None
        try:
            self._check_folder()
            write_shard(self.output, self.plan_hash, unit, images)
        except InputError as error:
            problem = str(error)
        names = [f"seconds_{stage}" for stage in STAGES]
        seconds = {name: batch[name][0].as_py() for name in names if name in batch.column_names}
        seconds["seconds_write"] = time.perf_counter() - start
        counts = {"unit": unit, "images": images.num_rows} | count_verdicts(verdicts(images, self.thresholds))
        return pa.table(
            {name: pa.array([value], pa.int64()) for name, value in counts.items()}
            | {name: pa.array([seconds.get(name, 0.0)], pa.float64()) for name in names}
            | {"problem": pa.array([problem], pa.string())}
        )

    def _check_folder(self) -> None:
        # The driver writes the plan first. A node that does not see the plan would write to its own disk.
        if self.checked:
            return
        plan = read_plan(self.output)
        if plan is None or plan.configuration.hash != self.plan_hash:
            raise InputError(
                f"a worker does not see {self.output.address(PLAN_FILE)} as the driver wrote it: give --out a folder "
                "that all nodes share, or a URI such as s3://bucket/run"
            )
        self.checked = True
