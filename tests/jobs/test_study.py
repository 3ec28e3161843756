"""The job study: refusals before anything runs; a whole study at tiny size, stopped in every step and gone on."""

import contextlib
import dataclasses
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
import tyro

from datasets.people.readers import read_split
from datasets.storage.output import Output
from jobs import make_toy_crowd, study
from jobs.common import CPU_VARIABLES, parse
from passersby.files import file_sha256
from passersby.reid.checkpoint import load_reid
from pipeline.study.run import NOT_READY, continue_study
from pipeline.study.sizes import SIZES
from pipeline.study.steps import Step, generator_training
from tests.helpers import drivers, studies, sweep_data
from tests.helpers.drivers import ROOT, without_ray
from training.reid.run import train

PAIRS = ROOT / "passersby/demo/toy_crowd_pairs.safetensors"
NAMES = ["look", "judge", "card", "people", "export", "sweep", "answer"]


# ---- Refusals, in seconds.


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> str:
    return sweep_data.write_data(tmp_path_factory.mktemp("data"))["data"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "gpu"], "--preset gpu: no GPU is here: take --preset laptop"),
        (["--labelled-people", "7"], "--labelled-people 7: market (Market-1501) train has 6 people"),
        (["--levels", "50", "--people", "40"], "--levels 50: there will be 40 artificial people"),
        (["--levels", "0"], "--levels 0: give a number of artificial people above 0"),
        (["--seeds", "1", "1"], "--seeds 1 1: give one number or more, each once"),
        (["--network", "nowhere.pkl"], "--network nowhere.pkl"),
        (["--network", str(PAIRS), "--kimg", "5"], "no generator is trained: leave one out"),
        (["--network", str(PAIRS), "--transfer", str(PAIRS)], "no generator is trained: leave one out"),
        (["--transfer", "nowhere.safetensors"], "nowhere.safetensors"),
        (
            ["--network", str(PAIRS), "--identity-loss", "yes"],
            "--identity-loss yes: it needs a generator",
        ),
        (["--judge", "none", "--identity-loss", "yes"], "are trained: leave out --network and --judge"),
        (["--judge", "nowhere"], "--judge nowhere: there is no such file; give train, none, or a file"),
        (["--judge", str(PAIRS)], "toy_crowd_pairs.safetensors"),
        (["--hourly-price", "2"], "--hourly-price 2: it belongs to --plan"),
        (["--set", "batch"], "--set batch: give key=value"),
        (["--set", "lr=-1"], "--lr -1"),
        (["--generator-set", "gamma"], "--generator-set gamma: give key=value"),
        (["--generator-set", "gama=1"], "--generator-set gama=1: gama is no option of jobs/train_gan.py"),
        (["--generator-set", "gamma=high"], "--generator-set gamma=high: "),
        (["--generator-set", "gamma=-1"], "--gamma -1"),
        (["--generator-set", "one_pass=False", "projected=True"], "--projected needs --one-pass"),
        (["--generator-set", "fit=crop"], "--generator-set fit=crop: a study decides it itself, by --fit"),
        (["--network", str(PAIRS), "--generator-set", "gamma=1"], "no generator is trained: leave one out"),
        (["--people", "0"], "--people 0: must be 1 or more"),
        (["--steps", "0"], "--steps 0: must be 1 or more"),
        (["--out", "s3://bucket/study"], "s3://bucket/study"),
        (["--data", "/nowhere"], "/nowhere: there is no such folder or table"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line_before_anything_runs(call, market, tmp_path, words, message):
    out = tmp_path / "out"
    code, _, said = call("study", "--data", market, "--out", out, *words)
    assert code == 2
    assert message in said
    assert said.count("\n") == 1
    assert not [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".driver")]


def test_help_has_an_example_that_can_be_typed():
    example = re.search(r"Example: python jobs/study.py (.+)", study.Config.__doc__)[1]
    config = tyro.cli(study.Config, args=shlex.split(example))
    assert (config.labelled_people, config.preset) == (60, "gpu")


def test_options_that_a_command_leaves_out_are_those_of_the_folder(tmp_path):
    options = studies.study(tmp_path, network="0" * 64, judge="1" * 64, kimg=None, set=("batch=8",)).options
    continue_study(Output(str(tmp_path)), options, {"network": "net.pkl", "judge": "/data/judge.onnx"})
    config = parse(study.Config, ["--out", str(tmp_path), "--anyway"], begun=study.begun)
    assert (str(config.data), config.judge) == ("/data/market", "/data/judge.onnx")
    assert config.network == str(tmp_path / "generator/net.pkl")
    assert (config.people, config.levels, config.set, config.kimg) == (80, (40,), ("batch=8",), None)
    again = parse(study.Config, ["--out", str(tmp_path), "--people", "9"], begun=study.begun)
    assert (again.people, again.anyway) == (9, False)


