"""The charts of a sweep's page: lines with bands over levels, and the study's published curves beside them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import pyarrow as pa

from passersby.metrics.sweep_statistics import Analysis

# ---- Charts: lines with bands over levels, and the coordinates in which the page draws them.

WIDTH, HEIGHT = 560, 300  # units of the SVG's coordinates


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart.

    points: (level, score, text); band: (level, low, high), may be empty; dots: (level, score) of single trials. Scores
    are points, 0..100. style: the CSS class that gives the colour.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float, str]]
    band: Sequence[tuple[float, float, float]] = ()
    dots: Sequence[tuple[float, float]] = ()


@dataclasses.dataclass(frozen=True)
class Chart:
    """A plot of one or more series. description: the sentence that screen readers read instead of the plot.

    over: the meaning of the horizontal axis, "" for that of the sweep's levels.
    """

    title: str
    description: str
    unit: str
    series: Sequence[Series]
    over: str = ""

    @property
    def _levels(self) -> list[float]:
        return [level for series in self.series for level, *_ in series.points]

    @property
    def _scores(self) -> list[float]:
        scores = [score for series in self.series for _, score, _ in series.points]
        scores += [end for series in self.series for _, *ends in series.band for end in ends]
        return scores + [score for series in self.series for _, score in series.dots]

    @property
    def y_ticks(self) -> list[float]:
        """Round scores from below the lowest score to above the highest score."""
        low, high = min(self._scores), max(self._scores)
        step = _round_step(max(high - low, 0.5) / 5)
        first, last = math.floor(low / step), math.ceil(high / step)
        return [round(k * step, 6) for k in range(first, max(last, first + 1) + 1)]

    @property
    def x_ticks(self) -> list[float]:
        """The levels themselves if they are few, else round levels."""
        levels = sorted(set(self._levels))
        if len(levels) <= 6:
            return levels
        step = _round_step(levels[-1] / 6)
        return [round(k * step, 6) for k in range(int(levels[-1] / step) + 1)]

    def x(self, level: float) -> float:
        """The horizontal coordinate of a level."""
        return round(WIDTH * level / (max(self._levels) or 1), 2)

    def y(self, score: float) -> float:
        """The vertical coordinate of a score."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return round(HEIGHT * (high - score) / (high - low), 2)

    def line(self, series: Series) -> str:
        """The points of a series for a polyline."""
        return " ".join(f"{self.x(level)},{self.y(score)}" for level, score, _ in series.points)

    def area(self, series: Series) -> str:
        """The band of a series for a polygon."""
        upper = [(level, high) for level, _, high in series.band]
        lower = [(level, low) for level, low, _ in reversed(series.band)]
        return " ".join(f"{self.x(level)},{self.y(score)}" for level, score in upper + lower)


def _round_step(step: float) -> float:
    power = 10 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step - 1e-12)


# ---- The study's published curves: scores after adding generated people, or generated pictures of real people.
#
# "Generation of Images using Generative Adversarial Networks for Augmentation of Training Data in Re-identification
# Models" (thesis, Universidad Autonoma de Yucatan): Market-1501, ResNet-50, 60 epochs, one training a row, at unequal
# numbers of steps; mAP by the trapezoid formula.

