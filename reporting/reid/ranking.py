"""A ranking in words: the table of scores, the thresholds, the pairs of cameras; and the same as JSON values."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from passersby.metrics.camera_pairs import CameraPair
from passersby.metrics.ranking import Ranking
from passersby.metrics.verification import Thresholds

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


def scores_record(ranking: Ranking) -> dict[str, Any]:
    """All scores of a ranking, 0..1, as JSON values: null where undefined.

    Those outside of all_queries are means over the `valid` queries, which have a match; those inside divide by all.
    """
    record = {name: getattr(ranking, name) for name in SCORES}
    record |= {"queries": ranking.queries, "valid": ranking.valid, "all_queries": dict(ranking.all_queries)}
    return json_values(record | {"cmc": ranking.cmc.tolist()})


def thresholds_record(thresholds: Thresholds) -> dict[str, Any]:
    """Both thresholds, null where undefined."""
    return json_values(dataclasses.asdict(thresholds))


def json_values(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not have, and plain numbers for NumPy's."""
    if isinstance(value, Mapping):
        return {key: json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
