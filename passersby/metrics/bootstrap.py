"""Intervals of means over people by the bootstrap, which resamples people with all that belongs to them.

B. Efron, Bootstrap methods: another look at the jackknife, 1979. The pictures or queries of a person are alike, so that
they are no independent draws; people are. Draws come from a seed, so the same input gives the same interval.
"""

import dataclasses
import math

import numpy as np

from passersby.errors import InputError

_SAMPLE_SIZE = 1 << 22  # identity numbers that are drawn at a time: 32 MiB


def mean_interval(values: np.ndarray, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Values of people [P] -> their mean and the ends of its 95% interval.

    This is the percentile bootstrap (B. Efron, 1979). The pictures of a person are alike, so it resamples people, not
    pictures: `values` holds one number a person, such as the share of the person's pictures that pass. The same values
    and seed give the same interval. Raises ValueError when there is no value.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    values = np.asarray(values, np.float64)
    index = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(values[index].mean(1), (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


@dataclasses.dataclass(frozen=True)
class QueryInterval:
    """A difference of mAP, level - baseline, over `queries` of `identities` people; low..high: its interval.

    The interval is nan where fewer than two people have a query with a match.
    """

    difference: float
    low: float
    high: float
    queries: int
    identities: int


def query_interval(
    query_ap_baseline: np.ndarray,
    query_ap_level: np.ndarray,
    identity: np.ndarray,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> QueryInterval:
    """How much of a difference of mAP may come from the choice of test people.

    query_ap_baseline, query_ap_level: average precisions [S, Q]; S may differ between the two. A query with any entry
    nan has no match and is omitted. identity: [Q] int, the person of each query.
    This is the cluster bootstrap (A. C. Davison and D. V. Hinkley, Bootstrap methods and their application, 1997, 3.8).
    It resamples people with all their queries, because a person's queries succeed or fail together. Each query counts
    with its mean over seeds, so the seeds are fixed. The interval's ends are percentiles of `draws` samples. The same
    input gives the same interval. Raises InputError for shapes that do not fit.
    """
    before, after = np.asarray(query_ap_baseline, np.float64), np.asarray(query_ap_level, np.float64)
    identity = np.asarray(identity)
    if before.ndim != 2 or after.ndim != 2 or not before.shape[1] == after.shape[1] == len(identity):
        raise InputError(
            f"average precisions {before.shape} and {after.shape} of {identity.shape} queries do not fit: "
            "give [seeds, queries] of one test set"
        )
    if not len(before) or not len(after) or not 0 < confidence < 1:
        raise InputError(f"{len(before)} and {len(after)} seeds at confidence {confidence}: give 1 or more, and 0..1")
    gain = after.mean(0) - before.mean(0)  # [Q]
    matched = np.isfinite(gain)
    gain, people = gain[matched], np.unique(identity[matched], return_inverse=True)[1]
    count = int(people.max()) + 1 if len(gain) else 0
    difference = float(gain.mean()) if len(gain) else math.nan
    if count < 2:
        return QueryInterval(difference, math.nan, math.nan, len(gain), count)
    sums, sizes = np.bincount(people, gain), np.bincount(people)
    random, means = np.random.default_rng(seed), np.empty(draws)
    step = max(1, _SAMPLE_SIZE // count)
    for start in range(0, draws, step):
        sample = random.integers(0, count, (min(step, draws - start), count))
        means[start : start + step] = sums[sample].sum(1) / sizes[sample].sum(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return QueryInterval(difference, float(low), float(high), len(gain), count)
