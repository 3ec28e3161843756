"""Verdicts from scores and thresholds."""

import pyarrow as pa
import pytest

from datasets.verdicts import Thresholds, add_counts, count_verdicts, verdicts
from models.errors import InputError


def table(rows: list[tuple]) -> pa.Table:
    names = ["status", "detector_score", "ssim", "variant", "reference_variant"]
    types = [pa.string(), pa.float32(), pa.float32(), pa.int64(), pa.int64()]
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 5
    return pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)})


def judge(row: tuple, **thresholds) -> str:
    return verdicts(table([row]), Thresholds(**thresholds))[0].as_py()


def test_the_first_filter_that_fails_decides():
    assert judge(("error", None, None, 1, 0)) == "error"
    assert judge(("error", 0.9, 0.9, 1, 0)) == "error"
    assert judge((None, 0.9, 0.9, 1, 0)) == "error"
    assert judge(("ok", 0.3, 0.1, 1, 0)) == "detector"
    assert judge(("ok", 0.9, 0.5, 1, 0)) == "ssim_floor"
    assert judge(("ok", 0.9, 0.99, 1, 0), ssim_ceiling=0.95) == "ssim_ceiling"
    assert judge(("ok", 0.9, 0.8, 1, 0)) == "kept"


def test_thresholds_themselves_pass():
    assert judge(("ok", 0.5, 0.75, 1, 0), detector=0.5, ssim_ceiling=0.75) == "kept"


def test_the_reference_is_exempt_from_ssim():
    assert judge(("ok", 0.9, 1.0, 2, 2), ssim_ceiling=0.9) == "kept"
    assert judge(("ok", 0.9, 1.0, 1, 2), ssim_ceiling=0.9) == "ssim_ceiling"
    assert judge(("ok", 0.2, 1.0, 2, 2), ssim_ceiling=0.9) == "detector"


def test_stages_that_did_not_run_reject_nothing_and_nan_passes_nothing():
    assert judge(("ok", None, None, 1, None)) == "kept"
    assert judge(("ok", 0.9, None, 1, None)) == "kept"
    assert judge(("ok", float("nan"), 0.8, 1, 0)) == "detector"
    assert judge(("ok", 0.9, float("nan"), 1, 0)) == "ssim_floor"


def test_without_a_floor_all_that_is_unlike_is_kept():
    assert judge(("ok", 0.9, -0.5, 1, 0), ssim_floor=None) == "kept"


def test_counts_name_every_verdict():
    rows = [("ok", 0.9, 0.8, 1, 0)] * 3 + [("ok", 0.1, 0.8, 1, 0)] * 2
    counts = count_verdicts(verdicts(table(rows), Thresholds()))
    assert counts == {"kept": 3, "error": 0, "detector": 2, "ssim_floor": 0, "ssim_ceiling": 0}
    assert add_counts(counts, counts)["kept"] == 6
    assert len(verdicts(table([]), Thresholds())) == 0


@pytest.mark.parametrize(
    "values",
    [
        {"detector": 1.1},
        {"detector": -0.1},
        {"detector": float("nan")},
        {"ssim_floor": 2.0},
        {"ssim_floor": float("nan")},
        {"ssim_ceiling": -1.5},
        {"ssim_floor": 0.8, "ssim_ceiling": 0.7},
    ],
)
def test_thresholds_out_of_range_are_refused(values):
    with pytest.raises(InputError, match=f"{list(values.values())[-1]}"):
        Thresholds(**values)
