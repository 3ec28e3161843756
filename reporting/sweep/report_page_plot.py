"""Lines with bands over levels, with the geometry in which a page draws them."""

import dataclasses
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 560, 300  # units of the SVG's coordinates


@dataclasses.dataclass(frozen=True)
class Series:
    """One line. points: (level, score, what to say there); band: (level, low, high), may be empty; dots: (level, score)
    of single trials. Scores are points, 0..100. style: the class that gives its colour."""

    name: str
    style: str
    points: Sequence[tuple[float, float, str]]
    band: Sequence[tuple[float, float, float]] = ()
    dots: Sequence[tuple[float, float]] = ()


@dataclasses.dataclass(frozen=True)
class Chart:
    """A plot of one or more series. what: the sentence that stands for it where it cannot be seen."""

    title: str
    what: str
    unit: str
    series: Sequence[Series]

    @property
    def _levels(self) -> list[float]:
        return [level for one in self.series for level, *_ in one.points]

    @property
    def _scores(self) -> list[float]:
        scores = [score for one in self.series for _, score, _ in one.points]
        scores += [end for one in self.series for _, *ends in one.band for end in ends]
        return scores + [score for one in self.series for _, score in one.dots]

    @property
    def y_ticks(self) -> list[float]:
        """Round scores from below the least to above the greatest."""
        low, high = min(self._scores), max(self._scores)
        step = _round_step(max(high - low, 0.5) / 5)
        first, last = math.floor(low / step), math.ceil(high / step)
        return [round(k * step, 6) for k in range(first, max(last, first + 1) + 1)]

    @property
    def x_ticks(self) -> list[float]:
        """The levels themselves where they are few, else round ones."""
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

    def line(self, one: Series) -> str:
        """The points of a series for a polyline."""
        return " ".join(f"{self.x(level)},{self.y(score)}" for level, score, _ in one.points)

    def area(self, one: Series) -> str:
        """The band of a series for a polygon."""
        there = [(level, high) for level, _, high in one.band]
        back = [(level, low) for level, low, _ in reversed(one.band)]
        return " ".join(f"{self.x(level)},{self.y(score)}" for level, score in there + back)


def _round_step(step: float) -> float:
    power = 10 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step - 1e-12)
