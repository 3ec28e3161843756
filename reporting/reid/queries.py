"""Pictures of rankings: a query at the left, beside it the images found for it, the most alike first.

Any ranked lists can be drawn; of a whole ranking its best, median and worst queries are.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from datasets.reid.feature_files import FeatureSet
from passersby.metrics.ranking import Ranking
from reporting.grid import draw_text, text_width

# ---- Any ranked lists.

# Told apart with any colour vision, as their lightness differs too.
RIGHT, WRONG = (86, 190, 100), (190, 20, 40)
PAPER, INK, FAINT, EMPTY = (252, 252, 250), (32, 33, 36), (112, 114, 120), (226, 226, 222)
CELL = (128, 64)  # height and width that a picture is brought into, in pixels
_MARGIN, _GAP, _FRAME, _BAR = 20, 6, 3, 4
_HEADING = 34  # height of a group's heading
_TITLE, _TEXT, _CAPTION = 20, 13, 11  # font sizes in pixels
_LINE = _TEXT + 5


@dataclasses.dataclass(frozen=True)
class Found:
    """One image of a ranked list: [H, W, 3] uint8 RGB or None where it cannot be shown, and its similarity.

    right: whether it is the same person, None where nobody knows; the frame is green, red or absent.
    """

    image: np.ndarray | None
    similarity: float
    right: bool | None = None


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A query's ranked list. label: lines of text at the left. found: the most alike first.

    passing: how many of them the threshold accepts; a green line is drawn behind these. None: there is no threshold.
    """

    label: Sequence[str]
    query: np.ndarray | None
    found: Sequence[Found]
    passing: int | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Ranked lists below a heading ("" for none)."""

    heading: str
    ranked: Sequence[Ranked]


def retrieval_sheet(
    groups: Sequence[Group],
    *,
    title: str,
    subtitle: Sequence[str] = (),
    columns: int = 10,
    cell: tuple[int, int] = CELL,
) -> np.ndarray:
    """Draw ranked lists below each other, `columns` images before a list wraps. Returns [H, W, 3] uint8 RGB.

    Pictures keep their proportions and are brought into `cell` (height, width). Under each stands its similarity. A
    legend names the frames and the line where they occur. Raises ValueError where there is no list, or less than one
    column.
    """
    lists = [ranked for group in groups for ranked in group.ranked]
    if not lists or columns < 1:
        raise ValueError(f"a sheet of rankings needs a query and a column, not {len(lists)} and {columns}")
    columns = min(columns, max(1, *(len(ranked.found) for ranked in lists)))
    height, width = cell
    width = max(width, text_width("-0.000", _CAPTION))
    label = max((text_width(line, _TEXT) for ranked in lists for line in ranked.label), default=0)
    query_x = _MARGIN + label + (14 if label else 0) + _FRAME
    first_x = query_x + width + _FRAME + 4 * _GAP
    across, down = width + 2 * _FRAME + _GAP, height + 2 * _FRAME + _CAPTION + 5 + _GAP
    legend = _legend(lists)
    head = _MARGIN + _TITLE + 12 + _LINE * (len(subtitle) + bool(legend)) + 6
    heights = [_list_height(ranked, columns, down) for ranked in lists]
    headings = sum(_HEADING for group in groups if group.heading)
    wide = max(
        first_x + columns * across + _BAR + _MARGIN,
        *(text_width(line, _TEXT) + 2 * _MARGIN for line in subtitle),
        text_width(title, _TITLE) + 2 * _MARGIN,
        sum(text_width(text, _TEXT) + 44 for text, _ in legend) + _MARGIN,
    )
    sheet = Image.new("RGB", (wide, head + sum(heights) + headings + _MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_head(draw, title, subtitle, legend)

    y = head
    for group in groups:
        if group.heading:
            draw_text(draw, (_MARGIN, y + 8), group.heading, _TEXT + 2, INK)
            draw.line((_MARGIN, y + _HEADING - 5, wide - _MARGIN, y + _HEADING - 5), fill=EMPTY)
            y += _HEADING
        for ranked in group.ranked:
            for number, line in enumerate(ranked.label):
                draw_text(draw, (_MARGIN, y + _FRAME + number * _LINE), line, _TEXT, FAINT if number else INK)
            _draw_picture(sheet, draw, (query_x, y + _FRAME), (height, width), ranked.query, None, "query")
            for place, found in enumerate(ranked.found):
                row, column = divmod(place, columns)
                where = (first_x + column * across, y + _FRAME + row * down)
                caption = f"{found.similarity:.3f}"
                _draw_picture(sheet, draw, where, (height, width), found.image, found.right, caption)
            if ranked.passing is not None and ranked.found:
                row, column = divmod(max(0, ranked.passing - 1), columns)
                x = first_x + (column + bool(ranked.passing)) * across - _FRAME - _GAP // 2 - _BAR // 2
                top = y + row * down
                draw.rectangle((x, top, x + _BAR - 1, top + height + 2 * _FRAME - 1), fill=RIGHT)
            y += _list_height(ranked, columns, down)
    return np.asarray(sheet).copy()


def _list_height(ranked: Ranked, columns: int, down: int) -> int:
    return max(-(-len(ranked.found) // columns) * down, down, len(ranked.label) * _LINE + _GAP)


def _legend(lists: Sequence[Ranked]) -> list[tuple[str, str]]:
    kinds = {found.right for ranked in lists for found in ranked.found}
    lines = [("the same person", "right")] * (True in kinds) + [("somebody else", "wrong")] * (False in kinds)
    if any(ranked.passing is not None for ranked in lists):
        lines.append(("before the line: similar enough to be the same person", "line"))
    return lines


def _draw_head(draw: ImageDraw.ImageDraw, title: str, subtitle: Sequence[str], legend: list[tuple[str, str]]) -> None:
    y = _MARGIN
    draw_text(draw, (_MARGIN, y), title, _TITLE, INK)
    y += _TITLE + 12
    for line in subtitle:
        draw_text(draw, (_MARGIN, y), line, _TEXT, FAINT)
        y += _LINE
    x = _MARGIN
    for text, kind in legend:
        if kind == "line":
            draw.rectangle((x + 4, y, x + 3 + _BAR, y + 14), fill=RIGHT)
        else:
            draw.rectangle((x, y + 1, x + 12, y + 13), outline=RIGHT if kind == "right" else WRONG, width=_FRAME)
        draw_text(draw, (x + 19, y), text, _TEXT, FAINT)
        x += text_width(text, _TEXT) + 44


def _draw_picture(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    where: tuple[int, int],
    size: tuple[int, int],
    image: np.ndarray | None,
    right: bool | None,
    caption: str,
) -> None:
    (x, y), (height, width) = where, size
    shown = Image.new("RGB", (width, height), EMPTY) if image is None else _fitted(image, height, width)
    left, top = x + (width - shown.width) // 2, y + (height - shown.height) // 2
    sheet.paste(shown, (left, top))
    end, bottom = left + shown.width - 1, top + shown.height - 1
    if image is None:
        draw.line((left, bottom, end, top), fill=FAINT)
    if right is not None:
        frame = (left - _FRAME, top - _FRAME, end + _FRAME, bottom + _FRAME)
        draw.rectangle(frame, outline=RIGHT if right else WRONG, width=_FRAME)
    middle = x + (width - text_width(caption, _CAPTION)) // 2
    draw_text(draw, (middle, y + height + _FRAME + 1), caption, _CAPTION, FAINT)


def _fitted(image: np.ndarray, height: int, width: int) -> Image.Image:
    """As large as fits into height x width with its proportions."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    picture = Image.fromarray(image)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


