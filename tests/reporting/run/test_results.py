"""What is derived from a finished run: with identities compared, without, and from before there were any."""

import json
import re

import pytest
import torch

from actors.identity_scorer import IdentityScorer
from datasets.runs.run import Run
from datasets.runs.verdicts import Thresholds
from passersby.errors import InputError
from pipeline.copies import privacy
from reporting.run import results
from reporting.run.identity import PRIVACY
from reporting.run.results import (
    REPORT,
    SHEET,
    SUMMARY,
    RunTimes,
    counts_of,
    draw_sheet,
    is_published,
    publish,
    read_summary,
)
from tests.helpers import identity_runs as runs

STAGES = {"generate": 3.0, "detect": 2.0, "similarity": 1.0, "identity": 0.0, "write": 0.5}
PEOPLE = [[runs.picture(1000 + 10 * person + variant) for variant in range(3)] for person in range(4)]


@pytest.fixture(scope="module")
def network():
    threads = torch.get_num_threads()
    yield runs.tiny_network()
    torch.set_num_threads(threads)


def derived(output, plan, thresholds=None, seconds=0.0) -> tuple[dict, str]:
    """Summary and report."""
    times = RunTimes(2.0, plan.images, STAGES | {"identity": seconds})
    publish(Run(output, plan), thresholds or Thresholds(), {"trained_on": "nothing"}, times)
    return read_summary(output), output.read(REPORT).decode()


def test_a_run_without_the_stage_looks_as_before(tmp_path):
    summary, report = derived(*runs.make_run(str(tmp_path), PEOPLE, None))
    assert "identity" not in summary
    assert "privacy" not in summary
    assert "identity" not in summary["stage_seconds"]
    body = report[report.index("<body>") : report.index('id="made"')]
    body = re.sub(r"base64,[^\"]*", "", body)
    assert "identity" not in body.lower()
    assert report.count("<svg") == 2


def test_a_run_of_real_people_says_how_many_are_the_right_ones(tmp_path, network):
    scorer = IdentityScorer(network, runs.compared_with(network, ["7", "8", "12", "40"]))
    images = [[runs.picture(seed) for seed in (*seeds, seeds[0])] for seeds in runs.REAL_SEEDS.values()]
    images[3][1] = runs.picture(1)  # a picture of somebody else
    output, plan = runs.make_run(str(tmp_path), images, scorer, source="latent")
    summary, report = derived(output, plan, Thresholds(identity_margin=0.0), seconds=1.5)
    assert summary["counts"]["identity_margin"] == 1
    assert summary["identity"]["all"]["variants"] | {"median_cosine": 1.0} == {
        "scored": 12, "compared": 12, "right": 11, "share_right": 11 / 12, "median_cosine": 1.0,
    }  # fmt: skip
    assert summary["identity"]["kept"]["variants"]["share_right"] == 1
    assert summary["stage_seconds"]["identity"] == 1.5
    words = re.sub(r"<[^>]*>|\s+", " ", report)
    assert re.search(r"the nearest real person is the right one +91\.7% +100\.0%", words)
    assert re.search(r"too like somebody else \(identity margin\) +1 +8\.3%", words)
    (line,) = re.findall(r"<tr([^>]*)><th[^>]*><span[^>]*></span>too unlike the person", report)
    assert "hidden" in line  # no floor was set, and none failed it; a slider of the page can set one
    assert "margin at 0" in report


def test_near_copies_of_all_and_of_kept_images_are_in_report_and_summary(tmp_path, network):
    real = runs.compared_with(network)
    images = [list(person) for person in PEOPLE]
    images[2][1] = runs.picture(5)
    output, plan = runs.make_run(str(tmp_path), images, IdentityScorer(network, real))
    found = privacy(Run(output, plan), network, real, "cpu", runs.real_listing(), near_copy_cosine=0.99999)
    assert found["near_copies"]["count"] == 1
    summary, report = derived(output, plan)
    assert summary["privacy"]["near_copies"]["kept"] == {"count": 1, "scored": 12, "share": 1 / 12}
    assert "8.3%</dd>" in report[: report.index("What was discarded")]
    assert "near-copies of real pictures" in report
    assert report.count("data:image/png;base64,") == 1
    assert report.count("data:image/jpeg;base64,") == 12 + 1  # every picture of the strips, and the script's own word
    summary, report = derived(output, plan, Thresholds(identity_ceiling=0.999))
    assert summary["privacy"]["near_copies"]["kept"] == {"count": 0, "scored": 11, "share": 0.0}
    assert summary["counts"]["identity_ceiling"] == 1
    assert "likeness to real pictures" in report


