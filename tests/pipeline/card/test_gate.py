"""The gate of a card: what is reached, by how much the rest is missed, and which truncation is chosen."""

import pytest

from pipeline.card.gate import chosen_psi, gate_lines

REAL = {
    "edges": {"ratio": 2.12}, "torso": {"ratio": 0.58, "between": 0.130}, "passing": {"value": 0.95},
    "judge": {"same_person": {"value": 0.60}, "different_people": 0.011},
}  # fmt: skip
GOOD = {
    "edges": {"ratio": 1.51}, "torso": {"ratio": 0.69, "between": 0.0976}, "passing": {"value": 0.8},
    "judge": {"same_person": {"value": 0.69}, "different_people": 0.02},
}  # fmt: skip
NAMES = ["edges_ratio", "torso_ratio", "torso_spread", "same_person", "different_people", "passing"]


def lines(figures: dict, real: dict | None = REAL) -> dict:
    return {line["name"]: line for line in gate_lines(figures, real)}


def test_people_at_the_limits_pass_the_gate():
    assert [line["name"] for line in gate_lines(GOOD, REAL)] == NAMES
    assert all(line["reached"] is True and line["missed_by"] is None for line in gate_lines(GOOD, REAL))
    assert lines(GOOD)["torso_spread"]["value"] == pytest.approx(0.0976 / 0.130)


def test_real_people_pass_their_own_gate():
    assert all(line["reached"] for line in gate_lines(REAL, REAL))


@pytest.mark.parametrize(
    ("name", "change", "missed_by"),
    [
        ("edges_ratio", {"edges": {"ratio": 1.2}}, 0.3),
        ("edges_ratio", {"edges": {"ratio": 1.5}}, 0.0),  # more than 1.5 is wanted
        ("torso_ratio", {"torso": {"ratio": 1.0, "between": 0.13}}, 0.3),
        ("torso_ratio", {"torso": {"ratio": 0.7, "between": 0.13}}, 0.0),  # less than 0.7 is wanted
        ("torso_spread", {"torso": {"ratio": 0.5, "between": 0.065}}, 0.25),
        ("same_person", {"judge": {"same_person": {"value": 0.45}, "different_people": 0.0}}, 0.05),
        ("same_person", {"judge": {"same_person": {"value": 0.9}, "different_people": 0.0}}, 0.2),
        ("different_people", {"judge": {"same_person": {"value": 0.6}, "different_people": 0.05}}, 0.03),
        ("passing", {"passing": {"value": 0.125}}, 0.675),
    ],
)
def test_what_is_missed_is_missed_by_its_distance_and_nothing_else_is(name, change, missed_by):
    found = lines(GOOD | change)
    assert [line for line in found if not found[line]["reached"]] == [name]
    assert found[name]["missed_by"] == pytest.approx(missed_by)


def test_what_needs_real_people_is_not_measured_without_them():
    alone = lines(GOOD | {"judge": {}}, None)
    assert [name for name in NAMES if alone[name]["reached"] is None] == NAMES[2:5]
    assert all(alone[name]["missed_by"] is None for name in NAMES)
    assert lines({"edges": {"ratio": 2.0}}, REAL)["passing"]["value"] is None


def test_the_truncation_that_reaches_most_is_chosen_and_of_equal_ones_the_nearest():
    poor, edges = GOOD | {"passing": {"value": 0.5}}, {"edges": {"ratio": 1.0}}
    gates = {"0.7": gate_lines(poor | edges, REAL), "0.85": gate_lines(poor, REAL), "1": gate_lines(GOOD, REAL)}
    assert chosen_psi(gates) == "1"
    del gates["1"]
    assert chosen_psi(gates) == "0.85"
    nearer = gate_lines(GOOD | {"passing": {"value": 0.7}}, REAL)
    assert chosen_psi(gates | {"1": nearer}) == "1"
    assert chosen_psi({"0.7": nearer, "1": nearer}) == "0.7"
