"""What a card says of whether people of a network can teach: the section "teaching" as a table and in words.

A card lies beside a network that anybody may have made. So values of another type than expected are left blank.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypedDict

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
_BY_PAIRS = {"edges_ratio", "torso_ratio"}  # what identity pairs teach a network
# What a line means: where it is reached, where it is missed, and what would help then.
_WORDS = {
    "edges_ratio": ("backgrounds vary", "backgrounds do not vary within a person"),
    "torso_ratio": ("people keep their clothes", "people change their clothes"),
    "torso_spread": ("clothes are as various as real ones", "clothes are too much alike"),
    "same_person": ("a judge knows a person again", "a judge does not know a person again as it knows real ones"),
    "different_people": ("a judge tells people apart", "a judge takes people for each other"),
    "passing": ("they pass as pedestrians", "many do not pass as pedestrians"),
}
_NO_PAIRS = "train the generator by identity pairs (jobs/train_gan.py --pairs), with pictures by many cameras"
_HELP = {
    "edges_ratio": "train the generator longer, with pictures of each person by more cameras",
    "torso_ratio": "train by identity pairs with more labelled people, or longer",
    "torso_spread": "take a truncation nearer to 1 (--truncation-psi), or more training people",
    "same_person": "train the generator longer, or a larger one, at more pixels",
    "different_people": "take a truncation nearer to 1 (--truncation-psi), or more training people",
    "passing": "train the generator longer, or take a smaller truncation (--truncation-psi)",
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


def gate_rows(section: Mapping[str, Json], psi: str | None = None) -> list[tuple[str, str, str, str]]:
    """Rows of the gate: what, figure, wanted, "reached" or by how much it is missed.

    psi: a truncation of the section, by default the one that the card names.
    """
    lines = _mapping(section.get("gate")).get(_psi(section, psi))
    rows = []
    for line in _list(lines):
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


def _psi(section: Mapping[str, Json], psi: str | None) -> str:
    return str(section.get("psi")) if psi is None else psi


def verdict(section: Mapping[str, Json], psi: str | None = None) -> str:
    """One sentence: whether the network's people can teach, by the gate at a truncation, as for `gate_rows`."""
    rows = gate_rows(section, psi)
    missed = [row for row in rows if row[3].startswith("missed")]
    unknown = [row for row in rows if row[3].startswith("not measured")]
    psi = _short(_psi(section, psi))
    if not rows:
        return "The card has no gate."
    if missed:
        return f"At psi {psi} these people are not yet fit to teach: {len(missed)} of {len(rows)} lines missed."
    if unknown:
        return f"At psi {psi} nothing is missed, but {len(unknown)} of {len(rows)} lines not measured."
    return f"At psi {psi} these people can teach: all {len(rows)} lines reached."


class Fitness(NamedTuple):
    """Whether people can teach, in words. missed: how many lines of the gate are missed; words: what each measured line
    says, reached lines first; help: what would help where lines are missed."""

    missed: int
    words: list[str]
    help: list[str]

    def __str__(self) -> str:
        return "; ".join([*self.words, "not ready" if self.missed else "ready"])


def fitness(section: Mapping[str, Json], psi: str | None = None) -> Fitness:
    """The gate in words at a truncation, as for `gate_rows`. A line that was not measured says nothing."""
    lines = _mapping(section.get("gate")).get(_psi(section, psi))
    states: dict[str, Json] = {}
    for line in _list(lines):
        name = line.get("name") if isinstance(line, Mapping) else None
        if isinstance(line, Mapping) and isinstance(name, str) and name in _WORDS:
            states[name] = line.get("reached")
    missed = [name for name, reached in states.items() if reached is False]
    words = [_WORDS[name][0] for name, reached in states.items() if reached is True]
    of_pairs = section.get("method") == "camera"
    help = [_HELP[name] if of_pairs or name not in _BY_PAIRS else _NO_PAIRS for name in missed]
    return Fitness(len(missed), [*words, *(_WORDS[name][1] for name in missed)], list(dict.fromkeys(help)))


def notes(section: Mapping[str, Json]) -> list[str]:
    """The notes of the section, of modest length."""
    texts = [value for value in _list(section.get("notes")) if isinstance(value, str)]
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


class PageSection(TypedDict):
    """What the page of a run shows: the table with its head, the gate's rows, the verdict, and notes."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    gate: list[tuple[str, str, str, str]]
    verdict: str
    notes: list[str]


def page_section(section: Json, configuration: Mapping[str, Json]) -> PageSection | None:
    """The section for the page of a run with this configuration; None for anything that is no such section.

    The gate is that of the run's truncation where the card has it; else a note says so.
    """
    if not isinstance(section, Mapping) or not isinstance(section.get("by_psi"), Mapping):
        return None
    (head, *rows), said = table_rows(section), notes(section)
    run_psi, psi = _number(configuration, "truncation_psi"), None
    if run_psi is not None and f"{run_psi:g}" in _mapping(section.get("gate")):
        psi = f"{run_psi:g}"
    elif run_psi is not None:
        said = [f"this run has psi {run_psi:g}, which the card did not measure", *said]
    if [*_list(configuration.get("layers"))] != [*_list(section.get("layers"))]:
        said = ["the variants of this run differ in other layers than those that the card measured", *said]
    return {
        "head": head,
        "rows": rows,
        "gate": gate_rows(section, psi),
        "verdict": verdict(section, psi),
        "notes": said,
    }


def _list(value: Json) -> list[Json]:
    return list(value) if isinstance(value, list | tuple) else []


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
