"""Whether people can teach, as text and on the page of a run; cards that anybody may have written."""

import json

import pytest

from datasets.runs.run import Run
from datasets.runs.verdicts import Thresholds
from jobs import report
from passersby.errors import InputError
from passersby.files import file_sha256
from reporting.gan.teaching import fitness, gate_rows, page_section, table_rows, teaching_lines, verdict
from reporting.run.results import REPORT, RunTimes, publish, read_summary
from tests.helpers import identity_runs as runs


def line(name: str, value: float | None, reached: bool | None, **values) -> dict:
    base = {"least": None, "most": None, "strict": False, "missed_by": None}
    return {"name": name, "value": value, "reached": reached} | base | values


GATE = [
    line("edges_ratio", 0.06, False, least=1.5, strict=True, missed_by=1.44),
    line("torso_ratio", 0.142, True, most=0.7, strict=True),
    line("same_person", 0.3, False, least=0.505, most=0.705, missed_by=0.205),
    line("different_people", None, None, most=0.02),
    line("passing", 0.8, True, least=0.8),
]
FIGURES = {"edges": {"within": 0.006, "between": 0.1, "ratio": 0.06}, "passing": {"value": 0.8}}
REAL = {"edges": {"within": 0.118, "between": 0.0557, "ratio": 2.12}, "passing": {"value": 0.95}}
SECTION = {
    "layers": [5], "psi": "0.7", "by_psi": {"0.7": FIGURES, "1": FIGURES}, "real": REAL, "notes": ["no --identity"],
    "gate": {"0.7": GATE, "1": [GATE[1]]},
}  # fmt: skip


def test_the_table_has_a_column_for_each_truncation_and_real_people_and_no_empty_row():
    head, *rows = table_rows(SECTION)
    assert head == ("", "psi 0.7", "psi 1", "real people")
    assert rows[2] == ("edges: within / between", "0.06", "0.06", "2.12")
    assert [row[0] for row in rows][-1] == "pass the pedestrian filter"
    assert rows[-1][1:] == ("80.0%", "80.0%", "95.0%")
    assert len(rows) == 4


def test_the_gate_says_figure_wanted_value_and_by_how_much_it_is_missed():
    assert [row[1:] for row in gate_rows(SECTION)] == [
        ("0.06", "more than 1.50", "missed by 1.44"),
        ("0.14", "less than 0.70", "reached"),
        ("30.0%", "50.5% to 70.5%", "missed by 20.5 points"),
        ("", "at most 2.0%", "not measured: give --identity and --reference"),
        ("80.0%", "at least 80.0%", "reached"),
    ]
    assert verdict(SECTION) == "At psi 0.7 these people are not yet fit to teach: 2 of 5 lines missed."


@pytest.mark.parametrize(
    ("gate", "sentence"),
    [
        ([GATE[1], GATE[4]], "At psi 0.7 these people can teach: all 2 lines reached."),
        ([GATE[1], GATE[3]], "At psi 0.7 nothing is missed, but 1 of 2 lines not measured."),
        ([], "The card has no gate."),
    ],
)
def test_the_verdict_is_one_sentence(gate, sentence):
    assert verdict(SECTION | {"gate": {"0.7": gate}}) == sentence


def test_the_text_has_the_table_the_gate_the_verdict_and_the_notes():
    text = teaching_lines(SECTION)
    assert text[0].split() == ["psi", "0.7", "psi", "1", "real", "people"]
    assert text[-2:] == [verdict(SECTION), "note: no --identity"]


@pytest.mark.parametrize(
    "section",
    [
        None, [], "x", {}, {"by_psi": []}, {"by_psi": {"0.7": 3}}, {"by_psi": {"0.7": {"edges": "<b>"}}},
        SECTION | {"gate": 7}, SECTION | {"gate": {"0.7": [3, None, {}, {"name": ["x"]}, {"name": "edges_ratio"}]}},
        SECTION | {"notes": [1, None]}, SECTION | {"real": 3}, SECTION | {"psi": {}}, SECTION | {"layers": 3},
        SECTION | {"by_psi": {str(psi): {} for psi in range(999)}},
        SECTION | {"gate": {"0.7": [line("passing", True, 1)]}},
    ],
)  # fmt: skip
def test_a_card_of_another_form_leaves_blanks_and_breaks_nothing(section):
    page = page_section(section, {"truncation_psi": 0.7, "layers": [5]})
    assert page is None or len(page["head"]) <= 10  # a label, eight truncations, real people
    json.dumps(page)


