"""Running many trials on a Ray cluster with Tune: packed onto cards by fractions, so many at a time, tried again."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tune.resources import TrialResources

# Tune's own tables and loggers say what the sweep says better, and its handler of Ctrl-C waits for all trials.
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "1000000",
    # A finished trial is a file; what Tune remembers of it is never read again.
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_trials(
    trainable: Callable[[dict[str, Any]], None],
    specs: Sequence[dict[str, Any]],
    resources: TrialResources,
    storage: Path,
    retries: int,
    callbacks: Sequence[Any] = (),
) -> None:
    """Run `trainable({"trial": spec})` for every spec, in their order, on the connected cluster, until all have ended.

    Each spec has a "name". One that raises, or whose process or node is lost, is started again `retries` times. Trials
    follow each other in the same processes: the start of one, with its imports, costs seconds of a reserved card.
    """
    os.environ.update({name: value for name, value in _SETTINGS.items() if name not in os.environ})
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a sweep says itself which trials failed
    name = f"tune-{time.time_ns()}"
    if resources.workers:  # Ray Train's workers hold the CPUs and GPUs; this process only waits for them
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


def _trial_name(trial: Any) -> str:
    return trial.config["trial"]["name"]
