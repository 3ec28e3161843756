"""What a run will take, from measured stages."""

import pytest

from reporting.run.forecast import Sample, expected_seconds

SAMPLE = Sample(images=8, seconds={"generate": 0.01, "detect": 0.03, "similarity": 0.0}, bytes_per_image=3000)


def test_stages_that_share_cpus_add_up():
    actors = {"generate": 2, "detect": 2, "similarity": 1}
    assert expected_seconds(SAMPLE, 1000, actors, shared=2) == pytest.approx(1000 * 0.04 / 2)


def test_too_few_actors_of_a_stage_hold_the_others_up():
    actors = {"generate": 8, "detect": 1, "similarity": 1}
    assert expected_seconds(SAMPLE, 1000, actors, shared=8) == pytest.approx(1000 * 0.03)


def test_the_slowest_stage_counts_where_each_has_its_device():
    actors = {"generate": 1, "detect": 2, "similarity": 1}
    assert expected_seconds(SAMPLE, 1000, actors, shared=None) == pytest.approx(1000 * 0.015)
