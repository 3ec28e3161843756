"""Whether the verdicts of a sweep can be trusted: 1,000 simulated sweeps without an effect, and with one.

    OMP_NUM_THREADS=1 python benchmarks/sweep_power.py

The scores of level l and seed s are 0.6 + effect(l) + noise, normal, with the seed deviation seen on the toy crowd over
3 seeds: 0.5 mAP (small backbone, strong recipe) and 1.3 (small backbone, the study's recipe). Shares of sweeps in which
passersby/metrics/sweep_statistics.py says "better" of any level, of the trend, or of either; "better" or "worse" of any
level. `in common`: the share of the noise's variance that trials of one seed share: "none"; "all", half of it at all
levels; "drawn", half of it at all levels but 0, as the same seed draws the same people. `paired`: "better" or "worse"
of any level if trials of a seed were paired, which is not done, as it errs up to 16% of the time where 5% are allowed.

What comes out (RESULTS): without an effect "better" is said of any level or the trend in at most 5%. A gain of 2 mAP is
seen in over 95% of sweeps at a seed deviation of 0.5 mAP. At 1.3, three seeds suffice for the trend over the study's 17
levels (91% to 99%), but not for four levels (38% to 57%): there it takes 5 seeds (84%) to 10 (90%, where only the
highest level is better); verdicts of single levels need 8 to 10 seeds.

The second table is of arms that are compared with a control at equal steps, paired by seed (arms C, G, U, S of
docs/sweeps.md). `deviation` is that of the differences of the pairs. "can be told": the true difference that is called
better in 80% of sweeps. The last two columns: how often a difference of 2 mAP, and none, is called better, simulated.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from jobs.common import run_job
from passersby.metrics.sweep_statistics import (
    BETTER,
    CANNOT_TELL,
    Trials,
    analyse,
    critical_value,
    detectable_difference,
    loadings,
    paired_difference,
)

RESULTS = """The command above, seed 0 (standard error of 0.05 in 1,000: 0.007); 74 s of one core:
levels  seeds  deviation  effect  in common  any level  trend  either  better or worse  paired
     4      3     1.3 mAP  none    none           0.030  0.034   0.047            0.057   0.058
     4      3     1.3 mAP  none    all            0.007  0.014   0.018            0.020   0.058
     4      3     1.3 mAP  none    drawn          0.031  0.033   0.048            0.056   0.089
     4      3     0.5 mAP  top     none           0.957  0.985   0.985            0.957   0.926
     4      3     0.5 mAP  half    none           0.984  1.000   1.000            0.984   0.974
     4      3     0.5 mAP  ramp    none           0.957  0.996   0.996            0.957   0.926
     4      3     0.5 mAP  worse   none           0.014  0.000   0.014            0.981   0.962
     4      3     1.3 mAP  half    none           0.351  0.563   0.573            0.361   0.326
     4      5     1.3 mAP  half    none           0.620  0.839   0.849            0.625   0.568
     4      8     1.3 mAP  half    none           0.849  0.970   0.978            0.852   0.838
     4     10     1.3 mAP  half    none           0.932  0.994   0.995            0.937   0.930
     4      3     1.3 mAP  top     none           0.266  0.379   0.385            0.284   0.262
     4     10     1.3 mAP  top     none           0.841  0.891   0.896            0.848   0.838
    17      3     1.3 mAP  none    none           0.022  0.026   0.044            0.044   0.043
    17      3     1.3 mAP  none    all            0.010  0.009   0.016            0.020   0.043
    17      3     1.3 mAP  none    drawn          0.037  0.015   0.045            0.064   0.163
    17      3     0.5 mAP  top     none           0.998  1.000   1.000            0.998   0.997
    17      3     0.5 mAP  half    none           1.000  1.000   1.000            1.000   1.000
    17      3     0.5 mAP  ramp    none           0.991  1.000   1.000            0.991   0.990
    17      3     0.5 mAP  worse   none           0.010  0.000   0.010            1.000   1.000
    17      3     1.3 mAP  half    none           0.419  0.995   0.996            0.431   0.435
    17      5     1.3 mAP  half    none           0.725  1.000   1.000            0.741   0.742
    17      8     1.3 mAP  half    none           0.926  1.000   1.000            0.934   0.931
    17     10     1.3 mAP  half    none           0.975  1.000   1.000            0.978   0.976
    17      3     1.3 mAP  top     none           0.318  0.914   0.918            0.333   0.336
    17     10     1.3 mAP  top     none           0.927  1.000   1.000            0.937   0.931
"""

PAIRED_RESULTS = """The same command, its second table; seconds:
seeds  deviation  can be told  better at 2 mAP  better at 0
    3    0.5 mAP      1.6 mAP            0.903        0.026
    5    0.5 mAP      0.8 mAP            1.000        0.028
   10    0.5 mAP      0.5 mAP            1.000        0.034
    3    1.0 mAP      3.3 mAP            0.459        0.026
    5    1.0 mAP      1.7 mAP            0.909        0.028
   10    1.0 mAP      1.0 mAP            1.000        0.034
    3    2.0 mAP      6.5 mAP            0.164        0.026
    5    2.0 mAP      3.4 mAP            0.392        0.028
   10    2.0 mAP      2.0 mAP            0.805        0.034
