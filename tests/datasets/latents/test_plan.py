"""Plans of inversions: every picture in one unit, units that never change, and refusals by the key's name."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.latents.plan import (
    InversionConfiguration,
    InversionPlan,
    continue_inversion,
    read_inversion_plan,
    steps_of,
)
from datasets.runs.run import Run, shard_name
from datasets.storage.output import Output
from passersby.errors import InputError

CONFIGURATION = InversionConfiguration(
    encoder="e", network="n", identity=None, perceptual="p", data="d", splits=("train",), pictures=None, steps=5,
    refine="w", refine_steps=100, pivotal_steps=None, unit_images=64,
)  # fmt: skip


def plan(counts, people=None, **changes) -> InversionPlan:
    return continue_inversion(None, dataclasses.replace(CONFIGURATION, **changes), counts, people)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 50), st.integers(1, 60))
def test_units_are_whole_persons_each_once_and_no_larger_than_asked(counts, unit_images, first):
    began = plan(counts, min(first, len(counts)), unit_images=unit_images)
    everybody = began.extended(None)
    for each in (began, everybody):
        units = list(each.units())
        people = [p for unit in units for p in range(unit.first_person, unit.first_person + unit.people)]
        assert people == list(range(each.people))
        assert [unit.unit for unit in units] == list(range(len(units))) == list(range(each.unit_count))
        for unit in units:
            assert unit.pictures == sum(counts[unit.first_person : unit.first_person + unit.people])
            assert unit.people == 1 or unit.pictures <= unit_images
        assert sum(unit.pictures for unit in units) == each.pictures == sum(counts[: each.people])
    # More people leave the units that are there as they are.
    assert list(everybody.units())[: began.unit_count] == list(began.units())
    assert everybody.people == len(counts)


def test_small_runs_are_cut_finer_and_large_ones_as_asked():
    assert plan([2] * 16).unit_count == 8
    assert [unit.pictures for unit in plan([4] * 160).units()] == [64] * 10
    assert [unit.people for unit in plan([3, 90, 2, 70], unit_images=64).units()] == [1, 1, 1, 1]


def test_pending_units_are_those_without_a_shard(tmp_path):
    run = Run(Output(str(tmp_path)), plan([2] * 16))
    for unit in (0, 3, 99):
        run.output.write(shard_name(unit), b"x")
    assert [unit.unit for unit in run.pending] == [1, 2, 4, 5, 6, 7]


def test_only_the_refinement_who_has_no_encoder_and_no_steps_of_one(tmp_path):
    output, who = Output(str(tmp_path)), {"encoder": None, "steps": None, "refine": "who"}
    began = plan((2, 3), 1, **who)
    output.write("plan.json", began.to_json())
    stored = read_inversion_plan(output)
    assert continue_inversion(stored, began.configuration, (2, 3), 1) == began
    for changes, message in (
        (who | {"encoder": "e"}, "--refine who: only --refine who starts without an encoder: leave --encoder out"),
        ({"encoder": None}, "--refine w: only --refine who starts without an encoder: give --encoder FILE"),
        ({"steps": None}, "--steps None: must be 1 to 100"),
        (who | {"steps": 0}, "--steps 0: must be 1 to 100"),
    ):
        with pytest.raises(InputError, match=message):
            plan((2, 3), **changes)
    with pytest.raises(InputError, match="--steps 3: it belongs to --refine none or w or pivotal"):
        steps_of("steps", "who", 3)
    assert [steps_of("steps", refine, None) for refine in ("w", "who")] == [5, None]


def test_a_plan_is_read_as_it_was_written_and_an_edited_one_is_refused(tmp_path):
    output = Output(str(tmp_path))
    assert read_inversion_plan(output) is None
    counts = (2, 3, 1, 5)
    began = continue_inversion(None, CONFIGURATION, counts, 2)
    output.write("plan.json", began.to_json())
    assert continue_inversion(read_inversion_plan(output), CONFIGURATION, counts, 2) == began
    assert (
        continue_inversion(read_inversion_plan(output), CONFIGURATION, counts, 1) == began
    )  # fewer: nothing is taken away
    larger = continue_inversion(read_inversion_plan(output), CONFIGURATION, counts, None)
    assert (larger.extents, larger.pictures) == ((2, 2), 11)
    content = json.loads(began.to_json())
    for change in ({"people": 3}, {"extents": [1, -1, 2]}, {"extents": ["2"]}, {"configuration": {"steps": 5}}):
        output.write("plan.json", json.dumps(content | change).encode())
        with pytest.raises(InputError, match=r"plan\.json (was edited|is not a plan)"):
            read_inversion_plan(output)
    content["configuration"]["steps"] = 3
    for text in (json.dumps(content), "[]", "{}", "not JSON", '{"job": "generate"}'):
        output.write("plan.json", text.encode())
        with pytest.raises(InputError, match=r"plan\.json (was edited|is not a plan|is the plan of another job)"):
            read_inversion_plan(output)


def test_other_options_are_refused_by_the_names_of_the_keys(tmp_path):
    output = Output(str(tmp_path))
    output.write("plan.json", continue_inversion(None, CONFIGURATION, (2, 2), None).to_json())
    other = dataclasses.replace(CONFIGURATION, steps=3, refine="none", refine_steps=None, data="other")
    with pytest.raises(InputError) as caught:
        continue_inversion(read_inversion_plan(output), other, (2, 2), None)
    assert 'data is "d", not "other"; steps is 5, not 3; refine is "w", not "none"; refine_steps is 100' in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"steps": 101}, "--steps 101"),
        ({"refine": "z"}, "--refine z"),
        ({"refine_steps": 0}, "--refine-steps 0"),
        ({"pivotal_steps": 10**6}, "--pivotal-steps 1000000"),
        ({"pictures": 0}, "--pictures 0"),
        ({"unit_images": 0}, "--unit-images 0"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIGURATION, **changes)


@pytest.mark.parametrize(
    ("counts", "people", "message"),
    [([2, 2], 0, "--people 0"), ([2, 2], 3, r"--people 3: must be 1 to 2"), ([2, 5000], None, "5,000 pictures")],
)
def test_people_that_are_not_there_and_too_many_pictures_are_refused(counts, people, message):
    with pytest.raises(InputError, match=message):
        plan(counts, people)
