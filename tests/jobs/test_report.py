"""The job that writes pages: refusals, and pages of a run and of a sweep with its pictures."""

import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from datasets.runs.run import Run
from datasets.runs.verdicts import Thresholds
from jobs.report import Config, main
from passersby.errors import InputError
from passersby.reid.checkpoint import save_reid
from passersby.reid.network import ReidConfig, ReidNetwork
from reporting.run.results import REPORT, SUMMARY, RunTimes, publish
from tests.helpers import identity_runs as runs
from tests.helpers import sweep_tables as sweeps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither --run and --sweep"),
        ({"run": "a", "sweep": "b"}, "both --run and --sweep"),
        ({"sweep": "b", "training": (Path("c"),)}, "--training goes with --run"),
        ({"sweep": "b", "queries": -1}, "--queries -1"),
        ({"run": "/nonexistent"}, "no plan.json there"),
        ({"sweep": "/nonexistent"}, "no sweep.json there"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(InputError) as caught:
        main(Config(**options))
    assert message in str(caught.value)


def test_a_page_of_a_run_is_written_again(tmp_path, capsys):
    output, plan = runs.make_run(str(tmp_path), [[runs.picture(1), None, runs.picture(2)]], None)
    with pytest.raises(InputError, match="is not finished"):
        main(Config(run=str(tmp_path)))
    publish(Run(output, plan), Thresholds(), {}, RunTimes(1.0, 3, {}))
    first = output.read(REPORT)
    output.remove(REPORT)
    main(Config(run=str(tmp_path)))
    assert output.read(REPORT) == first  # what jobs/generate.py writes at its end
    assert f"report: {tmp_path}/report.html" in capsys.readouterr().out
    summary = json.loads(output.read(SUMMARY))
    output.write(SUMMARY, json.dumps(summary | {"images": 99}).encode())
    with pytest.raises(InputError, match="is not finished"):
        main(Config(run=str(tmp_path)))


def test_a_page_of_a_sweep_is_written_without_its_data(tmp_path):
    sweeps.write_sweep(tmp_path)
    main(Config(sweep=str(tmp_path)))
    html = (tmp_path / "sweep_report.html").read_text()
    assert "not on this machine" in html
    assert "Sweep: artificial people" in html
    for name, content in (("sweep.json", "{"), ("sweep.json", "[]"), ("trials.parquet", "PAR1")):
        sweeps.write_sweep(tmp_path)
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=name):
            main(Config(sweep=str(tmp_path)))
    (tmp_path / "trials.parquet").unlink()
    with pytest.raises(InputError, match=r"no trials\.parquet yet"):
        main(Config(sweep=str(tmp_path)))


def picture(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.broadcast_to(np.array(colour, np.uint8), (32, 16, 3))
    cv2.imwrite(str(path), np.ascontiguousarray(image))


def test_queries_that_got_better_and_worse_are_shown_with_what_was_found(tmp_path):
    tree, out = tmp_path / "tree", tmp_path / "sweep"
    for person, colour in ((1, (255, 0, 0)), (2, (0, 0, 255))):
        picture(tree / f"query/{person:04d}_c1s1_000001_00.png", colour)
        picture(tree / f"bounding_box_test/{person:04d}_c2s1_000002_00.png", colour)
    out.mkdir()
    torch.manual_seed(0)
    network = ReidNetwork(ReidConfig(2, "resnet10", "bnneck", 32, 16, stem="small"))
    save_reid(out / "network.safetensors", network, class_names=("a", "b"), record={})
    table = sweeps.trials({"": 0.04}).to_pylist()
    for row in table:
        better = 0.5 * (row["level"] == 40)
        row |= {"query_identity": [1, 2], "query_ap": [0.25 + better, 0.75 - better], "query_first_hit": [0, 0]}
    pq.write_table(pa.Table.from_pylist(table, schema=sweeps.SCHEMA), out / "trials.parquet")
    record = sweeps.record() | {"paths": {"data": str(tree)}}
    (out / "sweep.json").write_text(json.dumps(record))
    main(Config(sweep=str(out)))
    html = (out / "sweep_report.html").read_text()
    (sheet,) = re.findall(r'src="data:image/png;base64,([^"]*)"', html)
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(sheet), np.uint8), cv2.IMREAD_COLOR)
    # Two queries x two levels, each with its own picture and the two of the gallery: 4 x 3 pictures, half of a colour.
    for colour in ((255, 0, 0), (0, 0, 255)):
        assert (pixels == colour).all(2).sum() == pytest.approx(6 * 128 * 64, rel=0.01)
    table[0]["query_identity"] = [2, 1]
    pq.write_table(pa.Table.from_pylist(table, schema=sweeps.SCHEMA), out / "trials.parquet")
    main(Config(sweep=str(out)))
    assert "data:image/png" not in (out / "sweep_report.html").read_text()
    other = [row | {"query_identity": [7, 8]} for row in table]
    pq.write_table(pa.Table.from_pylist(other, schema=sweeps.SCHEMA), out / "trials.parquet")
    main(Config(sweep=str(out)))
    assert "not the one that the sweep ranked" in (out / "sweep_report.html").read_text()
    main(Config(sweep=str(out), queries=0))
    assert "ranked" not in (out / "sweep_report.html").read_text()