def test_the_page_shows_the_gate_of_the_runs_own_truncation():
    page = page_section(SECTION, {"truncation_psi": 1.0, "layers": [5]})
    assert page["verdict"] == "At psi 1 these people can teach: all 1 lines reached."
    assert len(page["gate"]) == 1
    assert page["notes"] == ["no --identity"]
    other = page_section(SECTION, {"truncation_psi": 0.5, "layers": [1]})
    assert len(other["gate"]) == 5
    assert other["notes"][:2] == [
        "the variants of this run differ in other layers than those that the card measured",
        "this run has psi 0.5, which the card did not measure",
    ]


def test_the_card_stands_on_the_page_of_a_run_and_its_texts_are_escaped(tmp_path):
    output, plan = runs.make_run(str(tmp_path), [[runs.picture(1), runs.picture(2), runs.picture(3)]], None)
    publish(Run(output, plan), Thresholds(), {}, RunTimes(1.0, 3, {}))
    assert b'id="teaching"' not in output.read(REPORT)
    assert "card" not in read_summary(output)
    hostile = SECTION | {"notes": ["<script>alert(1)</script>"]}
    publish(Run(output, plan), Thresholds(), {}, None, hostile)
    page = output.read(REPORT).decode()
    assert read_summary(output)["card"] == hostile
    assert 'id="teaching"' in page
    assert "missed by 20.5 points" in page
    assert "<script>alert" not in page
    output.remove(REPORT)
    report.main(report.Config(run=str(tmp_path)))
    assert output.read(REPORT).decode() == page


def test_a_card_that_was_measured_after_the_run_comes_to_its_page_with_the_network(tmp_path):
    network = tmp_path / "net.safetensors"
    network.write_bytes(b"weights")
    sha256, run = file_sha256(network), tmp_path / "run"
    output, plan = runs.make_run(str(run), [[runs.picture(1), runs.picture(2), runs.picture(3)]], None)
    publish(Run(output, plan), Thresholds(), {"sha256": sha256}, RunTimes(1.0, 3, {}))
    config = report.Config(run=str(run), network=str(network))
    with pytest.raises(InputError, match="no card of the run's generator .* says whether its people can teach"):
        report.main(config)
    card = {"version": 1, "network": {"sha256": sha256}, "teaching": SECTION}
    network.with_suffix(".card.json").write_text(json.dumps(card))
    report.main(config)
    assert "missed by 20.5 points" in output.read(REPORT).decode()
    network.with_suffix(".card.json").write_text(json.dumps(card | {"network": {"sha256": "00" * 32}}))
    with pytest.raises(InputError, match="no card of the run's generator"):
        report.main(config)
    with pytest.raises(InputError, match="--network n: it goes with --run"):
        report.main(report.Config(sweep="s", network="n"))


def test_the_gate_in_words_says_what_is_reached_what_is_missed_and_what_would_help():
    words = fitness(SECTION)
    assert str(words) == (
        "people keep their clothes; they pass as pedestrians; backgrounds do not vary within a person; a judge does "
        "not know a person again as it knows real ones; not ready"
    )
    assert (words.missed, len(words.help)) == (2, 2)
    assert "--pairs" in words.help[0]
    of_pairs = fitness(SECTION | {"method": "camera"})
    assert of_pairs.help == ["train the generator longer, with pictures of each person by more cameras", words.help[1]]
    ready = fitness(SECTION, "1")
    assert (str(ready), ready.missed, ready.help) == ("people keep their clothes; ready", 0, [])


@pytest.mark.parametrize("section", [{}, {"gate": 3, "psi": "1"}, {"psi": "1", "gate": {"1": [3, {"name": []}]}}])
def test_a_card_of_anybody_has_no_words(section):
    assert fitness(section) == (0, [], [])
