"""The export job: nothing lost, nothing twice, nothing mixed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datasets.runs.manifest import write_manifest
from datasets.runs.plan import read_plan
from datasets.runs.run import Run
from datasets.runs.verdicts import Thresholds
from datasets.storage.output import Output
from jobs.export import Config, main
from passersby.errors import InputError
from tests.helpers import export_runs as runs

ROOT = Path(__file__).parents[2]

FORMATS = ["market1501", "webdataset", "folder", "table", "fiftyone", "huggingface"]


@pytest.fixture
def run(tmp_path) -> Output:
    return runs.make_run(str(tmp_path / "run"))


def files_of(name: str) -> dict:
    return {"images_per_file": 10} if name in ("webdataset", "table") else {}


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_command_again_does_what_is_missing_and_nothing_else(run, tmp_path, capsys, name):
    out = tmp_path / "out"
    config = Config(run=run.root_address, out=str(out), format=name, per_person=3, **files_of(name))
    main(config)
    whole, before = runs.tree(out), times(out)
    assert {"export.json", "identities.csv", "short_people.csv"} <= whole.keys()
    capsys.readouterr()
    main(config)
    assert "everything is there" in capsys.readouterr().out
    assert times(out) == before
    lost = sorted(path for path in out.rglob("*.*") if path.suffix in (".jpg", ".tar", ".parquet"))[1]
    lost.unlink()
    main(config)
    after = times(out)
    assert runs.tree(out) == whole
    assert [path for path in after if after[path] != before[path]] == [str(lost)]


# The real job, killed by itself, with files begun by other threads half written, as it puts file number N in place.
KILLED = """
import os, signal, sys, threading
from jobs.common import run_job
from jobs.export import Config, main

left, replace, in_turn = int(sys.argv.pop(1)), os.replace, threading.Lock()


def killing(source, target):
    global left
    with in_turn:  # exactly N files are in place when it dies, whichever threads they come from
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        left -= 1


os.replace = killing
run_job(main, Config)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["market1501", "webdataset"])
def test_a_killed_export_goes_on_and_ends_as_an_undisturbed_one(tmp_path, name):
    run = runs.make_run(str(tmp_path / "run"), people=40)
    values = {"run": run.root_address, "format": name, "threads": 3} | files_of(name)
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    main(Config(out=str(whole), **values))
    files = len(runs.tree(whole))
    for written in (1, files // 2 - 1):  # in the beginning, and again in the middle
        options = [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]
        command = [sys.executable, "-c", KILLED, str(written), *options, "--out", str(cut)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    before = {path: changed for path, changed in times(cut).items() if not path.endswith(".tmp")}
    assert files // 2 <= len(before) < files
    main(Config(out=str(cut), **values))
    assert runs.tree(cut) == runs.tree(whole)
    assert before.items() <= times(cut).items()


def test_people_with_few_images_are_counted_on_the_screen_and_listed(run, tmp_path, capsys):
    main(Config(run=run.root_address, out=str(tmp_path / "out"), format="folder", per_person=3))
    assert "2 people have fewer than 3 kept images, 1 of them none" in capsys.readouterr().out
    listed = (tmp_path / "out" / "short_people.csv").read_text()
    assert listed == f"person,seed,images\n{runs.NOBODY},1002,0\n{runs.FEW},1005,2\n"
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (record["images"], record["people"], record["short_people"]) == (20, 7, 2)
    identities = (tmp_path / "out" / "identities.csv").read_text().splitlines()
    assert identities[:2] == ["identity,label,split,person,seed,images,name", "1,0,train,0,1000,3,"]
    assert len(identities) == 8


def test_other_options_in_the_same_folder_are_refused_by_name(run, tmp_path):
    out = str(tmp_path / "out")
    main(Config(run=run.root_address, out=out, format="folder", per_person=3))
    before = runs.tree(tmp_path / "out")
    with pytest.raises(InputError, match=r"per_person is 3, not 4; camera is 1, not 2\. Choose another --out"):
        main(Config(run=run.root_address, out=out, format="folder", per_person=4, camera=2))
    with pytest.raises(InputError, match='format is "folder", not "table"'):
        main(Config(run=run.root_address, out=out, format="table", per_person=3))
    assert runs.tree(tmp_path / "out") == before


def test_a_changed_manifest_is_refused(run, tmp_path):
    config = Config(run=run.root_address, out=str(tmp_path / "out"), format="folder")
    main(config)
    plan = read_plan(run)
    write_manifest(Run(run, plan), plan.units(), Thresholds(detector=0.71))
    with pytest.raises(InputError, match=r"manifest\.parquet has changed since this export started"):
        main(config)
    write_manifest(Run(run, plan), plan.units(), Thresholds())
    main(config)


def test_another_manifest_and_an_unfinished_run_are_exported(run, tmp_path, capsys):
    plan = read_plan(run)
    write_manifest(Run(run, plan), list(plan.units())[:3], Thresholds(detector=0.0), "loose")
    main(Config(run=run.root_address, out=str(tmp_path / "out"), format="folder", manifest="loose"))
    assert "manifest-loose.parquet judges 18 of the 48 planned images" in capsys.readouterr().out
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 18


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "/nonexistent"}, "--run /nonexistent: no plan.json there"),
        ({"run": ""}, "--run is empty"),
        ({"out": "{run}"}, "is the folder of a run"),
        ({"out": "{strange}"}, "holds files that are not an export"),
        ({"threads": 0}, "--threads 0"),
        ({"first_identity": 2000}, "--no-loader-limits"),
        ({"manifest": "none"}, "manifest-none.parquet does not exist"),
        ({"jpeg_quality": 90}, "--jpeg-quality 90: the run's images are JPEG"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(run, tmp_path, changes, message):
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "photo.jpg").write_bytes(b"mine")
    before = runs.tree(tmp_path)
    places = {"{run}": run.root_address, "{strange}": str(tmp_path / "strange")}
    values = {"run": run.root_address, "out": str(tmp_path / "out"), "format": "market1501"} | changes
    with pytest.raises(InputError) as caught:
        main(Config(**values | {"out": places.get(values["out"], values["out"])}))
    assert message in str(caught.value)
    assert runs.tree(tmp_path) == before


def test_a_damaged_shard_stops_the_export_and_it_goes_on_when_mended(run, tmp_path):
    shard = Path(run.root_address) / "shards" / "000" / "unit-000004.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-30])
    config = Config(run=run.root_address, out=str(tmp_path / "out"), format="folder")
    with pytest.raises(InputError, match=r"unit-000004\.parquet is damaged"):
        main(config)
    shard.write_bytes(whole)
    main(config)
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 26


def test_a_dry_run_writes_nothing(run, tmp_path, capsys):
    main(Config(run=run.root_address, out=str(tmp_path / "out"), format="market1501", compact_ids=True, dry_run=True))
    assert "market1501: 26 images of 7 people, identities 1 to 7" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_the_formats_and_ends_in_one_line(call, run, tmp_path):
    words = ["--run", run.root_address, "--out", tmp_path / "out"]
    code, _, wrong = call("export", *words, "--format", "market1501", "--first-identity", 0)
    assert code == 2
    assert wrong.startswith("error: --first-identity 0")
    assert wrong.count("\n") == 1
    code, said, wrong = call("export", *words, "--format", "folder")
    assert code == 0, wrong
    assert "26 images of 7 people" in said
