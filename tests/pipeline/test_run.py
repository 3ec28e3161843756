"""Units through stages on a shared local Ray: what goes wrong with one unit is no other unit's matter."""

import functools
import os
import time
import types
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import torch

from datasets.runs.plan import Plan
from datasets.runs.run import Run
from datasets.runs.verdicts import VERDICTS
from datasets.storage.output import Output
from passersby.errors import InputError
from pipeline import retries as guard
from pipeline.commit import HOPELESS, RunMetrics, committed, failure_advice
from pipeline.pools import Pool
from pipeline.retries import ENDED_WORKERS, TRIES, guarded
from pipeline.run import run_units
from reporting.progress import ProgressLine


class Stage:
    """Unit 3 raises always, unit 5 once, unit 7 ends its worker always, unit 9 once; calls are noted in `notes`."""

    def __init__(self, notes: str):
        self.notes = Path(notes)

    def __call__(self, batch: pa.Table) -> pa.Table:
        unit = batch["unit"][0].as_py()
        with open(self.notes / str(unit), "a") as file:
            file.write(f"{os.getpid()}\n")
        calls = len((self.notes / str(unit)).read_text().split())
        if unit == 3 or (unit == 5 and calls == 1):
            raise ValueError(f"unit {unit}\ndoes not work")
        if unit == 7 or (unit == 9 and calls == 1):
            os._exit(9)
        return batch


