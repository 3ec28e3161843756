"""Curves of a ranking: cumulative matches, and similarities of pairs with the thresholds between them."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from passersby.metrics.verification import BINS, STEP, PairCounts, Threshold, Thresholds

_SAME, _DIFFERENT, _INK, _LINES = "#009e73", "#d55e00", "#202124", ("#0072b2", "#d55e00", "#009e73", "#aa3377")
_BARS, _FEW_BARS, _FEW_PAIRS = (
    160,
    60,
    20_000,
)  # of the histogram, over the similarities that occur: few pairs are ragged


def cmc_plot(curves: Mapping[str, np.ndarray], title: str) -> bytes:
    """The share of queries whose first match is at each rank or before, by name of the ranking. Returns a PNG.

    curves: [ranks] float64, 0..1, of which entry r is that of rank r + 1.
    """
    figure, axes = _figure(title)
    least = 1.0
    for (name, shares), colour in zip(curves.items(), _LINES, strict=False):
        ranks = np.arange(1, len(shares) + 1)
        axes.plot(
            ranks,
            100 * shares,
            color=colour,
            linewidth=1.8,
            marker="o",
            markersize=3,
            label=f"{name}: Rank-1 {100 * shares[0]:.1f}%",
        )
        least = min(least, shares[0])
        for rank in (1, 5, 10, 20):
            if 1 < rank <= len(shares) and len(curves) == 1:
                where = (rank, 100 * shares[rank - 1])
                axes.annotate(f"{where[1]:.1f}", where, (4, -13), textcoords="offset points", fontsize=8, color=_INK)
    axes.set_xlabel("rank")
    axes.set_ylabel("queries with a match up to there, %")
    # From the next ten below Rank-1 on, so that near ones can be told apart; all of it where that is low.
    bottom = 10 * np.floor(10 * least - 0.2)
    axes.set_ylim(max(0, bottom) if least > 0.4 else 0, 101)
    axes.set_xlim(0.5, max(len(shares) for shares in curves.values()) + 0.5)
    axes.set_xticks([1, 5, *range(10, max(len(shares) for shares in curves.values()) + 1, 10)])
    axes.legend(loc="lower right", fontsize=9, framealpha=0.85)
    return _png(figure)


def similarity_plot(counts: PairCounts, thresholds: Thresholds, title: str) -> bytes:
    """Histograms of the cosine similarities of the same and of different people, each as shares. Returns a PNG.

    Dashed lines stand at the thresholds that exist.
    """
    figure, axes = _figure(title)
    used = np.flatnonzero(counts.same + counts.different)
    first, last = (used[0], used[-1] + 1) if len(used) else (0, BINS)
    bars = _BARS if min(counts.same.sum(), counts.different.sum()) >= _FEW_PAIRS else _FEW_BARS
    width = max(1, -(-(last - first) // bars))  # bins of a bar
    edges = np.arange(first, last + width, width)
    for name, values, colour in (
        ("different people", counts.different, _DIFFERENT),
        ("the same person", counts.same, _SAME),
    ):
        total = int(values.sum())
        if not total:
            continue
        sums = np.append(0, values.cumsum())[np.minimum(edges, BINS)]
        share = 100 * np.diff(sums) / total
        axes.stairs(share, (edges - 0.5) * STEP - 1, fill=True, color=colour, alpha=0.3)
        label = f"{name}: {total:,} pairs"
        axes.stairs(share, (edges - 0.5) * STEP - 1, color=colour, linewidth=1.4, label=label)
    for threshold, style, name in (
        (thresholds.equal_error, "-.", "equal error"),
        (thresholds.one_percent, "--", "1% false accepts"),
    ):
        if threshold is not None:
            axes.axvline(
                threshold.similarity, color=_INK, linestyle=style, linewidth=1.2, label=_meaning(name, threshold)
            )
    axes.set_xlabel("cosine similarity of two images")
    axes.set_ylabel(f"pairs in {width * STEP:.4g} of similarity, %")
    axes.set_ylim(bottom=0)
    if len(used):
        axes.legend(fontsize=8, framealpha=0.9)
    return _png(figure)


def _meaning(name: str, threshold: Threshold) -> str:
    if name == "equal error":
        return f"{threshold.similarity:.3f}: equal error, {100 * threshold.false_accepts:.2g}%"
    return f"{threshold.similarity:.3f}: {name}, {100 * threshold.false_rejects:.3g}% false rejects"


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.grid(True, color="#e8eaed", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
