"""Pictures of pictures: contact sheets with captions and verdicts, and plain grids."""

import functools
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.runs.verdicts import KEPT
from passersby.errors import InputError
from passersby.files import write_atomically
from reporting.palette import FRAME_COLOURS, SHEET_EMPTY, SHEET_FAINT, SHEET_INK, SHEET_PAPER
from reporting.tables import FILTERS

Colour = tuple[int, int, int]  # red, green and blue


MARGIN, GAP, FRAME, _HEADING_GAP = 20, 6, 3, 16
TITLE, TEXT, CAPTION = 20, 13, 10  # font sizes in pixels


@dataclass(frozen=True)
class SheetCell:
    """One picture: `image` [H, W, 3] uint8 RGB or None if there is no picture, a short caption, a verdict."""

    image: np.ndarray | None
    caption: str = ""
    verdict: str = KEPT


@dataclass(frozen=True)
class SheetRow:
    """One person: a label and the pictures, which wrap when they are more than the sheet's columns."""

    label: str
    cells: Sequence[SheetCell]


def fit(image: np.ndarray, target: int) -> np.ndarray:
    """[H, W, 3] uint8 scaled by a whole number towards `target` pixels of height, never beyond it.

    An image is enlarged by repeating pixels, so that nothing is smoothed, and reduced by averaging whole blocks. Rows
    and columns that do not fill a block are cut off.
    """
    height, width = image.shape[:2]
    if height <= target:
        factor = target // height
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    factor = min(-(-height // target), width)
    rows, columns = height // factor, width // factor
    blocks = image[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def contact_sheet(
    rows: Sequence[SheetRow],
    *,
    title: str,
    subtitle: str = "",
    columns: int | None = None,
    cell_height: int = 128,
    headings: Sequence[tuple[str, int]] = (),
) -> np.ndarray:
    """Draw people below each other, each with the pictures in a row. Returns [H, W, 3] uint8 RGB.

    columns: pictures side by side before a person's row wraps (default: the longest row).
    cell_height: height in pixels that pictures are scaled towards by whole factors (see `fit`).
    headings: (text, number of columns below it) from left to right, drawn once above all rows, with a
        wider gap between.
    A legend names the frame colours that occur, with the number of pictures of each verdict. Raises
    ValueError when there is no picture at all, for unknown verdicts and for headings beyond the columns.
    """
    cells = [cell for row in rows for cell in row.cells]
    if not cells:
        raise ValueError("a contact sheet needs at least one picture")
    unknown = {cell.verdict for cell in cells} - {KEPT, *FILTERS}
    if unknown:
        raise ValueError(f"unknown verdicts: {', '.join(sorted(unknown))}")
    columns = columns or max(len(row.cells) for row in rows)
    if sum(span for _, span in headings) > columns:
        raise ValueError(f"the headings span more than the {columns} columns")

    pictures = [None if cell.image is None else fit(cell.image, cell_height) for cell in cells]
    shapes = [picture.shape for picture in pictures if picture is not None]
    shapes = shapes or [(cell_height, cell_height // 2)]
    height = max(shape[0] for shape in shapes)
    width = max(shape[1] for shape in shapes)
    # Captions must not run into each other.
    width = max(width, *(text_width(cell.caption, CAPTION) for cell in cells))
    caption = CAPTION + 5 if any(cell.caption for cell in cells) else 0
    pitch = height + 2 * FRAME + caption + GAP
    label_width = max(text_width(row.label, TEXT) for row in rows)
    x_of = _column_positions(columns, width, headings, MARGIN + label_width + (12 if label_width else 0))

    lines = [-(-len(row.cells) // columns) for row in rows]
    legend = _legend(cells)
    top = MARGIN + TITLE + 10 + (TEXT + 8) * (bool(subtitle) + bool(legend) + bool(headings)) + 4
    head_width = max(text_width(title, TITLE), text_width(subtitle, TEXT), _legend_width(legend)) + 2 * MARGIN
    right = x_of[-1] + width + FRAME + MARGIN
    sheet = Image.new("RGB", (max(right, head_width), top + sum(lines) * pitch - GAP + MARGIN), SHEET_PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_head(draw, title, subtitle, legend, headings, x_of)

    waiting = iter(zip(cells, pictures, strict=True))
    y = top
    for row, used in zip(rows, lines, strict=True):
        draw_text(draw, (MARGIN, y + FRAME), row.label, TEXT, SHEET_INK)
        for position in range(len(row.cells)):
            cell, picture = next(waiting)
            where = (x_of[position % columns], y + FRAME + (position // columns) * pitch)
            frame = None if cell.verdict == KEPT else FRAME_COLOURS[cell.verdict]
            draw_picture(sheet, draw, where, (height, width), picture, frame, cell.caption, CAPTION)
        y += used * pitch
    return np.asarray(sheet).copy()


def _column_positions(columns: int, width: int, headings: Sequence[tuple[str, int]], left: int) -> list[int]:
    starts, column = set(), 0
    for _, span in headings:
        starts.add(column)
        column += span
    positions, x = [], left + FRAME
    for column in range(columns):
        x += _HEADING_GAP if column and column in starts else 0
        positions.append(x)
        x += width + 2 * FRAME + GAP
    return positions


def _draw_head(
    draw: ImageDraw.ImageDraw,
    title: str,
    subtitle: str,
    legend: list[tuple[str, Colour | None]],
    headings: Sequence[tuple[str, int]],
    x_of: list[int],
) -> None:
    y = MARGIN
    draw_text(draw, (MARGIN, y), title, TITLE, SHEET_INK)
    y += TITLE + 10
    if subtitle:
        draw_text(draw, (MARGIN, y), subtitle, TEXT, SHEET_FAINT)
        y += TEXT + 8
    if legend:
        x = MARGIN
        for text, colour in legend:
            if colour:
                draw.rectangle((x, y + 1, x + 11, y + 12), outline=colour, width=FRAME)
                x += 18
            draw_text(draw, (x, y), text, TEXT, SHEET_FAINT)
            x += text_width(text, TEXT) + 20
        y += TEXT + 8
    column = 0
    for text, span in headings:
        draw_text(draw, (x_of[column], y), text, TEXT, SHEET_INK)
        column += span


def draw_picture(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    where: tuple[int, int],
    size: tuple[int, int],
    picture: np.ndarray | None,
    frame: Colour | None,
    caption: str,
    caption_size: int,
) -> None:
    """Draw a picture [h, w, 3] uint8 in the middle of a cell of `size` (height, width) at `where` (x, y).

    Without a picture an empty cell is drawn. frame: colour of the frame, None for no frame. The caption stands below
    the cell.
    """
    (x, y), (height, width) = where, size
    inner_height, inner_width = (height, width) if picture is None else picture.shape[:2]
    left, top = x + (width - inner_width) // 2, y + (height - inner_height) // 2
    right, bottom = left + inner_width - 1, top + inner_height - 1
    if picture is None:
        draw.rectangle((left, top, right, bottom), fill=SHEET_EMPTY)
        draw.line((left, top, right, bottom), fill=SHEET_FAINT)
    else:
        sheet.paste(Image.fromarray(picture), (left, top))
    if frame is not None:
        draw.rectangle((left - FRAME, top - FRAME, right + FRAME, bottom + FRAME), outline=frame, width=FRAME)
    if caption:
        middle = x + (width - text_width(caption, caption_size)) // 2
        draw_text(draw, (middle, y + height + FRAME + 1), caption, caption_size, SHEET_FAINT)


def _legend(cells: Sequence[SheetCell]) -> list[tuple[str, Colour | None]]:
    counts = {key: sum(cell.verdict == key for cell in cells) for key in (KEPT, *FILTERS)}
    if counts[KEPT] == len(cells):
        return []
    discarded = [(f"{FILTERS[key]}: {counts[key]}", FRAME_COLOURS[key]) for key in FILTERS if counts[key]]
    return [(f"kept: {counts[KEPT]}", None), *discarded]


def _legend_width(legend: list[tuple[str, Colour | None]]) -> int:
    return sum(text_width(text, TEXT) + 20 + (18 if colour else 0) for text, colour in legend)


# The scalable font that Pillow carries: sheets look the same on every machine, with or without fonts.
_font = functools.cache(ImageFont.load_default)


def text_width(text: str, size: int) -> int:
    """Pixels that `draw_text` takes."""
    return int(np.ceil(_font(size).getlength(text)))


def draw_text(draw: ImageDraw.ImageDraw, where: tuple[int, int], text: str, size: int, colour: Colour) -> None:
    """Write one line of text with its upper left corner at `where`; size: of the font, in pixels."""
    draw.text(where, text, fill=colour, font=_font(size))


def image_grid(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Lay out `images` [N, H, W, 3] uint8 row by row, `columns` side by side, `gap` white pixels between.

    Returns [height, width, 3] uint8; cells that the last row lacks are white. Raises ValueError for another
    shape or type, no image, or less than one column.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images) or columns < 1:
        raise ValueError(
            f"a grid takes uint8 [N, H, W, 3], 1 column or more; not {images.dtype} {images.shape}, {columns}"
        )
    count, height, width = images.shape[:3]
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        y, x = (index // columns) * (height + gap), (index % columns) * (width + gap)
        grid[y : y + height, x : x + width] = image
    return grid


def encode_png(image: np.ndarray) -> bytes:
    """[H, W, 3] uint8 RGB as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write [H, W, 3] uint8 RGB to `path`: all of it or nothing. Makes the folder.

    Raises InputError when it cannot be written there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    write_atomically(path, encode_png(image))
