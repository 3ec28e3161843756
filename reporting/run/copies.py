"""What was found about near-copies of real pictures and doubles among artificial people, for people to see."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.runs.plan import Plan
from datasets.runs.verdicts import KEPT, nearest_real
from datasets.storage.output import Output
from passersby.metrics.identity import near_copies
from reporting.grid import SheetCell, SheetRow, contact_sheet

PRIVACY, PRIVACY_SHEET = "privacy.json", "privacy.png"
SHEET_PAIRS = 12  # of each kind
_PAIRS_IN_A_ROW = 4


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two pictures that are alike, [H, W, 3] uint8 RGB, and what stands below each.

    The second is None where it is not at hand: its name alone is shown.
    """

    first: np.ndarray
    first_name: str
    second: np.ndarray | None
    second_name: str


def read_privacy(output: Output, plan: Plan, manifest: pa.Table) -> dict[str, Any] | None:
    """privacy.json of these images, or None: there is none, or it is of fewer people than the run has now.

    The near-copies get "kept", their {count, scored, share} among the images kept. manifest: columns source,
    identity_cosine, identity_margin, verdict.
    """
    text = output.read(PRIVACY)
    try:
        found = json.loads(text) if text else None
    except ValueError:
        found = None
    this = {"plan_hash": plan.configuration.hash, "images": plan.images}
    if not isinstance(found, dict) or {name: found.get(name) for name in this} != this:
        return None
    copies = found.get("near_copies")
    if copies:
        kept = pc.equal(manifest["verdict"], KEPT).to_numpy()
        found["near_copies"] = copies | {"kept": near_copies(nearest_real(manifest)[kept], copies["threshold"])}
    return found


def privacy_lines(found: Mapping[str, Any]) -> list[str]:
    """The figures in lines for the terminal."""
    lines = []
    if copies := found["near_copies"]:
        share = f" ({100 * copies['share']:.2f}%)" if copies["scored"] else ""
        lines.append(
            f"near-copies of real pictures: {copies['count']:,} of {copies['scored']:,} images{share}, from cosine "
            f"{copies['threshold']:.3f} on: {copies['chosen']}"
        )
    if doubles := found["doubles"]:
        share = f" ({100 * doubles['share']:.2f}%)" if doubles["pairs"] else ""
        lines.append(
            f"doubles among artificial people: {doubles['count']:,} of {doubles['pairs']:,} pairs{share}, from cosine "
            f"{doubles['threshold']:.3f} on: {doubles['chosen']}"
        )
    return lines


def privacy_sheet(copies: Sequence[Pair], doubles: Sequence[Pair]) -> np.ndarray | None:
    """Both kinds of pairs as one picture, [H, W, 3] uint8 RGB; None where there are none."""
    rows = [
        SheetRow(label, [cell for pair in pairs[:SHEET_PAIRS] for cell in _cells(pair)])
        for label, pairs in (("generated, real", copies), ("two artificial people", doubles))
        if pairs
    ]
    if not rows:
        return None
    columns = 2 * min(_PAIRS_IN_A_ROW, max(len(copies), len(doubles)))
    return contact_sheet(
        rows,
        title="The most alike",
        subtitle="by cosine of a re-identification network's features",
        columns=columns,
        headings=[("", 2)] * (columns // 2),
    )


def _cells(pair: Pair) -> list[SheetCell]:
    return [SheetCell(pair.first, pair.first_name), SheetCell(pair.second, pair.second_name)]
