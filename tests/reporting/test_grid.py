"""Contact sheets and grids: where the pictures land, and with which frame."""

import io

import numpy as np
import pytest
from PIL import Image

from passersby.errors import InputError
from reporting.grid import SheetCell, SheetRow, contact_sheet, encode_png, fit, image_grid, save_png
from reporting.palette import FRAME_COLOURS

# Colours that no text, frame or background has: picture i is found again by its own.
COLOURS = [(255, 0, 255), (0, 255, 255), (0, 255, 0), (0, 0, 255), (255, 255, 0)]


def picture(index, height=128, width=64):
    return np.full((height, width, 3), COLOURS[index], np.uint8)


def box(sheet, colour):
    """(top, left, bottom, right) of all pixels of a colour; None where there are none."""
    rows, columns = np.nonzero((sheet == np.array(colour, np.uint8)).all(axis=2))
    if not len(rows):
        return None
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


def test_pictures_stand_in_rows_and_wrap():
    cells = [SheetCell(picture(i)) for i in range(5)]
    sheet = contact_sheet([SheetRow("person 0", cells[:3]), SheetRow("person 1", cells[3:])], title="t", columns=2)
    assert sheet.dtype == np.uint8
    boxes = [box(sheet, colour) for colour in COLOURS]
    assert all((bottom - top, right - left) == (128, 64) for top, left, bottom, right in boxes)
    tops, lefts = [b[0] for b in boxes], [b[1] for b in boxes]
    assert tops[0] == tops[1] < tops[2] < tops[3] == tops[4]
    assert lefts[0] == lefts[2] == lefts[3] < lefts[1] == lefts[4]


@pytest.mark.parametrize("verdict", list(FRAME_COLOURS))
def test_discarded_pictures_have_the_frame_of_their_filter(verdict):
    sheet = contact_sheet([SheetRow("", [SheetCell(picture(0)), SheetCell(picture(1), "0.31", verdict)])], title="t")
    top, left, bottom, right = box(sheet, COLOURS[1])
    around = sheet[top - 3 : bottom + 3, left - 3 : right + 3]
    frame = np.array(FRAME_COLOURS[verdict], np.uint8)
    assert (around[:3] == frame).all()
    assert (around[:, -3:] == frame).all()
    top, left, *_ = box(sheet, COLOURS[0])
    assert (sheet[top - 1, left - 1] != frame).any()  # the kept one has none


def test_a_missing_picture_is_shown_as_missing():
    sheet = contact_sheet([SheetRow("", [SheetCell(picture(0)), SheetCell(None, "", "error")])], title="t")
    assert box(sheet, FRAME_COLOURS["error"]) is not None
    assert contact_sheet([SheetRow("", [SheetCell(None, "", "error")])], title="t").ndim == 3


def test_headings_set_their_columns_apart():
    rows = [SheetRow("p", [SheetCell(picture(i)) for i in range(4)])]
    plain = contact_sheet(rows, title="t")
    grouped = contact_sheet(rows, title="t", headings=[("base", 1), ("middle", 3)])
    gaps = [[box(sheet, COLOURS[i + 1])[1] - box(sheet, COLOURS[i])[3] for i in range(3)] for sheet in (plain, grouped)]
    assert gaps[0][0] == gaps[0][1] == gaps[1][1] == gaps[1][2] < gaps[1][0]
    with pytest.raises(ValueError, match="headings"):
        contact_sheet(rows, title="t", headings=[("too wide", 5)])


def test_long_texts_and_captions_fit_on_the_sheet():
    rows = [SheetRow("p", [SheetCell(picture(0, 16, 8), "a caption wider than it"), SheetCell(picture(1, 16, 8))])]
    sheet = contact_sheet(rows, title="x" * 80, cell_height=16)
    paper = sheet[0, 0]
    assert (sheet[:, -10:] == paper).all()
    assert (sheet[-10:] == paper).all()
    assert box(sheet, COLOURS[1])[1] - box(sheet, COLOURS[0])[3] > 80


def test_a_sheet_of_nothing_and_unknown_verdicts_are_refused():
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([SheetRow("p", [])], title="t")
    with pytest.raises(ValueError, match="blurred"):
        contact_sheet([SheetRow("p", [SheetCell(picture(0), "", "blurred")])], title="t")


def test_fit_enlarges_by_repeating_and_reduces_by_averaging():
    small = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    large = fit(small, 9)
    assert large.shape == (8, 4, 3)
    assert (large[::2, ::2] == small).all()
    assert (large[1::2, 1::2] == small).all()
    checks = np.zeros((256, 128, 3), np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 200
    reduced = fit(checks, 128)
    assert reduced.shape == (128, 64, 3)
    assert (reduced == 100).all()
    assert fit(np.zeros((300, 130, 3), np.uint8), 128).shape == (100, 43, 3)
    assert fit(small, 4) is not None
    assert (fit(small, 4) == small).all()


def test_image_grid_lays_out_row_by_row():
    images = np.stack([picture(i, 4, 2) for i in range(5)])
    grid = image_grid(images, columns=3, gap=1)
    assert grid.shape == (9, 8, 3)
    assert (grid[5:9, 3:5] == COLOURS[4]).all()
    assert (grid[4] == 255).all()
    assert (grid[5:, 6:] == 255).all()  # the empty cell
    assert image_grid(images[:1], columns=8).shape == (4, 2, 3)


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)],
)
def test_image_grid_refuses_other_arrays(images):
    with pytest.raises(ValueError, match="uint8"):
        image_grid(images, columns=2)


def test_png_round_trip_and_no_leftovers(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path = tmp_path / "new folder" / "sheet.png"
    save_png(path, image)
    assert (np.asarray(Image.open(path)) == image).all()
    assert (np.asarray(Image.open(io.BytesIO(encode_png(image)))) == image).all()
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_a_png_that_cannot_be_written_is_an_input_error_that_names_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/sheet.png"):
        save_png(tmp_path / "file" / "sheet.png", picture(0))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder"):
        save_png(tmp_path / "folder", picture(0))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]
