"""Running the steps of a study, with a start in place of the jobs: what is done, what is not, the gate, refusals."""

import dataclasses
import json
from pathlib import Path

import pytest

from datasets.storage.output import Output
from passersby.errors import InputError
from pipeline.study import run
from pipeline.study.run import NOT_READY, agreed, continue_study, ended, is_done, run_study
from pipeline.study.steps import Files, Step, Study, steps
from tests.helpers import studies

NAMES = ["look", "generator", "judge", "card", "people", "export", "sweep", "answer"]


class Jobs:
    """In the place of the jobs: writes a step's result. codes: exit codes of steps, by their names, once each."""

    def __init__(self, study: Study, missed: tuple[str, ...] = (), kept: int = 50):
        self.study, self.missed, self.kept = study, missed, kept
        self.codes: dict[str, int] = {}
        self.started: list[str] = []

    def __call__(self, step: Step) -> int:
        self.started.append(step.name)
        code = self.codes.pop(step.name, 0)
        if code:
            return code
        path = self.study.out / step.result
        path.parent.mkdir(parents=True, exist_ok=True)
        if step.name == "card":
            studies.write_teaching(self.study, self.missed)
        elif step.name == "look":
            studies.write_calibration(self.study)
        else:
            path.write_bytes(b"a network" if step.name == "generator" else b"{}")
        if step.name == "people":
            studies.write_manifest(self.study, self.kept)
        return 0

    def run(self, **options) -> tuple[int, list[str]]:
        self.started = []
        return run_study(self.study, self, lambda: None, **options), self.started


@pytest.fixture
def jobs(tmp_path) -> Jobs:
    return Jobs(studies.study(tmp_path))


def test_every_step_runs_once(jobs, capsys):
    assert jobs.run() == (0, NAMES)
    said = capsys.readouterr().out
    assert f"[1/8] Look at the data\npython jobs/calibrate.py --data /data/market --out {jobs.study.out}/look" in said
    assert jobs.run() == (0, [])
    assert capsys.readouterr().out.count(": done\n") == 8


@pytest.mark.parametrize("name", NAMES)
def test_a_study_goes_on_at_the_step_that_failed(jobs, name, capsys):
    jobs.codes = {name: 2}
    place = NAMES.index(name)
    assert jobs.run() == (2, NAMES[: place + 1])
    assert f"step {name} ended with exit code 2: the same command goes on there" in capsys.readouterr().err
    assert jobs.run() == (0, NAMES[place:])


def test_a_step_whose_job_was_killed_runs_again(jobs):
    def killed(step: Step) -> int:
        if step.name == "people":
            raise KeyboardInterrupt
        return jobs(step)

    with pytest.raises(KeyboardInterrupt):
        run_study(jobs.study, killed, lambda: None)
    assert jobs.run() == (0, NAMES[4:])


def test_a_job_that_leaves_no_result_has_failed(jobs, capsys):
    assert run_study(jobs.study, lambda step: 0, lambda: None) == 1
    assert "calibrate ended without its result" in capsys.readouterr().err


def test_what_was_removed_is_made_again_and_later_steps_look_again(jobs):
    jobs.run()
    (jobs.study.out / "people/summary.json").unlink()
    assert jobs.run() == (0, NAMES[4:])


def test_a_card_that_was_measured_by_hand_since_is_measured_again(jobs):
    jobs.run()
    studies.write_teaching(jobs.study, psi="0.5")
    assert steps(jobs.study)[4].words[7] == "0.5"  # what later steps would do
    assert jobs.run() == (0, NAMES[3:])
    assert jobs.run() == (0, [])


def test_a_step_counts_as_done_only_with_its_words(jobs, tmp_path):
    jobs.run()
    look = steps(jobs.study)[0]
    assert is_done(jobs.study, look)
    other = studies.study(tmp_path, files=Files(yolo_weights="other.weights"))
    assert is_done(other, steps(other)[0])  # where a file lies does not change what was made
    fewer = Step(look.name, look.job, look.title, look.words[:-1], look.result)
    assert ended(jobs.study, fewer) is None
    (tmp_path / "steps/look.json").write_text("{")
    assert not is_done(jobs.study, look)


