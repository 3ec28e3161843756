"""Intervals by resampling people."""

import math

import numpy as np
import pytest

from passersby.errors import InputError
from passersby.metrics.bootstrap import mean_interval, query_interval


def test_the_interval_is_that_of_the_normal_law_for_many_people():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(values.mean())
    error = 1.96 * values.std() / 20
    # 2000 draws: percentiles are uncertain by a few percent of the width
    assert (high - mean) == pytest.approx(error, rel=0.1)
    assert (mean - low) == pytest.approx(error, rel=0.1)


def test_it_covers_the_truth_about_19_times_in_20():
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        _, low, high = mean_interval(random.random(60) < 0.6, draws=400)
        hits += low <= 0.6 <= high
    # binomial, 200 tries of 0.95: 190 +- 3.1; below 180 is more than three deviations away
    assert 180 <= hits < 200


def test_it_is_the_same_every_time_and_without_spread_has_no_width():
    values = np.array([0.0, 1.0, 0.25])
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(np.array([0.5, 1.0, 0.25]), seed=1)
    assert mean_interval(np.ones(4, bool)) == (1.0, 1.0, 1.0)


def test_nothing_has_no_interval():
    with pytest.raises(ValueError, match="at least one"):
        mean_interval(np.array([]))


def test_query_interval_by_hand_and_as_the_plain_loop():
    random = np.random.default_rng(0)
    identity = np.repeat(np.arange(30), random.integers(1, 6, 30))
    before = random.random((3, len(identity)))
    after = np.clip(before[:2] + random.normal(0.05, 0.2, (1, len(identity))), 0, 1)
    before[:, 4] = after[:, 4] = np.nan
    found = query_interval(before, after, identity)
    gain = np.delete(after.mean(0) - before.mean(0), 4)
    people = np.delete(identity, 4)
    assert found.difference == pytest.approx(gain.mean())
    assert (found.queries, found.identities) == (len(identity) - 1, len(set(people.tolist())))
    draws = []
    for _ in range(4000):
        chosen = random.choice(np.unique(people), found.identities)
        draws.append(np.concatenate([gain[people == person] for person in chosen]).mean())
    low, high = np.percentile(draws, [2.5, 97.5])
    # percentiles of 2000 and 4000 draws: a few percent of the width apart
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06 * (high - low))
    assert found == query_interval(before, after, identity)


def test_a_persons_queries_count_together_and_few_people_give_no_interval():
    # 20 people with 25 queries each, that all gain or lose together: 500 independent queries would look 5 times surer
    gain = np.repeat(np.random.default_rng(5).normal(0.02, 0.1, 20), 25)
    base = np.full((1, 500), 0.5)
    people = query_interval(base, base + gain, np.repeat(np.arange(20), 25))
    alone = query_interval(base, base + gain, np.arange(500))
    assert (people.high - people.low) / (alone.high - alone.low) == pytest.approx(5, rel=0.1)
    one = query_interval(base, base + gain, np.ones(500, int))
    assert (one.identities, math.isnan(one.low), math.isnan(one.high)) == (1, True, True)
    none = query_interval(base * np.nan, base, np.arange(500))
    assert (none.queries, none.identities) == (0, 0)
    assert math.isnan(none.difference)


def test_query_intervals_of_what_does_not_fit_are_refused():
    with pytest.raises(InputError, match="do not fit"):
        query_interval(np.ones((2, 5)), np.ones((2, 6)), np.ones(5))
    with pytest.raises(InputError, match="0 and 1 seeds"):
        query_interval(np.ones((0, 5)), np.ones((1, 5)), np.ones(5))