@pytest.mark.parametrize(
    ("stored", "files", "given"), [("0" * 64, {"transfer": "/data/start.pkl"}, "/data/start.pkl"), (None, {}, "none")]
)
def test_the_start_of_the_generator_is_that_of_the_folder(tmp_path, stored, files, given):
    options = studies.study(tmp_path, transfer=stored).options
    continue_study(Output(str(tmp_path)), options, files)
    assert parse(study.Config, ["--out", str(tmp_path)], begun=study.begun).transfer == given


def test_the_laptop_starts_its_generator_from_the_built_in_network(tmp_path):
    options = {"data": tmp_path, "out": str(tmp_path)}
    for words, expected in (
        ({}, PAIRS),
        ({"preset": "gpu"}, None),
        ({"transfer": "none"}, None),
        ({"transfer": str(PAIRS), "preset": "gpu"}, PAIRS),
        ({"network": str(PAIRS)}, None),
    ):
        config = study.Config(**options, **words)
        assert study.transfer(config) == expected
        frozen = study.frozen(config, None).transfer
        assert frozen == (None if expected is None else file_sha256(PAIRS))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, True),
        ({"identity_loss": "no"}, False),
        ({"preset": "gpu"}, False),
        ({"preset": "gpu", "identity_loss": "yes"}, True),
        ({"judge": "none"}, False),
        ({"network": str(PAIRS)}, False),
    ],
)
def test_the_generator_learns_from_the_judge_where_both_are_trained(tmp_path, words, expected):
    config = study.Config(data=tmp_path, out=str(tmp_path), **words)
    frozen = study.frozen(config, PAIRS if config.network else None)
    assert frozen.identity_loss is expected
    continue_study(Output(str(tmp_path)), frozen, {})
    assert parse(study.Config, ["--out", str(tmp_path)], begun=study.begun).identity_loss == (
        "yes" if expected else "no"
    )


def test_generator_and_artificial_people_are_used_as_was_best_on_such_data(tmp_path):
    photographs, drawn = tmp_path / "photographs", tmp_path / "drawn"
    for folder, record, expected in ((photographs, None, "apart"), (drawn, '{"version": 1}', "changes-apart")):
        folder.mkdir()
        if record is not None:
            (folder / "toy_crowd.json").write_text(record)
        config = study.Config(data=folder, out=str(tmp_path))
        options = study.frozen(config, None)
        assert options.generated_recipe == expected
        assert options.generator_set == (() if record else ("projected=True", "intraclass_weight=100"))
        given = study.frozen(dataclasses.replace(config, generated_recipe="changes-half", generator_set=()), None)
        assert (given.generated_recipe, given.generator_set) == ("changes-half", ())
        assert study.frozen(dataclasses.replace(config, network=str(PAIRS)), PAIRS).generator_set == ()
        assert study.frozen(dataclasses.replace(config, preset="gpu"), None).generator_set == ()
    generator_training("laptop", SIZES["laptop"]["of_photographs"]).check()


# ---- A whole study, with the jobs in this process and without Ray: a process of each takes 8 s more.


@contextlib.contextmanager
def jobs_here(start: Callable[[Step, Callable[[], int]], int] | None = None):
    """Let a study start its jobs in this process; start: what is done in their place, given the step and the job."""

    def run(step: Step) -> int:
        def job() -> int:
            threads = torch.get_num_threads()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", [f"jobs/{step.job}.py", *step.words, *step.free])
                with pytest.raises(SystemExit) as end:
                    runpy.run_path(str(ROOT / "jobs" / f"{step.job}.py"), run_name="__main__")
            torch.set_num_threads(threads)
            return end.value.code

        return job() if start is None else start(step, job)

    with pytest.MonkeyPatch.context() as patch, without_ray():
        for name, value in CPU_VARIABLES.items():
            patch.setenv(name, value)
        patch.setattr("pipeline.study.run.start_process", run)
        yield


