"""Reports of a ranking: plots of its curves, tables of scores, thresholds and cameras, and JSON values for scripts."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from passersby.metrics.ranking import Ranking
from passersby.metrics.verification import BINS, STEP, CameraPair, PairCounts, Threshold, Thresholds
from passersby.options import Json
from reporting.curves import new_figure, plain_axes, png_of
from reporting.palette import BLUE, GREEN, INK, PURPLE, VERMILION
from reporting.tables import aligned

# ---- Plots: cumulative matches, and similarities of pairs with the thresholds between them.

# A histogram has _BARS bars, or _FEW_BARS if it has less than _FEW_PAIRS pairs, whose histogram would be ragged.
_BARS, _FEW_BARS, _FEW_PAIRS = 160, 60, 20_000


def cmc_plot(curves: Mapping[str, np.ndarray], title: str) -> bytes:
    """Plot the share of queries whose first match is at each rank or before, one curve a ranking. Returns a PNG.

    curves: name of a ranking -> [ranks] float64, 0..1; entry r is the share at rank r + 1.
    """
    figure, axes = _figure(title)
    least = 1.0
    for (name, shares), colour in zip(curves.items(), (BLUE, VERMILION, GREEN, PURPLE), strict=False):
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
                point = (rank, 100 * shares[rank - 1])
                axes.annotate(f"{point[1]:.1f}", point, (4, -13), textcoords="offset points", fontsize=8, color=INK)
    axes.set_xlabel("rank")
    axes.set_ylabel("queries with a match up to there, %")
    # The axis starts at the next ten below Rank-1, so that near curves can be distinguished; at 0 if Rank-1 is low.
    bottom = 10 * np.floor(10 * least - 0.2)
    axes.set_ylim(max(0, bottom) if least > 0.4 else 0, 101)
    axes.set_xlim(0.5, max(len(shares) for shares in curves.values()) + 0.5)
    axes.set_xticks([1, 5, *range(10, max(len(shares) for shares in curves.values()) + 1, 10)])
    axes.legend(loc="lower right", fontsize=9, framealpha=0.85)
    return png_of(figure)


def similarity_plot(counts: PairCounts, thresholds: Thresholds, title: str) -> bytes:
    """Plot the histograms of the cosine similarities of the same and of different people, as shares. Returns a PNG.

    Dashed lines show the thresholds, if there are any.
    """
    figure, axes = _figure(title)
    bins = np.flatnonzero(counts.same + counts.different)
    first, last = (bins[0], bins[-1] + 1) if len(bins) else (0, BINS)
    bars = _BARS if min(counts.same.sum(), counts.different.sum()) >= _FEW_PAIRS else _FEW_BARS
    width = max(1, -(-(last - first) // bars))  # bins of a bar
    edges = np.arange(first, last + width, width)
    for name, values, colour in (
        ("different people", counts.different, VERMILION),
        ("the same person", counts.same, GREEN),
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
                threshold.similarity, color=INK, linestyle=style, linewidth=1.2, label=_meaning(name, threshold)
            )
    axes.set_xlabel("cosine similarity of two images")
    axes.set_ylabel(f"pairs in {width * STEP:.4g} of similarity, %")
    axes.set_ylim(bottom=0)
    if len(bins):
        axes.legend(fontsize=8, framealpha=0.9)
    return png_of(figure)


def _meaning(name: str, threshold: Threshold) -> str:
    if name == "equal error":
        return f"{threshold.similarity:.3f}: equal error, {100 * threshold.false_accepts:.2g}%"
    return f"{threshold.similarity:.3f}: {name}, {100 * threshold.false_rejects:.3g}% false rejects"


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = new_figure(7.2, 4.6)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    plain_axes(axes)
    return figure, axes


# ---- Tables as lines of text, and the same figures as JSON values.

SCORES = {
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "rank20": "Rank-20",
    "mAP": "mAP",
    "mAP_trapezoid": "mAP (trapezoid)",
    "mINP": "mINP",
}
MOST_CAMERAS = 8  # the most cameras of a table: a terminal would wrap a wider one


def scores_record(ranking: Ranking) -> Json:
    """All scores of a ranking, 0..1, as JSON values: null where one is undefined.

    Scores in all_queries are means over all queries; the others are means over the `valid` queries, which have a match.
    """
    record = {name: getattr(ranking, name) for name in SCORES}
    record |= {"queries": ranking.queries, "valid": ranking.valid, "all_queries": dict(ranking.all_queries)}
    return json_values(record | {"cmc": ranking.cmc.tolist()})


def thresholds_record(thresholds: Thresholds) -> Json:
    """Both thresholds as JSON values; null where one is undefined."""
    return json_values(dataclasses.asdict(thresholds))


Numbers: TypeAlias = Json | np.generic | Sequence["Numbers"] | Mapping[str, "Numbers"]


def json_values(value: Numbers) -> Json:
    """Turn values into JSON values: numbers that are not finite become None, and NumPy's numbers plain numbers."""
    if isinstance(value, Mapping):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [json_values(item) for item in value]
    plain: Json = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def score_table(rankings: Mapping[str, Ranking]) -> list[str]:
    """The scores of each ranking in percent, one line each, and a line on queries without a match, if there are any."""
    rows = [["", *SCORES.values()]]
    for name, ranking in rankings.items():
        rows.append([name, *(_percent(getattr(ranking, score)) for score in SCORES)])
    lines = aligned(rows)
    any_ranking = next(iter(rankings.values()))
    without = any_ranking.queries - any_ranking.valid
    if without:
        lines.append(
            f"of {any_ranking.valid:,} of {any_ranking.queries:,} queries: {without:,} have no match in the gallery "
            f"(over all queries: {all_queries_line(any_ranking)})"
        )
    return lines


