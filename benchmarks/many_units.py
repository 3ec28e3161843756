"""Many units and many nodes, with a stub in the generator's place: what is left is the cost of the pipeline itself.

    python benchmarks/many_units.py units --out /tmp/many --units 20000
    python benchmarks/many_units.py nodes --out /tmp/nodes

`units`: overhead for each unit, the driver's memory on the way, and the start of `jobs/generate.py` on a folder with
that many finished units. `nodes`: units a second on clusters of 1, 2, 4, 8 logical nodes on this machine, once with a
stub that waits, as a driver waits for GPUs elsewhere, and once with one that computes, which ends where the cores end.
"""

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import psutil
import pyarrow as pa
import ray
import tyro

from actors.shard_writer import ShardWriter
from datasets.runs.plan import PLAN_FILE, Configuration
from datasets.runs.rows import with_columns
from datasets.runs.run import GenerationRun, begin_run
from datasets.runs.verdicts import Thresholds
from datasets.storage.output import Output
from jobs import generate
from jobs.common import connect, run_job
from passersby import weights
from pipeline.commit import RunMetrics, committed
from pipeline.generation import Inputs
from pipeline.pools import Pool
from pipeline.run import run_units
from reporting.progress import ProgressLine

SIZE = {"height": 32, "width": 16, "format": "png"}  # small pictures: their cost is not the question
GENERATE = ["--variants", "1", "--unit-images", "1", *(f"--{name}={value}" for name, value in SIZE.items())]


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the pipeline around a stub generator."""

    what: tyro.conf.Positional[Literal["units", "nodes"]]
    """units: very many of them on this machine. nodes: some on more and more logical nodes."""
    out: Path
    """A folder for the results; what a former benchmark left there is removed."""
    units: int = 20_000
    """Units of the first part."""
    node_counts: tuple[int, ...] = (1, 2, 4, 8)
    """Logical nodes of the second part, each with one actor."""
    node_seconds: float = 0.25
    """What the stub takes for a unit in the second part."""


class StubMixer:
    """One small picture for each person of the unit, after `seconds` of waiting or computing."""

    def __init__(self, configuration: Configuration, seconds: float, compute: bool):
        self.configuration, self.seconds, self.compute = configuration, seconds, compute
        picture = np.full((configuration.height, configuration.width, 3), 99, np.uint8)
        self.content = cv2.imencode(".png", picture)[1].tobytes()

    def __call__(self, batch: pa.Table) -> pa.Table:
        first, people = batch["first_person"][0].as_py(), batch["people"][0].as_py()
        end = time.process_time() + self.seconds
        while self.compute and time.process_time() < end:
            pass
        time.sleep(0 if self.compute else self.seconds)
        columns = {
            "person": pa.array(range(first, first + people), pa.int64()),
            "variant": pa.array([0] * people, pa.int64()),
            "image": pa.array([self.content] * people, pa.binary()),
            "status": pa.array(["ok"] * people, pa.string()),
        }
        return with_columns(batch.select(["unit"]), columns)


def put_through(
    run: GenerationRun, pools: list[Pool], seconds: float, compute: bool
) -> tuple[float, list[tuple[int, float]]]:
    """Make every unit with the stub; returns seconds from the first unit to the last, and (units, driver's MB)."""
    output, plan, c = run.output, run.plan, run.plan.configuration
    stages = [
        (StubMixer, {"configuration": c, "seconds": seconds, "compute": compute}),
        (
            ShardWriter,
            {"address": output.secret_address, "plan_hash": c.hash, "thresholds": Thresholds()},
        ),
    ]
    output.write(PLAN_FILE, plan.to_json())
    metrics = RunMetrics(output.root_address, plan.unit_count)
    units, memory, me, first = [dataclasses.asdict(unit) for unit in plan.units()], [], psutil.Process(), None
    with run.held(), ProgressLine(plan.unit_count, plan.images) as line:
        for number, _ in enumerate(
            committed(run_units(units, stages, pools, lambda _: pools, 1000), run, line, metrics)
        ):
            first = first or time.perf_counter()
            if number % max(1, len(units) // 10) == 0:
                memory.append((number, me.memory_info().rss / 1e6))
    assert len(run.finished()) == plan.unit_count
    assert first is not None  # a plan has a unit
    return time.perf_counter() - first, memory


def run_of(out: Path, units: int) -> GenerationRun:
    """The run that `jobs/generate.py` would make of so many units in an empty folder."""
    shutil.rmtree(out, ignore_errors=True)
    output = Output(str(out))
    config = generate.Config(out=str(out), people=units, variants=1, unit_images=1, **SIZE)
    return begin_run(output, config.frozen(Inputs(weights.DEMO_STYLEGAN3)), units)


def many_units(config: Config) -> None:
    """The first part."""
    run = run_of(config.out, config.units)
    connect()
    seconds, memory = put_through(run, [Pool("stubs", 2, 0.5, 0.0), Pool("writers", 1, 0.5, 0.0)], 0.0, False)
    ray.shutdown()
    print(f"{run.plan.unit_count:,} units in {seconds:.1f} s: {1000 * seconds / run.plan.unit_count:.2f} ms a unit")
    print("driver's memory: " + ", ".join(f"{megabytes:.0f} MB at {number:,}" for number, megabytes in memory))
    command = [
        sys.executable,
        "-m",
        "jobs.generate",
        "--out",
        str(config.out),
        "--people",
        str(config.units),
        *GENERATE,
    ]
    shown = {"a dry run with every unit there (reads plan and listing)": ["--dry-run"], "which derives everything": []}
    shown["again, with nothing to do"] = []
    for name, more in shown.items():
        start = time.perf_counter()
        subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
        print(f"jobs/generate.py {name}: {time.perf_counter() - start:.1f} s")
    for shard in sorted(config.out.rglob("unit-*.parquet"))[:: max(1, config.units // 4)]:
        shard.unlink()
    resumed_start(command, config.units)


def resumed_start(command: list[str], units: int) -> None:
    """Time from the command to the plan and to the first of the missing units."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    cwd = Path(__file__).parents[1]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=cwd
    ) as process:
        assert process.stdout is not None  # it is a pipe
        for line in process.stdout:
            if line.startswith(("plan:", "pools:")) or f"/{units:,} units" in line:
                print(f"resumed: {time.perf_counter() - start:5.1f} s  {line.rstrip()}", flush=True)


def many_nodes(config: Config) -> None:
    """The second part."""
    from ray.cluster_utils import Cluster

    print(f"{os.cpu_count()} cores; the stub takes {config.node_seconds} s a unit")
    for compute in (False, True):
        for count in config.node_counts:
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
            try:
                for _ in range(count):
                    cluster.add_node(num_cpus=1, resources={"stub": 1})
                ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
                units = min(40 * count, 160)
                run = run_of(config.out / f"{count}-{compute}", units)
                pools = [Pool("stubs", count, 1.0, 0.0), Pool("writers", 1, 0.25, 0.0)]
                seconds, _ = put_through(run, pools, config.node_seconds, compute)
                kind = "computes" if compute else "waits"
                print(f"{count} nodes, a stub that {kind}: {units / seconds:.1f} units/s", flush=True)
            finally:
                ray.shutdown()
                cluster.shutdown()


def main(config: Config) -> None:
    """Run the part that was asked for."""
    many_units(config) if config.what == "units" else many_nodes(config)


if __name__ == "__main__":
    run_job(main, Config)
