"""Does augmentation help? Statistics of the scores of a sweep over levels and seeds.

A score is the mean of its level plus the noise of its seed. All levels have the same deviation, estimated from all
scores together. Dunnett's intervals, which hold for all comparisons at once (`critical_value`), compare each level with
level 0. The trend is the slope over the *rank* of the level, tested against the same deviation. One measure has to be
chosen before the scores are seen, and over ranks the study's two published curves are nearest to straight lines
(r = 0.96 and -0.97; over log(1 + level) 0.82 and -0.97; over the level itself 0.95 and -0.86).

Trials of one seed are *not* paired. A seed also chooses the generated people. Nested levels share these people, but
level 0 has none. Subtracting the mean of a seed would so remove noise that the difference to level 0 still contains. In
simulated sweeps of 17 levels without any effect, paired trials call some level "better" or "worse" in 16% of sweeps
instead of 5%. Unpaired trials do so in 6%, and in 2% where seeds have a common part at all levels ("better" alone:
under 4%). benchmarks/sweep_power.py shows both ways, and how many seeds are needed to see a gain.

Intervals and verdicts describe the choice of seeds, with a fixed test set. `query_interval` (bootstrap.py) describes
the choice of the test set.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from scipy import optimize, special, stats

from passersby.errors import InputError

# ---- Dunnett's comparison of several levels with one baseline, and how often a real gain shows.
#
# C. W. Dunnett, A multiple comparison procedure for comparing several treatments with a control, 1955. The statistics
# t_i = (mean_i - mean_0) / (s sqrt(1/n_i + 1/n_0)) share the baseline and the deviation s, so that their correlation is
# a product: rho_ij = l_i l_j with l_i = sqrt(n_i / (n_i + n_0)). Given the baseline's error and s, the statistics are
# independent, and the probability is an integral over these two. Gauss-Legendre integration always gives the same
# numbers; SciPy's `dunnett` draws random ones. The error is about 1e-11, so smaller p values come out as about 1e-11.

_BASELINE_NODES, _DEVIATION_NODES = 96, 96
_REACH = 8.5  # the limit of the integral: 2e-17 of the standard normal distribution lies beyond
_TAIL = 1e-13  # the share of the deviation's distribution that the integral omits at each end


def loadings(seeds: Sequence[int], baseline_seeds: int) -> tuple[float, ...]:
    """The l_i of levels with `seeds` trials, compared with a baseline with `baseline_seeds` trials."""
    return tuple(float(np.sqrt(count / (count + baseline_seeds))) for count in seeds)


def simultaneous_p_value(t: float, loads: tuple[float, ...], freedom: int) -> float:
    """The probability 0..1 that any comparison is |t| or more from 0, if no level differs from the baseline."""
    return float(np.clip(1 - _all_within(abs(t), loads, freedom), 0, 1))


@functools.lru_cache(maxsize=1024)
def critical_value(confidence: float, loads: tuple[float, ...], freedom: int) -> float:
    """The t that no comparison exceeds, with the probability `confidence`, if no level differs from the baseline."""
    # The root lies between the value for one comparison and Bonferroni's value for all.
    low = stats.t.ppf((1 + confidence) / 2, freedom)
    high = stats.t.ppf(1 - (1 - confidence) / (2 * len(loads)), freedom)
    if len(loads) == 1:
        return float(low)
    root = optimize.brentq(lambda t: _all_within(t, loads, freedom) - confidence, low, high, xtol=1e-7)
    return float(cast(float, root))  # SciPy declares no types, and with other arguments it returns more


def shown_with_probability(gain: float, deviation: float, seeds: int, levels: int, confidence: float) -> float:
    """The probability that a level is called better, if it is better by `gain`.

    The sweep has `levels` levels beside level 0, with `seeds` seeds at every level. deviation: of the scores over
    seeds, in the unit of `gain`. The noncentral t distribution gives the probability.
    """
    freedom = (levels + 1) * (seeds - 1)
    critical = critical_value(confidence, loadings([seeds] * levels, seeds), freedom)
    return float(stats.nct.sf(critical, freedom, gain / (deviation * np.sqrt(2 / seeds))))


def _all_within(t: float, loads: tuple[float, ...], freedom: int) -> float:
    """P(|t_i| <= t for all i)."""
    (z, z_weights), (s, s_weights) = _baseline_nodes(), _deviation_nodes(freedom)
    inside = np.ones((len(s), len(z)))
    for load in set(loads):
        independent = np.sqrt(1 - load**2)
        high, low = ((load * z + sign * t * s[:, None]) / independent for sign in (1, -1))
        inside *= (special.ndtr(high) - special.ndtr(low)) ** loads.count(load)
    return float(s_weights @ inside @ z_weights)


@functools.cache
def _baseline_nodes() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the baseline's error, which is standard normal; both [nodes]."""
    nodes, weights = np.polynomial.legendre.leggauss(_BASELINE_NODES)
    weights = weights * stats.norm.pdf(_REACH * nodes)
    return _REACH * nodes, weights / weights.sum()


