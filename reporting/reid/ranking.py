"""A ranking for people and for scripts: plots of its curves, tables of scores, thresholds and cameras, JSON values."""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from passersby.metrics.ranking import Ranking
from passersby.metrics.verification import BINS, STEP, CameraPair, PairCounts, Threshold, Thresholds
from passersby.options import Json

# ---- Plots: cumulative matches, and similarities of pairs with the thresholds between them.

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


# ---- Tables in lines, and the same as JSON values.

SCORES = {
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "rank20": "Rank-20",
    "mAP": "mAP",
    "mAP_trapezoid": "mAP (trapezoid)",
    "mINP": "mINP",
}
MOST_CAMERAS = 8  # of a table in the terminal: wider ones wrap


def scores_record(ranking: Ranking) -> Json:
    """All scores of a ranking, 0..1, as JSON values: null where undefined.

    Those outside of all_queries are means over the `valid` queries, which have a match; those inside divide by all.
    """
    record = {name: getattr(ranking, name) for name in SCORES}
    record |= {"queries": ranking.queries, "valid": ranking.valid, "all_queries": dict(ranking.all_queries)}
    return json_values(record | {"cmc": ranking.cmc.tolist()})


def thresholds_record(thresholds: Thresholds) -> Json:
    """Both thresholds, null where undefined."""
    return json_values(dataclasses.asdict(thresholds))


Numbers: TypeAlias = Json | np.generic | Sequence["Numbers"] | Mapping[str, "Numbers"]


def json_values(value: Numbers) -> Json:
    """The same with None for numbers that are not finite, which JSON does not have, and plain numbers for NumPy's."""
    if isinstance(value, Mapping):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [json_values(item) for item in value]
    plain: Json = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def score_table(rankings: Mapping[str, Ranking]) -> list[str]:
    """The scores of each ranking in percent, one line each, and what they are means of."""
    rows = [["", *SCORES.values()]]
    for name, ranking in rankings.items():
        rows.append([name, *(_percent(getattr(ranking, score)) for score in SCORES)])
    lines = _aligned(rows)
    any_ranking = next(iter(rankings.values()))
    without = any_ranking.queries - any_ranking.valid
    if without:
        lines.append(
            f"of {any_ranking.valid:,} of {any_ranking.queries:,} queries: {without:,} have no match in the gallery "
            f"(over all queries: {all_queries_line(any_ranking)})"
        )
    return lines


def all_queries_line(ranking: Ranking) -> str:
    """Rank-1 and both mAPs with the number of all queries as denominator."""
    known = [(name, ranking.all_queries[name]) for name in ("rank1", "mAP", "mAP_trapezoid")]
    return ", ".join(f"{SCORES[name]} {_percent(value)}" for name, value in known)


def threshold_lines(thresholds: Thresholds) -> list[str]:
    """Where to call two images the same person, and how often that is wrong."""
    lines = []
    if thresholds.equal_error is not None:
        found = thresholds.equal_error
        lines.append(
            f"the same person from similarity {found.similarity:.3f} on: {_percent(found.false_accepts)}% false "
            f"accepts, {_percent(found.false_rejects)}% false rejects (equal error)"
        )
    if thresholds.one_percent is not None:
        found = thresholds.one_percent
        missed = "" if math.isnan(found.false_rejects) else f", {_percent(found.false_rejects)}% false rejects"
        lines.append(
            f"the same person from similarity {found.similarity:.3f} on: {_percent(found.false_accepts)}% false "
            f"accepts{missed} (strict)"
        )
    return lines or ["no threshold: there are no pairs of different people"]


def camera_lines(pairs: Sequence[CameraPair]) -> list[str]:
    """Rank-1 / mAP from each camera (rows) to each (columns), in percent; a list where there are many cameras."""
    if not pairs:
        return []
    rows, columns = sorted({pair.query_camera for pair in pairs}), sorted({pair.gallery_camera for pair in pairs})
    shown = {(p.query_camera, p.gallery_camera): f"{_percent(p.rank1)}/{_percent(p.mAP)}" for p in pairs}
    if max(len(rows), len(columns)) <= MOST_CAMERAS:
        head = ["from \\ to camera", *(str(column) for column in columns)]
        table = [head, *([f"camera {row}", *(shown.get((row, c), "-") for c in columns)] for row in rows)]
        return ["Rank-1/mAP of pairs of cameras:", *_aligned(table)]
    ordered = sorted(pairs, key=lambda pair: pair.mAP)
    said = [
        f"camera {p.query_camera} to {p.gallery_camera}: {shown[p.query_camera, p.gallery_camera]}" for p in ordered
    ]
    return [f"Rank-1/mAP of the worst of {len(pairs)} pairs of cameras:", *(f"  {line}" for line in said[:10])]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"