def test_what_was_found_of_other_images_is_not_shown(tmp_path, network):
    output, plan = runs.make_run(str(tmp_path), PEOPLE, IdentityScorer(network, None))
    privacy(Run(output, plan), network, None, "cpu")
    assert "privacy" in derived(output, plan)[0]
    content = json.loads(output.read(PRIVACY))
    for stale in (json.dumps(content | {"images": 9}), json.dumps([1]), "{", json.dumps(content | {"plan_hash": "x"})):
        output.write(PRIVACY, stale.encode())
        assert "privacy" not in derived(output, plan)[0]


def test_a_summary_from_before_there_were_identities_is_still_of_its_run(tmp_path):
    output, plan = runs.make_run(str(tmp_path), PEOPLE, None)
    summary, _ = derived(output, plan)
    old = {name: summary["thresholds"][name] for name in ("detector", "ssim_floor", "ssim_ceiling")}
    counts = {name: count for name, count in summary["counts"].items() if not name.startswith("identity")}
    output.write(SUMMARY, json.dumps(summary | {"thresholds": old, "counts": counts}).encode())
    assert is_published(Run(output, plan), Thresholds())
    assert not is_published(Run(output, plan), Thresholds(identity_floor=0.5))
    assert not is_published(Run(output, plan), Thresholds(detector=0.5))
    assert counts_of(read_summary(output)) == summary["counts"]
    for broken in ({}, {"thresholds": None}, {"thresholds": old | {"new": 1}}, {"thresholds": old | {"detector": 7}}):
        output.write(SUMMARY, json.dumps(summary | {"thresholds": {}} | broken).encode())
        assert is_published(Run(output, plan), Thresholds()) == (broken == {})  # {}: all of them at their defaults


def test_the_sheet_says_how_like_its_person_a_picture_is(tmp_path, network):
    plain = draw_sheet(Run(*runs.make_run(str(tmp_path / "plain"), PEOPLE, None)), Thresholds())
    output, plan = runs.make_run(str(tmp_path / "compared"), PEOPLE, IdentityScorer(network, None))
    captioned = draw_sheet(Run(output, plan), Thresholds())
    assert captioned.shape != plain.shape or (captioned != plain).any()


@pytest.mark.parametrize("error", [ValueError("no font"), InputError("cannot write it: No space left on device")])
@pytest.mark.parametrize("part", ["draw_sheet", "run_page"])
def test_a_picture_or_page_that_fails_ends_no_run_and_leaves_no_older_one(tmp_path, monkeypatch, capsys, part, error):
    output, plan = runs.make_run(str(tmp_path), PEOPLE, None)
    derived(output, plan)
    name = {"draw_sheet": SHEET, "run_page": REPORT}[part]
    assert output.exists(name)
    with monkeypatch.context() as patch:
        patch.setattr(results, part, lambda *_, **__: (_ for _ in ()).throw(error))
        counts = publish(Run(output, plan), Thresholds(detector=0.99), {}, None)
    assert sum(counts.values()) == plan.images
    assert read_summary(output)["thresholds"]["detector"] == 0.99
    said = capsys.readouterr().err
    assert said == f"note: no {output.address(name)} ({type(error).__name__}: {error}): the same command tries again\n"
    assert not output.exists(name)
    assert not is_published(Run(output, plan), Thresholds(detector=0.99))  # so the same command tries again
    publish(Run(output, plan), Thresholds(detector=0.99), {}, None)
    assert is_published(Run(output, plan), Thresholds(detector=0.99))
