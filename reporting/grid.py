"""Contact sheets with captions and verdicts, plain grids of pictures, and the table of discarded images."""

import contextlib
import functools
import io
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.runs.verdicts import KEPT
from passersby.errors import InputError

# ---- The table of discarded images: how many reached each filter, and how many it discarded.

# In the order in which an image meets them; a discarded image counts where it failed first.
FILTERS = {
    "error": "could not be made or scored",
    "detector": "pedestrian filter",
    "ssim_floor": "too unlike the reference (SSIM floor)",
    "ssim_ceiling": "too like the reference (SSIM ceiling)",
    "identity_floor": "too unlike the person (identity floor)",
    "identity_margin": "too like somebody else (identity margin)",
    "identity_ceiling": "too like a real picture (identity ceiling)",
}
# Most runs do not compare identities: these have a line where they discarded something, or a threshold.
OPTIONAL = ("identity_floor", "identity_margin", "identity_ceiling")


@dataclass(frozen=True)
class DiscardRow:
    """One line of the table. Shares are fractions 0..1, None where they would be of nothing."""

    key: str  # a verdict, or "made" | "discarded"
    label: str
    count: int
    of_all: float | None  # share of all images made
    of_reached: float | None  # share of the images that reached this filter; None for lines that are no filter


def filters_set(thresholds: Mapping[str, float | None]) -> tuple[str, ...]:
    """Those of OPTIONAL that have a threshold: of `Thresholds` as a mapping, or a record of them."""
    return tuple(key for key in OPTIONAL if thresholds.get(key) is not None)


def discard_rows(counts: Mapping[str, int], shown: Collection[str] = ()) -> list[DiscardRow]:
    """The lines of the table, from the number of images with each verdict.

    Keys of `counts`: "kept" and those of FILTERS; absent ones are 0. Lines: images made, one for each
    filter, all that were discarded, kept. Those of OPTIONAL only where they discarded something or are among `shown`.
    Raises ValueError for an unknown verdict or a negative count.
    """
    for key, count in counts.items():
        if key != KEPT and key not in FILTERS:
            raise ValueError(f"unknown verdict {key!r}: known are {', '.join([KEPT, *FILTERS])}")
        if count < 0:
            raise ValueError(f"a verdict cannot have a negative count: {key} = {count}")
    made = sum(counts.values())
    kept = counts.get(KEPT, 0)
    rows = [DiscardRow("made", "images made", made, _share(made, made), None)]
    reached = made
    for key, label in FILTERS.items():
        count = counts.get(key, 0)
        if key in OPTIONAL and not count and key not in shown:
            continue
        rows.append(DiscardRow(key, label, count, _share(count, made), _share(count, reached)))
        reached -= count
    rows.append(DiscardRow("discarded", "discarded in all", made - kept, _share(made - kept, made), None))
    rows.append(DiscardRow(KEPT, "kept", kept, _share(kept, made), None))
    return rows


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def percent(share: float | None) -> str:
    """A fraction 0..1 as `16.7%`; empty for None. Never rounds some to none, nor almost all to all."""
    if share is None:
        return ""
    if 0 < share < 0.0005:
        return "<0.1%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{100 * share:.1f}%"


def discard_table(counts: Mapping[str, int], shown: Collection[str] = ()) -> str:
    """The table as monospaced text, without a newline at its end. Arguments and errors as `discard_rows`."""
    cells = [("", "images", "of all", "of those that got there")]
    for row in discard_rows(counts, shown):
        cells.append((row.label, f"{row.count:,}", percent(row.of_all), percent(row.of_reached)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for label, *numbers in cells:
        padded = [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *padded]).rstrip())
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, lines[1], rule, *lines[2:-2], rule, *lines[-2:]])


# ---- Pictures of pictures.

# Told apart with any colour vision, as their lightness differs too. Kept images have no frame: the eye finds
# the others.
FRAME_COLOURS = {
    "detector": (213, 60, 0),
    "ssim_floor": (230, 159, 0),
    "ssim_ceiling": (150, 85, 190),
    "identity_floor": (20, 45, 115),
    "identity_margin": (85, 200, 235),
    "identity_ceiling": (95, 10, 45),
    "error": (120, 120, 120),
}
_PAPER, _INK, _FAINT, _EMPTY = (252, 252, 250), (32, 33, 36), (112, 114, 120), (226, 226, 222)
_MARGIN, _GAP, _FRAME, _HEADING_GAP = 20, 6, 3, 16
_TITLE, _TEXT, _CAPTION = 20, 13, 10  # font sizes in pixels


