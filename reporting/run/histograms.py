"""Histograms of scores: counted into bars, with the geometry in which a page draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PLOT_WIDTH, PLOT_HEIGHT = 600, 160  # units of the SVG's coordinates


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: its ends on the x axis, the images kept and (drawn above them) discarded."""

    start: float
    end: float
    kept: int
    discarded: int


@dataclass(frozen=True)
class Histogram:
    """Bars and threshold lines of one score, with the geometry that the template draws."""

    bars: Sequence[Bar]
    lines: Sequence[tuple[str, float]]  # (name, value)
    scored: int
    missing: int

    @property
    def low(self) -> float:
        """Where the x axis begins."""
        return self.bars[0].start

    @property
    def high(self) -> float:
        """Where the x axis ends."""
        return self.bars[-1].end

    @property
    def tallest(self) -> int:
        """Images in the tallest bar, at least 1."""
        return max(1, *(bar.kept + bar.discarded for bar in self.bars))

    @property
    def ticks(self) -> list[float]:
        """About five round numbers on the x axis."""
        step = next(step for step in (0.05, 0.1, 0.2, 0.5, 1.0) if (self.high - self.low) / step <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 2) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def x(self, value: float) -> float:
        """The horizontal coordinate of a score in the drawing."""
        return round(PLOT_WIDTH * (value - self.low) / (self.high - self.low), 2)

    def height(self, count: int) -> float:
        """The height in the drawing of a bar of so many images."""
        return round(PLOT_HEIGHT * count / self.tallest, 2)


def histogram(
    values: np.ndarray,
    kept: np.ndarray,
    lines: Sequence[tuple[str, float | None]],
    bins: int = 40,
    low: float | None = None,
) -> Histogram:
    """Count scores into bars.

    values [N] float, NaN where an image has none; kept [N] bool; lines: (name, threshold), those with None
    are left out. The axis ends at 1.0 and begins at `low`, or at the multiple of 0.05 below the least score
    and threshold.
    """
    scored = np.isfinite(values)
    lines = [(name, float(value)) for name, value in lines if value is not None]
    if low is None:
        least = min([*values[scored].tolist(), *(value for _, value in lines), 0.95])
        low = math.floor(least * 20 + 1e-9) / 20
    high = max([1.0, *(value for _, value in lines)])
    edges = np.linspace(low, high, bins + 1)
    inside = np.clip(values, low, high)  # scores are at most 1 but for rounding
    good = np.histogram(inside[scored & kept], edges)[0]
    bad = np.histogram(inside[scored & ~kept], edges)[0]
    bars = [Bar(*map(float, pair), int(g), int(b)) for *pair, g, b in zip(edges, edges[1:], good, bad, strict=False)]
    return Histogram(bars, lines, int(scored.sum()), int((~scored).sum()))


@dataclass(frozen=True)
class Plot:
    """A histogram on the page: of what, in a word or two, and the sentences below it."""

    histogram: Histogram
    name: str
    what: str
