"""Tables in lines of text: columns, shares, and the table of discarded images."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from datasets.runs.verdicts import KEPT


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row of cells: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *cells in rows:
        padded = [text.rjust(width) for text, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *padded]).rstrip())
    return lines


# ---- The table of discarded images: how many reached each filter, and how many it discarded.

# In the order in which an image meets them; a discarded image counts at the first filter that rejects it.
FILTERS = {
    "error": "could not be made or scored",
    "detector": "pedestrian filter",
    "ssim_floor": "too unlike the reference (SSIM floor)",
    "ssim_ceiling": "too like the reference (SSIM ceiling)",
    "identity_floor": "too unlike the person (identity floor)",
    "identity_margin": "too like somebody else (identity margin)",
    "identity_ceiling": "too like a real picture (identity ceiling)",
}
# Most runs do not compare identities: such a filter has a line only if it discarded something or has a threshold.
OPTIONAL = ("identity_floor", "identity_margin", "identity_ceiling")


@dataclass(frozen=True)
class DiscardRow:
    """One line of the table. Shares are fractions 0..1, None where they would be a share of 0 images."""

    key: str  # a verdict, or "made" | "discarded"
    label: str
    count: int
    of_all: float | None  # share of all images made
    of_reached: float | None  # share of the images that reached the filter; None in lines without a filter


def filters_set(thresholds: Mapping[str, float | None]) -> tuple[str, ...]:
    """The filters of OPTIONAL that have a threshold; thresholds: `Thresholds` as a mapping, or a record of them."""
    return tuple(key for key in OPTIONAL if thresholds.get(key) is not None)


def discard_rows(counts: Mapping[str, int], shown: Collection[str] = ()) -> list[DiscardRow]:
    """The lines of the table, from the number of images with each verdict.

    Keys of `counts`: "kept" and those of FILTERS; absent ones are 0. Lines: images made, one for each
    filter, all that were discarded, kept. Filters of OPTIONAL have a line only if they discarded
    something or are in `shown`.
    Raises ValueError for an unknown verdict or a negative count.
    """
    for key, count in counts.items():
        if key != KEPT and key not in FILTERS:
            raise ValueError(f"unknown verdict {key!r}: known are {', '.join([KEPT, *FILTERS])}")
        if count < 0:
            raise ValueError(f"a verdict cannot have a negative count: {key} = {count}")
    total = sum(counts.values())
    kept = counts.get(KEPT, 0)
    rows = [DiscardRow("made", "images made", total, _share(total, total), None)]
    reached = total
    for key, label in FILTERS.items():
        count = counts.get(key, 0)
        if key in OPTIONAL and not count and key not in shown:
            continue
        rows.append(DiscardRow(key, label, count, _share(count, total), _share(count, reached)))
        reached -= count
    rows.append(DiscardRow("discarded", "discarded in all", total - kept, _share(total - kept, total), None))
    rows.append(DiscardRow(KEPT, "kept", kept, _share(kept, total), None))
    return rows


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def percent(share: float | None) -> str:
    """A fraction 0..1 as `16.7%`; empty for None. Never rounds a small share to 0%, or a large one to 100%."""
    if share is None:
        return ""
    if 0 < share < 0.0005:
        return "<0.1%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{100 * share:.1f}%"


def discard_table(counts: Mapping[str, int], shown: Collection[str] = ()) -> str:
    """The table as monospaced text, without a newline at its end. Arguments and errors as `discard_rows`."""
    cells = [("", "images", "of all", "of those that got there")]
    for row in discard_rows(counts, shown):
        cells.append((row.label, f"{row.count:,}", percent(row.of_all), percent(row.of_reached)))
    lines = aligned(cells)
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, lines[1], rule, *lines[2:-2], rule, *lines[-2:]])