class Counter:
    """The last stage: what a ShardWriter returns, without writing."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        row = {"unit": batch["unit"][0].as_py(), "images": 2, "problem": None}
        row |= dict.fromkeys(VERDICTS, 0) | {"kept": 1, "error": 1}
        return pa.table({name: [value] for name, value in row.items()})


METRICS = RunMetrics("a test", 12)
POOLS = [Pool("stages", 2, 0.5, 0.0), Pool("counters", 1, 0.5, 0.0)]


def run_in(folder: Path) -> Run:
    """A run whose plan nobody asks for."""
    return Run(Output(str(folder)), Plan(None))


def line(units: int) -> ProgressLine:
    return ProgressLine(units, 2 * units, stream=open(os.devnull, "w"))  # noqa: SIM115


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_unit_that_fails_again_and_again_is_recorded_and_the_run_goes_on(tmp_path):
    run = run_in(tmp_path / "out")
    run.output.write("failed/unit-000005.json", b"{}")  # of an earlier run: it is made this time
    (tmp_path / "notes").mkdir()
    units = [{"unit": unit} for unit in range(12)]
    rows = run_units(units, [(Stage, {"notes": str(tmp_path / "notes")}), (Counter, {})], POOLS, lambda _: POOLS, 1000)
    progress = line(12)
    done = sorted(row["unit"] for row in committed(rows, run, progress, METRICS))
    assert done == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert (progress.failed, progress.images, progress.kept) == (2, 20, 10)
    assert run.failed() == {3, 7}
    calls = {unit: (tmp_path / "notes" / str(unit)).read_text().split() for unit in range(12)}
    assert len(calls[3]) == TRIES
    assert len(set(calls[7])) == len(calls[7]) == ENDED_WORKERS
    assert len(calls[5]) == len(calls[9]) == 2
    assert all(len(calls[unit]) == 1 for unit in (0, 1, 2, 4, 6, 8, 10, 11))
    raised, ended = run.failure(3), run.failure(7)
    assert (raised.stage, raised.reason) == ("Stage", "ValueError: unit 3 does not work, 3 times")
    assert "Traceback" in raised.details
    assert ended.reason.startswith(f"{ENDED_WORKERS} workers ended while they had this unit")
    advice = failure_advice(run, 2)
    assert advice.startswith("2 units failed, the first in Stage: ValueError: unit 3 does not work")
    assert "The same command tries them again" in advice


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_what_a_crash_costs_is_bounded(tmp_path):
    """A stage that is much faster than the next one runs ahead by 64 MB and four units an actor, and no further."""

    class Fast:
        def __call__(self, batch):
            (tmp_path / str(batch["unit"][0])).touch()
            return batch.append_column("image", pa.array([os.urandom(1_000_000)]))

    class Slow:
        def __call__(self, batch):
            time.sleep(0.1)
            return batch.select(["unit"])

    pools = [Pool("fast", 1, 0.5, 0.0), Pool("slow", 1, 0.5, 0.0)]
    units = [{"unit": unit} for unit in range(200)]
    ahead = 0
    for written, _ in enumerate(run_units(units, [(Fast, {}), (Slow, {})], pools, lambda _: pools, 8_000_000), 1):
        ahead = max(ahead, len(list(tmp_path.iterdir())) - written)
        if written == 60:
            break
    assert ahead <= 64 + 4 * 2 + 2 + 8  # MB, units an actor, one in each actor's hands, and what Ray sees too late


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_a_constructor_that_fails_ends_the_run_in_one_line(tmp_path):
    class Broken:
        def __init__(self):
            raise InputError("--network broken.pkl: it holds no network")

        def __call__(self, batch):
            return batch

    with pytest.raises(InputError, match=r"^--network broken.pkl: it holds no network$"):
        list(run_units([{"unit": 0}], [(Broken, {})], POOLS[:1], lambda _: POOLS[:1], 1000))


def test_a_run_in_which_every_unit_fails_ends_early(tmp_path):
    run = run_in(tmp_path)
    rows = iter([{"unit": unit, "failed_stage": "S", "failure": "why", "details": ""} for unit in range(1000)])
    assert list(committed(rows, run, line(1000), METRICS)) == []
    assert run.failed() == set(range(HOPELESS))
    assert next(rows)["unit"] == HOPELESS


def test_a_problem_of_writing_and_a_lost_lease_end_the_run(tmp_path):
    row = {"unit": 0, "images": 1, "kept": 1, "problem": "cannot write x: No space left on device"}
    with pytest.raises(InputError, match="No space left"):
        list(committed([row], run_in(tmp_path), line(1), METRICS))
    lost = run_in(tmp_path)
    lost.lease.taken_by = "process 1 on another"
    with pytest.raises(InputError, match="process 1 on another"):
        list(committed([row | {"problem": None}], lost, line(1), METRICS))


@pytest.mark.parametrize(
    ("error", "device_lives", "ends"),
    [
        (torch.AcceleratorError("illegal memory access"), True, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True, False),
        (torch.OutOfMemoryError("CUDA out of memory"), False, False),
        (RuntimeError("shapes do not fit"), False, False),
    ],
)
def test_a_spoilt_cuda_process_is_given_up(error, device_lives, ends, monkeypatch):
    # An error that leaves the CUDA context useless must not fail every further unit of this worker.
    def synchronize():
        if not device_lives:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    ended = []
    monkeypatch.setattr(guard.os, "_exit", lambda code: ended.append(code) or time.sleep(0))
    stage = object.__new__(guarded(Stage))
    stage.name, stage.card, errors = "Stage", None, iter([error, None])

    def called(batch):
        if error := next(errors):
            raise error
        return batch

    stage.called = called
    assert stage._tried(0, pa.table({"unit": [0]})).column_names == ["unit"]
    assert ended == [1] * ends


class Card:
    """A stage whose worker has the card `card` of the test; on card A CUDA breaks, unless `breaks` names a unit."""

    def __init__(self, notes: str, card: str, breaks: int | None):
        self.notes, self.card, self.breaks = Path(notes), card, breaks
        if card == "A" and breaks is None and len(list(self.notes.glob("broken-*"))) > 2:
            raise torch.AcceleratorError("CUDA error: device is lost")

    def __call__(self, batch: pa.Table) -> pa.Table:
        unit = batch["unit"][0].as_py()
        if (self.card == "A" and self.breaks is None) or unit == self.breaks:
            (self.notes / f"broken-{unit}-{self.card}-{os.getpid()}").touch()
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        (self.notes / f"made-{unit}-{self.card}").touch()
        return batch


class CardWorker:
    """A worker as Ray Data has them, with a card of the test's."""

    def __init__(self, attempts, notes: str, card: str, breaks: int | None):
        guard.own_card = lambda: card
        self.guarded = guarded(Card)(attempts, {"notes": notes, "card": card, "breaks": breaks})

    def run(self, unit: int) -> dict:
        return self.guarded(pa.table({"unit": [unit]})).to_pylist()[0]


