"""Pools that fit the cluster, node by node and card by card."""

import random
import time
from collections import Counter

import pytest

from passersby.errors import InputError
from pipeline.cluster import Node, Resources
from pipeline.pools import Pool, describe, fit_pools, take_cards

MIXED = ((16, 4), (4, 1), (8, 0), (2, 0))  # CPUs and GPUs of each node


def cluster(*nodes: tuple[float, int]) -> Resources:
    return Resources(tuple(Node(f"id{i}", f"node{i}", cpus, gpus) for i, (cpus, gpus) in enumerate(nodes)))


def fit(*nodes: tuple[float, int], units=1000, on_gpu=None, **wishes) -> list[Pool]:
    requests = [
        Pool("generators", wishes.get("generators"), gpus=wishes.get("gpus_per_generator")),
        Pool("detectors", wishes.get("detectors"), gpus=wishes.get("gpus_per_detector")),
        Pool("scorers", cpus=0.25),
        Pool("writers", cpus=0.25),
    ]
    available = cluster(*nodes)
    return fit_pools(requests, available, available.gpus > 0 if on_gpu is None else on_gpu, units)


def assert_fits(pools: list[Pool], *nodes: tuple[float, int]) -> None:
    """No node and no card has more asked of it than it has."""
    cpus, cards = Counter(), Counter()
    for pool in pools:
        homes = pool.nodes or ("id0",) * pool.size
        assert len(homes) == pool.size
        for home, taken in zip(homes, pool.cards or [()] * pool.size, strict=True):
            cpus[home] += pool.cpus
            for card in taken:
                cards[home, card] += min(pool.gpus, 1)
    for index, (has, gpus) in enumerate(nodes):
        assert cpus[f"id{index}"] <= has + 1e-9
        assert all(card < gpus for home, card in cards if home == f"id{index}")
    assert all(used <= 1 + 1e-9 for used in cards.values())


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 64, 200])
@pytest.mark.parametrize("gpus", [0, 1, 8])
@pytest.mark.parametrize("units", [1, 5, 1000])
def test_pools_fit_any_machine(cpus, gpus, units):
    pools = fit((cpus, gpus), units=units)
    assert_fits(pools, (cpus, gpus))
    assert all(1 <= pool.size <= units for pool in pools)
    assert all(pool.cpus > 0 for pool in pools)


@pytest.mark.parametrize("seed", range(30))
def test_pools_fit_any_cluster(seed):
    chance = random.Random(seed)
    nodes = [(chance.choice([1, 2, 4, 16, 96]), chance.choice([0, 0, 1, 4, 8])) for _ in range(chance.randint(2, 9))]
    pools = fit(*nodes)
    assert_fits(pools, *nodes)
    assert all(pool.cpus > 0 and len(pool.nodes) == pool.size for pool in pools)
    cards = Counter(card for pool in pools for card in zip(pool.nodes, pool.cards, strict=True) if pool.gpus)
    if gpus := sum(gpus for _, gpus in nodes):
        assert len(cards) == gpus
        assert set(cards.values()) == {2}  # a generator and a detector on every card


def test_one_machine_without_gpus_has_one_actor_a_cpu_and_needs_no_placement():
    assert [(pool.size, pool.cpus) for pool in fit((8, 0))] == [(8, 0.468), (8, 0.468), (1, 0.25), (1, 0.25)]
    assert [(pool.size, pool.cpus) for pool in fit((2, 0))] == [(2, 0.375), (2, 0.375), (1, 0.25), (1, 0.25)]
    assert all(pool.nodes == () and pool.placement() is None for pool in fit((8, 0)))


def test_every_card_of_every_node_gets_a_generator_and_a_detector():
    generators, detectors, scorers, writers = fit(*MIXED)
    assert generators.nodes.count("id0") == detectors.nodes.count("id0") == 4
    assert generators.nodes.count("id1") == detectors.nodes.count("id1") == 1
    assert sorted(generators.cards) == sorted(detectors.cards) == [(0,), (0,), (1,), (2,), (3,)]
    assert (generators.gpus, detectors.gpus) == (0.6, 0.4)
    light = Counter(scorers.nodes + writers.nodes)
    assert light["id2"] > light["id0"] >= light["id1"]  # CPUs without a card are free
    assert light["id3"] > 0


