"""What artificial people bring beside controls: a sentence and a table for each number of labelled people.

The arms of such a sweep are a control (the labelled people alone), artificial people, as many further real people, and
as many pictures without a label and without a generator. Differences are paired by seed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import pyarrow as pa

from passersby.metrics.sweep_statistics import BETTER, WORSE, PairedDifference, paired_difference

NONE, GENERATED, REAL, SINGLE = "none", "generated", "real", "single"  # what arms add (tune/options.py)
MEANING = {NONE: "nothing", GENERATED: "artificial people", REAL: "real people", SINGLE: "pictures without labels"}
Scores = Mapping[int, float]  # seed -> score 0..1


class Line(TypedDict):
    """A row of the table: an arm at a level. Differences are points of 100, with the interval."""

    arm: str
    adds: str
    level: str
    recipe: str
    seeds: int
    mAP: str
    rank1: str
    difference: str
    verdict: str
    told: str
    hours: str


class Comparison(TypedDict):
    """The answer for one number of labelled people."""

    labelled: str
    sentences: list[str]
    lines: list[Line]


def comparisons(
    trials: pa.Table,
    controls: Mapping[str, str],
    extras: Mapping[str, str],
    labelled: Mapping[str, int | None],
    recipes: Mapping[str, str],
) -> list[Comparison]:
    """One answer for each control with finished trials. trials: those of trials.parquet.

    controls: arm -> its control; extras: arm -> what it adds; labelled: arm -> its number of labelled people; recipes:
    arm -> the chosen recipe.
    """
    table = trials.select(["arm", "level", "seed", "mAP", "rank1", "minutes"]).to_pylist()
    scores: dict[tuple[str, int, str], dict[int, float]] = {}
    for row in table:
        for score in ("mAP", "rank1", "minutes"):
            if row[score] is not None:
                scores.setdefault((row["arm"], row["level"], score), {})[row["seed"]] = row[score]
    answers: list[Comparison] = []
    for control in dict.fromkeys(controls.values()):
        if (control, 0, "mAP") not in scores:
            continue
        arms = [arm for arm, its_control in controls.items() if its_control == control]
        levels = sorted({level for arm, level, _ in scores if arm in arms and level})
        lines = [_line(control, 0, control, scores, extras, recipes)]
        for level in levels:
            lines += [
                _line(arm, level, control, scores, extras, recipes) for arm in arms if (arm, level, "mAP") in scores
            ]
        people = labelled.get(control)
        words = "all people labelled" if people is None else f"{people:,} labelled people"
        sentences = [text for level in levels for text in _sentences(level, arms, control, scores, extras)]
        answers.append({"labelled": words, "sentences": sentences, "lines": lines})
    return answers


def _sentences(
    level: int,
    arms: Sequence[str],
    control: str,
    scores: Mapping[tuple[str, int, str], Scores],
    extras: Mapping[str, str],
) -> list[str]:
    """The answer at a level for each arm of artificial people; the first arm of each other kind is its measure."""

    def first(kind: str) -> Scores:
        found = [scores.get((arm, level, "mAP"), {}) for arm in arms if extras.get(arm) == kind]
        return next((mAPs for mAPs in found if mAPs), {})

    baseline, sentences = scores[control, 0, "mAP"], []
    upper = paired_difference(baseline, first(REAL))
    generated = [arm for arm in arms if extras.get(arm) == GENERATED]
    for arm in generated:
        mAPs = scores.get((arm, level, "mAP"), {})
        gain = paired_difference(baseline, mAPs)
        if gain is None:
            continue
        name = f"{_short(arm)}: {level:,}" if len(generated) > 1 else f"{level:,}"
        text = f"{name} artificial people bring {points(gain)} mAP"
        if upper is not None:
            text += f" of the {100 * upper.mean:+.1f} that as many real people bring"
        over = paired_difference(first(SINGLE), mAPs)
        if over is not None:
            text += f"; {points(over)} more than as many pictures without a generator"
        sentences.append(f"{text}. {_certainty(gain)}")
    return sentences


def _short(arm: str) -> str:
    """The name of an arm without the number of labelled people, which the heading has."""
    return ", ".join(part for part in arm.split(", ") if not part.startswith("labelled_people="))


def _certainty(gain: PairedDifference) -> str:
    if gain.seeds < 2:
        return "One seed cannot tell this from chance."
    if gain.verdict == BETTER:
        return "They help."
    if gain.verdict == WORSE:
        return "They do harm."
    return f"{gain.seeds} seeds cannot tell whether they help or harm."


def points(difference: PairedDifference) -> str:
    """Points of 100 with the interval, such as "+3.1 (+1.0 to +5.2)"."""
    text = f"{100 * difference.mean:+.1f}"
    if math.isnan(difference.low):
        return text
    return f"{text} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def _line(
    arm: str,
    level: int,
    control: str,
    scores: Mapping[tuple[str, int, str], Scores],
    extras: Mapping[str, str],
    recipes: Mapping[str, str],
) -> Line:
    mAPs, rank1 = (list(scores[arm, level, score].values()) for score in ("mAP", "rank1"))
    gain = None if arm == control else paired_difference(scores[control, 0, "mAP"], scores[arm, level, "mAP"])
    known = gain is not None and not math.isnan(gain.told)
    return {
        "arm": _short(arm),
        "adds": MEANING.get(extras.get(arm, GENERATED), ""),
        "level": f"{level:,}" if level else "",
        "recipe": recipes.get(arm, ""),
        "seeds": len(mAPs),
        "mAP": f"{100 * sum(mAPs) / len(mAPs):.1f}",
        "rank1": f"{100 * sum(rank1) / len(rank1):.1f}",
        "difference": "" if gain is None else points(gain),
        "verdict": "" if gain is None else gain.verdict,
        "told": f"{100 * gain.told:.1f}" if gain is not None and known else "",
        "hours": f"{sum(scores[arm, level, 'minutes'].values()) / 60:,.1f}",
    }


def label_curve(
    trials: pa.Table, extras: Mapping[str, str], labelled: Mapping[str, int | None]
) -> dict[str, list[tuple[int, float]]]:
    """What an arm adds -> (number of labelled people, mean mAP 0..1) at its highest level, where two numbers are known.

    The first arm of each kind and number counts.
    """
    means: dict[tuple[str, int], dict[int, list[float]]] = {}
    for row in trials.select(["arm", "level", "mAP"]).to_pylist():
        people = labelled.get(row["arm"])
        kind = extras.get(row["arm"], GENERATED)
        if people is not None and row["mAP"] is not None and (row["level"] > 0 or kind == NONE):
            means.setdefault((row["arm"], people), {}).setdefault(row["level"], []).append(row["mAP"])
    curves: dict[str, dict[int, float]] = {}
    for (arm, people), by_level in means.items():
        mAPs = by_level[max(by_level)]
        curves.setdefault(extras.get(arm, GENERATED), {}).setdefault(people, sum(mAPs) / len(mAPs))
    return {kind: sorted(curve.items()) for kind, curve in curves.items() if len(curve) > 1}
