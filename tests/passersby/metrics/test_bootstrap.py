"""Intervals by resampling people."""

import numpy as np
import pytest

from passersby.metrics.sweep_statistics import mean_interval


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
