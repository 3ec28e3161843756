"""Artificial people beside controls: the sentence, the table, the curve over label counts, the page's words."""

import re

import pyarrow as pa
import pytest

from passersby.metrics.sweep_statistics import paired_difference
from reporting.sweep.comparison import comparisons, label_curve
from reporting.sweep.page import compared_arms, sweep_page
from tests.helpers import sweep_tables as sweeps

EXTRAS = {"C": "none", "G": "generated", "U": "real", "S": "single"}
CONTROLS = {"G": "C", "U": "C", "S": "C"}
MAPS = {
    ("C", 0): (0.40, 0.41, 0.42),
    ("G", 160): (0.44, 0.44, 0.455),
    ("U", 160): (0.60, 0.62, 0.61),
    ("S", 160): (0.41, 0.43, 0.42),
}


def trials(mAPs=MAPS) -> pa.Table:
    """One row for each arm, level and seed; level 0 of the control stands for the other arms too."""
    row = sweeps.trials({"": 0.0}).to_pylist()[0]
    rows = [
        row | {"arm": arm, "level": level, "seed": seed, "mAP": mAP, "trial": f"{level}-{seed}-{own}", "minutes": 6.0}
        for (own, level), values in mAPs.items()
        for arm in ([own] if level else [own, *(arm for arm, control in CONTROLS.items() if control == own)])
        for seed, mAP in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, schema=sweeps.SCHEMA)


def record(**values) -> dict:
    about = sweeps.record() | {"arms": list("CGUS"), "controls": CONTROLS, "extras": EXTRAS}
    about["configuration"] |= {"training": {arm: {"labelled_people": 60} for arm in "CGUS"}}
    return about | values


def words(html: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL).split())


def test_the_sentence_says_how_much_of_the_gain_of_real_people():
    (answer,) = comparisons(trials(), CONTROLS, EXTRAS, dict.fromkeys("CGUS", 60), {})
    gain = paired_difference(dict(enumerate(MAPS["C", 0])), dict(enumerate(MAPS["G", 160])))
    assert gain is not None
    low, high = f"{100 * gain.low:+.1f}", f"{100 * gain.high:+.1f}"
    assert answer["sentences"][0].startswith(
        f"160 artificial people bring +3.5 ({low} to {high}) mAP of the +20.0 that as many real people bring; +2.5 ("
    )
    assert answer["sentences"][0].endswith("more than as many pictures without a generator. They help.")
    assert [(line["arm"], line["difference"][:5], line["verdict"]) for line in answer["lines"]] == [
        ("C", "", ""), ("G", "+3.5 ", "better"), ("U", "+20.0", "better"), ("S", "+1.0 ", "cannot tell"),
    ]  # fmt: skip
    assert answer["lines"][0]["hours"] == "0.3"


@pytest.mark.parametrize(
    ("mAPs", "end"),
    [
        ((0.30, 0.32, 0.31), "They do harm."),
        ((0.40, 0.44, 0.42), "3 seeds cannot tell whether they help or harm."),
        ((0.5,), "One seed cannot tell this from chance."),
    ],
)
def test_harm_and_doubt_are_said(mAPs, end):
    (answer,) = comparisons(trials(MAPS | {("G", 160): mAPs}), CONTROLS, EXTRAS, {}, {})
    assert answer["sentences"][0].endswith(end)
    assert answer["labelled"] == "all people labelled"


def test_arms_that_have_not_finished_are_left_out():
    without_others = {key: values for key, values in MAPS.items() if key[0] in "CG"}
    (answer,) = comparisons(trials(without_others), CONTROLS, EXTRAS, {}, {})
    assert answer["sentences"][0].count("that as many real people bring") == 0
    assert [line["arm"] for line in answer["lines"]] == ["C", "G"]
    assert comparisons(trials({("G", 160): (0.4,)}), CONTROLS, EXTRAS, {}, {}) == []


def test_the_curve_over_label_counts():
    rows = trials().to_pylist()
    more = [row | {"arm": f"{row['arm']} 200", "mAP": row["mAP"] + 0.2} for row in rows]
    table = pa.Table.from_pylist([*rows, *more], schema=sweeps.SCHEMA)
    labelled = dict.fromkeys("CGUS", 60) | {f"{arm} 200": 200 for arm in "CGUS"}
    curves = label_curve(table, EXTRAS | {f"{arm} 200": kind for arm, kind in EXTRAS.items()}, labelled)
    assert curves["none"] == [(60, pytest.approx(0.41)), (200, pytest.approx(0.61))]
    assert curves["generated"] == [(60, pytest.approx(0.445)), (200, pytest.approx(0.645))]
    assert label_curve(trials(), EXTRAS, labelled) == {}


def test_the_page_answers_first_and_says_how_recipes_were_chosen():
    choice = {
        "people": 100,
        "mAP": {arm: {"plain": 0.3, "changes": 0.4} for arm in "CGUS"},
        "chosen": dict.fromkeys("CGUS", "changes"),
    }
    said = words(sweep_page(record(choice=choice), trials()))
    assert said.index("160 artificial people bring +3.5") < said.index("Scores over levels")
    assert "on 100 people set aside from training" in said
    assert "60 labelled people. Percent. Differences to the first row, paired by seed" in said
    assert "has not finished" not in said
    assert "No control." not in said
    assert compared_arms(trials(), record()) == ["G", "U", "S"]


def test_a_sweep_without_a_control_says_what_it_lacks():
    said = words(sweep_page(sweeps.record(), sweeps.trials({"": 0.04})))
    assert "No control. Levels are compared with level 0 only." in said
