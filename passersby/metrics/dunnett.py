"""How large the greatest of several comparisons with one baseline gets by chance, and how often a real gain shows.

C. W. Dunnett, A multiple comparison procedure for comparing several treatments with a control, 1955. The statistics
t_i = (mean_i - mean_0) / (s sqrt(1/n_i + 1/n_0)) share the baseline and the deviation s, so that their correlation is a
product: rho_ij = l_i l_j with l_i = sqrt(n_i / (n_i + n_0)). Given the baseline's error and s they are independent,
and the probability is an integral over these two, taken by Gauss-Legendre: the same numbers always, where SciPy's
`dunnett` draws random ones. Good to some 1e-11 in probability: smaller p values come out as about that.
"""

import functools
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats

_BASELINE_NODES, _DEVIATION_NODES = 96, 96
_REACH = 8.5  # standard normal: beyond lies 2e-17
_TAIL = 1e-13  # of the deviation's distribution, left out at both ends


def loadings(seeds: Sequence[int], baseline_seeds: int) -> tuple[float, ...]:
    """l_i of levels with so many trials each, beside a baseline with `baseline_seeds`."""
    return tuple(float(np.sqrt(count / (count + baseline_seeds))) for count in seeds)


def simultaneous_p_value(t: float, loads: tuple[float, ...], freedom: int) -> float:
    """The chance that any of the comparisons is |t| or more from 0 where no level differs from the baseline, 0..1."""
    return float(np.clip(1 - _all_within(abs(t), loads, freedom), 0, 1))


@functools.lru_cache(maxsize=1024)
def critical_value(confidence: float, loads: tuple[float, ...], freedom: int) -> float:
    """The t that, where no level differs from the baseline, all comparisons stay within with this probability."""
    # Between the value for one comparison and Bonferroni's for all.
    low = stats.t.ppf((1 + confidence) / 2, freedom)
    high = stats.t.ppf(1 - (1 - confidence) / (2 * len(loads)), freedom)
    if len(loads) == 1:
        return float(low)
    return float(optimize.brentq(lambda t: _all_within(t, loads, freedom) - confidence, low, high, xtol=1e-7))


def shown_with_probability(gain: float, deviation: float, seeds: int, levels: int, confidence: float) -> float:
    """How probably one level of `levels` that is better by `gain` is called better, with as many seeds at all of them.

    deviation: of the scores over seeds, in the unit of `gain`. By the noncentral t distribution.
    """
    freedom = (levels + 1) * (seeds - 1)
    critical = critical_value(confidence, loadings([seeds] * levels, seeds), freedom)
    return float(stats.nct.sf(critical, freedom, gain / (deviation * np.sqrt(2 / seeds))))


def _all_within(t: float, loads: tuple[float, ...], freedom: int) -> float:
    """P(|t_i| <= t for all i)."""
    (z, z_weights), (s, s_weights) = _baseline_nodes(), _deviation_nodes(freedom)
    inside = np.ones((len(s), len(z)))
    for load in set(loads):
        own = np.sqrt(1 - load**2)
        high, low = ((load * z + sign * t * s[:, None]) / own for sign in (1, -1))
        inside *= (special.ndtr(high) - special.ndtr(low)) ** loads.count(load)
    return float(s_weights @ inside @ z_weights)


@functools.cache
def _baseline_nodes() -> tuple[np.ndarray, np.ndarray]:
    """Places and weights of the standard normal baseline error, both [nodes]."""
    nodes, weights = np.polynomial.legendre.leggauss(_BASELINE_NODES)
    weights = weights * stats.norm.pdf(_REACH * nodes)
    return _REACH * nodes, weights / weights.sum()


@functools.lru_cache(maxsize=256)
def _deviation_nodes(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of the estimated deviation over the true one, chi / sqrt(freedom)."""
    nodes, weights = np.polynomial.legendre.leggauss(_DEVIATION_NODES)
    scale = 1 / np.sqrt(freedom)
    low, high = stats.chi.ppf(_TAIL, freedom, scale=scale), stats.chi.isf(_TAIL, freedom, scale=scale)
    s = low + (high - low) * (nodes + 1) / 2
    weights = weights * stats.chi.pdf(s, freedom, scale=scale)
    return s, weights / weights.sum()