def test_seconds_are_those_of_all_starts(jobs, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    lasting = dict.fromkeys(NAMES, 10.0)

    def start(step: Step) -> int:
        clock[0] += lasting[step.name]
        return jobs(step)

    def seconds() -> list[float]:
        return [record.seconds for step in steps(jobs.study) if (record := ended(jobs.study, step))]

    jobs.codes = {"generator": 1}
    run_study(jobs.study, start, lambda: None)
    assert seconds() == [10, 10]
    run_study(jobs.study, start, lambda: None)
    assert seconds() == [10, 20, 10, 10, 10, 10, 10, 10]
    (jobs.study.out / steps(jobs.study)[3].result).unlink()
    lasting = dict.fromkeys(NAMES, 1.0)  # what is there already is only looked at
    run_study(jobs.study, start, lambda: None)
    assert seconds() == [10, 20, 10, 11, 11, 11, 11, 11]


def test_a_folder_that_was_moved_is_still_done(jobs, tmp_path):
    out = tmp_path / "first"
    first = Jobs(studies.study(out))
    first.run()
    out.rename(tmp_path / "second")
    moved = Jobs(studies.study(tmp_path / "second"))
    assert moved.run() == (0, [])


# ---- The gate.


def test_people_who_cannot_teach_stop_a_study_before_its_sweep(jobs, capsys):
    jobs.missed = ("passing", "torso_ratio")
    code, started = jobs.run()
    assert (code, started) == (NOT_READY, NAMES[:6])
    said = capsys.readouterr().err
    assert "people change their clothes; many do not pass as pedestrians; not ready" in said
    assert "the study stops before the sweep" in said
    assert "what would help: train by identity pairs with more labelled people, or longer" in said
    assert "--anyway" in said
    assert jobs.run() == (NOT_READY, [])
    assert jobs.run(anyway=True) == (0, ["sweep", "answer"])
    assert jobs.run() == (0, [])  # what is done needs no --anyway


def test_a_run_without_a_kept_picture_stops_before_its_export(jobs):
    jobs.kept = 0
    with pytest.raises(InputError, match="no picture passed the filters"):
        jobs.run()
    assert jobs.started == NAMES[:5]


# ---- The options that a folder freezes.


def test_changed_options_are_refused_by_name(tmp_path):
    output, options = Output(str(tmp_path)), studies.study(tmp_path).options
    continue_study(output, studies.study(tmp_path, people=70).options, {})
    continue_study(output, options, {"network": None})  # no step has ended: a first command can be corrected
    output.write("steps/look.json", b"{}")
    continue_study(output, options, {"network": None})
    changes = {"people": 90, "levels": (40, 160), "seeds": (0, 1), "labelled_people": None, "preset": "gpu"}
    changes |= {"card_people": 10}
    for name, value in changes.items():
        with pytest.raises(InputError, match=f"--out holds a study with other options: {name} is "):
            continue_study(output, studies.study(tmp_path, **{name: value}).options, {})


def test_more_seeds_and_lower_levels_extend_the_sweep_alone(jobs, tmp_path):
    output, options = Output(str(tmp_path)), jobs.study.options
    continue_study(output, options, {})
    jobs.run()
    more = studies.study(tmp_path, seeds=(*options.seeds, 7), levels=(5, *options.levels))
    continue_study(output, more.options, {})
    jobs.study = more
    assert jobs.run(anyway=True) == (0, NAMES[6:])
    assert jobs.run(anyway=True) == (0, [])
    record = json.loads((tmp_path / "study.json").read_text())["options"]
    assert (record["seeds"], record["levels"]) == ([*options.seeds, 7], [5, *options.levels])
    for name in ("seeds", "levels"):
        with pytest.raises(InputError, match=f"--out holds a study with other options: {name} is "):
            continue_study(output, dataclasses.replace(more.options, **{name: getattr(options, name)}), {})


def test_a_refused_or_agreed_command_writes_nothing(tmp_path):
    output, options = Output(str(tmp_path)), studies.study(tmp_path).options
    assert agreed(output, options)["people"] == options.people
    assert not (tmp_path / "study.json").exists()
    continue_study(output, options, {})
    output.write("steps/look.json", b"{}")
    before = (tmp_path / "study.json").read_bytes()
    agreed(output, dataclasses.replace(options, seeds=(*options.seeds, 7)))
    assert (tmp_path / "study.json").read_bytes() == before


def test_a_folder_of_another_version_is_continued_where_its_options_say_the_same(tmp_path):
    output, options = Output(str(tmp_path)), studies.study(tmp_path).options
    continue_study(output, options, {})
    output.write("steps/look.json", b"{}")
    record = json.loads((tmp_path / "study.json").read_text())
    assert "card_people" not in record["options"]  # at its default: a folder before this option has the same record
    record["options"]["later"] = 3
    (tmp_path / "study.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="options that this program does not have: later is 3"):
        continue_study(output, options, {})
    for text in ("{", "[]", '{"options": 1, "files": {}}', '{"options": {"people": 3}, "files": {}}'):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(InputError, match="is not the record of a study"):
            continue_study(output, options, {})


# ---- Processes.


def test_a_job_runs_in_a_process_and_its_exit_code_is_returned(tmp_path, monkeypatch, capfd):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/echo.py").write_text("import sys; print(sys.argv[1:]); sys.exit(int(sys.argv[1]))")
    (tmp_path / "jobs/die.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert run.start_process(Step("a", "echo", "", ("7", "a word"), "", ("free",))) == 7
    assert "['7', 'a word', 'free']" in capfd.readouterr().out
    assert run.start_process(Step("a", "die", "", (), "")) == 137


def test_all_jobs_of_steps_are_files():
    root = Path(run.ROOT)
    for step in steps(studies.study(Path("/out"))):
        assert (root / "jobs" / f"{step.job}.py").is_file()
