"""The plan of a study: hours follow from measured speeds and from the cluster; what is done costs nothing."""

import dataclasses

import numpy as np
import pytest

from pipeline.study.forecast import ITERATIONS, Machine, Speeds, expected, measured, plan_lines
from pipeline.study.run import _remember
from pipeline.study.steps import Files, steps
from tests.helpers import studies
from training.gan.config import GanTraining
from training.gan.presets import PRESETS

SPEEDS = Speeds(kimg=36.0, step=0.3, image=0.1, detect=0.05, device="CPU")
SMALL = Machine(2.0, 0)


def test_hours_follow_from_speeds_and_from_the_cluster(tmp_path):
    study = studies.study(tmp_path)  # 60 kimg, 80 people x 8, level 40, 3 seeds, 600 steps
    seconds = expected(study, SPEEDS, SMALL)
    assert seconds["generator"] == pytest.approx(60 * 36)
    assert seconds["judge"] == pytest.approx(600 * 0.3)
    assert seconds["look"] == pytest.approx(1000 * 0.05)
    assert seconds["people"] == pytest.approx(80 * 8 * 0.1 / 2)
    trials = 3 * (1 + 3)  # C at level 0; G, U and S at level 40
    ranking = 0.3 / 32 * 200 / 3
    assert seconds["sweep"] == pytest.approx(trials / 2 * (180 + ranking))
    cluster = studies.study(tmp_path, preset="gpu", files=Files(gpus=4, gpus_per_trial=0.25))
    fast = expected(cluster, SPEEDS, Machine(64, 4))
    assert fast["generator"] == pytest.approx(60 * 36 / 4)
    assert fast["sweep"] == pytest.approx(180 + ranking)  # 12 trials, 16 at a time


def test_the_plan_has_cost_commands_and_what_is_done(tmp_path):
    study = studies.study(tmp_path)
    lines = plan_lines(study, SPEEDS, SMALL, 2.5, None)
    rows = {line.split()[0]: line for line in lines if line.split()}
    assert "36 min" in rows["generator"]
    assert "1.50" in rows["generator"]  # 0.6 hours
    assert lines[-8:] == [step.command() for step in steps(study)]
    assert any(line.startswith("measured here (CPU): generator 36.0 s for 1,000 images") for line in lines)
    generator = steps(study)[1]
    studies.write_network(study)
    _remember(study, generator, 0, 125.0)
    done = plan_lines(study, SPEEDS, SMALL, None, "passersby")
    assert any("done in 2 min 05 s" in line for line in done)
    assert done[-1].startswith("passersby report --sweep ")
    assert not any("1.50" in line for line in done)


@pytest.mark.slow
def test_speeds_are_measured_by_the_jobs_own_code():
    training = dataclasses.replace(GanTraining(None, None), **PRESETS["tiny-pairs"])
    small = dataclasses.replace(training, height=16, width=8, channel_base=128, channel_max=16, batch=8)
    speeds = measured(small, "tiny", None, None)
    values = [speeds.kimg, speeds.step, speeds.image, speeds.detect]
    assert all(np.isfinite(value) and value > 0 for value in values)
    assert speeds.detect < speeds.image
    assert ITERATIONS == 16
