"""The discard table, against the numbers that the original study published."""

import pytest

from datasets.runs.verdicts import KEPT, VERDICTS
from reporting.tables import FILTERS, OPTIONAL, discard_rows, discard_table, filters_set, percent

STUDY = {"kept": 16636, "detector": 3419, "ssim_floor": 396}


def test_the_studys_shares():
    rows = {row.key: row for row in discard_rows(STUDY)}
    assert rows["made"].count == 20451
    assert round(100 * rows["detector"].of_all, 1) == 16.7
    assert rows["ssim_floor"].of_reached == pytest.approx(396 / (20451 - 3419))
    assert round(100 * rows["ssim_floor"].of_reached, 1) == 2.3
    assert rows["discarded"].count == 3815
    assert rows["kept"].of_all == pytest.approx(16636 / 20451)


def test_filters_reach_one_another_in_order():
    counts = {"kept": 10, "ssim_ceiling": 10, "ssim_floor": 20, "detector": 40, "error": 20}
    reached = {row.key: row.of_reached for row in discard_rows(counts)}
    expected = {"error": 20 / 100, "detector": 40 / 80, "ssim_floor": 20 / 40, "ssim_ceiling": 10 / 20}
    assert {key: reached[key] for key in expected} == pytest.approx(expected)
    assert list(reached)[1:5] == list(expected)


def test_every_verdict_has_its_line_in_the_order_of_the_filters():
    assert (KEPT, *FILTERS) == VERDICTS


def test_identities_have_lines_only_where_they_are_judged():
    assert not set(OPTIONAL) & {row.key for row in discard_rows(STUDY)}
    assert "identity" not in discard_table(STUDY)
    rows = discard_rows(STUDY | {"identity_margin": 100}, shown=["identity_floor"])
    found = {row.key: row for row in rows if row.key in OPTIONAL}
    assert {key: row.count for key, row in found.items()} == {"identity_floor": 0, "identity_margin": 100}
    assert found["identity_margin"].of_reached == pytest.approx(100 / 16736)
    assert "too like somebody else (identity margin)" in discard_table(STUDY | {"identity_margin": 1})
    assert filters_set({"identity_floor": 0.0, "identity_ceiling": None, "ssim_floor": 0.5}) == ("identity_floor",)


def test_table_is_aligned_text():
    lines = discard_table(STUDY).splitlines()
    assert "3,419" in lines[5]
    assert "16.7%" in lines[5]
    ends = {line.index("images") + len("images") for line in lines[:1]}
    ends |= {line.index(number) + len(number) for line, number in ((lines[2], "20,451"), (lines[-1], "16,636"))}
    assert len(ends) == 1
    assert all(line == line.rstrip() for line in lines)


def test_no_images_at_all():
    assert discard_rows({})[-1].of_all is None
    assert "kept" in discard_table({})


def test_everything_lost_at_the_first_filter_leaves_no_share_for_the_next():
    rows = {row.key: row for row in discard_rows({"detector": 5})}
    assert rows["ssim_floor"].of_reached is None


@pytest.mark.parametrize("counts", [{"kept": 1, "blurred": 2}, {"kept": -1}])
def test_unknown_verdicts_and_negative_counts_are_refused(counts):
    with pytest.raises(ValueError, match="verdict"):
        discard_rows(counts)


def test_percent_never_rounds_some_to_none():
    assert [percent(value) for value in (None, 0.0, 1e-6, 0.167, 0.99999, 1.0)] == [
        "", "0.0%", "<0.1%", "16.7%", ">99.9%", "100.0%"
    ]  # fmt: skip