def test_on_cpus_the_actors_spread_as_the_cpus_do():
    pools = fit((8, 0), (4, 0), (2, 0), (0, 0))
    assert [Counter(pools[0].nodes)[f"id{i}"] for i in range(4)] == [8, 4, 2, 0]
    assert Counter(pools[0].nodes) == Counter(pools[1].nodes)


def test_room_is_left_for_light_stages_of_a_lost_node():
    nodes = ((4, 0), (4, 0), (4, 0))
    pools = fit(*nodes)
    one_of_each = sum(pool.cpus for pool in pools[2:])
    for index, (cpus, _) in enumerate(nodes):
        used = sum(pool.cpus * pool.nodes.count(f"id{index}") for pool in pools)
        assert cpus - used >= one_of_each


def test_wishes_are_kept():
    pools = fit((16, 2), generators=3, gpus_per_generator=0.25, detectors=1, gpus_per_detector=1)
    assert [(pool.size, pool.gpus) for pool in pools[:2]] == [(3, 0.25), (1, 1)]
    assert fit((16, 2), gpus_per_generator=0.7)[1].gpus == 0.3  # what is left of the card
    assert fit((16, 2), gpus_per_detector=0.25)[0].gpus == 0.6
    whole = fit(*MIXED, generators=2, gpus_per_generator=2, detectors=1)
    assert whole[0].cards == ((0, 1), (2, 3))
    assert whole[1].nodes == ("id1",)
    # GPUs of the cluster can be asked for while the work runs on CPUs: simulated clusters have no CUDA.
    assert fit((16, 2), on_gpu=False, generators=1, gpus_per_generator=1)[0].gpus == 1


@pytest.mark.parametrize(
    ("nodes", "wishes"),
    [
        ([(16, 0)], {"on_gpu": False, "gpus_per_generator": 1}),
        ([(16, 0)], {"on_gpu": True}),
        ([(0, 2)], {}),
        ([(16, 2)], {"generators": 4, "gpus_per_generator": 1}),
        ([(16, 2)], {"gpus_per_generator": 3}),
        ([(16, 2)], {"gpus_per_generator": -0.5}),
        ([(16, 2)], {"generators": 3, "gpus_per_generator": 0.6, "gpus_per_detector": 0}),  # two never share one
        ([(16, 4)], {"generators": 1, "gpus_per_generator": 1.5, "gpus_per_detector": 0}),
        ([(8, 1), (8, 1)], {"generators": 1, "gpus_per_generator": 2}),  # no node has two
        ([(16, 0)], {"generators": 0}),
        ([(16, 0)], {"generators": -1}),
        ([(16, 0)], {"detectors": 10**6}),
    ],
)
def test_more_than_the_cluster_has_is_refused(nodes, wishes):
    with pytest.raises(InputError):
        fit(*nodes, **wishes)


def test_a_plan_that_fits_by_its_sum_but_leaves_an_actor_waiting_is_refused_with_a_way_out():
    with pytest.raises(InputError, match="2 detectors find no card with room; give --detectors 2 or smaller shares"):
        fit((16, 4), gpus_per_generator=0.4, gpus_per_detector=0.6)
    assert fit((16, 4), gpus_per_generator=0.4, gpus_per_detector=0.6, detectors=2)[1].size == 2
    assert fit((16, 4), gpus_per_generator=0.6, gpus_per_detector=0.4)[1].size == 4


@pytest.mark.parametrize("seed", range(10))
def test_three_heavy_stages_share_every_card(seed):
    chance = random.Random(seed)
    nodes = [(chance.choice([4, 16, 96]), chance.choice([1, 4, 8])) for _ in range(chance.randint(1, 5))]
    requests = [Pool("generators"), Pool("detectors"), Pool("scorers", cpus=0.25), Pool("identifiers")]
    pools = fit_pools([*requests, Pool("writers", cpus=0.25)], cluster(*nodes), True, 1000)
    assert_fits(pools, *nodes)
    assert [pool.gpus for pool in pools] == [0.6, 0.24, 0, 0.16, 0]
    for pool in (pools[0], pools[1], pools[3]):  # one of each on every card
        assert len(set(zip(pool.nodes, pool.cards, strict=True))) == pool.size == sum(gpus for _, gpus in nodes)


