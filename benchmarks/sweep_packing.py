"""How well trials pack: a grid of trials that only sleep, on a simulated cluster of several nodes with logical GPUs.

    python benchmarks/sweep_packing.py --trials 200 --seconds 30 --nodes 4 --gpus 4

Trials run as in jobs/sweep.py (tune/runner.py), with a sleep in the place of a training. Busy is a GPU while its trial
sleeps. Counted from the first trial's start until the last one starts, while there is work left for every GPU: starts
of processes, imports and Tune's own time between two trials are what is lost.

On 2 CPU cores that other work shared, at commit 89511bb plus the sweeps: 200 trials of 30 s on 16 logical GPUs took
411 s, 36 s more than without any gap (15 s of them because 200 are 12.5 rounds of 16); busy while work is left: 99.3%.
"""

import dataclasses
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune
from ray.cluster_utils import Cluster

from jobs.common import run_job
from pipeline.cluster import resources
from tune.runner import fit_trials, run_trials


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure the share of the reserved GPU time that trials use."""

    trials: int = 200
    seconds: float = 30.0
    """Of sleep, each."""
    nodes: int = 4
    gpus: int = 4
    """Logical ones, of each node."""


def sleep(config: dict[str, Any]) -> None:
    """A trial: sleeps, and writes down from when to when."""
    spec = config["trial"]
    start = time.time()
    time.sleep(spec["seconds"])
    Path(spec["folder"], f"{spec['name']}.json").write_text(json.dumps([start, time.time()]))
    tune.report({"slept": spec["seconds"]})


def busy_share(times: list[tuple[float, float]], gpus: int) -> float:
    """Share of the GPUs' time between the first start and the last one in which they were busy."""
    first, last = min(start for start, _ in times), max(start for start, _ in times)
    busy = sum(min(end, last) - start for start, end in times)
    return busy / (gpus * (last - first))


def main(config: Config) -> None:
    """Start the cluster, run the trials, print the figures."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    with tempfile.TemporaryDirectory() as folder:
        try:
            for _ in range(config.nodes):
                cluster.add_node(num_cpus=config.gpus, num_gpus=config.gpus)
            cluster.wait_for_nodes()
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            fitted = fit_trials(1.0, 1, 0, None, resources())
            print(fitted.describe(config.trials, resources()), flush=True)
            specs = [
                {"name": f"trial-{number:04d}", "seconds": config.seconds, "folder": folder}
                for number in range(config.trials)
            ]
            begun = time.time()
            run_trials(sleep, specs, fitted, Path(folder) / "ray", retries=0)
            took = time.time() - begun
            times = [tuple(json.loads(path.read_text())) for path in Path(folder).glob("trial-*.json")]
        finally:
            ray.shutdown()
            cluster.shutdown()
    gpus = config.nodes * config.gpus
    gaps = took - config.trials * config.seconds / gpus
    print(
        f"{len(times)} of {config.trials} trials of {config.seconds:g} s on {gpus} GPUs took {took:.0f} s, "
        f"{gaps:.0f} s more than without any gap; busy while work is left: {busy_share(times, gpus):.1%}"
    )


if __name__ == "__main__":
    run_job(main, Config)
