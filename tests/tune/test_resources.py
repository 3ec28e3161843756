"""How trials fit a cluster: fractions of cards, whole cards, CPUs, what cannot be placed."""

import pytest

from passersby.errors import InputError
from pipeline.cluster import Node, Resources
from tune.runner import fit_trials


def cluster(*nodes):
    return Resources(tuple(Node(str(place), str(place), cpus, gpus) for place, (cpus, gpus) in enumerate(nodes)))


@pytest.mark.parametrize(
    ("nodes", "gpus", "cpus", "workers", "expected"),  # expected: CPUs, GPUs, workers, trials at a time
    [
        ([(2, 0)], None, None, 0, (1, 0.0, 0, 2)),
        ([(16, 1)], None, None, 0, (8, 1.0, 0, 1)),
        ([(16, 4)] * 4, None, None, 0, (4, 1.0, 0, 16)),
        ([(16, 4)] * 4, 0.3, None, 0, (1, 0.3, 0, 48)),  # three on a card
        ([(8, 4), (4, 0)], 0.5, 2, 0, (2, 0.5, 0, 4)),  # the CPUs are fewer than the halves of cards
        ([(8, 0), (3, 0)], 0.0, 2, 0, (2, 0.0, 0, 5)),
        ([(16, 4)] * 2, 2.0, 2, 0, (2, 1.0, 2, 4)),
        ([(8, 0)], 0.0, 1, 2, (1, 0.0, 2, 4)),
    ],
)
def test_as_many_trials_as_fit(nodes, gpus, cpus, workers, expected):
    found = fit_trials(gpus, cpus, workers, None, cluster(*nodes))
    assert (found.cpus, found.gpus, found.workers, found.concurrent) == expected


def test_fewer_at_a_time_on_request():
    assert fit_trials(None, None, 0, 3, cluster((8, 0))).concurrent == 3
    assert fit_trials(None, None, 0, 30, cluster((8, 0))).concurrent == 8


@pytest.mark.parametrize(
    ("gpus", "cpus", "workers", "message"),
    [
        (1.5, None, 0, "give a fraction of one GPU, or whole GPUs"),
        (-1, None, 0, "--gpus-per-trial -1"),
        (1.0, None, 0, "no trial fits"),
        (0.0, 9, 0, "no trial fits the cluster of 8 CPUs"),
        (2.0, None, 3, "one GPU a worker"),
    ],
)
def test_what_cannot_be_placed_is_one_line(gpus, cpus, workers, message):
    with pytest.raises(InputError, match=message):
        fit_trials(gpus, cpus, workers, None, cluster((8, 0)))
