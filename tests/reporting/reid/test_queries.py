"""Sheets of rankings: where the pictures stand, with which frames, and where the threshold's line is."""

import numpy as np
import pytest

from reporting.palette import RIGHT, WRONG
from reporting.reid.queries import Group, RankedImage, RankedList, retrieval_sheet

# Colours that no text, frame or background has: picture i is found again by its own.
COLOURS = [(255, 0, 255), (0, 255, 255), (0, 255, 0), (0, 0, 255), (255, 255, 0), (128, 0, 255)]


def picture(index: int, height: int = 128, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), COLOURS[index], np.uint8)


def box(sheet: np.ndarray, colour: tuple) -> tuple | None:
    """(top, left, bottom, right) of all pixels of a colour; None where there are none."""
    rows, columns = np.nonzero((sheet == np.array(colour, np.uint8)).all(axis=2))
    return (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) if len(rows) else None


def ranked(count: int, right=None, **more) -> RankedList:
    found = [RankedImage(picture(i + 1), 0.9 - i / 10, right[i] if right else None) for i in range(count)]
    return RankedList(("a label", "second line"), picture(0), found, **more)


def test_the_query_is_at_the_left_and_the_list_wraps():
    sheet = retrieval_sheet([Group("", [ranked(5)])], title="t", columns=3)
    assert sheet.dtype == np.uint8
    boxes = [box(sheet, colour) for colour in COLOURS]
    assert all((bottom - top, right - left) == (128, 64) for top, left, bottom, right in boxes)
    tops, lefts = [b[0] for b in boxes], [b[1] for b in boxes]
    assert tops[0] == tops[1] == tops[2] == tops[3] < tops[4] == tops[5]
    assert lefts[0] < lefts[1] == lefts[4] < lefts[2] == lefts[5] < lefts[3]
    assert box(sheet, RIGHT) is None  # nobody knows who is right, and there is no threshold
    assert box(sheet, WRONG) is None


def test_right_ones_are_framed_green_and_wrong_ones_red():
    sheet = retrieval_sheet([Group("", [ranked(3, right=[True, False, None])])], title="t")
    for index, colour in ((1, RIGHT), (2, WRONG)):
        top, left, bottom, right = box(sheet, COLOURS[index])
        around = sheet[top - 3 : bottom + 3, left - 3 : right + 3]
        assert (around[:3] == colour).all()
        assert (around[-3:] == colour).all()
        assert (around[:, :3] == colour).all()
        assert (around[:, -3:] == colour).all()
    for index in (0, 3):
        top, left, *_ = box(sheet, COLOURS[index])
        assert sheet[top - 1, left - 1].tolist() == sheet[0, 0].tolist()


@pytest.mark.parametrize("accepted", [0, 1, 3, 4, 5])
def test_the_line_stands_behind_the_last_that_passes(accepted):
    plain = retrieval_sheet([Group("", [ranked(5, accepted=accepted)])], title="t", columns=3)
    top_of_list = box(plain, COLOURS[1])[0] - 3
    top, left, bottom, right = box(plain[top_of_list:], RIGHT)
    before, after = box(plain, COLOURS[max(1, accepted)]), box(plain, COLOURS[min(5, accepted + 1)])
    assert right - left == 4
    assert (top_of_list + top, top_of_list + bottom) == (before[0] - 3, before[2] + 3)
    if accepted == 0:
        assert box(plain, COLOURS[0])[3] < left
        assert right < before[1] - 3 + 4
    else:
        assert left >= before[3]
    if accepted not in (0, 3, 5):  # the next one stands in the same row
        assert right <= after[1]


def test_pictures_keep_their_proportions():
    wide = RankedList((), picture(0, 50, 100), [RankedImage(picture(1, 256, 64), 0.5), RankedImage(None, 0.4)])
    sheet = retrieval_sheet([Group("h", [wide])], title="t")
    (top, left, bottom, right), (top1, left1, bottom1, right1) = box(sheet, COLOURS[0]), box(sheet, COLOURS[1])
    assert (bottom - top, right - left) == (32, 64)
    assert (bottom1 - top1, right1 - left1) == (128, 32)
    assert top + bottom == top1 + bottom1  # centred in equal cells


def test_texts_fit_on_the_sheet_and_groups_stand_below_each_other():
    groups = [Group("best", [ranked(1)]), Group("worst", [RankedList(("x" * 60,), picture(5), [])])]
    sheet = retrieval_sheet(groups, title="y" * 90, subtitle=("z" * 130, "w"))
    assert (sheet[:, -10:] == sheet[0, 0]).all()
    assert (sheet[-10:] == sheet[0, 0]).all()
    assert box(sheet, COLOURS[1])[2] < box(sheet, COLOURS[5])[0]


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="needs a query and a column, not 0 and 10"):
        retrieval_sheet([Group("", [])], title="t")
    with pytest.raises(ValueError, match="not 1 and 0"):
        retrieval_sheet([Group("", [ranked(1)])], title="t", columns=0)
