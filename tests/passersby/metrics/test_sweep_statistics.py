"""What a sweep can tell: against SciPy, by hand, and by simulation."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from passersby.errors import InputError
from passersby.metrics.sweep_statistics import (
    BASELINE,
    BETTER,
    CANNOT_TELL,
    WORSE,
    Trials,
    analyse,
    critical_value,
    detectable_difference,
    loadings,
    paired_difference,
    shown_with_probability,
    simultaneous_p_value,
)


def trials(by_level: dict[int, list[float]]) -> Trials:
    rows = [(level, seed, score) for level, scores in by_level.items() for seed, score in enumerate(scores)]
    return Trials(*np.array(rows, np.float64).T)


HAND = {0: [0.50, 0.52, 0.54], 10: [0.60, 0.62, 0.64], 20: [0.50, 0.53, 0.53]}


def test_a_case_by_hand():
    analysis = analyse(trials(HAND))
    # squares: 2 x (0.02^2 + 0.02^2) + (0.02^2 + 0.01^2 + 0.01^2) = 0.0022, over 6 degrees of freedom
    deviation = math.sqrt(0.0022 / 6)
    assert analysis.seed_deviation == pytest.approx(deviation)
    assert (analysis.freedom, analysis.note) == (6, "")
    zero, ten, twenty = analysis.levels
    assert [(r.level, r.seeds) for r in analysis.levels] == [(0, 3), (10, 3), (20, 3)]
    assert [r.mean for r in analysis.levels] == pytest.approx([0.52, 0.62, 0.52])
    half = 2.4469 * deviation / math.sqrt(3)  # t of 6 degrees of freedom, two-sided 95%
    assert (zero.low, zero.high) == pytest.approx((0.52 - half, 0.52 + half), abs=1e-5)
    # Dunnett's table, two-sided 5%, 2 comparisons, 6 degrees of freedom: 2.86
    half = 2.86 * deviation * math.sqrt(2 / 3)
    assert (ten.difference_low, ten.difference_high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-4)
    assert [r.verdict for r in analysis.levels] == [BASELINE, BETTER, CANNOT_TELL]
    assert math.isnan(zero.p_value)
    assert twenty.p_value == pytest.approx(1, abs=1e-6)
    assert analysis.trend.slope == pytest.approx(0, abs=1e-12)
    assert analysis.trend.verdict == CANNOT_TELL


def test_p_values_and_intervals_are_those_of_scipys_dunnett_with_unequal_numbers_of_seeds():
    random = np.random.default_rng(3)
    scores = {0: 4, 5: 3, 10: 2, 20: 5, 40: 3}
    scores = {level: (0.6 + 0.01 * (level == 40) + random.normal(0, 0.01, n)).tolist() for level, n in scores.items()}
    analysis = analyse(trials(scores))
    others = [np.array(scores[level]) for level in (5, 10, 20, 40)]
    expected = stats.dunnett(*others, control=np.array(scores[0]), random_state=0)
    interval = expected.confidence_interval(0.95)
    # SciPy integrates by random points: its p values are good to about 1e-3, its critical value to 1e-2
    assert [r.p_value for r in analysis.levels[1:]] == pytest.approx(expected.pvalue, abs=1e-3)
    assert [r.difference_low for r in analysis.levels[1:]] == pytest.approx(interval.low, abs=2e-4)
    assert [r.difference_high for r in analysis.levels[1:]] == pytest.approx(interval.high, abs=2e-4)


def test_one_comparison_is_students_t():
    for freedom in (1, 2, 7, 60):
        for t in (0.3, 1.0, 2.5, 12.0):
            assert simultaneous_p_value(-t, (0.7,), freedom) == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-10)
    analysis = analyse(trials({0: [0.50, 0.51, 0.53], 30: [0.52, 0.55, 0.56]}))
    expected = stats.ttest_ind([0.52, 0.55, 0.56], [0.50, 0.51, 0.53])
    interval = expected.confidence_interval(0.95)
    level = analysis.levels[1]
    assert level.p_value == pytest.approx(expected.pvalue, abs=1e-9)
    assert (level.difference_low, level.difference_high) == pytest.approx((interval.low, interval.high))
    # with two levels the trend is the same comparison
    assert (analysis.trend.rise, analysis.trend.p_value) == pytest.approx((level.difference, expected.pvalue))


def test_critical_values_are_those_of_dunnetts_tables_and_of_scipys_multivariate_t():
    # C. W. Dunnett, New tables for multiple comparisons with a control, 1964: two-sided, 5%
    for comparisons, freedom, expected in ((1, 10, 2.23), (2, 6, 2.86), (3, 8, 2.88)):
        assert critical_value(0.95, loadings([4] * comparisons, 4), freedom) == pytest.approx(expected, abs=0.006)
    for seeds, baseline, freedom in (([3] * 5, 3, 20), ([2, 5, 3, 8], 4, 17)):
        loads = np.array(loadings(seeds, baseline))
        shape = np.outer(loads, loads)
        np.fill_diagonal(shape, 1)
        joint = stats.multivariate_t(np.zeros(len(loads)), shape, df=freedom)
        critical = np.full(len(loads), critical_value(0.95, tuple(loads.tolist()), freedom))
        inside = joint.cdf(critical, lower_limit=-critical, random_state=0, maxpts=40_000)
        assert inside == pytest.approx(0.95, abs=1e-3)  # SciPy's points are random


def test_the_trend_is_the_slope_over_ranks_tested_against_the_noise_of_seeds():
    # levels far apart: over ranks the means lie on a line of slope 0.01
    analysis = analyse(trials({0: [0.49, 0.51], 1: [0.50, 0.52], 1000: [0.51, 0.53]}))
    deviation = 0.01 * math.sqrt(2)
    assert analysis.trend.slope == pytest.approx(0.01)
    assert analysis.trend.rise == pytest.approx(0.02)
    t = 0.01 / (deviation / math.sqrt(4))  # ranks -1, 0, 1, twice each
    assert analysis.trend.p_value == pytest.approx(2 * stats.t.sf(t, 3))
    half = 3.1824 * deviation / 2
    assert (analysis.trend.low, analysis.trend.high) == pytest.approx((0.01 - half, 0.01 + half), abs=1e-5)
    down = analyse(trials({0: [0.6, 0.61], 5: [0.5, 0.51], 10: [0.4, 0.41]}))
    assert [r.verdict for r in down.levels[1:]] == [WORSE, WORSE]
    assert down.trend.verdict == WORSE


@pytest.mark.parametrize(
    ("by_level", "note"),
    [
        ({0: [0.5], 10: [0.9], 20: [0.99]}, "one seed"),
        ({0: [0.5, 0.5], 10: [0.9, 0.9]}, "score the same"),
    ],
)
def test_without_noise_to_compare_with_nobody_can_tell(by_level, note):
    analysis = analyse(trials(by_level))
    assert note in analysis.note
    assert {r.verdict for r in analysis.levels[1:]} == {CANNOT_TELL}
    assert analysis.trend.verdict == CANNOT_TELL
    assert analysis.levels[1].difference == pytest.approx(0.4)
    assert math.isnan(analysis.levels[1].p_value)
    assert math.isnan(analysis.levels[1].difference_low)
    assert analysis.seeds_needed() is None


def test_a_level_with_one_seed_is_judged_by_the_noise_of_the_others():
    analysis = analyse(trials({0: [0.50, 0.51, 0.49], 10: [0.60]}))
    assert analysis.freedom == 2
    assert analysis.levels[1].seeds == 1
    t = 0.1 / (0.01 * math.sqrt(1 + 1 / 3))
    assert analysis.levels[1].p_value == pytest.approx(2 * stats.t.sf(t, 2), abs=1e-9)
    assert analysis.levels[1].verdict == BETTER
    only = analyse(trials({0: [0.50, 0.51, 0.49]}))
    assert only.trend.verdict == CANNOT_TELL
    assert "only level 0" in only.note
    assert only.seeds_needed() is None


def test_the_order_of_trials_does_not_matter():
    ordered = trials(HAND)
    mixed = np.random.default_rng(0).permutation(9)
    other = analyse(Trials(ordered.level[mixed], ordered.seed[mixed], ordered.score[mixed]))
    for one, two in zip(analyse(ordered).levels, other.levels, strict=True):
        assert dataclasses.astuple(one)[:7] == pytest.approx(dataclasses.astuple(two)[:7], nan_ok=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 10], [1, 1], [0.5, math.nan]), "nan of level 10, seed 1"),
        (([0, 10], [1, 1], [0.5, 56.0]), "56.0 of level 10"),
        (([0, 0], [1, 1], [0.5, 0.5]), "level 0, seed 1 occurs twice"),
        (([10, 20], [1, 1], [0.5, 0.5]), "levels 10, 20: level 0"),
        (([], [], []), "levels none"),
        (([0, 1], [1], [0.5]), "shapes"),
    ],
)
def test_trials_that_make_no_sweep_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Trials(*arguments)


def test_confidence_gain_and_power_out_of_range_are_refused():
    with pytest.raises(InputError, match="confidence 95"):
        analyse(trials(HAND), 95)
    with pytest.raises(InputError, match="power 1"):
        analyse(trials(HAND)).seeds_needed(power=1)


@pytest.mark.slow
def test_without_an_effect_better_is_said_rarely_and_a_gain_of_four_deviations_is_seen():
    random = np.random.default_rng(1)
    level, seed = np.repeat([0, 10, 40, 100], 3), np.tile([0, 1, 2], 4)
    gain = 0.02 * (level >= 40)
    level_found, trend_found = np.zeros(2), np.zeros(2)
    for _ in range(400):
        for place, effect in enumerate((0.0, gain)):
            analysis = analyse(Trials(level, seed, 0.6 + effect + random.normal(0, 0.005, 12)))
            level_found[place] += any(result.verdict == BETTER for result in analysis.levels)
            trend_found[place] += analysis.trend.verdict == BETTER
    # each expects 2.5% of 400 = 10 +- 3.1: 20 are three deviations more, and 5%
    assert level_found[0] <= 20
    assert trend_found[0] <= 20
    assert min(level_found[0], trend_found[0]) >= 2  # a procedure that never says anything is none
    assert min(level_found[1], trend_found[1]) >= 0.9 * 400


def test_seeds_needed_give_the_power_that_was_asked_for():
    analysis = analyse(trials(HAND))
    analysis = dataclasses.replace(analysis, seed_deviation=0.01)
    seeds = analysis.seeds_needed(gain=0.02)
    random = np.random.default_rng(2)

    def power(count: int) -> float:  # by simulation, with SciPy's critical value of the multivariate t
        means = 0.02 * np.array([0, 0, 1]) + random.normal(0, 0.01 / math.sqrt(count), (4000, 3))
        freedom = 3 * (count - 1)
        deviation = 0.01 * np.sqrt(random.chisquare(freedom, 4000) / freedom)
        t = (means[:, 2] - means[:, 0]) / (deviation * math.sqrt(2 / count))
        both = stats.multivariate_t(np.zeros(2), np.array([[1, 0.5], [0.5, 1]]), df=freedom)
        grid = np.linspace(2, 4, 201)
        inside = np.array([both.cdf([c, c], lower_limit=[-c, -c], random_state=0) for c in grid])
        return float((t > np.interp(0.95, inside, grid)).mean())

    # 4000 simulated: +- 0.006
    assert power(seeds) > 0.8 - 0.02
    assert power(seeds - 1) < 0.8 + 0.02
    assert (
        shown_with_probability(0.02, 0.01, seeds, 2, 0.95)
        >= 0.8
        > shown_with_probability(0.02, 0.01, seeds - 1, 2, 0.95)
    )
    assert analysis.seeds_needed(gain=0.01) > 3 * seeds  # with the square, about
    assert analysis.seeds_needed(gain=1.0) == 2
    assert analysis.seeds_needed(gain=1e-6) is None


def test_paired_differences_are_students_paired_t_test():
    first = {0: 0.50, 1: 0.52, 2: 0.51, 7: 0.2}
    second = {0: 0.53, 1: 0.54, 2: 0.545, 9: 0.9}
    found = paired_difference(first, second)
    test = stats.ttest_rel([second[seed] for seed in range(3)], [first[seed] for seed in range(3)])
    interval = test.confidence_interval(0.95)
    assert found is not None
    assert found.seeds == 3
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert found.verdict == "better"
    back = paired_difference(second, first)
    assert back is not None
    assert (back.mean, back.verdict) == (pytest.approx(-found.mean), "worse")


def test_few_or_equal_pairs_tell_nothing():
    assert paired_difference({0: 0.5}, {1: 0.6}) is None
    for first, second in (({0: 0.5}, {0: 0.9}), ({0: 0.5, 1: 0.6}, {0: 0.7, 1: 0.8})):
        found = paired_difference(first, second)
        assert found is not None
        assert found.verdict == "cannot tell"
        assert math.isnan(found.low)
        assert math.isnan(found.told)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_difference_that_can_be_told_is_told_in_80_percent(seeds):
    difference = detectable_difference(0.01, seeds)
    samples = np.random.default_rng(0).normal(difference, 0.01, (20000, seeds))
    error = samples.std(1, ddof=1) / np.sqrt(seeds)
    assert (samples.mean(1) > stats.t.ppf(0.975, seeds - 1) * error).mean() == pytest.approx(0.8, abs=0.01)
    with pytest.raises(InputError, match="give 2 seeds or more"):
        detectable_difference(0.01, 1)
