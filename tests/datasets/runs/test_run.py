"""A run: one object for its folder, plan, pending units, failures and lock."""

import dataclasses

import pytest

from datasets.runs.plan import PLAN_FILE, Configuration
from datasets.runs.run import Failure, begin_run, failure_name, open_run, shard_name
from datasets.storage.output import Output
from passersby.errors import InputError

CONFIGURATION = Configuration(
    seed=0, variants=4, method="mix", layers=(5,), amount=None, truncation_psi=0.7, network="n", height=64,
    width=32, format="png", jpeg_quality=None, unit_images=512, detector="d", reference_threshold=0.6,
    ssim_data_range=4095.0,
)  # fmt: skip


@pytest.fixture
def output(tmp_path) -> Output:
    return Output(str(tmp_path / "out"))


def test_a_driver_that_holds_a_run_sees_what_another_has_just_done(output):
    run, other = begin_run(output, CONFIGURATION, 3), begin_run(output, CONFIGURATION, 5)
    assert [unit.unit for unit in run.pending] == [0, 1, 2]
    with other.held():
        output.write(PLAN_FILE, other.plan.to_json())
        output.write(shard_name(1), b"x")
        with pytest.raises(InputError, match="has been working here since"), run.held():
            pass
    assert (run.plan.people, len(run.pending)) == (3, 3)  # as it was when it was asked for
    with run.held():
        assert run.plan == other.plan
        assert [unit.unit for unit in run.pending] == [0, 2, 3, 4]
        run.lease.check()
    output.write(PLAN_FILE, begin_run(output, CONFIGURATION, 9).plan.to_json())
    with run.held():
        assert run.plan.people == 9


def test_a_driver_that_holds_a_run_refuses_another_configuration(output):
    run = begin_run(output, CONFIGURATION, 3)
    other = begin_run(output, dataclasses.replace(CONFIGURATION, seed=7), 3)
    output.write(PLAN_FILE, other.plan.to_json())
    with pytest.raises(InputError, match=r"seed is 7, not 0\. Choose another --out"), run.held():
        pass


def test_a_folder_without_a_plan_is_no_run(output):
    missing = f"{output.root_address}: no plan.json there, so no run of jobs/generate.py"
    for option, text in (("--run", f"--run {missing}"), ("", missing)):
        with pytest.raises(InputError) as error:
            open_run(output, option)
        assert str(error.value) == text
    output.write(PLAN_FILE, begin_run(output, CONFIGURATION, 3).plan.to_json())
    assert open_run(output, "--run").plan.people == 3


def test_units_that_failed_are_recorded_until_they_are_made(output):
    run, failures = begin_run(output, CONFIGURATION, 3), [Failure(0, "S", "why"), Failure(2, "S", "how", "where")]
    assert run.failed() == set()
    assert run.failure(0) is None
    for failure in failures:
        run.record(failure)
    assert run.failed() == {0, 2}
    assert [run.failure(unit) for unit in (0, 2)] == failures
    output.write(failure_name(2), b"[]")
    with pytest.raises(InputError, match="is not a record of a failed unit: remove it"):
        run.failure(2)
    run.forget([0, 1])
    assert run.failed() == {2}