def three(*wishes: float | None) -> list[Pool]:
    stages = ("generators", "detectors", "identifiers")
    return fit_pools(
        [Pool(stage, gpus=gpus) for stage, gpus in zip(stages, wishes, strict=True)], cluster((16, 1)), True, 1000
    )


def test_what_one_of_three_stages_asks_for_is_left_to_it():
    assert [pool.gpus for pool in three(0.5, None, None)] == [0.5, 0.24, 0.16]
    squeezed = three(None, None, 0.4)  # 0.6 and 0.24 of a card, in what is left of it
    assert [pool.gpus for pool in squeezed] == [0.4285, 0.1714, 0.4]
    assert_fits(squeezed, (16, 1))
    with pytest.raises(
        InputError, match=r"identifiers find no card .* smaller shares of a card \(--gpus-per-generator, "
    ):
        three(0.9, 0.05, 0.1)


def test_cards_fill_as_in_ray():
    """Seen in Ray 2.60: a fraction on the fullest card with room, whole cards in order; None = waits for ever."""
    for shares, seen in (
        ([0.5] * 4, [0, 0, 1, 1]),
        ([0.6] * 4 + [0.4] * 4, [0, 1, 2, 3, 0, 1, 2, 3]),
        ([0.4] * 4 + [0.6] * 4, [0, 0, 1, 1, 2, 3, None, None]),
        ([0.7] * 3 + [0.3] * 4, [0, 1, 2, 0, 1, 2, 3]),
        ([0.3, 0.5, 0.3, 0.5, 0.7], [0, 0, 1, 1, 2]),
    ):
        cards = [10_000] * 4
        assert [taken and taken[0] for taken in (take_cards(cards, share) for share in shares)] == seen
    cards = [10_000] * 4
    assert [take_cards(cards, share) for share in (0.25, 0.25, 2)] == [(0,), (0,), (1, 2)]


def test_the_plan_reads_well():
    pools = fit((2, 1))
    assert describe(pools, cluster((2, 1))) == (
        "pools: generators 1 x (0.75 CPU, 0.6 GPU), detectors 1 x (0.75 CPU, 0.4 GPU), scorers 1 x (0.25 CPU), "
        "writers 1 x (0.25 CPU) of 2 CPUs, 1 GPUs"
    )
    head, *table = describe(fit(*MIXED), cluster(*MIXED)).splitlines()
    assert head.endswith("of 30 CPUs, 5 GPUs on 4 nodes")
    assert [line.split() for line in table[:3]] == [
        ["node", "GPUs", "CPUs", "generators", "detectors", "scorers", "writers"],
        ["node0", "4", "16", "4", "4", "0", "1"],
        ["node1", "1", "4", "1", "1", "0", "0"],
    ]
    assert table[-1] == "  cards: 5 x (generator + detector)"


def test_a_large_cluster_is_planned_in_a_second():
    start = time.perf_counter()
    pools = fit(*[(64, 8)] * 200, units=10**6)
    assert time.perf_counter() - start < 1
    assert pools[0].size == pools[1].size == 1600


def test_after_the_loss_of_a_node_fewer_actors_do_than_were_asked_for():
    """Two cards were enough for what was asked; on the one that is left the first planning would refuse it."""
    asked = [Pool("generators", 2, gpus=0.5), Pool("detectors", 2, gpus=0.5), Pool("writers", cpus=0.25)]
    left = Resources((Node("a", "a", 4.0, 1), Node("b", "b", 2.0, 0)))
    with pytest.raises(InputError, match="do not fit"):
        fit_pools(asked, left, False, 2)
    assert [pool.size for pool in fit_pools(asked, left, False, 2, fewer=True)[:2]] == [1, 1]
    with pytest.raises(InputError, match="nothing can run"):
        fit_pools(asked, Resources(()), False, 2, fewer=True)
