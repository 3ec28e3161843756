"""Sizing the pools of a pipeline to a cluster, node by node and card by card."""

import dataclasses
import heapq
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from passersby.errors import InputError
from pipeline.cluster import Node, Resources, choose_device, resources, wait_for_gpus

# Each of several heavy stages takes this share of a card's remaining room; the last stage takes the
# rest: 0.6 and 0.4 for two stages, 0.6, 0.24 and 0.16 for three. The share is above a half, because Ray puts a fraction
# on the fullest card with room: so every generator gets a different card, and every detector fits beside a generator.
# With halves, two generators would share a card, and two detectors the next card.
FIRST_SHARE = 0.6
FREE_SECONDS = 60  # time in which actors of an ended pipeline or a killed run leave their cards
_WHOLE = 10_000  # one card, in the unit in which Ray itself counts


@dataclasses.dataclass(frozen=True)
class Pool:
    """The actors of one stage, each with a share of CPUs and GPUs. In a request, None lets `fit_pools` choose.

    A request with `cpus` is a light stage, which needs little time. A request without `cpus` is a heavy stage.
    nodes: each actor's node id, in the order of creation; empty on one machine without GPUs. cards: for each actor the
    cards of its node that Ray will give it. gpus_before: GPUs that the pools before this pool hold; gpus_in_all: GPUs
    that all pools hold.
    """

    stage: str
    size: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    nodes: tuple[str, ...] = ()
    cards: tuple[tuple[int, ...], ...] = ()
    gpus_before: float = 0.0
    gpus_in_all: float = 0.0

    @property
    def actors(self) -> int:
        """Number of actors; 0 for a request that leaves it open."""
        return self.size or 0

    @property
    def gpu_share(self) -> float:
        """GPUs of each actor; 0 for a request that leaves them open."""
        return self.gpus or 0.0

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.stage} {self.size} x ({self.cpus:g} CPU{gpus})"

    def placement(self) -> Callable[[], dict] | None:
        """A `ray_remote_args_fn` for one `map_batches`: each call gives the options of the next actor.

        The affinity is soft: Ray starts an actor of a lost node on another node. An actor beyond `size` replaces an
        actor that ended in its constructor, and goes where that actor left room.
        """
        if not self.nodes:
            return None
        homes = iter(enumerate(self.nodes))

        def options() -> dict:
            number, node = next(homes, (0, None))
            if node is None:
                return {}
            if number == 0 and self.gpus:
                self._await_turn()
            return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}

        return options

    def _await_turn(self) -> None:
        # The first actor on a card decides what else fits on it. So the first pool waits until all cards are free, and
        # a later pool waits until the actors of the pools before it are on their cards.
        for _ in range(FREE_SECONDS * 5):
            free, total = (amounts.get("GPU", 0.0) for amounts in (ray.available_resources(), ray.cluster_resources()))
            if free <= total - self.gpus_before + 1e-3 if self.gpus_before else free >= self.gpus_in_all - 1e-3:
                return
            time.sleep(0.2)
        print(f"{self.stage}: other work holds GPUs of this cluster ({free:g} are free)", file=sys.stderr, flush=True)


def fit_pools(
    requests: Sequence[Pool], available: Resources, on_gpu: bool, units: int, fewer: bool = False
) -> list[Pool]:
    """Pools that fit the cluster together, each actor on its node, never more actors than units.

    On GPUs each heavy stage gets one actor a GPU, and the heavy stages share each card. On CPUs each heavy stage gets
    one actor a CPU, with one thread. These actors together want more CPUs than there are, so the slowest stage has
    enough processes to use every CPU, and no ratio of costs has to be guessed. (Fewer actors with two threads each were
    tried: on a busy machine their threads wait for each other, at 2 to 100 times the CPU time.) Light stages go to the
    nodes with fewest actors for each CPU; the heavy stages divide the remaining logical CPUs. Raises InputError when
    the requests need more than the cluster has, or more than Ray can place on the cards. `fewer`: take fewer actors
    than requested instead, for a cluster that has lost nodes since the first request.
    """
    while True:
        try:
            return _fit(requests, available, on_gpu, units)
        except InputError:
            if not fewer or not any((pool.size or 1) > 1 for pool in requests):
                raise
            sizes = [pool.size and max(1, min(pool.size, units) - 1) for pool in requests]
            requests = [dataclasses.replace(pool, size=size) for pool, size in zip(requests, sizes, strict=True)]


