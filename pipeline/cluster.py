"""The resources of the connected cluster, and waiting for more GPUs."""

import dataclasses
import math
import sys
import time
from collections import Counter

import ray

from passersby.devices import chosen_device
from passersby.errors import InputError


@dataclasses.dataclass(frozen=True)
class Node:
    """A living node: Ray's id, a name for people, its logical CPUs and GPUs."""

    id: str
    name: str
    cpus: float
    gpus: int = 0


@dataclasses.dataclass(frozen=True)
class Resources:
    """The resources of the connected cluster: nodes with most GPUs first, then nodes with most CPUs."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """Number of logical CPUs on all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """Number of GPUs on all nodes."""
        return sum(node.gpus for node in self.nodes)

    def __str__(self) -> str:
        nodes = f" on {len(self.nodes)} nodes" if len(self.nodes) > 1 else ""
        return f"{self.cpus:g} CPUs, {self.gpus} GPUs{nodes}"


def resources() -> Resources:
    """The connected cluster's living nodes."""
    living = [node for node in ray.nodes() if node["Alive"]]
    hosts = Counter(node["NodeManagerHostname"] for node in living)
    nodes = []
    for node in living:
        host, amounts = node["NodeManagerHostname"], node["Resources"]
        name = host if hosts[host] == 1 else f"{host}/{node['NodeID'][:6]}"
        name += " (head)" if "node:__internal_head__" in amounts else ""
        nodes.append(Node(node["NodeID"], name, amounts.get("CPU", 0.0), int(amounts.get("GPU", 0))))
    return Resources(tuple(sorted(nodes, key=lambda node: (-node.gpus, -node.cpus, node.name))))


def choose_device(device: str) -> str:
    """The device of --device on the connected cluster. "auto" takes and prints CUDA or the CPU."""
    gpus = resources().gpus
    if device == "auto":
        print(f"{gpus} GPUs: running on CUDA" if gpus else "no GPU here: running on the CPU")
    return chosen_device(device, gpus)


def smallest_object_store() -> int:
    """Bytes of the smallest object store among the connected cluster's living nodes."""
    return int(min(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]))


def wait_for_gpus(count: int, minutes: float) -> None:
    """Ask the autoscaler for `count` GPUs and wait until they are there, with a line every 10 s on stderr.

    The request ends with this call: the autoscaler removes nodes that stay idle after it. Raises InputError when
    `minutes` are over; the message names the resources that are there.
    """
    from ray.autoscaler.sdk import request_resources

    start, printed = time.monotonic(), -math.inf
    request_resources(bundles=[{"GPU": 1}] * count)
    try:
        while (available := resources()).gpus < count:
            waited = time.monotonic() - start
            if waited > 60 * minutes:
                raise InputError(
                    f"--gpus {count}: after {minutes:g} minutes there are {available}; ask for fewer, wait longer, "
                    "or look at `ray status` for what the cloud refuses"
                )
            if waited - printed >= 10:
                print(f"waiting for GPUs: {available.gpus} of {count}, {waited:.0f} s", file=sys.stderr, flush=True)
                printed = waited
            time.sleep(min(1.0, 15 * minutes))
    finally:
        request_resources(bundles=[])