def run_study(crowd: Path, out: Path, *words: str) -> int:
    """The exit code of a study at tiny size."""
    sizes = ["--labelled-people", "6", "--people", "4", "--variants", "3", "--levels", "3", "--seeds", "0"]
    sizes += ["--steps", "3", "--set", "batch=8", "--card-people", "6", "--truncation-psi", "0.7"]
    sizes += ["--thresholds", "usual", "--network", str(PAIRS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["jobs/study.py", "--data", str(crowd), "--out", str(out), *sizes, *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "jobs/study.py"), run_name="__main__")
    return end.value.code


@pytest.fixture(scope="module")
def crowd(tmp_path_factory) -> Path:
    """8 drawn people to train on and 3 to test with."""
    root = tmp_path_factory.mktemp("crowd") / "crowd"
    make_toy_crowd.main(make_toy_crowd.Config(root, 8, 3, images_per_camera=2, distractors=1, junk=1, workers=1))
    return root


@pytest.fixture(scope="module")
def straight(crowd, tmp_path_factory) -> Path:
    """A study that stops before its sweep, as its card says, and then goes on with --anyway to the end."""
    out = tmp_path_factory.mktemp("study") / "out"
    with jobs_here():
        assert run_study(crowd, out) == NOT_READY
        assert not (out / "sweep").exists()
        stopped = (out / "index.html").read_text()
        assert "the study stops before the sweep" in stopped
        assert "what would help:" in stopped
        assert run_study(crowd, out, "--anyway") == 0
    return out


def test_a_study_ends_with_an_answer_an_export_and_a_page(straight):
    rows = pq.read_table(straight / "sweep/trials.parquet").to_pylist()
    assert {row["trial"]: row["arm"] for row in rows if row["level"]} == {
        "level-0003-seed-0-G": "G",
        "level-0003-seed-0-S": "S",
    }  # fmt: skip  (2 people are left, and arm U would need 3)
    assert len(read_split(straight / "export/market1501", "train").people) >= 3
    page = (straight / "index.html").read_text()
    for title in ("Look at the data", "Can its people teach?", "Make, filter and judge people", "The answer"):
        assert title in page
    assert "Made from a toy" in page
    assert "3 artificial people bring" in page
    assert page.count('src="data:image/') >= 4
    assert not re.search(r'(src|href)="(?!data:|#)(https?:)?//', page)
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (straight / link).is_file(), link
    assert (straight / "generator/toy_crowd_pairs.safetensors").read_bytes() == PAIRS.read_bytes()


def test_the_same_study_again_starts_no_job_and_changed_options_are_refused(straight, crowd, capsys):
    def never(step: Step, job: Callable[[], int]) -> int:
        raise AssertionError(step)

    with jobs_here(never):
        assert run_study(crowd, straight, "--anyway") == 0
        assert capsys.readouterr().out.count(": done\n") == len(NAMES)
        assert run_study(crowd, straight, "--people", "5") == 2
        assert "--out holds a study with other options: people is 4, not 5" in capsys.readouterr().err


def test_a_study_that_is_stopped_in_every_step_makes_the_same(straight, crowd, tmp_path):
    out, stopped = tmp_path / "out", []

    def interrupted(step: Step, job: Callable[[], int]) -> int:
        if step.name not in stopped:
            stopped.append(step.name)
            return in_its_middle(step, job)
        return job()

    def in_its_middle(step: Step, job: Callable[[], int]) -> int:
        with pytest.MonkeyPatch.context() as patch:
            if step.name == "judge":
                patch.setattr("training.checkpoints.write_synced", stop)
            if step.name == "sweep":  # after its first trial
                trained = iter([train])
                patch.setattr("tune.trial.train", lambda *args, **options: next(trained, stop)(*args, **options))
            else:
                patch.setattr("datasets.storage.output.Output.write", stop)
            return job()

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with jobs_here(interrupted):
        codes = [run_study(crowd, out, "--anyway") for _ in range(len(NAMES) + 1)]
    assert stopped == NAMES
    assert codes == [130] * len(NAMES) + [0]
    assert len(list(out.glob("sweep/trials/*/result.json"))) == 3
    for folder, without in (("export", ("market1501/export.json",)), ("look", ("calibration.json",))):
        drivers.assert_equal(out / folder, drivers.contents(straight / folder, without), without)
    one, two = (load_reid(folder / "judge/network.safetensors").network.state_dict() for folder in (straight, out))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    cards = [json.loads((folder / "generator/toy_crowd_pairs.card.json").read_text()) for folder in (straight, out)]
    for card in cards:
        del card["teaching"]["seconds"], card["teaching"]["judge"]["sha256"]  # the judge's file holds its minutes
    assert cards[0] == cards[1]
    tables = [pq.read_table(folder / "sweep/trials.parquet").drop_columns("minutes") for folder in (straight, out)]
    assert tables[0].equals(tables[1])


# ---- Processes.

PARENT = """
import sys
from pathlib import Path
from pipeline.study import run
run.ROOT = Path(sys.argv[1])
run.start_process(run.Step("a", "sleep", "", (), ""))
"""


@pytest.mark.slow
def test_a_job_ends_with_the_study_that_is_killed(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/sleep.py").write_text(
        "import os, time; from pathlib import Path\n"
        "Path(__file__).with_name('pid').write_text(str(os.getpid())); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], env=os.environ | {"PYTHONPATH": str(ROOT)})
    pid = tmp_path / "jobs/pid"
    end = time.monotonic() + 120
    while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    job = psutil.Process(int(pid.read_text()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    job.wait(timeout=30)
