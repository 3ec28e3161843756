"""What a trial asks of the cluster, and how many trials it holds at a time."""

import dataclasses
import math

from passersby.errors import InputError
from pipeline.cluster import Node, Resources

_MOST_CPUS = 8  # of a trial with a GPU, by default: decoding and augmentation gain little from more
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class TrialResources:
    """Of one trial: CPUs (and threads) and GPUs of each process; workers: Ray Train's, 0 for the trial's own process.
    concurrent: how many trials at a time."""

    cpus: int
    gpus: float
    workers: int
    concurrent: int

    def describe(self, trials: int, cluster: Resources) -> str:
        """In one line, for people."""
        each = f"{self.cpus} CPU{'s' * (self.cpus > 1)}" + (f", {self.gpus:g} GPU" if self.gpus else "")
        workers = f"{self.workers} Ray Train workers of {each}" if self.workers else each
        return f"resources: {min(self.concurrent, trials)} trials at a time, each {workers}, of {cluster}"


def fit_trials(
    gpus: float | None, cpus: int | None, workers: int, concurrent: int | None, cluster: Resources
) -> TrialResources:
    """How trials fit the cluster.

    gpus: of a trial; a fraction is packed onto a card with others, more than one are that many Ray Train workers with a
    card each. None: one a process where the cluster has any, else the CPU. cpus: of each process; None: with GPUs an
    equal share of the node's, at most 8, without one: one thread a trial trains most images a second. workers: of Ray
    Train, 0 for none. concurrent: at most so many at a time; None: as many as fit. Raises InputError for what cannot be
    placed.
    """
    if gpus is None:
        gpus = float(max(workers, 1)) if cluster.gpus >= max(workers, 1) else 0.0
    if gpus < 0 or not math.isfinite(gpus) or (gpus > 1 and gpus != int(gpus)):
        raise InputError(f"--gpus-per-trial {gpus:g}: give a fraction of one GPU, or whole GPUs")
    if cpus is not None and cpus < 1:
        raise InputError(f"--cpus-per-trial {cpus}: give 1 or more")
    if concurrent is not None and concurrent < 1:
        raise InputError(f"--concurrent {concurrent}: give 1 or more")
    if gpus > 1:
        if workers not in (0, int(gpus)):
            raise InputError(f"--gpus-per-trial {gpus:g} with workers={workers}: give one GPU a worker")
        workers = int(gpus)
    if workers and 0 < gpus < workers:
        raise InputError(f"--gpus-per-trial {gpus:g} with workers={workers}: give 0 or one GPU a worker")
    share = gpus / workers if workers else gpus
    nodes = [node for node in cluster.nodes if node.cpus >= 1 and (not share or node.gpus)]
    if cpus is None:
        held = [math.floor(node.cpus / max(node.gpus * _on_a_card(share), 1)) for node in nodes] if share else [1]
        cpus = max(1, min([_MOST_CPUS, *held]))
    places = sum(_places(node, cpus, share) for node in nodes)
    fitting = places // max(workers, 1)
    if not fitting:
        raise InputError(
            f"--gpus-per-trial {gpus:g} --cpus-per-trial {cpus}: no trial fits the cluster of {cluster}; give less"
        )
    return TrialResources(cpus, share, workers, min(fitting, concurrent or fitting))


def _on_a_card(share: float) -> int:
    return math.floor(1 / share + _ROUNDING)


def _places(node: Node, cpus: int, share: float) -> int:
    by_cpus = math.floor(node.cpus / cpus + _ROUNDING)
    return min(by_cpus, node.gpus * _on_a_card(share)) if share else by_cpus