def check_cards(notes: Path, rows: list[dict], breaks: int | None) -> None:
    """The rows of units 0 to 5, which the cards A and B got in turn, and what the workers noted."""
    names = {path.name for path in notes.iterdir()}
    made = {name for name in names if name.startswith("made")}
    if breaks is None:  # the card is broken: after two units nothing is tried on it
        assert [row["unit"] for row in rows] == list(range(6))
        assert made == {f"made-{unit}-B" for unit in range(6)}
        assert not [row for row in rows if "failure" in row]
        assert len({name.split("-")[1] for name in names if name.startswith("broken")}) <= 2
    else:  # the unit breaks every card: the cards go on with the others
        assert [row["unit"] for row in rows if "failure" in row] == [2]
        assert {name.split("-")[1] for name in made} == {"0", "1", "3", "4", "5"}
        assert "made-0-A" in made
        assert "made-4-A" in made


class WorkerEnded(Exception):
    """In place of the end of a worker's process."""


class Calls:
    """An object as a handle of Ray's: `handle.method.remote(...)` calls the method at once."""

    def __init__(self, called):
        self.called = called

    def __getattr__(self, name):
        return types.SimpleNamespace(remote=getattr(self.called, name))


class InProcess:
    """Workers of two cards in this process, by the rules of Ray: an ended worker is set up again, and tries again."""

    def __init__(self, notes: Path, breaks: int | None, monkeypatch: pytest.MonkeyPatch):
        self.notes, self.breaks, self.ends, self.here = notes, breaks, 0, {}
        self.attempts = Calls(guard.Attempts())
        context = types.SimpleNamespace(get_actor_id=lambda: self.card, current_actor=None)
        monkeypatch.setattr(guard.ray, "get", lambda value: value)
        monkeypatch.setattr(guard.ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(guard, "own_card", lambda: self.card)
        monkeypatch.setattr(guard.os, "_exit", self._exit)
        for self.card in "AB":
            context.current_actor = types.SimpleNamespace(
                __ray_call__=types.SimpleNamespace(remote=functools.partial(self._handed_over, self.card))
            )
            self._set_up(self.card)

    def _exit(self, _):
        self.ends += 1
        raise WorkerEnded

    def _set_up(self, card: str) -> None:
        self.card = card
        arguments = {"notes": str(self.notes), "card": card, "breaks": self.breaks}
        self.here[card] = guarded(Card)(self.attempts, arguments)

    def run(self, card: str, unit: int, method: str = "__call__") -> dict:
        while True:
            try:
                self.card = card
                return getattr(self.here[card], method)(pa.table({"unit": [unit]}))
            except WorkerEnded:
                self._set_up(card)

    def _handed_over(self, card: str, function, stage: str, batch: pa.Table) -> pa.Table:
        assert function is guard._made_for_another
        return self.run(card, batch["unit"][0].as_py(), "make_for_another")


@pytest.mark.parametrize("breaks", [None, 2])
def test_units_of_a_broken_card_are_handed_over(tmp_path, breaks, monkeypatch):
    workers = InProcess(tmp_path, breaks, monkeypatch)
    check_cards(tmp_path, [workers.run("AB"[unit % 2], unit).to_pylist()[0] for unit in range(6)], breaks)
    assert workers.ends == 3  # unit 0 or 2 twice on A; then unit 2 once, on A, or handed over to B


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("breaks", [None, 2])
def test_a_broken_card_is_given_up_and_its_units_are_made_elsewhere(tmp_path, breaks):
    attempts = ray.remote(guard.Attempts).options(num_cpus=0).remote()
    worker = ray.remote(CardWorker).options(num_cpus=0.5, max_restarts=-1, max_task_retries=-1)
    workers = {card: worker.remote(attempts, str(tmp_path), card, breaks) for card in "AB"}
    ray.get([each.__ray_ready__.remote() for each in workers.values()])
    rows = ray.get([workers["AB"[unit % 2]].run.remote(unit) for unit in range(6)])
    check_cards(tmp_path, rows, breaks)
    for each in (*workers.values(), attempts):
        ray.kill(each)
