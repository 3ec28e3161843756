"""Pictures of rankings: a query at the left, and beside it the gallery images, the most similar first.

The first half draws any ranked lists; the second draws the best, median and worst queries of a ranking.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from datasets.reid.feature_files import FeatureSet
from passersby.metrics.ranking import Ranking
from reporting.grid import FRAME, GAP, MARGIN, TEXT, TITLE, draw_picture, draw_text, text_width
from reporting.palette import RIGHT, SHEET_EMPTY, SHEET_FAINT, SHEET_INK, SHEET_PAPER, WRONG

# ---- Any ranked lists.

CELL = (128, 64)  # height and width of the cell of a picture, in pixels
_BAR = 4  # pixels, width of the line at the threshold
_HEADING = 34  # height of a group's heading
_CAPTION = 11  # font size in pixels
_LINE = TEXT + 5


@dataclasses.dataclass(frozen=True)
class RankedImage:
    """One image of a ranked list: [H, W, 3] uint8 RGB, or None if it cannot be shown, and its similarity.

    correct: whether it shows the same person, None if this is not known. Its frame is green, red or absent.
    """

    image: np.ndarray | None
    similarity: float
    correct: bool | None = None


@dataclasses.dataclass(frozen=True)
class RankedList:
    """A query's ranked list. label: lines of text at the left. images: the most similar first.

    accepted: the number of images that the threshold accepts; a green line follows them. None: there is no threshold.
    """

    label: Sequence[str]
    query: np.ndarray | None
    images: Sequence[RankedImage]
    accepted: int | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Ranked lists below a heading ("" for no heading)."""

    heading: str
    ranked: Sequence[RankedList]