def _fit(requests: Sequence[Pool], available: Resources, on_gpu: bool, units: int) -> list[Pool]:
    usable = [node for node in available.nodes if node.cpus > 0]  # every actor needs a bit of a CPU
    if not usable or available.cpus < 1 or (on_gpu and not any(node.gpus for node in usable)):
        raise InputError(f"the cluster has {available.cpus:g} CPUs and {available.gpus} GPUs: nothing can run on it")
    sized = _sized(requests, Resources(tuple(usable)), on_gpu, units)
    actors: Counter[str] = Counter()  # of all stages, by node id
    cards = {node.id: [_WHOLE] * node.gpus for node in usable}
    gpus_in_all, gpus_before, pools = sum(pool.actors * pool.gpu_share for pool in sized), 0.0, []
    for pool in sized:
        placed = _place(pool, usable, actors, cards)
        if len(placed) < pool.actors:
            raise InputError(_no_room(pool, len(placed), sized, available))
        nodes, cards_taken = zip(*placed, strict=True)
        pools.append(
            dataclasses.replace(pool, nodes=nodes, cards=cards_taken, gpus_before=gpus_before, gpus_in_all=gpus_in_all)
        )
        gpus_before += pool.actors * pool.gpu_share
    pools = _share_cpus(pools, usable)
    if len(available.nodes) == 1 and not gpus_in_all:
        return [dataclasses.replace(pool, nodes=(), cards=()) for pool in pools]
    return pools


