"""Levels: the study's, a baseline that is always there, names, nesting by draws, what is refused."""

import pytest

from datasets.reid.runs import first
from passersby.errors import InputError
from tune.levels import LEVELS, PEOPLE_SWEEP, VARIANTS_SWEEP, Trial, trials_of, with_baseline


def test_the_ready_levels_are_the_study_s():
    assert LEVELS[PEOPLE_SWEEP] == (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 150, 200, 250, 280, 300, 320)
    assert LEVELS[VARIANTS_SWEEP] == (0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 60, 70, 85, 105, 135)


def test_the_baseline_is_always_there():
    assert with_baseline([20, 10]) == (0, 10, 20)
    assert with_baseline([10, 0]) == (0, 10)


@pytest.mark.parametrize(
    ("levels", "message"), [([], "give one number"), ([3, 3], "3 is given twice"), ([-1], "--levels -1")]
)
def test_levels_that_cannot_be(levels, message):
    with pytest.raises(InputError, match=message):
        with_baseline(levels)


def test_trials_are_named_by_what_they_are():
    assert Trial(1, 20).name == "level-0020-seed-1"
    assert Trial(0, 320, "batch=32, lr=0.05").name == "level-0320-seed-0-batch-32-lr-0.05"
    found = trials_of((0, 5), (0, 1), ("",))
    assert [(trial.seed, trial.level) for trial in found] == [(0, 0), (0, 5), (1, 0), (1, 5)]
    with pytest.raises(InputError, match="would share"):
        trials_of((0,), (0,), ("lr=1+2", "lr=1 2"))


def test_levels_are_nested_inside_a_seed_and_differ_between_seeds():
    people = [str(person) for person in range(100)]
    drawn = {(level, seed): set(first(people, str, level, seed)) for level in (10, 20, 50, 100) for seed in range(3)}
    for seed in range(3):
        assert drawn[10, seed] < drawn[20, seed] < drawn[50, seed] < drawn[100, seed] == set(people)
        assert len(drawn[20, seed]) == 20
    assert len({frozenset(drawn[10, seed]) for seed in range(3)}) == 3
    assert first(people, str, 10, None) == people[:10]


def test_everybody_is_drawn_equally_often():
    """Of 20 people 5 are drawn, by 400 seeds: each about 100 times (standard deviation 8.7)."""
    people = [str(person) for person in range(20)]
    counts = dict.fromkeys(people, 0)
    for seed in range(400):
        for person in first(people, str, 5, seed):
            counts[person] += 1
    assert min(counts.values()) > 60
    assert max(counts.values()) < 140


def test_whom_a_filter_takes_out_changes_nobody_else_s_order():
    people = [str(person) for person in range(30)]
    everybody = first(people, str, 30, 7)
    fewer = [person for person in people if person not in ("3", "17")]
    assert first(fewer, str, 28, 7) == [person for person in everybody if person not in ("3", "17")]
