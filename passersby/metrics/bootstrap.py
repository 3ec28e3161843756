"""Intervals of means over people, by resampling people."""

import numpy as np


def mean_interval(values: np.ndarray, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Values of people [P] -> their mean and the ends of its 95% interval.

    The percentile bootstrap (B. Efron, 1979): a person's pictures are alike, so that people are drawn again, not
    pictures; `values` are therefore one number a person, such as the share of its pictures that pass. The same values
    and seed give the same interval. Raises ValueError when there is no value.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    values = np.asarray(values, np.float64)
    index = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(values[index].mean(1), (2.5, 97.5))
    return float(values.mean()), float(low), float(high)
