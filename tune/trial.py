"""One trial: a re-ID training and its evaluation, as a function that Ray Tune runs."""

import contextlib
import gc
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import ray
import torch
from ray import tune
from ray.train import ScalingConfig

from datasets.storage.lock import hold
from datasets.storage.output import Output
from passersby.devices import pick_device
from passersby.errors import InputError
from passersby.reid.checkpoint import load_reid
from pipeline.evaluation import QUERY, SINGLE, evaluated_by, rank_all
from pipeline.features import Workers
from pipeline.ray_training import train_on_workers
from training.reid.config import ReidTraining
from training.reid.run import load_data, train
from training.reid.start import NETWORK, claim_folder
from tune.levels import Trial
from tune.runner import TrialResources
from tune.sweep import Sweep
from tune.table import FAILURE, Row, read_result, write_failure, write_result

WAIT_SECONDS = 90.0  # to wait for the trial's former process, which ends a moment after a killed driver
PARAMETER = "trial"  # the key under which Tune passes a Spec
STEP = "step"  # the key of the number of finished steps, which a running trial reports


class Spec(TypedDict):
    """What a trial needs to know.

    training: its `out` is the trial's folder. gpus: the GPUs of each process, 0 for the
    CPU. root: OUT of the sweep. variables: environment variables of Ray Train's workers.
    """

    name: str
    sweep: str
    arm: str
    level: int
    seed: int
    sweep_hash: str
    root: str
    training: ReidTraining
    gpus: float
    command: str
    variables: dict[str, str]


def run_trial(config: Mapping[str, Spec]) -> None:
    """The function that Tune runs; `config["trial"]` is the Spec.

    It reports its step after every validation, and at the end mAP or the reason of a failure. Another try would not
    correct wrong input, so an InputError is recorded and reported as a result. Any other exception is raised, and Tune
    starts the trial again, from its last checkpoint.
    """
    spec = config[PARAMETER]
    folder = spec["training"].out
    try:
        with _alone(folder):
            row = finish(spec, folder)
        tune.report({"mAP": row["mAP"], "rank1": row["rank1"]})
    except InputError as error:
        write_failure(folder, str(error))
        tune.report({"failed": str(error)})
    except Exception as error:
        write_failure(folder, " ".join(f"{type(error).__name__}: {error}".split())[:500])
        raise
    finally:  # the process continues with the next trial
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a trial's folder, after waiting for a process that still holds it.

    Raises TimeoutError after WAIT_SECONDS; then Tune tries again.
    """
    end = time.monotonic() + WAIT_SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold(Output(str(folder))))
                break
            except InputError as error:
                if time.monotonic() > end:
                    raise TimeoutError(str(error)) from error
                time.sleep(0.5)
        yield


def finish(spec: Spec, folder: Path) -> Row:
    """The trial's row: from the disk, or else after training (from the last checkpoint on) and evaluation."""
    row = read_result(folder, spec["sweep_hash"])
    if row is not None:
        return row
    (folder / FAILURE).unlink(missing_ok=True)
    config = spec["training"]
    config.check()
    claim_folder(config)
    if not (folder / NETWORK).exists():
        if config.workers == 0:
            train(
                config, pick_device(config.gpus), data=load_data(config), command=spec["command"], report=_report_step
            )
        else:
            _train_on_workers(spec, config)
    if config.workers == 0:
        row = evaluate(spec)
    else:  # this process has no GPU of its own
        resources = {"num_gpus": spec["gpus"], "num_cpus": config.threads, "scheduling_strategy": "DEFAULT"}
        row = ray.get(ray.remote(**resources)(evaluate).remote(spec))
    write_result(folder, row, spec["sweep_hash"])
    return row


def _report_step(figures: Mapping[str, float]) -> None:
    tune.report({STEP: figures["step"]})


def _train_on_workers(spec: Spec, config: ReidTraining) -> None:
    share = {"CPU": config.threads} | ({"GPU": spec["gpus"]} if spec["gpus"] else {})
    scaling = ScalingConfig(num_workers=config.workers, use_gpu=bool(spec["gpus"]), resources_per_worker=share)
    data = ray.put(load_data(config))  # lives as long as this process trains
    train_on_workers(train, config, spec["command"], scaling, spec["variables"], {"data": data})
    if not (config.out / NETWORK).exists():
        raise InputError(f"{config.out}: the training ended without a network")


def evaluate(spec: Spec) -> Row:
    """Rank the gallery with the trial's network, in this process. Returns a row of trials.parquet."""
    config = spec["training"]
    if config.threads:
        torch.set_num_threads(config.threads)
    start = time.monotonic()
    path = config.out / NETWORK
    network = load_reid(path)
    features = evaluated_by(network, config.data, Workers.chosen("cuda" if spec["gpus"] else "cpu", here=True), False)
    ranking = rank_all(features, "cosine", False, 0)[0][SINGLE]
    image_counts = network.record["trained_on"]["trained"]
    return {
        "trial": spec["name"],
        "sweep": spec["sweep"],
        "arm": spec["arm"],
        "level": spec["level"],
        "seed": spec["seed"],
        "steps": int(network.record["steps"]),
        "minutes": float(network.record["minutes"]) + (time.monotonic() - start) / 60,
        "rank1": float(ranking.rank1),
        "rank5": float(ranking.rank5),
        "rank10": float(ranking.rank10),
        "mAP": float(ranking.mAP),
        "mINP": float(ranking.mINP),
        "generated_images": sum(count for source, count in image_counts.items() if source != "real"),
        "real_images": image_counts["real"],
        "query_identity": features.sets[QUERY].identities.tolist(),
        "query_ap": ranking.average_precision.tolist(),
        "query_first_hit": ranking.first_hit.tolist(),
        "network": path.relative_to(spec["root"]).as_posix(),
    }


def spec_of(
    sweep: Sweep, trial: Trial, out: Path, resources: TrialResources, command: str, variables: Mapping[str, str]
) -> Spec:
    """A trial's Spec; variables: environment variables of Ray Train's workers."""
    gpus = max(resources.workers, 1) if resources.gpus else 0
    training = sweep.training(trial, out, workers=resources.workers, gpus=gpus, threads=resources.cpus)
    training.check()
    return {
        "name": trial.name,
        "sweep": sweep.name,
        "arm": trial.arm,
        "level": trial.level,
        "seed": trial.seed,
        "sweep_hash": sweep.hash,
        "root": str(out),
        "training": training,
        "gpus": resources.gpus,
        "command": command,
        "variables": dict(variables),
    }
