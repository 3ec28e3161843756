"""Which pictures of a run a page shows, and the pictures themselves, small: a sample however large the run is."""

import base64
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from PIL import Image

from datasets.people.decoding_part import DecodingError, decode
from datasets.runs.plan import Plan
from datasets.runs.shards import read_shard
from datasets.runs.verdicts import nearest_real_picture
from datasets.storage.output import Output
from reporting.grid import fit
from reporting.run.report_page_scores import SCORES, Control

STRIP_PEOPLE, STRIP_VARIANTS = 24, 16
SAMPLE = 1200  # pictures for the galleries, besides those of the strips
MOST_UNITS = 64  # shards that are opened for pictures: a run of any size is sampled in seconds
_HEIGHT, _QUALITY = 128, 80  # of a thumbnail: about 2.5 kB
_OF_A_PERSON = 4  # pictures nearest to one threshold, so that they are not all of one person


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """One picture: its row in the manifest, whose it is, and a JPEG as base64; empty where there is no picture."""

    row: int
    person: int
    variant: int
    jpeg: str


def choose_strips(manifest: pa.Table) -> list[np.ndarray]:
    """Rows of the first variants of people spread evenly over the run: one array for each person."""
    person = manifest["person"].to_numpy()
    starts = np.flatnonzero(np.diff(person, prepend=person[:1] - 1))
    ends = np.append(starts[1:], len(person))
    places = np.unique(np.linspace(0, len(starts) - 1, STRIP_PEOPLE).round().astype(int)) if len(starts) else []
    return [np.arange(starts[i], min(ends[i], starts[i] + STRIP_VARIANTS)) for i in places]


def choose_rows(manifest: pa.Table, shown: Sequence[Control], sample: int) -> np.ndarray:
    """Rows for the galleries, ascending, at most `sample`: half nearest to the thresholds, half over all scores.

    For each threshold the nearest on both its sides, at most four of one person, then pictures at even distances of
    the score, so that a threshold moved anywhere has pictures beside it. Only images that have the score count.
    """
    person, unit = manifest["person"].to_numpy(), manifest["unit"].to_numpy()
    units = np.unique(unit)
    if len(units) > MOST_UNITS:
        units = units[np.linspace(0, len(units) - 1, MOST_UNITS).round().astype(int)]
    possible = np.isin(unit, units)
    if possible.sum() <= sample:
        return np.flatnonzero(possible)
    scores = {name: _score(manifest, name) for name in {control.score for control in shown}}
    chosen: set[int] = set()
    share = sample // max(1, len(shown))
    for control in shown:
        score = np.where(possible, scores[control.score], np.nan)
        rows = np.flatnonzero(np.isfinite(score))
        line = control.suggested if control.value is None else control.value
        for side in (score[rows] >= line, score[rows] < line):
            near = rows[side][np.argsort(abs(score[rows][side] - line), kind="stable")]
            chosen.update(_of_many_people(near, person, share // 4))
        rows = rows[np.argsort(score[rows], kind="stable")]
        if len(rows):
            targets = np.linspace(score[rows[0]], score[rows[-1]], share - share // 4 * 2)
            chosen.update(rows[np.searchsorted(score[rows], targets).clip(max=len(rows) - 1)].tolist())
    return np.array(sorted(chosen), np.int64)


def _score(manifest: pa.Table, name: str) -> np.ndarray:
    if name == "real":
        return nearest_real_picture(manifest)[0]
    return manifest[SCORES[name][0]].cast(pa.float64()).fill_null(np.nan).to_numpy()


def _of_many_people(rows: np.ndarray, person: np.ndarray, count: int) -> list[int]:
    found: list[int] = []
    times: dict[int, int] = {}
    for row in rows.tolist():
        if len(found) == count:
            break
        times[person[row]] = times.get(person[row], 0) + 1
        if times[person[row]] <= _OF_A_PERSON:
            found.append(row)
    return found


def read_thumbnails(output: Output, plan: Plan, manifest: pa.Table, rows: np.ndarray) -> dict[int, Thumbnail]:
    """Thumbnails of rows of a manifest, by row, out of their shards. An image that cannot be shown has an empty one.

    manifest: columns unit, person, variant. Raises InputError for a shard that is missing or damaged.
    """
    unit_of = manifest["unit"].to_numpy()
    units = {unit.unit: unit for unit in plan.units()}
    found = {}
    for number in np.unique(unit_of[rows]).tolist():
        table = read_shard(output, plan, units[number], ["image"])
        first = int(np.searchsorted(unit_of, number))
        for row in rows[unit_of[rows] == number].tolist():
            person, variant = manifest["person"][row].as_py(), manifest["variant"][row].as_py()
            found[row] = Thumbnail(row, person, variant, thumbnail(table["image"][row - first].as_py()))
    return found


def thumbnail(content: bytes | None) -> str:
    """A stored picture as base64 of a small JPEG, drawn anew so that nothing but pixels gets into the page."""
    try:
        image = fit(decode(content), _HEIGHT) if content else None
    except DecodingError:
        image = None
    if image is None:
        return ""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
