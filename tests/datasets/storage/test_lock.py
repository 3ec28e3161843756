"""One driver a folder: on a disk by a lock of the system, on an object store by a beating object."""

import json
import multiprocessing
import os
import threading

import pytest

from datasets.storage import lock as lease
from datasets.storage.lock import LEASE_FILE, hold
from datasets.storage.output import Output
from passersby.errors import InputError


def test_a_second_driver_is_refused_by_name_and_the_first_goes_on(tmp_path):
    output = Output(str(tmp_path / "out"))
    with hold(output) as first:
        with pytest.raises(InputError, match=rf"process {os.getpid()} on .* has been working here since"), hold(output):
            pass
        first.check()
        assert (tmp_path / "out" / LEASE_FILE).exists()
    assert not (tmp_path / "out").exists()  # nothing came into it
    with hold(output):
        output.write("plan.json", b"{}")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plan.json"]


def _hold_for_ever(address: str, ready) -> None:
    with hold(Output(address)):
        ready.set()
        threading.Event().wait()


def test_a_killed_driver_leaves_no_lock_on_a_disk(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    driver = context.Process(target=_hold_for_ever, args=(str(tmp_path), ready))
    driver.start()
    assert ready.wait(60)
    with pytest.raises(InputError, match=f"process {driver.pid}"), hold(Output(str(tmp_path))):
        pass
    driver.kill()
    driver.join()
    with hold(Output(str(tmp_path))):
        pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "plain").write_text("")
    with (
        pytest.raises(InputError, match=r"^cannot write .*plain/out/\.driver\.json: "),
        hold(Output(str(tmp_path / "plain" / "out"))),
    ):
        pass


@pytest.fixture
def store(monkeypatch, tmp_path):
    """A folder without locks: what object stores are, as far as leases go."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "_lock", lambda *_: False)
    return Output(str(tmp_path))


def test_without_locks_a_beating_driver_is_seen_and_a_silent_one_replaced(store, capsys):
    with hold(store), pytest.raises(InputError, match=f"process {os.getpid()} on"), hold(store):
        pass
    assert store.read(LEASE_FILE) is None
    store.write(LEASE_FILE, json.dumps({"driver": "a killed one", "since": "then", "beat": 7}).encode())
    with hold(store) as mine:
        mine.check()
    assert "a killed one may be working here: waiting 0 s" in capsys.readouterr().out
    assert store.read(LEASE_FILE) is None


def test_a_driver_that_was_silent_too_long_learns_that_it_was_replaced(store):
    with hold(store) as mine:
        store.write(LEASE_FILE, json.dumps({"driver": "the next one", "token": "another"}).encode())
        for _ in range(100):
            if mine.taken_by:
                break
            threading.Event().wait(0.05)
        with pytest.raises(InputError, match="the next one has taken this folder over"):
            mine.check()
    assert json.loads(store.read(LEASE_FILE))["driver"] == "the next one"  # and is not robbed of it


def _start(address: str, together, refused, outcomes) -> None:
    # After 2 s alone with its file a driver goes on, and renews it 5 s later. One that comes late looks after 10 s.
    lease.BEAT_SECONDS = 5.0
    lease._lock = lambda *_: False
    together.wait()
    try:
        with hold(Output(address)):
            refused.wait(60)
            outcomes.put("went on")
    except InputError as error:
        outcomes.put(str(error))
        refused.set()


def test_of_two_that_start_together_one_goes_on(tmp_path):
    context = multiprocessing.get_context("spawn")
    together, refused, outcomes = context.Barrier(2), context.Event(), context.Queue()
    drivers = [context.Process(target=_start, args=(str(tmp_path), together, refused, outcomes)) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    refusal, went_on = sorted(outcomes.get() for _ in drivers)
    assert "has been working here since" in refusal
    assert went_on == "went on"
