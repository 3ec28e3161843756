"""The run's metrics at Ray's endpoint, and the Grafana board that draws them."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from datasets.runs.verdicts import VERDICTS
from pipeline.commit import RunMetrics, ascii_label

BOARD = json.loads((Path(__file__).parents[2] / "deploy" / "grafana" / "passersby.json").read_text())
REPORTED_WITHIN = 30  # seconds; Ray passes values on every 10 s, and a busy machine is late

NAME = re.compile(r"\bray_[a-z_]+")
LABEL = re.compile(r'(\w+)="([^"]*)"')
RAYS_OWN_LABELS = {"instance", "GpuIndex", "SessionName"}  # instance is added by Prometheus


def row(unit: int, **images: int) -> dict:
    """A row as the writer returns it: 4.0 s in all."""
    seconds = {"seconds_generate": 2.0, "seconds_detect": 1.5, "seconds_similarity": 0.25, "seconds_write": 0.25}
    counts = dict.fromkeys(VERDICTS, 0) | images
    return {"unit": unit, "images": sum(counts.values()), **counts, **seconds, "problem": None}


def endpoint() -> str:
    """The address of the metrics agent of Ray's node; its dashboard may be off."""
    node = ray.nodes()[0]
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def read_lines() -> dict[tuple[str, frozenset], float]:
    """What Prometheus would read now of our metrics: (name, our labels) -> value."""
    with urllib.request.urlopen(endpoint(), timeout=10) as reply:
        lines = [line for line in reply.read().decode().splitlines() if line.startswith("ray_passersby")]
    found = {}
    for line in lines:
        labels, value = line.rsplit(" ", 1)
        ours = frozenset((k, v) for k, v in LABEL.findall(labels) if k in ("run", "verdict", "stage", "state"))
        found[labels.split("{")[0], ours] = float(value)
    return found


@pytest.fixture(scope="module")
def lines(ray_cluster) -> dict[tuple[str, frozenset], float]:
    """The endpoint's lines in the middle of a run: two units made, one failed, seven to come."""
    metrics = RunMetrics("test-run", planned_units=12, finished_units=2)
    metrics.update(row(2, kept=60, detector=3, error=1))
    metrics.update(row(3, kept=50, detector=10, ssim_floor=3, ssim_ceiling=1))
    metrics.failed(4)
    start, found = time.monotonic(), {}
    while not any(("run", "test-run") in labels for _, labels in found) and time.monotonic() - start < REPORTED_WITHIN:
        time.sleep(0.5)
        found = read_lines()
    return {(name, labels): value for (name, labels), value in found.items() if ("run", "test-run") in labels}


def values(lines, name: str, label: str) -> dict[str, float]:
    """The values of one metric by one of its labels."""
    return {dict(labels)[label]: value for (found, labels), value in lines.items() if found == name}


def test_images_by_verdict_are_visible_during_a_run(lines):
    expected = {"kept": 110, "detector": 13, "error": 1, "ssim_floor": 3, "ssim_ceiling": 1}
    assert values(lines, "ray_passersby_images_total", "verdict") == expected


def test_seconds_by_stage_are_visible_during_a_run(lines):
    expected = {"generate": 4.0, "detect": 3.0, "similarity": 0.5, "write": 0.5}
    assert values(lines, "ray_passersby_seconds_total", "stage") == expected


def test_units_count_those_of_earlier_runs_and_the_failed(lines):
    assert values(lines, "ray_passersby_units", "state") == {"planned": 12, "finished": 4, "failed": 1}


def test_a_row_without_a_verdict_is_refused(ray_cluster):
    incomplete = row(0)
    del incomplete["detector"]
    with pytest.raises(KeyError, match="detector"):
        RunMetrics("another", 1).update(incomplete)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("s3://bucket/run", "s3://bucket/run"),
        ('/data/a b/"x" {y}, 100%', '/data/a b/"x" {y}, 100%'),  # ASCII stays as it is: boards know these names
        ("/data/José", "/data/Jos%C3%A9"),
        ("s3://bucket/夜/run", "s3://bucket/%E5%A4%9C/run"),
        ("/data/🚶", "/data/%F0%9F%9A%B6"),
        ("/data/caf\udce9", "/data/caf%E9"),  # a byte that is not UTF-8
        ("/data/a\nb\x7f", "/data/a%0Ab%7F"),
    ],
)
def test_a_label_is_ascii(name, label):
    assert ascii_label(name) == label
    assert label.isascii()


@pytest.mark.parametrize("name", ["/data/José/夜", "s3://bucket/🚶", "/data/caf\udce9", "/" + "x" * 5000])
def test_a_run_of_any_name_is_counted(ray_cluster, capsys, name):
    metrics = RunMetrics(name, planned_units=2)
    metrics.update(row(0, kept=60))
    metrics.failed(1)
    assert metrics._working
    assert capsys.readouterr().err == ""


def test_an_error_of_the_metrics_is_one_line_and_ends_no_run(ray_cluster, monkeypatch, capsys):
    metrics = RunMetrics("broken", planned_units=3)
    monkeypatch.setattr(type(metrics._images), "inc", lambda *_: 1 / 0)
    for unit in range(3):
        metrics.update(row(unit, kept=60))
    assert capsys.readouterr().err == "note: no more metrics of this run (ZeroDivisionError: division by zero)\n"
    monkeypatch.setattr("pipeline.commit.Counter", lambda *_: 1 / 0)
    broken = RunMetrics("broken from the start", planned_units=3)
    broken.update(row(0, kept=60))
    broken.failed(1)
    assert capsys.readouterr().err.count("\n") == 1


def expressions() -> list[str]:
    return [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])] + [
        variable["query"]["query"] for variable in BOARD["templating"]["list"] if variable["type"] == "query"
    ]


def test_the_board_uses_only_metrics_that_are_exported(lines):
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    ours = {name for name, _ in lines}
    used = {name for expression in expressions() for name in NAME.findall(expression)}
    assert used <= ours | {f"ray_{name}" for name in METRICS_GAUGES}
    assert ours <= used, "a metric that nobody sees"


def test_the_board_uses_only_labels_and_values_that_exist(lines):
    labels = {"run", "le"} | {key for _, found in lines for key, _ in found} | RAYS_OWN_LABELS
    verdicts = {value for _, found in lines for key, value in found if key == "verdict"}
    for expression in expressions():
        for selector in re.findall(r"\{([^}]*)\}", expression):
            for key, operator, value in re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', selector):
                assert key in labels, expression
                assert key != "verdict" or operator not in ("=", "!=") or value in verdicts, expression
        for grouping in re.findall(r"(?:by|without|on)\s*\(([^)]*)\)", expression):
            assert {key.strip() for key in grouping.split(",") if key.strip()} <= labels, expression


def test_the_board_is_whole():
    assert BOARD["uid"] == "passersby"
    assert BOARD["id"] is None, "an id belongs to one Grafana server"
    assert {variable["name"] for variable in BOARD["templating"]["list"]} == {"datasource", "run"}
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert refs, panel["title"]
        assert len(set(refs)) == len(refs), panel["title"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells), "two panels overlap"
    for expression in expressions():
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression
