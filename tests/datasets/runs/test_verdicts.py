"""Verdicts from scores and thresholds."""

import pyarrow as pa
import pytest

from datasets.runs.verdicts import (
    Thresholds,
    add_counts,
    count_verdicts,
    nearest_real,
    nearest_real_picture,
    verdicts,
)
from passersby.errors import InputError

TYPES = {
    "status": pa.string(),
    "detector_score": pa.float32(),
    "ssim": pa.float32(),
    "variant": pa.int64(),
    "reference_variant": pa.int64(),
    "source": pa.string(),
    "identity_cosine": pa.float32(),
    "identity_margin": pa.float32(),
}


def table(rows: list[tuple]) -> pa.Table:
    """Rows of the first five columns, or of all; identities are null where their stage did not run."""
    full = [row if len(row) > 5 else (*row, "seed", None, None) for row in rows]
    columns = list(zip(*full, strict=True)) if full else [[]] * len(TYPES)
    return pa.table({n: pa.array(c, t) for (n, t), c in zip(TYPES.items(), columns, strict=True)})


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


def variant(cosine: float | None, margin: float | None, variant: int = 1, source: str = "latent") -> tuple:
    return ("ok", 0.9, 0.8, variant, 0, source, cosine, margin)


def test_variants_of_real_people_are_like_their_own_real_pictures_but_no_copies():
    assert judge(variant(0.5, 0.1), identity_floor=0.6) == "identity_floor"
    assert judge(variant(0.7, -0.1), identity_floor=0.6, identity_margin=0.0) == "identity_margin"
    assert judge(variant(0.9, 0.5), identity_floor=0.6, identity_margin=0.0, identity_ceiling=0.8) == "identity_ceiling"
    assert judge(variant(0.7, 0.1), identity_floor=0.6, identity_margin=0.0, identity_ceiling=0.8) == "kept"
    # The reference too is a generated picture, which must show the person and may be a copy.
    assert judge(variant(0.5, 0.1, variant=0), identity_floor=0.6) == "identity_floor"
    assert judge(variant(0.9, 0.5, variant=0), identity_ceiling=0.8) == "identity_ceiling"


def test_artificial_people_are_like_their_reference_and_unlike_everybody_real():
    # The ceiling judges 0.75 - 0.25 = 0.5, the cosine to the nearest real picture.
    limits = {"identity_floor": 0.7, "identity_ceiling": 0.5}
    assert judge(variant(0.75, 0.25, source="seed"), **limits) == "kept"
    assert judge(variant(0.625, 0.25, source="seed"), **limits) == "identity_floor"
    assert judge(variant(0.75, 0.125, source="seed"), **limits) == "identity_ceiling"
    assert judge(variant(0.75, 0.125, source="seed"), identity_margin=0.25) == "identity_margin"


def test_an_artificial_reference_passes_any_floor_but_not_the_ceiling():
    assert judge(variant(1.0, 0.25, variant=0, source="seed"), identity_floor=1.0) == "kept"
    assert judge(variant(1.0, 0.25, variant=0, source="seed"), identity_ceiling=0.5) == "identity_ceiling"


def test_identities_that_were_not_compared_reject_nothing_and_nan_passes_nothing():
    limits = {"identity_floor": 0.9, "identity_margin": 0.9, "identity_ceiling": -0.9}
    assert judge(variant(None, None), **limits) == judge(variant(None, None, source="seed"), **limits) == "kept"
    assert judge(variant(0.95, None, source="seed"), **limits) == "kept"  # without real pictures: no margin, no ceiling
    assert judge(variant(0.95, None), **limits) == "identity_ceiling"
    assert judge(variant(float("nan"), None), identity_floor=0.5) == "identity_floor"


def test_filters_before_that_of_identities_decide_first():
    assert judge(("ok", 0.9, 0.5, 1, 0, "latent", 0.1, -0.5), identity_floor=0.5) == "ssim_floor"


def test_the_nearest_real_picture_is_of_the_person_or_of_anybody():
    rows = [variant(0.75, -0.125), variant(0.75, 0.25, source="seed"), variant(0.75, None), variant(None, None)]
    found, missing = nearest_real_picture(table([*rows, variant(0.75, None, source="seed")]))
    assert found[:3].tolist() == [0.75, 0.5, 0.75]
    assert missing.tolist() == [False, False, False, True, True]
    assert nearest_real(table(rows))[:3].tolist() == [0.875, 0.5, 0.75]


def test_thresholds_of_older_records_are_read_as_they_were_meant():
    assert Thresholds(**{"detector": 0.6, "ssim_floor": 0.75, "ssim_ceiling": None}) == Thresholds()


def test_counts_name_every_verdict():
    rows = [("ok", 0.9, 0.8, 1, 0)] * 3 + [("ok", 0.1, 0.8, 1, 0)] * 2
    counts = count_verdicts(verdicts(table(rows), Thresholds()))
    none = dict.fromkeys(["identity_floor", "identity_margin", "identity_ceiling"], 0)
    assert counts == {"kept": 3, "error": 0, "detector": 2, "ssim_floor": 0, "ssim_ceiling": 0} | none
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
        {"identity_floor": 1.5},
        {"identity_margin": -2.5},
        {"identity_ceiling": float("nan")},
    ],
)
def test_thresholds_out_of_range_are_refused(values):
    with pytest.raises(InputError, match=f"{list(values.values())[-1]}"):
        Thresholds(**values)
