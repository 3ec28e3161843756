"""Refusals of the job that judges again; what it does is tested with jobs/generate.py, whose runs it reads."""

import pytest

from datasets.output import Output
from datasets.plan import PLAN_FILE, Configuration, Plan
from jobs.refilter import Config, main
from models.errors import InputError

PLAN = Plan(
    Configuration(
        seed=0, variants=4, method="mix", layers=(5,), amount=None, truncation_psi=0.7, network="n", height=64,
        width=32, format="png", jpeg_quality=None, unit_images=512, detector="d", reference_threshold=0.6,
        ssim_data_range=4095.0,
    )
).extended(3)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector_threshold": 1.2}, "--detector-threshold 1.2"),
        ({"ssim_floor": -3.0}, "--ssim-floor -3.0"),
        ({"ssim_floor": 0.9, "ssim_ceiling": 0.8}, "--ssim-ceiling 0.8 is below"),
        ({"name": "../up"}, "--name '../up'"),
        ({"name": ""}, "--name ''"),
        ({"out": "/nonexistent/run"}, "no plan.json there"),
        ({}, "no unit is finished yet"),
    ],
)
def test_bad_input_is_refused(tmp_path, changes, message):
    Output(str(tmp_path)).write(PLAN_FILE, PLAN.to_json())
    with pytest.raises(InputError) as caught:
        main(Config(**({"out": str(tmp_path)} | changes)))
    assert message in str(caught.value)