def all_queries_line(ranking: Ranking) -> str:
    """Rank-1 and both mAPs as means over all queries."""
    scores = [(name, ranking.all_queries[name]) for name in ("rank1", "mAP", "mAP_trapezoid")]
    return ", ".join(f"{SCORES[name]} {_percent(value)}" for name, value in scores)


def threshold_lines(thresholds: Thresholds) -> list[str]:
    """Lines on the thresholds: the similarity that calls two images the same person, and the shares of errors."""
    lines = []
    if thresholds.equal_error is not None:
        lines.append(f"{_accepting(thresholds.equal_error)}, {_rejecting(thresholds.equal_error)} (equal error)")
    if thresholds.one_percent is not None:
        threshold = thresholds.one_percent
        rejects = "" if math.isnan(threshold.false_rejects) else f", {_rejecting(threshold)}"
        lines.append(f"{_accepting(threshold)}{rejects} (strict)")
    return lines or ["no threshold: there are no pairs of different people"]


def _accepting(threshold: Threshold) -> str:
    accepts = _percent(threshold.false_accepts)
    return f"the same person from similarity {threshold.similarity:.3f} on: {accepts}% false accepts"


def _rejecting(threshold: Threshold) -> str:
    return f"{_percent(threshold.false_rejects)}% false rejects"


def camera_lines(pairs: Sequence[CameraPair]) -> list[str]:
    """Rank-1 / mAP in percent from each camera (rows) to each camera (columns); a list if there are many cameras."""
    if not pairs:
        return []
    rows, columns = sorted({pair.query_camera for pair in pairs}), sorted({pair.gallery_camera for pair in pairs})
    cells = {(p.query_camera, p.gallery_camera): f"{_percent(p.rank1)}/{_percent(p.mAP)}" for p in pairs}
    if max(len(rows), len(columns)) <= MOST_CAMERAS:
        head = ["from \\ to camera", *(str(column) for column in columns)]
        table = [head, *([f"camera {row}", *(cells.get((row, c), "-") for c in columns)] for row in rows)]
        return ["Rank-1/mAP of pairs of cameras:", *aligned(table)]
    ordered = sorted(pairs, key=lambda pair: pair.mAP)
    lines = [
        f"camera {p.query_camera} to {p.gallery_camera}: {cells[p.query_camera, p.gallery_camera]}" for p in ordered
    ]
    return [f"Rank-1/mAP of the worst of {len(pairs)} pairs of cameras:", *(f"  {line}" for line in lines[:10])]


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"