def _sized(requests: Sequence[Pool], available: Resources, on_gpu: bool, units: int) -> list[Pool]:
    """The requests with their sizes and shares of a GPU, each checked by itself."""
    per_stage = available.gpus if on_gpu else sum(max(1, int(node.cpus)) for node in available.nodes)
    largest = max(node.gpus for node in available.nodes)
    heavy = [pool for pool in requests if pool.cpus is None]
    usual = _shares(heavy)
    pools = []
    for pool in requests:
        size, gpus = max(1, int(available.cpus // 8)), 0.0
        if pool in heavy:
            size = per_stage
            gpus = usual[heavy.index(pool)] if on_gpu else 0.0
        gpus = gpus if pool.gpus is None else pool.gpus
        if pool.size is not None and not 1 <= pool.size <= 16 * available.cpus:
            raise InputError(f"{pool.size} {pool.stage}: give 1 to {16 * available.cpus:g} on {available.cpus:g} CPUs")
        if not 0 <= gpus <= largest or (gpus > 1 and gpus != int(gpus)):
            raise InputError(
                f"{gpus:g} GPUs for each of the {pool.stage}: give a fraction of one, or whole ones; the largest "
                f"node has {largest}"
            )
        pools.append(dataclasses.replace(pool, size=min(pool.size or size, max(1, units)), gpus=gpus))
    return pools


def _shares(heavy: Sequence[Pool]) -> list[float]:
    """Each heavy stage's share of a card where it requests none; smaller where requests of other stages leave less."""
    shares, free = [], 1.0
    for pool in heavy:
        shares.append(free if pool is heavy[-1] and len(heavy) > 1 else FIRST_SHARE * free)
        free -= shares[-1]
    spare = 1 - sum(pool.gpus for pool in heavy if pool.gpus and pool.gpus < 1)
    open_shares = sum(share for share, pool in zip(shares, heavy, strict=True) if pool.gpus is None)
    fitting = min(1.0, spare / open_shares) if open_shares and spare > 1e-4 else 1.0
    return [math.floor(share * fitting * _WHOLE + 1e-6) / _WHOLE for share in shares]


def _place(
    pool: Pool, nodes: Sequence[Node], actors: Counter[str], cards: dict[str, list[int]]
) -> list[tuple[str, tuple[int, ...]]]:
    """The node and the cards of each actor, spread evenly over the nodes' resources; fewer actors where room ends."""
    load = [
        ((1 if pool.gpus else 1 + actors[n.id]) / (n.gpus if pool.gpus else n.cpus), i)
        for i, n in enumerate(nodes)
        if n.gpus or not pool.gpus
    ]
    heapq.heapify(load)
    placed = []
    while load and len(placed) < pool.actors:
        rank, index = load[0]
        node = nodes[index]
        cards_taken = take_cards(cards[node.id], pool.gpu_share)
        if cards_taken is None:
            heapq.heappop(load)  # it only gets fuller
            continue
        placed.append((node.id, cards_taken))
        actors[node.id] += 1
        heapq.heapreplace(load, (rank + 1 / (node.gpus if pool.gpus else node.cpus), index))
    return placed


def take_cards(cards: list[int], gpus: float) -> tuple[int, ...] | None:
    """Choose cards of a node as Ray does, and lower their free shares; None where `gpus` find no room.

    cards: the free share of each card, in 1/10000. A fraction goes to the fullest card that has room for it. Whole GPUs
    take empty cards, the lowest number first (Ray 2.60, tests/crash/test_pools_on_a_cluster.py).
    """
    share = round(gpus * _WHOLE)
    if share < _WHOLE:
        room = [(free, card) for card, free in enumerate(cards) if free >= share]
        chosen = [min(room)[1]] if room and share else []
    else:
        chosen = [card for card, free in enumerate(cards) if free == _WHOLE][: share // _WHOLE]
    if len(chosen) < math.ceil(gpus):
        return None
    for card in chosen:
        cards[card] -= min(share, _WHOLE)
    return tuple(chosen)


def _no_room(pool: Pool, placed: int, pools: Sequence[Pool], available: Resources) -> str:
    asked = " and ".join(f"{p.size} {p.stage} of {p.gpus:g} GPU" for p in pools if p.gpus)
    fewer = f"--{pool.stage} {placed} or " if placed else ""
    options = ", ".join(f"--gpus-per-{p.stage[:-1]}" for p in pools if p.gpus)
    return (
        f"{asked} do not fit on {available}: Ray fills the fullest card first, and {pool.actors - placed} {pool.stage} "
        f"find no card with room; give {fewer}smaller shares of a card ({options})"
    )


def _share_cpus(pools: list[Pool], nodes: Sequence[Node]) -> list[Pool]:
    """Give each actor logical CPUs, equally many within a pool, so that all actors fit on every node."""
    light: defaultdict[str, float] = defaultdict(float)  # CPUs, by node id
    heavy: Counter[str] = Counter()  # actors, by node id
    for pool in pools:
        for node in pool.nodes:
            light[node] += pool.cpus or 0.0
            heavy[node] += pool.cpus is None
    # At least half of each node is for the heavy stages.
    squeeze = min([1.0] + [node.cpus / 2 / light[node.id] for node in nodes if light[node.id]])
    # A light stage that has lost the node of its only actor stops all other stages, until the actor finds room on a
    # remaining node. So each of several nodes keeps room for one actor of each light stage.
    one_of_each = squeeze * sum(pool.cpus or 0.0 for pool in pools) if len(nodes) > 1 else 0.0
    room = [
        (node.cpus - squeeze * light[node.id] - min(one_of_each, node.cpus / 4)) / heavy[node.id]
        for node in nodes
        if heavy[node.id]
    ]
    each = min([1.0, *room])
    # Rounded down, so that the sum is never a hair above what there is.
    shares = [math.floor((each if pool.cpus is None else pool.cpus * squeeze) * 1000) / 1000 for pool in pools]
    return [dataclasses.replace(pool, cpus=share) for pool, share in zip(pools, shares, strict=True)]


def describe(pools: Sequence[Pool], available: Resources) -> str:
    """The plan as text: one line; on several nodes also a line for each node, and the stages that share a card."""
    lines = [f"pools: {', '.join(map(str, pools))} of {available}"]
    if len(available.nodes) > 1:
        width = max(len(node.name) for node in available.nodes)
        lines.append(f"  {'node':{width}}  GPUs  CPUs  " + "  ".join(pool.stage for pool in pools))
        for node in available.nodes:
            counts = "  ".join(f"{pool.nodes.count(node.id):{len(pool.stage)}}" for pool in pools)
            lines.append(f"  {node.name:{width}}  {node.gpus:4}  {node.cpus:4g}  {counts}")
    by_card = defaultdict(list)
    for pool in pools:
        for node, cards in zip(pool.nodes, pool.cards, strict=True):
            for card in cards:
                by_card[node, card].append(pool.stage[:-1])
    if len(by_card) > 1:
        loads = Counter(" + ".join(stages) for stages in by_card.values())
        lines.append("  cards: " + ", ".join(f"{count} x ({load})" for load, count in loads.most_common()))
    return "\n".join(lines)


class Stage(NamedTuple):
    """A stage of a pipeline: the class of its actors, the keywords of their constructor, and the requested pool."""

    actor: type
    arguments: dict
    pool: Pool


@dataclasses.dataclass(frozen=True)
class Machines:
    """The machines that a job's stages run on.

    device: "cpu" or "cuda"; "auto" until `ready` has chosen. gpus: number of GPUs to request from the autoscaler; None
    takes the GPUs of the cluster. gpu_minutes: how long to wait for the requested GPUs.
    """

    device: str
    gpus: int | None
    gpu_minutes: float

    def ready(self, waiting: bool) -> "Machines":
        """The same machines of the connected cluster with the device chosen. waiting: first wait for requested GPUs.

        Raises InputError where the GPUs do not come.
        """
        if self.gpus and waiting:
            wait_for_gpus(self.gpus, self.gpu_minutes)
        return dataclasses.replace(self, device=choose_device(self.device))

    def pools(self, stages: Sequence[Stage], units: int, fewer: bool = False) -> list[Pool]:
        """The pool of every stage on the cluster as it is now; also prints them. `fewer` as for `fit_pools`."""
        if self.gpus and self.device == "cuda" and not resources().gpus:
            wait_for_gpus(1, self.gpu_minutes)  # the last GPU was lost during the run
        cluster = resources()
        pools = fit_pools([stage.pool for stage in stages], cluster, self.device == "cuda", units, fewer)
        print(describe(pools, cluster), flush=True)
        return pools