"""

FOUR = (0, 10, 40, 100)  # the sweep of the README
STUDY = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 150, 200, 250, 280, 300, 320)


@dataclasses.dataclass(frozen=True)
class Config:
    """Simulate sweeps and print a table."""

    sweeps: int = 1000
    """Simulated sweeps of each row."""
    gain: float = 0.02
    """Effect, as a share of 1: 0.02 are 2 mAP."""
    seed: int = 0
    """Of the random numbers."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One row. effect: "none", "top" (the highest quarter of the levels), "half" (the upper half), "ramp"
    (in proportion to the level), "worse" (the upper half loses it). common: see above."""

    levels: tuple[int, ...]
    seeds: int
    deviation: float
    effect: str
    common: str = "none"


def cases() -> Iterator[Case]:
    """Without an effect, then with one."""
    for levels in (FOUR, STUDY):
        for common in ("none", "all", "drawn"):
            yield Case(levels, 3, 0.013, "none", common)
        for effect in ("top", "half", "ramp", "worse"):
            yield Case(levels, 3, 0.005, effect)
        for seeds in (3, 5, 8, 10):
            yield Case(levels, seeds, 0.013, "half")
        for seeds in (3, 10):
            yield Case(levels, seeds, 0.013, "top")


def effects(case: Case, gain: float) -> np.ndarray:
    """The true gain of each level [L]."""
    places, levels = np.arange(len(case.levels)), np.array(case.levels, np.float64)
    upper = (places >= (len(levels) + 1) // 2).astype(float)
    return (
        gain
        * {
            "none": np.zeros(len(levels)),
            "top": (places >= len(levels) - max(1, len(levels) // 4)).astype(float),
            "half": upper,
            "ramp": levels / levels.max(),
            "worse": -upper,
        }[case.effect]
    )


def scores(case: Case, gain: float, random: np.random.Generator) -> np.ndarray:
    """Scores of one sweep [L, S], 0..1."""
    shared = 0.0 if case.common == "none" else 0.5
    shape = (len(case.levels), case.seeds)
    common = np.broadcast_to(random.normal(0, 1, (1, case.seeds)), shape).copy()
    if case.common == "drawn":
        common[0] = random.normal(0, 1, case.seeds)  # of level 0's own: its deviation is that of the others
    noise = np.sqrt(shared) * common + np.sqrt(1 - shared) * random.normal(0, 1, shape)
    return np.clip(0.6 + effects(case, gain)[:, None] + case.deviation * noise, 0, 1)


def says_something_when_paired(values: np.ndarray) -> bool:
    """Whether the same procedure after subtracting each seed's mean calls any level of [L, S] better or worse."""
    levels, seeds = values.shape
    means = values.mean(1)
    rest = values - means[:, None] - values.mean(0) + values.mean()
    freedom = (levels - 1) * (seeds - 1)
    error = np.sqrt((rest**2).sum() / freedom * 2 / seeds)
    critical = critical_value(0.95, loadings([seeds] * (levels - 1), seeds), freedom)
    return bool((abs(means[1:] - means[0]) > critical * error).any())


def shares(case: Case, config: Config, random: np.random.Generator) -> np.ndarray:
    """Share of sweeps with: any level better, the trend better, either, any level better or worse, the same paired."""
    said = np.zeros(5)
    level = np.repeat(case.levels, case.seeds)
    seed = np.tile(np.arange(case.seeds), len(case.levels))
    for _ in range(config.sweeps):
        values = scores(case, config.gain, random)
        analysis = analyse(Trials(level, seed, values.ravel()))
        verdicts = {result.verdict for result in analysis.levels[1:]}
        any_level, trend = BETTER in verdicts, analysis.trend.verdict == BETTER
        two_sided = bool(verdicts - {CANNOT_TELL})
        said += any_level, trend, any_level or trend, two_sided, says_something_when_paired(values)
    return said / config.sweeps


def paired_power(seeds: int, deviation: float, gain: float, config: Config) -> float:
    """Share of sweeps in which an arm that is better by `gain` (0..1) is called better than its control."""
    random, better = np.random.default_rng(config.seed), 0
    for differences in random.normal(gain, deviation, (config.sweeps, seeds)):
        found = paired_difference(dict.fromkeys(range(seeds), 0.4), dict(enumerate(0.4 + differences)))
        better += found is not None and found.verdict == BETTER
    return better / config.sweeps


def main(config: Config) -> None:
    """Print one row for each case."""
    print("levels  seeds  deviation  effect  in common  any level  trend  either  better or worse  paired")
    for case in cases():
        found = shares(case, config, np.random.default_rng(config.seed))
        print(
            f"{len(case.levels):6}  {case.seeds:5}  {100 * case.deviation:6.1f} mAP  {case.effect:6}  {case.common:9}  "
            f"{found[0]:9.3f}  {found[1]:5.3f}  {found[2]:6.3f}  {found[3]:15.3f}  {found[4]:6.3f}",
            flush=True,
        )
    print_paired(config)


def print_paired(config: Config) -> None:
    """Print the table of arms that are compared with a control, paired by seed."""
    print(f"seeds  deviation  can be told  better at {100 * config.gain:g} mAP  better at 0")
    for deviation in (0.005, 0.01, 0.02):
        for seeds in (3, 5, 10):
            told = detectable_difference(deviation, seeds)
            shares = [paired_power(seeds, deviation, gain, config) for gain in (config.gain, 0.0)]
            print(
                f"{seeds:5}  {100 * deviation:5.1f} mAP  {100 * told:7.1f} mAP  {shares[0]:15.3f}  {shares[1]:11.3f}",
                flush=True,
            )


if __name__ == "__main__":
    run_job(main, Config)
