"""The gate: what people of a network must reach before a re-ID network should learn from them.

Real people are seen by many cameras. The colour of their edges, the background, differs more within a person than
between people; their clothes stay the same. Artificial people whose background is constant teach the background.
"""

from collections.abc import Mapping

from pipeline.card.judge import Figures
from reporting.gan.teaching import GateLine

EDGES_RATIO = 1.5  # more: colour spread of the edges, within people over between people
TORSO_RATIO = 0.7  # less: the same of the torso
TORSO_SPREAD = 0.75  # at least: the torso's spread between people, as a share of real people's
SAME_PERSON = 0.10  # at most: the distance of the rate "same person" within a person to that of real people
DIFFERENT_PEOPLE = 0.02  # at most: the rate "same person" of two people
PASSING = 0.8  # at least: the share of pictures that pass the pedestrian filter


def gate_lines(figures: Figures, real: Figures | None) -> list[GateLine]:
    """Each figure of the gate beside what is wanted of it, in the order of the table.

    figures: of the network's people; real: of real people, None without. A line whose figure, or whose real figure, was
    not measured has the value None and `reached` None.
    """
    judged, real_judged = figures.get("judge"), real and real.get("judge")
    same, real_same = (_of(part, "same_person", "value") for part in (judged, real_judged))
    between, real_between = (_of(part, "torso", "between") for part in (figures, real))
    spread = between / real_between if between is not None and real_between else None
    lowest = highest = None
    if real_same is not None:
        lowest, highest = max(0.0, real_same - SAME_PERSON), min(1.0, real_same + SAME_PERSON)
    return [
        _line("edges_ratio", _of(figures, "edges", "ratio"), least=EDGES_RATIO, strict=True),
        _line("torso_ratio", _of(figures, "torso", "ratio"), most=TORSO_RATIO, strict=True),
        _line("torso_spread", spread, least=TORSO_SPREAD),
        _line("same_person", None if real_same is None else same, least=lowest, most=highest),
        _line("different_people", _of(judged, "different_people"), most=DIFFERENT_PEOPLE),
        _line("passing", _of(figures, "passing", "value"), least=PASSING),
    ]


def _of(figures: Figures | None, *path: str) -> float | None:
    value = figures
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _line(
    name: str, value: float | None, least: float | None = None, most: float | None = None, strict: bool = False
) -> GateLine:
    reached, missed_by = None, None
    if value is not None:
        below, above = (0.0 if least is None else least - value), (0.0 if most is None else value - most)
        missed_by = max(0.0, below, above)
        at_bound = strict and value in (least, most)
        reached = not missed_by and not at_bound
    return {
        "name": name, "value": value, "least": least, "most": most, "strict": strict, "reached": reached,
        "missed_by": None if reached in (None, True) else missed_by,
    }  # fmt: skip


def chosen_psi(gates: Mapping[str, list[GateLine]]) -> str:
    """The truncation that reaches most lines of the gate. Of several the one that misses the others by least, as
    shares of what is wanted; of equal ones the first."""

    def missed(psi: str) -> tuple[int, float]:
        lines = [line for line in gates[psi] if line["reached"] is False]
        return len(lines), sum(min(1.0, _share_missed(line)) for line in lines)

    return min(gates, key=missed)


def _share_missed(line: GateLine) -> float:
    wanted = line["least"] if line["least"] is not None and (line["value"] or 0) < line["least"] else line["most"]
    return (line["missed_by"] or 0.0) / wanted if wanted else 1.0
