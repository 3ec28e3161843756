"""The page of a study: a chapter for each step, whatever has been made so far; it needs nothing beside itself."""

import dataclasses
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.study.run import _remember, stop_lines
from pipeline.study.steps import Study, steps
from pipeline.study.story import study_page
from reporting.gan.teaching import fitness
from tests.helpers import studies, sweep_data, sweep_tables

CONTROLS = {"G": "C", "S": "C"}


@pytest.fixture
def study(tmp_path) -> Study:
    data = Path(sweep_data.write_data(tmp_path)["data"])
    out = tmp_path / "out <b>"
    out.mkdir()
    return dataclasses.replace(studies.study(out), data=data)


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((40, 600, 3), 200, np.uint8))


def write_results(study: Study) -> None:
    """What the jobs would have left."""
    studies.write_calibration(study)
    studies.write_teaching(study, missed=("passing",))
    studies.write_manifest(study, kept=3)
    out = study.out
    for name in ("look/calibration", "generator/grids/identities-000000050", "generator/grids/identities-000000060",
                 "generator/curves", "judge/curves", "people/contact_sheet"):  # fmt: skip
        write_picture(out / f"{name}.png")
    summary = {"counts": {"kept": 3, "detector": 5}, "thresholds": {"detector": 0.6, "ssim_floor": 0.75},
               "network": {"trained_on": "toy crowd"}}  # fmt: skip
    (out / "people/summary.json").write_text(json.dumps(summary))
    (out / "people/report.html").write_text("")
    (out / "export/market1501").mkdir(parents=True)
    (out / "sweep").mkdir()
    table = sweep_tables.trials({"C": 0.0, "G": 0.02, "S": 0.0})
    keep = pc.call_function("or", [pc.call_function("not_equal", [table["arm"], "C"]), pc.call_function(
        "equal", [table["level"], 0])])  # fmt: skip
    pq.write_table(table.filter(keep), out / "sweep/trials.parquet")
    extras = {"C": "none", "G": "generated", "S": "single"}
    about = sweep_tables.record() | {"arms": list("CGS"), "controls": CONTROLS, "extras": extras}
    (out / "sweep/sweep.json").write_text(json.dumps(about))


def test_a_page_of_a_study_that_has_just_begun_has_every_chapter(study):
    page = study_page(study, "python jobs/study.py --out '/x'")
    for number, step in enumerate(steps(study), 1):
        assert f'<h2 id="{step.name}">{number}. {step.title}</h2>' in page
    assert page.count("not yet") == 8
    assert "python jobs/study.py --out" in page
    assert "<img" not in page


def test_the_page_tells_of_everything_that_was_made(study):
    write_results(study)
    _remember(study, steps(study)[0], 0, 75.0)
    _remember(study, steps(study)[1], 1, 5.0)
    page = " ".join(study_page(study, "again").split())
    assert "20 artificial people bring +1.0" in page
    assert "Thresholds that the real pictures propose: --detector-threshold 0.512" in page
    assert "people keep their clothes" in page
    assert "What would help: train the generator longer, or take a smaller truncation" in page
    assert "many do not pass as pedestrians; not ready" in page
    assert '<a href="people/report.html">' in page
    assert "fast-reid with FASTREID_DATASETS=" in page
    assert "ended with exit code 1: the same command goes on here" in page
    assert "Made from a toy" in page
    assert page.count('src="data:image/jpeg;base64,') == 6  # a sheet of real people; of two grids the later one
    assert "<b>" not in page.replace("<b>again", "")  # the folder's name is escaped
    assert not re.search(r'(src|href)="(?!data:image|#|people/|look/|generator/)', page)


def test_the_page_of_a_stopped_study_says_why_and_what_would_help(study):
    write_results(study)
    verdict = fitness(study.card())
    page = study_page(study, "again", stopped=stop_lines(verdict))
    assert "the card says: " in page
    assert "the study stops before the sweep" in page


def test_a_damaged_result_costs_its_chapter_only(study):
    write_results(study)
    for name in ("look/calibration.json", "people/summary.json", "sweep/sweep.json", "look/calibration.png"):
        (study.out / name).write_bytes(b"{")
    page = study_page(study, "again")
    assert "people keep their clothes" in page
    assert "Export the kept pictures" in page