# ---- The best, median and worst queries of a ranking.

EACH = 4  # queries of each kind


@dataclasses.dataclass(frozen=True)
class Places:
    """Places of queries [EACH or fewer] int64 each; no query is in two of them."""

    best: np.ndarray
    median: np.ndarray
    worst: np.ndarray


def chosen_queries(average_precision: np.ndarray, matches: np.ndarray, each: int = EACH) -> Places:
    """Of the queries with a match, those of the highest, middle and lowest average precision [Q] (nan without a match).

    Among equal ones those with more matches [Q] are the more telling, then the earlier; of a few queries each is shown
    once.
    """
    valid = np.flatnonzero(np.isfinite(average_precision))
    order = valid[np.lexsort((valid, -matches[valid], -average_precision[valid]))]  # the best first
    lowest = valid[np.lexsort((valid, -matches[valid], average_precision[valid]))]
    best = order[: min(each, -(-len(order) // 3))]
    worst = np.array([place for place in lowest if place not in best][: min(each, len(order) // 3)], np.int64)
    rest = np.array([place for place in order if place not in best and place not in worst], np.int64)
    start = max(0, (len(rest) - each) // 2)
    return Places(best, rest[start : start + each], worst[::-1])


def query_sheet(
    ranking: Ranking,
    similarities: np.ndarray,
    query: FeatureSet,
    gallery: FeatureSet,
    picture: Callable[[str, str], np.ndarray | None],
    people: Mapping[int, str],
    title: str,
) -> np.ndarray:
    """Best, median and worst queries with their top places; [H, W, 3] uint8 RGB.

    similarities: [Q, top] of `ranking.top_places`, which count in `gallery`. picture: from a split ("query" |
    "gallery") and a name to [H, W, 3] uint8 RGB, or None where it cannot be read. people: what identities are called.
    Raises ValueError where no query has a match.
    """

    def ranked(place: int) -> Ranked:
        found = [
            Found(picture("gallery", gallery.names[other]), float(similarity), bool(same))
            for other, similarity, same in zip(
                ranking.top_places[place],
                similarities[place],
                gallery.identities[ranking.top_places[place]] == query.identities[place],
                strict=True,
            )
            if other >= 0
        ]
        identity = int(query.identities[place])
        camera = f" · camera {query.cameras[place]}" if query.has_cameras else ""
        count, first = int(ranking.matches[place]), int(ranking.first_hit[place])
        label = (
            f"person {people.get(identity, identity)}{camera}",
            f"average precision {100 * ranking.average_precision[place]:.1f}",
            f"{count} {'match' if count == 1 else 'matches'}, first at {first + 1}",
        )
        return Ranked(label, picture("query", query.names[place]), found)

    places = chosen_queries(ranking.average_precision, ranking.matches)
    headings = {"best": "Best queries", "median": "Median queries", "worst": "Worst queries"}
    groups = [
        Group(heading, [ranked(int(place)) for place in getattr(places, name)])
        for name, heading in headings.items()
        if len(getattr(places, name))
    ]
    about = "by average precision; junk and images of the same person by the same camera are taken out"
    if not query.has_cameras:
        about = "by average precision"
    top = ranking.top_places.shape[1]
    return retrieval_sheet(groups, title=title, subtitle=(f"{about}; below each its cosine similarity",), columns=top)