# level -> (Rank-1, mAP), 0..1
_PEOPLE = {
    0: (0.893112, 0.742632), 10: (0.888955, 0.743795), 20: (0.892221, 0.745116), 30: (0.891627, 0.741414),
    40: (0.890143, 0.748799), 50: (0.894299, 0.746853), 60: (0.901128, 0.751229), 70: (0.892815, 0.748843),
    80: (0.892518, 0.748257), 90: (0.899347, 0.758927), 100: (0.898159, 0.755366), 150: (0.898753, 0.761433),
    200: (0.896378, 0.763768), 250: (0.893705, 0.762484), 280: (0.903504, 0.767955), 300: (0.896081, 0.768727),
    320: (0.896675, 0.769509),
}  # fmt: skip
_VARIANTS = {
    0: (0.893112, 0.742632), 5: (0.886876, 0.719692), 10: (0.878860, 0.704901), 15: (0.870546, 0.686172),
    20: (0.865796, 0.674047), 25: (0.861342, 0.663773), 30: (0.850950, 0.654492), 35: (0.845606, 0.635790),
    40: (0.841449, 0.640035), 45: (0.826306, 0.630469), 60: (0.829869, 0.624382), 70: (0.832245, 0.623470),
    85: (0.825713, 0.614014), 105: (0.817399, 0.605653), 135: (0.813539, 0.601084),
}  # fmt: skip
STUDY_CURVES = {"artificial-people": _PEOPLE, "variants-of-real-people": _VARIANTS}
STUDY_SCORES = ("rank1", "mAP")
CAVEAT = (
    "One training a level, on Market-1501, with more steps at higher levels, and by a generator that had seen people "
    "of the test set: its shape can be compared, its numbers cannot."
)


def study_curve(sweep: str, score: str) -> list[tuple[int, float]]:
    """(level, score 0..1) of a sweep, for one of STUDY_SCORES; empty if the study has no such curve."""
    index = STUDY_SCORES.index(score)
    return [(level, values[index]) for level, values in STUDY_CURVES.get(sweep, {}).items()]


# ---- The charts of a sweep.


def score_charts(
    title: str, score: str, analyses: Mapping[str, Analysis], tables: Mapping[str, pa.Table], sweep: str
) -> dict[str, str | Chart | None]:
    """The charts of a score: the arms of this sweep, and the study's curve where it has one.

    title: the score's name for readers. analyses, tables: of each arm. sweep: the sweep's name.
    """
    ours = [
        _series(number, arm, analysis, tables[arm], score) for number, (arm, analysis) in enumerate(analyses.items())
    ]
    description = "; ".join(f"{series.name}: " + ", ".join(text for *_, text in series.points) for series in ours)
    published = study_curve(sweep, score)
    study = None
    if published:
        points = [(level, 100 * value, f"level {level}: {100 * value:.1f}") for level, value in published]
        line = Series("the study", "series-study", points)
        study = Chart(f"{title}, the study's curve", ", ".join(text for *_, text in points), "%", [line])
    return {"title": title, "ours": Chart(f"{title}, this sweep", description, "%", ours), "study": study}


def _series(number: int, arm: str, analysis: Analysis, table: pa.Table, score: str) -> Series:
    results = analysis.levels
    texts = [f"level {result.level}: {interval_text(result.mean, result.low, result.high)}" for result in results]
    points = [(result.level, 100 * result.mean, text) for result, text in zip(results, texts, strict=True)]
    band = [(result.level, 100 * result.low, 100 * result.high) for result in results if math.isfinite(result.low)]
    dots = [
        (level, 100 * value) for level, value in zip(table["level"].to_pylist(), table[score].to_pylist(), strict=True)
    ]
    return Series(arm or "this sweep", f"series-{min(number, 5)}", points, band, dots)


def label_chart(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Chart | None:
    """mAP over the number of labelled people; None without curves. curves: name -> (people, mAP 0..1)."""
    series = [
        Series(
            name,
            f"series-{number}",
            [(people, 100 * mAP, f"{people:,} labelled people: {100 * mAP:.1f}") for people, mAP in curve],
        )
        for number, (name, curve) in enumerate(curves.items())
    ]
    description = "; ".join(f"{one.name}: " + ", ".join(text for *_, text in one.points) for one in series)
    return Chart("mAP", description, "%", series, "the number of labelled people") if series else None


def interval_text(value: float, low: float, high: float, sign: str = "") -> str:
    """Points of 100, such as "61.2 (60.1 to 62.3)"; without the ends if they are not known."""
    text = f"{100 * value:{sign}.1f}"
    return text if not math.isfinite(low) else f"{text} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