@functools.lru_cache(maxsize=256)
def _deviation_nodes(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the estimated deviation over the true one, chi / sqrt(freedom); both [nodes]."""
    nodes, weights = np.polynomial.legendre.leggauss(_DEVIATION_NODES)
    scale = 1 / np.sqrt(freedom)
    low, high = stats.chi.ppf(_TAIL, freedom, scale=scale), stats.chi.isf(_TAIL, freedom, scale=scale)
    s = low + (high - low) * (nodes + 1) / 2
    weights = weights * stats.chi.pdf(s, freedom, scale=scale)
    return s, weights / weights.sum()


# ---- The results of a sweep: levels, trend, verdicts.

BETTER, WORSE, CANNOT_TELL = "better", "worse", "cannot tell"
BASELINE = "baseline"  # the verdict of level 0
MOST_SEEDS = 10_000
_NO_NOISE = 1e-12  # a smaller deviation of scores 0..1 between seeds is rounding


@dataclasses.dataclass(frozen=True)
class Trials:
    """Finished trials; entry t of each array belongs to trial t.

    level [T] int, 0 or more; seed [T] int; score [T] float, 0..1. Levels may have different numbers of seeds. Raises
    InputError for lengths that differ, scores that are not within 0..1, a (level, seed) that occurs twice, and without
    level 0.
    """

    level: np.ndarray
    seed: np.ndarray
    score: np.ndarray

    def __post_init__(self):
        for name, kind in (("level", np.int64), ("seed", np.int64), ("score", np.float64)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), kind))
        if not self.level.shape == self.seed.shape == self.score.shape == (len(self.level),):
            shapes = f"{self.level.shape}, {self.seed.shape} and {self.score.shape}"
            raise InputError(f"levels, seeds and scores of trials have shapes {shapes}: give one of each for a trial")
        bad = np.flatnonzero(~((self.score >= 0) & (self.score <= 1)))  # nan is bad as well
        if len(bad):
            trial = f"level {self.level[bad[0]]}, seed {self.seed[bad[0]]}"
            raise InputError(f"the score {self.score[bad[0]]} of {trial} is not within 0..1: leave the trial out")
        pairs, counts = np.unique(np.stack([self.level, self.seed]), axis=1, return_counts=True)
        if (counts > 1).any():
            level, seed = pairs[:, counts > 1][:, 0]
            raise InputError(f"level {level}, seed {seed} occurs twice: give the trials of one arm, each once")
        if not (self.level == 0).any() or (self.level < 0).any():
            names = ", ".join(str(level) for level in np.unique(self.level)) or "none"
            raise InputError(f"levels {names}: level 0, the baseline of all comparisons, must be the lowest of them")


@dataclasses.dataclass(frozen=True)
class LevelResult:
    """The result of one level.

    mean: of the level's `seeds` scores; low..high: its interval, for this level alone. difference: to the mean of
    level 0; difference_low..difference_high: its interval, which holds for all levels at once; p_value (0..1) has the
    same correction. verdict: BETTER, WORSE or CANNOT_TELL. Level 0 has the verdict BASELINE, and nan for the interval
    of the difference and the p value. All intervals are nan where the noise is not known.
    """

    level: int
    seeds: int
    mean: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    p_value: float
    verdict: str


@dataclasses.dataclass(frozen=True)
class Trend:
    """The trend over the levels.

    slope: change of the score from one level to the next; low..high: its interval. rise: slope x number of steps.
    p_value: two-sided; it is about the general direction, and does not show that each step helps. Where the noise is
    not known, the interval and the p value are nan; with a single level all numbers are nan.
    """

    slope: float
    low: float
    high: float
    rise: float
    p_value: float
    verdict: str


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The analysis of a sweep. levels: ascending, level 0 first.

    seed_deviation: the deviation of scores over seeds, pooled over levels, in the unit of the scores; nan where no
    level has two seeds. freedom: its degrees of freedom. note: the reason why the sweep cannot be judged; empty where
    it can.
    """

    levels: tuple[LevelResult, ...]
    trend: Trend
    seed_deviation: float
    freedom: int
    confidence: float
    note: str

    def seeds_needed(self, gain: float = 0.005, power: float = 0.8) -> int | None:
        """The number of seeds at every level, level 0 too, that shows a gain with this power.

        With so many seeds, a level that is better by `gain` is called better with the probability `power`. The number
        is for this sweep's levels, correction and seed deviation, by the noncentral t distribution. It grows with the
        square of the deviation, and few seeds estimate that badly: after three seeds at four levels, the true number
        may be between half and nearly four times the result. None where the deviation is not known, where no level is
        compared, and where more than MOST_SEEDS would be needed. Raises InputError for a gain or power out of range.
        """
        if not (gain > 0 and 0 < power < 1):
            raise InputError(f"a gain of {gain} with power {power}: the gain must be above 0, the power within 0..1")
        comparisons = len(self.levels) - 1
        if not self.seed_deviation > 0 or not comparisons:
            return None

        def enough(seeds: int) -> bool:
            return shown_with_probability(gain, self.seed_deviation, seeds, comparisons, self.confidence) >= power

        low, high = 1, 2  # one seed tells nothing
        while not enough(high):
            low, high = high, 2 * high
            if low >= MOST_SEEDS:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high if high <= MOST_SEEDS else None


def analyse(trials: Trials, confidence: float = 0.95) -> Analysis:
    """Means, comparisons with level 0 and trend, at a two-sided confidence. Raises InputError unless it is in 0..1."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence}: give a probability between 0 and 1, such as 0.95")
    levels, rank = np.unique(trials.level, return_inverse=True)  # [L], [T]
    seeds = np.bincount(rank)
    means = np.bincount(rank, trials.score) / seeds
    freedom = int((seeds - 1).sum())
    squares = float(((trials.score - means[rank]) ** 2).sum())
    deviation = math.sqrt(squares / freedom) if freedom else math.nan
    noise = deviation if deviation > _NO_NOISE else math.nan
    tail = (1 - confidence) / 2
    margin = stats.t.isf(tail, freedom) * noise / np.sqrt(seeds) if freedom else np.full(len(levels), math.nan)
    return Analysis(
        levels=tuple(
            LevelResult(int(level), int(count), float(mean), float(mean - half), float(mean + half), *comparison)
            for level, count, mean, half, comparison in zip(
                levels, seeds, means, margin, _compared(means, seeds, noise, freedom, confidence), strict=True
            )
        ),
        trend=_trend(rank, trials.score, noise, freedom, tail),
        seed_deviation=deviation,
        freedom=freedom,
        confidence=confidence,
        note=_note(freedom, noise, len(levels)),
    )


def _note(freedom: int, noise: float, levels: int) -> str:
    if not freedom:
        return "cannot tell: every level has one seed, so nobody knows what chance does; run more seeds"
    if math.isnan(noise):
        return "cannot tell: all seeds of a level score the same, so they do not vary the training"
    if levels == 1:
        return "cannot tell: only level 0 has finished"
    return ""


def _compared(
    means: np.ndarray, seeds: np.ndarray, noise: float, freedom: int, confidence: float
) -> list[tuple[float, float, float, float, str]]:
    """For each level: the difference to level 0, the ends of its interval, the p value, the verdict.

    noise: nan where it is not known.
    """
    comparisons = [(0.0, math.nan, math.nan, math.nan, BASELINE)]
    differences = means - means[0]
    loads = loadings(seeds[1:].tolist(), int(seeds[0]))
    for difference, count in zip(differences[1:].tolist(), seeds[1:].tolist(), strict=True):
        if math.isnan(noise):
            comparisons.append((difference, math.nan, math.nan, math.nan, CANNOT_TELL))
            continue
        error = noise * math.sqrt(1 / count + 1 / seeds[0])
        half = critical_value(confidence, loads, freedom) * error
        low, high = difference - half, difference + half
        comparisons.append(
            (difference, low, high, simultaneous_p_value(difference / error, loads, freedom), _verdict(low, high))
        )
    return comparisons


def _trend(rank: np.ndarray, score: np.ndarray, noise: float, freedom: int, tail: float) -> Trend:
    """The slope of scores [T] over the ranks [T] of their levels."""
    steps = int(rank.max())
    if not steps:
        return Trend(math.nan, math.nan, math.nan, math.nan, math.nan, CANNOT_TELL)
    centred = rank - rank.mean()
    spread = float(centred @ centred)
    slope = float(centred @ score) / spread
    if math.isnan(noise):
        return Trend(slope, math.nan, math.nan, slope * steps, math.nan, CANNOT_TELL)
    error = noise / math.sqrt(spread)
    half = float(stats.t.isf(tail, freedom)) * error
    p_value = float(2 * stats.t.sf(abs(slope) / error, freedom))
    return Trend(slope, slope - half, slope + half, slope * steps, p_value, _verdict(slope - half, slope + half))


def _verdict(low: float, high: float) -> str:
    """The verdict that the interval of a difference gives."""
    return BETTER if low > 0 else WORSE if high < 0 else CANNOT_TELL


# ---- Arms of equal level: differences paired by seed.

DETECTION = 0.8  # the probability with which a difference that can be told is told


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """The mean difference of two arms over the seeds that both have, by Student's paired t test.

    A seed gives both arms the same start and the same order, so that pairing removes what they share; the test holds
    whether they share anything or not. low..high: the interval; deviation: of the differences. These are nan with fewer
    than two seeds, and where all differences are equal. seeds: the number of pairs. verdict: BETTER, WORSE or
    CANNOT_TELL. told: the true difference whose interval lies above 0 with the probability DETECTION, if the deviation
    is as seen; nan where that is not known.
    """

    seeds: int
    mean: float
    low: float
    high: float
    deviation: float
    verdict: str
    told: float


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], confidence: float = 0.95
) -> PairedDifference | None:
    """`second` minus `first`, both seed -> score; None without a common seed."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    differences = np.array([second[seed] - first[seed] for seed in seeds])
    mean, count = float(differences.mean()), len(seeds)
    deviation = float(differences.std(ddof=1)) if count > 1 else math.nan
    if not deviation > _NO_NOISE:
        return PairedDifference(count, mean, math.nan, math.nan, math.nan, CANNOT_TELL, math.nan)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * deviation / math.sqrt(count)
    low, high = mean - half, mean + half
    told = detectable_difference(deviation, count, confidence)
    return PairedDifference(count, mean, low, high, deviation, _verdict(low, high), told)


def detectable_difference(deviation: float, seeds: int, confidence: float = 0.95, power: float = DETECTION) -> float:
    """The true difference of two arms that `seeds` pairs tell from 0 with the probability `power`.

    deviation: of the paired differences, in any unit, that of the result. By the noncentral t distribution. Raises
    InputError for fewer than two seeds, and for a confidence or power out of range.
    """
    if seeds < 2 or not (0 < confidence < 1 and 0 < power < 1):
        raise InputError(f"{seeds} seeds, confidence {confidence}, power {power}: give 2 seeds or more, and 0..1")
    critical = float(stats.t.ppf((1 + confidence) / 2, seeds - 1))

    def missing(shift: float) -> float:
        return float(stats.nct.sf(critical, seeds - 1, shift)) - power

    shift = optimize.brentq(missing, 0.0, 4 * critical + 10)
    return deviation * float(cast(float, shift)) / math.sqrt(seeds)