def retrieval_sheet(
    groups: Sequence[Group],
    *,
    title: str,
    subtitle: Sequence[str] = (),
    columns: int = 10,
    cell: tuple[int, int] = CELL,
) -> np.ndarray:
    """Draw ranked lists below each other, with `columns` images in a line. Returns [H, W, 3] uint8 RGB.

    Pictures keep their proportions and are resized to fit `cell` (height, width). The similarity is below each picture.
    A legend explains the frames and the line if the sheet has them. Raises ValueError without lists, and for less than
    one column.
    """
    lists = [ranking for group in groups for ranking in group.ranked]
    if not lists or columns < 1:
        raise ValueError(f"a sheet of rankings needs a query and a column, not {len(lists)} and {columns}")
    columns = min(columns, max(1, *(len(ranking.images) for ranking in lists)))
    height, width = cell
    width = max(width, text_width("-0.000", _CAPTION))
    label = max((text_width(line, TEXT) for ranking in lists for line in ranking.label), default=0)
    query_x = MARGIN + label + (14 if label else 0) + FRAME
    first_x = query_x + width + FRAME + 4 * GAP
    across, down = width + 2 * FRAME + GAP, height + 2 * FRAME + _CAPTION + 5 + GAP
    legend = _legend(lists)
    head = MARGIN + TITLE + 12 + _LINE * (len(subtitle) + bool(legend)) + 6
    heights = [_list_height(ranking, columns, down) for ranking in lists]
    headings = sum(_HEADING for group in groups if group.heading)
    sheet_width = max(
        first_x + columns * across + _BAR + MARGIN,
        *(text_width(line, TEXT) + 2 * MARGIN for line in subtitle),
        text_width(title, TITLE) + 2 * MARGIN,
        sum(text_width(text, TEXT) + 44 for text, _ in legend) + MARGIN,
    )
    sheet = Image.new("RGB", (sheet_width, head + sum(heights) + headings + MARGIN), SHEET_PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_head(draw, title, subtitle, legend)

    y = head
    for group in groups:
        if group.heading:
            draw_text(draw, (MARGIN, y + 8), group.heading, TEXT + 2, SHEET_INK)
            draw.line((MARGIN, y + _HEADING - 5, sheet_width - MARGIN, y + _HEADING - 5), fill=SHEET_EMPTY)
            y += _HEADING
        for ranking in group.ranked:
            for number, line in enumerate(ranking.label):
                draw_text(draw, (MARGIN, y + FRAME + number * _LINE), line, TEXT, SHEET_FAINT if number else SHEET_INK)
            picture = _fitted(ranking.query, height, width)
            draw_picture(sheet, draw, (query_x, y + FRAME), (height, width), picture, None, "query", _CAPTION)
            for index, image in enumerate(ranking.images):
                row, column = divmod(index, columns)
                position = (first_x + column * across, y + FRAME + row * down)
                caption = f"{image.similarity:.3f}"
                frame = None if image.correct is None else RIGHT if image.correct else WRONG
                picture = _fitted(image.image, height, width)
                draw_picture(sheet, draw, position, (height, width), picture, frame, caption, _CAPTION)
            if ranking.accepted is not None and ranking.images:
                row, column = divmod(max(0, ranking.accepted - 1), columns)
                x = first_x + (column + bool(ranking.accepted)) * across - FRAME - GAP // 2 - _BAR // 2
                top = y + row * down
                draw.rectangle((x, top, x + _BAR - 1, top + height + 2 * FRAME - 1), fill=RIGHT)
            y += _list_height(ranking, columns, down)
    return np.asarray(sheet).copy()


def _list_height(ranking: RankedList, columns: int, down: int) -> int:
    return max(-(-len(ranking.images) // columns) * down, down, len(ranking.label) * _LINE + GAP)


def _legend(lists: Sequence[RankedList]) -> list[tuple[str, str]]:
    kinds = {image.correct for ranking in lists for image in ranking.images}
    lines = [("the same person", "right")] * (True in kinds) + [("somebody else", "wrong")] * (False in kinds)
    if any(ranking.accepted is not None for ranking in lists):
        lines.append(("before the line: similar enough to be the same person", "line"))
    return lines


def _draw_head(draw: ImageDraw.ImageDraw, title: str, subtitle: Sequence[str], legend: list[tuple[str, str]]) -> None:
    y = MARGIN
    draw_text(draw, (MARGIN, y), title, TITLE, SHEET_INK)
    y += TITLE + 12
    for line in subtitle:
        draw_text(draw, (MARGIN, y), line, TEXT, SHEET_FAINT)
        y += _LINE
    x = MARGIN
    for text, kind in legend:
        if kind == "line":
            draw.rectangle((x + 4, y, x + 3 + _BAR, y + 14), fill=RIGHT)
        else:
            draw.rectangle((x, y + 1, x + 12, y + 13), outline=RIGHT if kind == "right" else WRONG, width=FRAME)
        draw_text(draw, (x + 19, y), text, TEXT, SHEET_FAINT)
        x += text_width(text, TEXT) + 44


def _fitted(image: np.ndarray | None, height: int, width: int) -> np.ndarray | None:
    """The image, resized to fit into height x width with its proportions."""
    if image is None:
        return None
    scale = min(height / image.shape[0], width / image.shape[1])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    picture = Image.fromarray(image)
    return image if picture.size == size else np.asarray(picture.resize(size, Image.Resampling.LANCZOS))


# ---- The best, median and worst queries of a ranking.

EACH = 4  # queries of each kind


@dataclasses.dataclass(frozen=True)
class QuerySelection:
    """Indices of the best, median and worst queries, [EACH or fewer] int64 each; no query is in two of them."""

    best: np.ndarray
    median: np.ndarray
    worst: np.ndarray


def select_queries(average_precision: np.ndarray, matches: np.ndarray, each: int = EACH) -> QuerySelection:
    """The queries with the highest, middle and lowest average precision [Q] (nan for a query without a match).

    Of queries with equal precision, those with more matches [Q] come first, because they mean more, then the earlier
    ones. If there are few queries, each is in the selection once.
    """
    valid = np.flatnonzero(np.isfinite(average_precision))
    order = valid[np.lexsort((valid, -matches[valid], -average_precision[valid]))]  # the best first
    lowest = valid[np.lexsort((valid, -matches[valid], average_precision[valid]))]
    best = order[: min(each, -(-len(order) // 3))]
    worst = np.array([index for index in lowest if index not in best][: min(each, len(order) // 3)], np.int64)
    middle = np.array([index for index in order if index not in best and index not in worst], np.int64)
    start = max(0, (len(middle) - each) // 2)
    return QuerySelection(best, middle[start : start + each], worst[::-1])


def query_sheet(
    ranking: Ranking,
    similarities: np.ndarray,
    query: FeatureSet,
    gallery: FeatureSet,
    picture: Callable[[str, str], np.ndarray | None],
    people: Mapping[int, str],
    title: str,
) -> np.ndarray:
    """Draw the best, median and worst queries with their most similar gallery images; [H, W, 3] uint8 RGB.

    similarities: [Q, top], those of `ranking.top_places`, which are indices into `gallery`. picture: a function of a
    split ("query" | "gallery") and a name that returns [H, W, 3] uint8 RGB, or None if the picture cannot be read.
    people: identity -> its name in the data set. Raises ValueError if no query has a match.
    """

    def ranked(query_index: int) -> RankedList:
        images = [
            RankedImage(picture("gallery", gallery.names[index]), float(similarity), bool(is_match))
            for index, similarity, is_match in zip(
                ranking.top_places[query_index],
                similarities[query_index],
                gallery.identities[ranking.top_places[query_index]] == query.identities[query_index],
                strict=True,
            )
            if index >= 0
        ]
        identity = int(query.identities[query_index])
        camera = f" · camera {query.cameras[query_index]}" if query.has_cameras else ""
        count, first = int(ranking.matches[query_index]), int(ranking.first_hit[query_index])
        label = (
            f"person {people.get(identity, identity)}{camera}",
            f"average precision {100 * ranking.average_precision[query_index]:.1f}",
            f"{count} {'match' if count == 1 else 'matches'}, first at {first + 1}",
        )
        return RankedList(label, picture("query", query.names[query_index]), images)

    selection = select_queries(ranking.average_precision, ranking.matches)
    headings = {"best": "Best queries", "median": "Median queries", "worst": "Worst queries"}
    groups = [
        Group(heading, [ranked(int(index)) for index in getattr(selection, name)])
        for name, heading in headings.items()
        if len(getattr(selection, name))
    ]
    about = "by average precision; junk and images of the same person by the same camera are taken out"
    if not query.has_cameras:
        about = "by average precision"
    top = ranking.top_places.shape[1]
    return retrieval_sheet(groups, title=title, subtitle=(f"{about}; below each its cosine similarity",), columns=top)
