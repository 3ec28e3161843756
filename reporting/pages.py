"""The report of a run: one HTML page that needs nothing beside itself, for a browser on any machine."""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.verdicts import KEPT
from reporting.progress import duration
from reporting.tables import FILTERS, DiscardRow, discard_rows, percent

STAGES = {
    "generate": "making the images",
    "detect": "pedestrian filter",
    "similarity": "similarity",
    "write": "writing shards",
}
# Not allowed in HTML, or not encodable: control characters and lone halves of surrogate pairs.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_PLOT_WIDTH, _PLOT_HEIGHT = 600, 160  # units of the SVG's coordinates


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
        return round(_PLOT_WIDTH * (value - self.low) / (self.high - self.low), 2)

    def height(self, count: int) -> float:
        """The height in the drawing of a bar of so many images."""
        return round(_PLOT_HEIGHT * count / self.tallest, 2)


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


def is_toy(record: Any) -> bool:
    """Whether a network's record says, in a key or text, that it was trained on the drawn toy crowd."""
    if isinstance(record, Mapping):
        return any(is_toy(key) or is_toy(value) for key, value in record.items())
    if isinstance(record, list | tuple):
        return any(map(is_toy, record))
    return isinstance(record, str) and re.search(r"toy[ _-]?crowd", record, re.IGNORECASE) is not None


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as (dotted key, value as text) in its own order; None reads "none"."""
    pairs = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            pairs += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            pairs.append((f"{prefix}{key}", ", ".join(map(str, value)) or "none"))
        else:
            pairs.append((f"{prefix}{key}", "none" if value is None else str(value)))
    return pairs


def render_report(
    *,
    title: str,
    summary: Mapping[str, Any],
    manifest: pa.Table,
    sheet_png: bytes,
    configuration: Mapping[str, Any],
    network: Mapping[str, Any],
    check_commands: Sequence[tuple[str, str]] = (),
) -> str:
    """The report of one run as the text of a self-contained HTML page.

    summary: thresholds {detector, ssim_floor, ssim_ceiling: float or None}; optional are seconds (wall clock
        of the last run), images_per_second, run_images (images made by the last run), stage_seconds
        {name in STAGES or other: seconds, summed over all workers}. Other keys are ignored.
    manifest: every image's row; columns person, variant, reference_variant, detector_score, ssim, verdict.
    sheet_png: the contact sheet, as the bytes of a PNG file.
    configuration: the frozen configuration; network: its record (what it was trained on). Both may be nested.
    check_commands: (what it does, command) to check the run again.
    Every text is escaped: none can bring markup into the page. Raises ValueError for unknown verdicts and
    KeyError for missing thresholds or columns.
    """
    verdicts = manifest["verdict"].value_counts()
    rows = discard_rows({str(item["values"]): item["counts"].as_py() for item in verdicts})
    template = _environment().get_template("report.html.j2")
    html = template.render(
        title=title,
        toy=is_toy(network),
        rows=rows,
        filters=FILTERS,
        headline=_headline(summary, rows, manifest),
        plots=_plots(manifest, summary["thresholds"]),
        plot_width=_PLOT_WIDTH,
        plot_height=_PLOT_HEIGHT,
        sheet=base64.b64encode(sheet_png).decode(),
        people=_kept_per_person(manifest),
        stages=_stages(summary),
        configuration=flatten(configuration),
        network=flatten(network),
        check_commands=check_commands,
    )
    return _FORBIDDEN.sub("\ufffd", html)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names, messages and records come from files that anybody may have made
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment


def _kept(manifest: pa.Table) -> np.ndarray:
    return pc.equal(manifest["verdict"], KEPT).to_numpy()  # [N] bool


def _plots(manifest: pa.Table, thresholds: Mapping[str, float | None]) -> dict[str, Histogram]:
    kept = _kept(manifest)
    detector, ssim = (manifest[name].cast(pa.float64()).to_numpy() for name in ("detector_score", "ssim"))
    others = pc.not_equal(manifest["variant"], manifest["reference_variant"]).fill_null(True).to_numpy()
    ends = [("floor", thresholds["ssim_floor"]), ("ceiling", thresholds["ssim_ceiling"])]
    return {
        "detector": histogram(detector, kept, [("threshold", thresholds["detector"])], low=0.0),
        "ssim": histogram(ssim[others], kept[others], ends),
    }


def _headline(summary: Mapping[str, Any], rows: Sequence[DiscardRow], manifest: pa.Table) -> list[tuple[str, str]]:
    made, kept = rows[0], rows[-1]
    people = len(manifest["person"].unique())
    figures = [
        (f"{people:,}", "people" if people != 1 else "person"),
        (f"{made.count:,}", "images made"),
        (f"{kept.count:,}", f"kept, {percent(kept.of_all)}" if made.count else "kept"),
    ]
    if summary.get("images_per_second"):
        figures.append((f"{summary['images_per_second']:,.1f}", "images/s"))
    if summary.get("seconds") is not None:
        figures.append((duration(summary["seconds"]), "in all"))
    return figures


def _kept_per_person(manifest: pa.Table) -> dict[str, Any] | None:
    """How many people kept how many images, in at most ten steps of equal width."""
    if not manifest.num_rows:
        return None
    _, person = np.unique(manifest["person"].to_numpy(), return_inverse=True)
    each = np.bincount(person, weights=_kept(manifest)).astype(np.int64)
    variants = int(np.bincount(person).max())
    width = math.ceil(variants / 10)
    # None kept at all stands alone: such people are lost to training.
    steps = [(0, 0)] + [(first, min(first + width - 1, variants)) for first in range(1, variants + 1, width)]
    bars = [(first, last, int(((each >= first) & (each <= last)).sum())) for first, last in steps]
    return {
        "bars": bars,
        "most": max(count for *_, count in bars),
        "people": len(each),
        "none": int((each == 0).sum()),
        "median": f"{np.median(each):g}",
        "least": int(each.min()),
        "best": int(each.max()),
    }


def _stages(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    seconds = summary.get("stage_seconds") or {}
    total = sum(seconds.values())
    images = summary.get("run_images")
    return [
        {
            "name": STAGES.get(name, name),
            "time": f"{value:.1f} s" if value < 60 else duration(value),
            "share": value / total if total else None,
            "rate": f"{images / value:,.1f}" if images and value > 0 else "",
        }
        for name, value in seconds.items()
    ]
