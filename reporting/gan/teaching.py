"""What a card says of whether people of a network can teach: the section "teaching" as a table and in words.

A card lies beside a network that anybody may have made. So values of another type than expected are left blank.
"""

from collections.abc import Mapping
from typing import TypedDict

from passersby.options import Json
from reporting.tables import aligned, percent

_MOST_COLUMNS, _MOST_NOTES, _LONGEST = 8, 20, 300


class GateLine(TypedDict):
    """A figure of the gate beside what is wanted: at least `least`, at most `most`, or with `strict` more and less than
    these. reached and value: None where the figure was not measured. missed_by: None unless the line is missed."""

    name: str
    value: float | None
    least: float | None
    most: float | None
    strict: bool
    reached: bool | None
    missed_by: float | None


# Row of the table: label, path of the figure in the section, whether it is a share that is shown in percent.
_ROWS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("edges: colour spread within a person", ("edges", "within"), "{:.3f}"),
    ("edges: colour spread between people", ("edges", "between"), "{:.3f}"),
    ("edges: within / between", ("edges", "ratio"), "{:.2f}"),
    ("torso: colour spread within a person", ("torso", "within"), "{:.3f}"),
    ("torso: colour spread between people", ("torso", "between"), "{:.3f}"),
    ("torso: within / between", ("torso", "ratio"), "{:.2f}"),
    ("judge: one person's pictures are the same person", ("judge", "same_person", "value"), "%"),
    ("judge: two people's pictures are the same person", ("judge", "different_people"), "%"),
    ("own clothes nearest", ("nearest_own", "value"), "%"),
    ("pose moved", ("pose_moved",), "%"),
    ("pass the pedestrian filter", ("passing", "value"), "%"),
    ("near-copies of training pictures", ("near_copies", "share"), "%"),
    ("FID", ("scores", "fid"), "{:.1f}"),
    ("precision", ("scores", "precision"), "{:.3f}"),
    ("recall", ("scores", "recall"), "{:.3f}"),
    ("mAP of a re-ID network trained on these people only", ("trained_alone", "mAP"), "%"),
    ("Rank-1 of this re-ID network", ("trained_alone", "rank1"), "%"),
)
_LINES = {
    "edges_ratio": ("edges' colour spread, within / between", "{:.2f}"),
    "torso_ratio": ("torso's colour spread, within / between", "{:.2f}"),
    "torso_spread": ("torso's spread between people, of real people's", "%"),
    "same_person": ("judge: one person's pictures are the same person", "%"),
    "different_people": ("judge: two people's pictures are the same person", "%"),
    "passing": ("pass the pedestrian filter", "%"),
}
_NEEDED = {
    "torso_spread": "--reference",
    "same_person": "--identity and --reference",
    "different_people": "--identity and --reference",
    "passing": "the weights of the pedestrian filter",
}


def table_rows(section: Mapping[str, Json]) -> list[tuple[str, ...]]:
    """The figures as rows of text, the head first: a column for each truncation, and one for real people.

    Figures that were not measured at all have no row.
    """
    by_psi = _mapping(section.get("by_psi"))
    columns = [(f"psi {_short(psi)}", _mapping(figures)) for psi, figures in list(by_psi.items())[:_MOST_COLUMNS]]
    real = section.get("real")
    if isinstance(real, Mapping):
        columns.append(("real people", real))
    rows = [("", *(name for name, _ in columns))]
    for label, path, form in _ROWS:
        cells = [_text(_number(figures, *path), form) for _, figures in columns]
        if any(cells):
            rows.append((label, *cells))
    return rows


def gate_rows(section: Mapping[str, Json]) -> list[tuple[str, str, str, str]]:
    """Rows of the gate at the chosen truncation: what, figure, wanted, "reached" or by how much it is missed."""
    gates = _mapping(section.get("gate"))
    lines = gates.get(str(section.get("psi")))
    rows = []
    for line in lines if isinstance(lines, list) else []:
        name = line.get("name") if isinstance(line, Mapping) else None
        if not isinstance(line, Mapping) or not isinstance(name, str) or name not in _LINES:
            continue
        label, form = _LINES[name]
        value, missed_by = _number(line, "value"), _number(line, "missed_by")
        if line.get("reached") is True:
            said = "reached"
        elif line.get("reached") is False:
            points = f"{100 * (missed_by or 0):.1f} points" if form == "%" else form.format(missed_by or 0)
            said = f"missed by {points}"
        else:
            said = f"not measured: give {_NEEDED[name]}" if name in _NEEDED else "not measured"
        rows.append((label, _text(value, form), _wanted(line, form), said))
    return rows


def _wanted(line: Mapping[str, Json], form: str) -> str:
    least, most = _number(line, "least"), _number(line, "most")
    strict = line.get("strict") is True
    if least is not None and most is not None:
        return f"{_text(least, form)} to {_text(most, form)}"
    if least is not None:
        return f"{'more than' if strict else 'at least'} {_text(least, form)}"
    if most is not None:
        return f"{'less than' if strict else 'at most'} {_text(most, form)}"
    return "within 10 points of real people" if line.get("name") == "same_person" else ""


def verdict(section: Mapping[str, Json]) -> str:
    """One sentence: whether the network's people can teach, by the gate at the chosen truncation."""
    rows = gate_rows(section)
    missed = [row for row in rows if row[3].startswith("missed")]
    unknown = [row for row in rows if row[3].startswith("not measured")]
    psi = _short(str(section.get("psi")))
    if not rows:
        return "The card has no gate."
    if missed:
        return f"At psi {psi} these people are not yet fit to teach: {len(missed)} of {len(rows)} lines are missed."
    if unknown:
        return f"At psi {psi} nothing is missed, but {len(unknown)} of {len(rows)} lines were not measured."
    return f"At psi {psi} these people can teach: all {len(rows)} lines are reached."


def notes(section: Mapping[str, Json]) -> list[str]:
    """The notes of the section, of modest length."""
    values = section.get("notes")
    texts = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    return [_short(text) for text in texts[:_MOST_NOTES]]


def teaching_lines(section: Mapping[str, Json]) -> list[str]:
    """The section as text: the table, the gate, the verdict, the notes."""
    gate = [("gate", "figure", "wanted", ""), *gate_rows(section)]
    return [
        *aligned(table_rows(section)),
        "",
        *aligned(gate),
        verdict(section),
        *(f"note: {note}" for note in notes(section)),
    ]


def page_section(section: Json) -> dict[str, Json] | None:
    """What the page of a run shows of the section; None for anything that is no such section."""
    if not isinstance(section, Mapping) or not isinstance(section.get("by_psi"), Mapping):
        return None
    head, *rows = table_rows(section)
    return {
        "head": list(head),
        "rows": [list(row) for row in rows],
        "gate": [list(row) for row in gate_rows(section)],
        "verdict": verdict(section),
        "notes": list(notes(section)),
    }


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}


def _number(values: Json, *path: str) -> float | None:
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return float(values) if isinstance(values, int | float) and not isinstance(values, bool) else None


def _text(value: float | None, form: str) -> str:
    if value is None:
        return ""
    return percent(value) if form == "%" else form.format(value)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "..."