@dataclass(frozen=True)
class SheetCell:
    """One picture: `image` [H, W, 3] uint8 RGB or None where there is none, a short caption, its verdict."""

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

    Enlarged by repeating pixels (what is shown is what is there), reduced by averaging whole blocks; rows
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
    width = max(width, *(text_width(cell.caption, _CAPTION) for cell in cells))
    caption = _CAPTION + 5 if any(cell.caption for cell in cells) else 0
    pitch = height + 2 * _FRAME + caption + _GAP
    label_width = max(text_width(row.label, _TEXT) for row in rows)
    x_of = _column_positions(columns, width, headings, _MARGIN + label_width + (12 if label_width else 0))

    lines = [-(-len(row.cells) // columns) for row in rows]
    legend = _legend(cells)
    top = _MARGIN + _TITLE + 10 + (_TEXT + 8) * (bool(subtitle) + bool(legend) + bool(headings)) + 4
    head_width = max(text_width(title, _TITLE), text_width(subtitle, _TEXT), _legend_width(legend)) + 2 * _MARGIN
    right = x_of[-1] + width + _FRAME + _MARGIN
    sheet = Image.new("RGB", (max(right, head_width), top + sum(lines) * pitch - _GAP + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_head(draw, title, subtitle, legend, headings, x_of)

    waiting = iter(zip(cells, pictures, strict=True))
    y = top
    for row, used in zip(rows, lines, strict=True):
        draw_text(draw, (_MARGIN, y + _FRAME), row.label, _TEXT, _INK)
        for position in range(len(row.cells)):
            cell, picture = next(waiting)
            where = (x_of[position % columns], y + _FRAME + (position // columns) * pitch)
            _draw_cell(sheet, draw, where, (height, width), cell, picture)
        y += used * pitch
    return np.asarray(sheet).copy()


def _column_positions(columns: int, width: int, headings: Sequence[tuple[str, int]], left: int) -> list[int]:
    starts, column = set(), 0
    for _, span in headings:
        starts.add(column)
        column += span
    positions, x = [], left + _FRAME
    for column in range(columns):
        x += _HEADING_GAP if column and column in starts else 0
        positions.append(x)
        x += width + 2 * _FRAME + _GAP
    return positions


def _draw_head(
    draw: ImageDraw.ImageDraw,
    title: str,
    subtitle: str,
    legend: list[tuple[str, tuple[int, int, int] | None]],
    headings: Sequence[tuple[str, int]],
    x_of: list[int],
) -> None:
    y = _MARGIN
    draw_text(draw, (_MARGIN, y), title, _TITLE, _INK)
    y += _TITLE + 10
    if subtitle:
        draw_text(draw, (_MARGIN, y), subtitle, _TEXT, _FAINT)
        y += _TEXT + 8
    if legend:
        x = _MARGIN
        for text, colour in legend:
            if colour:
                draw.rectangle((x, y + 1, x + 11, y + 12), outline=colour, width=_FRAME)
                x += 18
            draw_text(draw, (x, y), text, _TEXT, _FAINT)
            x += text_width(text, _TEXT) + 20
        y += _TEXT + 8
    column = 0
    for text, span in headings:
        draw_text(draw, (x_of[column], y), text, _TEXT, _INK)
        column += span


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    where: tuple[int, int],
    size: tuple[int, int],
    cell: SheetCell,
    picture: np.ndarray | None,
) -> None:
    (x, y), (height, width) = where, size
    inner_height, inner_width = (height, width) if picture is None else picture.shape[:2]
    left, top = x + (width - inner_width) // 2, y + (height - inner_height) // 2
    right, bottom = left + inner_width - 1, top + inner_height - 1
    if picture is None:
        draw.rectangle((left, top, right, bottom), fill=_EMPTY)
        draw.line((left, top, right, bottom), fill=_FAINT)
    else:
        sheet.paste(Image.fromarray(picture), (left, top))
    if cell.verdict != KEPT:
        frame = (left - _FRAME, top - _FRAME, right + _FRAME, bottom + _FRAME)
        draw.rectangle(frame, outline=FRAME_COLOURS[cell.verdict], width=_FRAME)
    if cell.caption:
        middle = x + (width - text_width(cell.caption, _CAPTION)) // 2
        draw_text(draw, (middle, y + height + _FRAME + 1), cell.caption, _CAPTION, _FAINT)


def _legend(cells: Sequence[SheetCell]) -> list[tuple[str, tuple[int, int, int] | None]]:
    counts = {key: sum(cell.verdict == key for cell in cells) for key in (KEPT, *FILTERS)}
    if counts[KEPT] == len(cells):
        return []
    found = [(f"{FILTERS[key]}: {counts[key]}", FRAME_COLOURS[key]) for key in FILTERS if counts[key]]
    return [(f"kept: {counts[KEPT]}", None), *found]


def _legend_width(legend: list[tuple[str, tuple[int, int, int] | None]]) -> int:
    return sum(text_width(text, _TEXT) + 20 + (18 if colour else 0) for text, colour in legend)


# The scalable font that Pillow carries: sheets look the same on every machine, with or without fonts.
_font = functools.cache(ImageFont.load_default)


def text_width(text: str, size: int) -> int:
    """Pixels that `draw_text` takes."""
    return int(np.ceil(_font(size).getlength(text)))


def draw_text(
    draw: ImageDraw.ImageDraw, where: tuple[int, int], text: str, size: int, colour: tuple[int, int, int]
) -> None:
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
    """Write [H, W, 3] uint8 RGB to `path`: all of it or nothing (temporary file, fsync, rename).

    Raises InputError when it cannot be written there.
    """
    path = Path(path)
    content = encode_png(image)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"cannot write {path}: {error.strerror}") from error
