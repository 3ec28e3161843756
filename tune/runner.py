"""Many trials on a Ray cluster with Tune: the number that runs at a time, each on its part of a GPU, and the runs."""

import dataclasses
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

from passersby.errors import InputError
from pipeline.cluster import Node, Resources

if TYPE_CHECKING:
    from ray import tune
    from ray.tune.experiment import Trial

# ---- The resources of a trial, and the number of trials that fit the cluster at a time.

_MOST_CPUS = 8  # the default limit for a trial with a GPU: decoding and augmentation gain little from more
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class TrialResources:
    """The resources of one trial.

    cpus and gpus: CPUs (and threads) and GPUs of each process. workers: the number of Ray Train workers, 0 for the
    trial's own process. concurrent: the number of trials at a time.
    """

    cpus: int
    gpus: float
    workers: int
    concurrent: int

    def describe(self, trials: int, cluster: Resources) -> str:
        """One line of text for people."""
        each = f"{self.cpus} CPU{'s' * (self.cpus > 1)}" + (f", {self.gpus:g} GPU" if self.gpus else "")
        workers = f"{self.workers} Ray Train workers of {each}" if self.workers else each
        return f"resources: {min(self.concurrent, trials)} trials at a time, each {workers}, of {cluster}"


def fit_trials(
    gpus: float | None, cpus: int | None, workers: int, concurrent: int | None, cluster: Resources
) -> TrialResources:
    """Fit trials to the cluster.

    gpus: the GPUs of a trial. Trials with a fraction share a GPU; a trial with several has one Ray Train worker for
    each. None means one GPU for each process if the cluster has enough, else the CPU. cpus: the CPUs of each process.
    None means, with GPUs, an equal share of the node's CPUs, at most 8, and without GPUs 1, because one thread for each
    trial trains most images per second. workers: the number of Ray Train workers, 0 for none. concurrent: the largest
    number of trials at a time; None means as many as fit. Raises InputError if no trial fits.
    """
    if gpus is None:
        gpus = float(max(workers, 1)) if cluster.gpus >= max(workers, 1) else 0.0
    if gpus < 0 or not math.isfinite(gpus) or (gpus > 1 and gpus != int(gpus)):
        raise InputError(f"--gpus-per-trial {gpus:g}: give a fraction of one GPU, or whole GPUs")
    if gpus > 1:
        if workers not in (0, int(gpus)):
            raise InputError(f"--gpus-per-trial {gpus:g} with workers={workers}: give one GPU a worker")
        workers = int(gpus)
    if workers and 0 < gpus < workers:
        raise InputError(f"--gpus-per-trial {gpus:g} with workers={workers}: give 0 or one GPU a worker")
    share = gpus / workers if workers else gpus
    nodes = [node for node in cluster.nodes if node.cpus >= 1 and (not share or node.gpus)]
    if cpus is None:
        shares = [math.floor(node.cpus / max(node.gpus * _on_a_card(share), 1)) for node in nodes] if share else [1]
        cpus = max(1, min([_MOST_CPUS, *shares]))
    slots = sum(_slots(node, cpus, share) for node in nodes)
    count = slots // max(workers, 1)
    if not count:
        raise InputError(
            f"--gpus-per-trial {gpus:g} --cpus-per-trial {cpus}: no trial fits the cluster of {cluster}; give less"
        )
    return TrialResources(cpus, share, workers, min(count, concurrent or count))


def _on_a_card(share: float) -> int:
    return math.floor(1 / share + _ROUNDING)


def _slots(node: Node, cpus: int, share: float) -> int:
    by_cpus = math.floor(node.cpus / cpus + _ROUNDING)
    return min(by_cpus, node.gpus * _on_a_card(share)) if share else by_cpus


# ---- Running trials; a failed trial runs again.

# The sweep replaces Tune's tables and loggers by better ones. Tune's handler of Ctrl-C would wait for all trials.
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "1000000",
    # A finished trial is a file: the sweep never reads Tune's own checkpoint of its state.
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Named(TypedDict):
    """The one value that every trial must have."""

    name: str


Values = TypeVar("Values", bound=Named)


def run_trials(
    trainable: Callable[[dict[str, Values]], None],
    specs: Sequence[Values],
    resources: TrialResources,
    storage: Path,
    retries: int,
    callbacks: "Sequence[tune.Callback]" = (),
) -> None:
    """Run `trainable({"trial": spec})` for every spec, in their order, on the connected cluster, until all have ended.

    Each spec has a "name". A trial that raises, or whose process or node is lost, starts again up to `retries` times.
    Trials follow each other in the same processes, because the start of a process, with its imports, costs seconds of a
    reserved GPU.
    """
    os.environ.update({name: value for name, value in _SETTINGS.items() if name not in os.environ})
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the sweep itself reports failed trials
    name = f"tune-{time.time_ns()}"
    if resources.workers:  # Ray Train's workers reserve the CPUs and GPUs; the trial's process only waits for them
        bundle = {"node:__internal_head__": 0.0001}
    else:
        bundle = {"CPU": resources.cpus} | ({"GPU": resources.gpus} if resources.gpus else {})
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([bundle])),
        param_space={"trial": tune.grid_search(list(specs))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=retries),
            callbacks=list(callbacks),
            verbose=0,
        ),
    )
    tuner.fit()
    shutil.rmtree(storage / name, ignore_errors=True)


def _trial_name(trial: "Trial") -> str:
    return trial.config["trial"]["name"]
