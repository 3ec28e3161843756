"""Simulated clusters: Ray puts each actor on the node and card of the plan, and lost nodes cost no unit."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster

import pipeline.run
from jobs.common import MALLOC_VARIABLES
from passersby.errors import InputError
from pipeline.cluster import resources, wait_for_gpus
from pipeline.pools import Pool, describe, fit_pools
from pipeline.run import run_units
from tests.helpers.drivers import NODES_ARE_MISSED_SOON

NODES = {"two cards": (6, 2), "one card": (2, 1), "no card": (8, 0)}  # CPUs, GPUs; the head has 2 CPUs
UNITS = 60
STAGES = ("generators", "detectors", "scorers", "writers")
PATIENCE = 12.0  # seconds


@pytest.fixture(scope="module", autouse=True)
def no_shared_ray() -> Iterator[None]:
    """Other tests find the Ray of `ray_cluster` again after those of this file, if they had one."""
    shared = ray.is_initialized()
    ray.shutdown()
    yield
    if shared:
        environment = {"env_vars": MALLOC_VARIABLES}
        ray.init("local", num_cpus=8, include_dashboard=False, runtime_env=environment, log_to_driver=False)


class Nodes:
    """Our cluster: a head alone at first, then with other nodes, by name."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.there: dict[str, Any] = {}  # Ray's objects

    def become(self, wanted: dict[str, tuple[int, int]]) -> None:
        """Have these nodes (CPUs, GPUs) beside the head and no others; those that are there stay: a start costs 5 s."""
        for name in self.there.keys() - wanted.keys():
            self.lose(name)
        for name in wanted.keys() - self.there.keys():
            cpus, gpus = wanted[name]
            self.there[name] = self.cluster.add_node(num_cpus=cpus, num_gpus=gpus, wait=False)
        self.cluster.wait_for_nodes()

    def lose(self, name: str) -> None:
        """Kill a node."""
        self.cluster.remove_node(self.there.pop(name), allow_graceful=False)

    def name_of(self, node_id: str) -> str:
        return next(name for name, node in self.there.items() if node.node_id == node_id)


@pytest.fixture(scope="module")
def nodes(no_shared_ray) -> Iterator[Nodes]:
    """One cluster for all tests: a head takes 15 s to start."""
    head = {"num_cpus": 2, "include_dashboard": False, "_system_config": NODES_ARE_MISSED_SOON}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield Nodes(cluster)
    ray.shutdown()
    cluster.shutdown()


def plan(units: int, generators: Pool | None = None, detectors: Pool | None = None) -> list[Pool]:
    heavy = [generators or Pool("generators"), detectors or Pool("detectors")]
    return fit_pools([*heavy, Pool("scorers", cpus=0.25), Pool("writers", cpus=0.25)], resources(), True, units)


def stub(stage: str, seconds: float) -> type:
    """An actor that adds a column: where it ran, as "node process cards"."""

    class Stub:
        def __init__(self):
            context = ray.get_runtime_context()
            self.place = f"{context.get_node_id()} {os.getpid()} {','.join(context.get_accelerator_ids()['GPU'])}"

        def __call__(self, batch: pa.Table) -> pa.Table:
            time.sleep(seconds)
            return batch.append_column(stage, pa.array([self.place] * len(batch)))

    Stub.__name__ = stage
    return Stub


def run(plan_pools: Callable[[int], list[Pool]], seconds: float) -> Iterator[dict]:
    """Units through a stub of every stage."""
    units = [{"unit": unit} for unit in range(UNITS)]
    return run_units(units, [(stub(stage, seconds), {}) for stage in STAGES], plan_pools(UNITS), plan_pools, 1000)


def test_ray_does_what_the_printed_plan_says_actor_by_actor_and_card_by_card(nodes):
    nodes.become(NODES)
    pools = plan(UNITS)
    found = list(run(lambda _: pools, seconds=0.4))
    assert sorted(row["unit"] for row in found) == list(range(UNITS))
    seen = {}
    for pool in pools:
        places = [place.split(" ") for place in {row[pool.stage] for row in found}]
        seen[pool.stage] = Counter((node, cards) for node, _, cards in places)
        taken = [",".join(map(str, cards)) for cards in pool.cards]
        assert seen[pool.stage] == Counter(zip(pool.nodes, taken, strict=True)), pool.stage
    assert seen["generators"] == seen["detectors"]  # one of each on every card, on its node
    table = describe(pools, resources()).splitlines()[2:-1]
    assert len(table) == 4
    for node, line in zip(resources().nodes, table, strict=True):
        actors = [sum(count for (home, _), count in seen[pool.stage].items() if home == node.id) for pool in pools]
        assert line.split()[-6:] == [str(number) for number in (node.gpus, int(node.cpus), *actors)]
        assert line.split()[0] == node.name.split()[0]


def test_two_lost_nodes_of_four_cost_no_unit(nodes, monkeypatch):
    """All light stages and two cards of three are lost; what is left cannot hold the pipeline as it was planned."""
    nodes.become(NODES)
    monkeypatch.setattr(pipeline.run, "STUCK_SECONDS", PATIENCE)
    found = []
    for row in run(plan, seconds=0.2):
        found.append(row["unit"])
        if len(found) in (8, 16):
            nodes.lose("no card" if len(found) == 8 else "two cards")
    assert sorted(found) == list(range(UNITS))


def test_what_cannot_move_on_the_nodes_that_are_left_is_planned_anew(nodes, monkeypatch):
    nodes.become({"one": (4, 1), "another": (4, 1)})
    monkeypatch.setattr(pipeline.run, "STUCK_SECONDS", PATIENCE)
    plans, found = [], []

    def plan_pools(units: int) -> list[Pool]:
        # At first of a size that the detector leaves no room for a generator on its card.
        odd = () if plans else (Pool("generators", 1, gpus=0.7), Pool("detectors", 1, gpus=0.5))
        plans.append(plan(units, *odd))
        return plans[-1]

    for row in run(plan_pools, seconds=0.1):
        found.append(row["unit"])
        if len(found) == 5:
            nodes.lose(nodes.name_of(plans[0][0].nodes[0]))
    assert sorted(found) == list(range(UNITS))
    assert len(plans) == 2


def test_waiting_for_gpus_ends_when_they_are_there_and_says_what_is_there_when_not(nodes, capsys):
    nodes.become({})
    with pytest.raises(InputError, match=r"--gpus 2: after 0.05 minutes there are 2 CPUs, 0 GPUs"):
        wait_for_gpus(2, minutes=0.05)
    waiting = threading.Thread(target=wait_for_gpus, args=(2, 2.0), daemon=True)
    waiting.start()
    time.sleep(1)
    assert waiting.is_alive()
    nodes.become({"late": (1, 2)})
    waiting.join(60)
    assert not waiting.is_alive()
    assert "waiting for GPUs: 0 of 2" in capsys.readouterr().err
