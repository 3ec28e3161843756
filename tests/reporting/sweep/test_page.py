"""The page of a sweep: verdicts, the study's curve, leaks, and queries that changed."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from passersby.errors import InputError
from passersby.metrics.sweep_statistics import analyse
from reporting.sweep.charts import STUDY_CURVES, Chart, Series
from reporting.sweep.page import (
    best_level,
    query_changes,
    settings_of,
    sweep_page,
    trials_of,
)
from tests.helpers import sweep_tables as sweeps


def words(html: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL).split())


def test_the_studys_curves_are_the_published_ones(shared_dir):
    text = (shared_dir / "facts" / "study-results.md").read_text()
    for sweep, heading in (("artificial-people", "Adding artificial"), ("variants-of-real-people", "Adding variants")):
        section = text.partition(f"## {heading}")[2].partition("\n## ")[0]
        rows = [line.strip("| ").split(" | ") for line in section.splitlines() if re.match(r"\| \d", line)]
        expected = {int(row[0]): (float(row[-4]), float(row[-1])) for row in rows}
        assert STUDY_CURVES[sweep] == expected
        assert len(expected) in (17, 15)


def test_each_arm_has_its_plain_answer_and_its_table():
    said = words(sweep_page(sweeps.record(), sweeps.trials({"hard": -0.04, "smooth": 0.04, "none": 0.0})))
    assert "hard: Worse at levels 20, 40. With more, mAP gets worse" in said
    assert "smooth: Better at levels 20, 40. With more, mAP gets better" in said
    assert "none: Cannot tell" in said
    assert "Seeds differ by a standard deviation of 0.50 points." in said
    # -2 points at level 20 of 40, the same for every query and seed
    assert re.search(r"20 worse [\d.]+ \([\d.]+ to [\d.]+\) -2\.0 \(-[\d.]+ to -[\d.]+\)", said)
    assert "-2.0 (-2.0 to -2.0)" in said
    assert "800 1,200" in said
    assert "one generator" in said
    assert "seeds a level would be needed" in said
    assert "p 0.000" not in said


def test_arms_stand_in_the_order_of_the_command():
    about = sweeps.record() | {"arms": ["study", "gated", "to come"]}
    said = words(sweep_page(about, sweeps.trials({"gated": 0.04, "study": -0.04})))
    assert said.index("study: Worse") < said.index("gated: Better")


def test_what_arms_share_stands_once_in_the_configuration():
    training = {"batch": 8, "filters": [], "labels": "hard"}
    arms = {"study": training, "gated": training | {"filters": ["identity_margin=0"], "labels": "smooth"}}
    assert settings_of({"sweep": "x", "training": arms}) == [
        ("sweep", "x"), ("training.batch", "8"),
        ("training of study.filters", "none"), ("training of study.labels", "hard"),
        ("training of gated.filters", "identity_margin=0"), ("training of gated.labels", "smooth"),
    ]  # fmt: skip
    assert settings_of({"training": {"": training}})[0] == ("training.batch", "8")
    assert settings_of({"training": "spoilt"}) == [("training", "spoilt")]


def test_a_leak_is_printed_in_red_and_only_then():
    table = sweeps.trials({"": 0.0})
    html = sweep_page(sweeps.record(leak=True), table)
    assert 'class="notice alarm" role="alert"' in html
    assert "it saw 3 test people" in words(html)
    assert 'role="alert"' not in sweep_page(sweeps.record(), table)


def test_only_a_sweep_on_drawn_people_is_made_from_a_toy():
    table, notice = sweeps.trials({"": 0.0}), "Made from a toy."
    assert notice in words(sweep_page(sweeps.record(), table))
    photographs = sweeps.record(toy="market")
    start = {"what": "generator, started from a network", "verdict": "clean", "reason": "crowd (toy crowd): drawn"}
    for guard in ("leak", "labels"):
        photographs[guard] = {"verdict": "clean", "findings": [start]}
    assert notice not in words(sweep_page(photographs, table))


@pytest.mark.parametrize("sweep", ["artificial-people", "variants-of-real-people", "another"])
def test_the_studys_curve_stands_beside_ours_where_it_has_one(sweep):
    html = sweep_page(sweeps.record(sweep=sweep), sweeps.trials({"": 0.01}, sweep))
    labels = re.findall(r'role="img" aria-label="([^"]*)"', html)
    assert len(labels) == (2 if sweep == "another" else 4)
    assert ("level 320: 77.0" in html) == (sweep == "artificial-people")
    assert ("level 135: 60.1" in html) == (sweep == "variants-of-real-people")


def test_texts_of_files_stay_texts():
    hostile = "<script>alert(1)</script>"
    html = sweep_page(sweeps.record(toy=hostile), sweeps.trials({hostile: 0.0}), notes=[hostile])
    assert "<script" not in html
    assert "script-src" not in html
    assert words(html).count("&lt;script&gt;alert(1)") >= 3


def test_a_sweep_that_has_only_begun_has_a_page_or_says_what_it_waits_for():
    table = sweeps.trials({"a": 0.0, "b": 0.01})
    begun = table.filter(pc.or_(pc.equal(table["arm"], "a"), pc.not_equal(table["level"], 0)))
    assert "b: level 0 has not finished" in words(sweep_page(sweeps.record(), begun))
    one_seed = table.filter(pc.equal(table["seed"], 0))
    assert "every level has one seed" in words(sweep_page(sweeps.record(), one_seed))
    only = table.filter(pc.equal(table["level"], 0))
    assert "only level 0 has finished" in words(sweep_page(sweeps.record(), only))
    for nothing in (table.slice(0, 0), table.filter(pc.equal(table["level"], 10))):
        with pytest.raises(InputError, match="no finished trial of level 0"):
            sweep_page(sweeps.record(), nothing)


def test_changed_queries_are_those_that_gained_and_lost_most():
    table = sweeps.trials({"": 0.0})
    change = np.zeros(sweeps.QUERIES)
    change[[3, 7, 11]], change[[20, 21]] = (0.1, 0.3, 0.2), (-0.2, -0.1)
    rows = table.to_pylist()
    for row in rows:
        row["query_ap"] = [
            float("nan") if place == 30 else value + (row["level"] == 40) * change[place]
            for place, value in enumerate(row["query_ap"])
        ]
    table = pa.Table.from_pylist(rows, schema=table.schema)
    found = query_changes(table, 40, 2)
    assert (found.better.tolist(), found.worse.tolist()) == ([7, 11], [20, 21])
    assert found.after[7] - found.before[7] == pytest.approx(0.3)
    assert query_changes(table, 999, 2) is None
    rows[0]["query_identity"] = [1]
    assert query_changes(pa.Table.from_pylist(rows, schema=table.schema), 40, 2) is None


def test_the_best_level_is_the_highest_above_0():
    assert best_level(analyse(trials_of(sweeps.trials({"": 0.04}), "mAP"))) == 40
    assert best_level(analyse(trials_of(sweeps.trials({"": -0.04}), "mAP"))) == 10


@pytest.mark.parametrize("values", [[(0, 50.0)], [(0, 50.0), (10, 50.0)], [(0, 10.0), (320, 90.0)], [(0, 0.0)]])
def test_axes_hold_every_value(values):
    chart = Chart("t", "w", "%", [Series("s", "c", [(*pair, "") for pair in values])])
    for level, score in values:
        assert 0 <= chart.x(level) <= 560
        assert 0 <= chart.y(score) <= 300
    assert 2 <= len(chart.y_ticks) <= 9
    assert chart.x_ticks[0] == 0


def test_labels_are_listed_and_a_leak_of_labels_is_printed_in_red():
    table, finding = sweeps.trials({"": 0.0}), {"what": "generator", "reason": "labels of 60 people"}

    def page(verdict: str) -> str:
        labels = {"verdict": verdict, "findings": [finding | {"verdict": verdict}]}
        return sweep_page(sweeps.record() | {"labels": labels}, table)

    assert "generator: clean: labels of 60 people" in words(page("clean"))
    assert 'role="alert"' not in page("clean")
    assert 'role="alert"' in page("leak")
    assert "generator: labels of 60 people" in words(page("leak"))
    assert "Identity labels known" not in words(sweep_page(sweeps.record(), table))
