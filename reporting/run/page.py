"""The page of a run: the scores of all its images, and small pictures of a sample, however large the run is."""

import base64
import dataclasses
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from datasets.people.decoding import DecodingError, decode
from datasets.runs.run import GenerationRun
from datasets.runs.shards import read_shard
from datasets.runs.verdicts import LATENT, VERDICTS, nearest_real_picture
from passersby.errors import InputError
from reporting.gan.scores import Training
from reporting.grid import fit
from reporting.page import Control, Explorer, Strip, Summary, render_report
from reporting.run.identity import PRIVACY_SHEET, read_privacy
from reporting.tables import FILTERS

# ---- Scores of all images: packed so that the page judges exactly as datasets/runs/verdicts.py does.

# Bits of an image's flag byte; report_run.js names the same bits.
FAILED, NO_DETECTOR, NO_SSIM, NO_COSINE, NO_MARGIN, FROM_LATENT, IS_REFERENCE = (1 << bit for bit in range(7))
SCORES = {
    "detector": ("detector_score", NO_DETECTOR),
    "ssim": ("ssim", NO_SSIM),
    "cosine": ("identity_cosine", NO_COSINE),
    "margin": ("identity_margin", NO_MARGIN),
}


_CONTROLS = (
    ("detector", "detector", "Least pedestrian score", "--detector-threshold", 0, 1, 0.6),
    ("ssim_floor", "ssim", "SSIM floor", "--ssim-floor", -1, 1, 0.75),
    ("ssim_ceiling", "ssim", "SSIM ceiling", "--ssim-ceiling", -1, 1, 0.99),
    ("identity_floor", "cosine", "Identity floor", "--identity-floor", -1, 1, 0.5),
    ("identity_margin", "margin", "Identity margin", "--identity-margin", -2, 2, 0.0),
    ("identity_ceiling", "real", "Identity ceiling", "--identity-ceiling", -1, 1, 0.95),
)


def controls(manifest: pa.Table, thresholds: Mapping[str, float | None]) -> list[Control]:
    """The thresholds that judge anything in these images. Without scores of identities, no identity threshold does."""
    has_score = {name: manifest[column].null_count < manifest.num_rows for name, (column, _) in SCORES.items()}
    has_score["real"] = not nearest_real_picture(manifest)[1].all()
    latent = bool(pc.call_function("any", [pc.call_function("equal", [manifest["source"], LATENT])]).as_py())
    applicable = []
    for key, score, label, option, low, high, suggested in _CONTROLS:
        if has_score[score]:
            # A real person's pictures are judged by one cosine, from below and from above.
            plot = "cosine" if score == "real" and latent else score
            applicable.append(Control(key, plot, label, option, low, high, thresholds.get(key), suggested))
    return applicable


def pack_scores(manifest: pa.Table) -> dict[str, int | str | dict[str, str]]:
    """Scores and flags of all images, for the page's script: {"count", "columns", "flags", "people"}.

    columns: score -> base64 of little-endian float32 [count], the bits of the shards (NaN where null); left out where
    no image has that score. flags: base64 of uint8 [count]. people: base64 of uint32, the images of each person in the
    order of rows, which is the plan's; numbers: likewise the number of each person, left out where they are 0, 1, 2 and
    so on. Columns read: those of datasets.runs.verdicts.verdicts and person. Nothing is compressed: 100,000 images
    with all scores are 2.3 MB, and every browser reads them alike.
    """
    flags = (
        pc.call_function("not_equal", [manifest["status"], "ok"]).fill_null(True).to_numpy().astype(np.uint8) * FAILED
    )
    columns = {}
    for name, (column, bit) in SCORES.items():
        null = manifest[column].is_null().to_numpy()
        flags |= null.astype(np.uint8) * bit
        if not null.all():
            columns[name] = _base64(manifest[column].cast(pa.float32()).fill_null(np.nan).to_numpy().astype("<f4"))
    latent = pc.call_function("equal", [manifest["source"], LATENT]).fill_null(False).to_numpy()
    reference = manifest["variant"].to_numpy() == manifest["reference_variant"].fill_null(-1).to_numpy()
    flags |= latent.astype(np.uint8) * FROM_LATENT | reference.astype(np.uint8) * IS_REFERENCE
    person = manifest["person"].to_numpy()
    starts = np.flatnonzero(np.diff(person, prepend=person[:1] - 1))
    numbers = person[starts]
    packed: dict[str, int | str | dict[str, str]] = {
        "count": manifest.num_rows,
        "columns": columns,
        "flags": _base64(flags),
        "people": _base64(np.diff(starts, append=len(person)).astype("<u4")),
    }
    if (numbers != np.arange(len(numbers))).any():
        packed["numbers"] = _base64(numbers.astype("<u4"))
    return packed


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


# ---- Which pictures are shown, and the pictures, small.

STRIP_PEOPLE, STRIP_VARIANTS = 24, 16
CHOSEN_PEOPLE, CHOSEN_VARIANTS = 100, 64  # most of those who are asked for: about 3 kB a picture
SAMPLE = 1200  # pictures for the galleries, besides those of the strips
MOST_UNITS = 64  # shards that are opened for pictures: a run of any size is sampled in seconds
_HEIGHT, _QUALITY = 128, 80  # of a thumbnail: about 2.5 kB
_OF_A_PERSON = 4  # pictures nearest to one threshold, so that they are not all of one person


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """One picture: its row in the manifest, person and variant, and a JPEG as base64, empty without a picture."""

    row: int
    person: int
    variant: int
    jpeg: str


def choose_strips(manifest: pa.Table, people: Sequence[int] = ()) -> list[np.ndarray]:
    """Rows of the first variants of people spread evenly over the run: one array for each person.

    people: their numbers, of the people to show instead, with more of their variants. Raises InputError for a person
    whom the run does not have.
    """
    person = manifest["person"].to_numpy()
    if people:
        chosen = [np.flatnonzero(person == number)[:CHOSEN_VARIANTS] for number in dict.fromkeys(people)]
        if missing := [number for number, rows in zip(dict.fromkeys(people), chosen, strict=True) if not len(rows)]:
            raise InputError(
                f"--people {missing[0]}: the run has no such person; its people are {person.min()} to {person.max()}"
            )
        return chosen
    starts = np.flatnonzero(np.diff(person, prepend=person[:1] - 1))
    ends = np.append(starts[1:], len(person))
    if not len(starts):
        return []
    indices = np.unique(np.linspace(0, len(starts) - 1, STRIP_PEOPLE).round().astype(int))
    shown = zip(starts[indices].tolist(), ends[indices].tolist(), strict=True)
    return [np.arange(start, min(end, start + STRIP_VARIANTS)) for start, end in shown]


def choose_rows(manifest: pa.Table, shown: Sequence[Control], sample: int) -> np.ndarray:
    """Rows for the galleries, ascending, at most `sample`: half nearest to the thresholds, half over all scores.

    For each threshold: the images nearest to it on both sides, at most four of one person; then images at even
    distances of the score, so that a threshold moved anywhere has pictures beside it. Only images with the score count.
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
    chosen: list[int] = []
    times: dict[int, int] = {}
    for row in rows.tolist():
        if len(chosen) == count:
            break
        number = int(person[row])
        times[number] = times.get(number, 0) + 1
        if times[number] <= _OF_A_PERSON:
            chosen.append(row)
    return chosen


def read_thumbnails(run: GenerationRun, manifest: pa.Table, rows: np.ndarray) -> dict[int, Thumbnail]:
    """Thumbnails of rows of a manifest, by row, out of their shards; empty for an image that cannot be shown.

    manifest: columns unit, person, variant. Raises InputError for a shard that is missing or damaged.
    """
    unit_of = manifest["unit"].to_numpy()
    units = {unit.unit: unit for unit in run.plan.units()}
    thumbnails = {}
    for number in np.unique(unit_of[rows]).tolist():
        table = read_shard(run, units[number], ["image"])
        first = int(np.searchsorted(unit_of, number))
        for row in rows[unit_of[rows] == number].tolist():
            person, variant = manifest["person"][row].as_py(), manifest["variant"][row].as_py()
            thumbnails[row] = Thumbnail(row, person, variant, thumbnail(table["image"][row - first].as_py()))
    return thumbnails


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


# ---- The page: scores and pictures, gathered for the template of every run.

COLUMNS = ["unit", "person", "variant", "reference_variant", "status", "detector_score", "ssim", "verdict"]
COLUMNS += ["source", "identity_cosine", "identity_margin"]
MOST_SAMPLED = 4000  # pictures of about 2.5 kB: with more, a page is slow to open


def run_page(
    run: GenerationRun,
    manifest: pa.Table,
    summary: Summary,
    *,
    sample: int = SAMPLE,
    people: Sequence[int] = (),
    trainings: Sequence[Training] = (),
) -> str:
    """The page of a run as HTML. manifest: COLUMNS, in the order of the plan; summary: what results.publish writes.

    sample: pictures for the galleries. people: those to show instead of people spread over the run. Raises InputError
    for a sample out of range, a person whom the run does not have, and a shard that is damaged.
    """
    if len(people) > CHOSEN_PEOPLE:
        raise InputError(f"--people: {len(people)} people are more than a page shows, {CHOSEN_PEOPLE}: give fewer")
    if not 0 <= sample <= MOST_SAMPLED:
        raise InputError(f"--sample {sample}: give 0 to {MOST_SAMPLED} pictures")
    output, plan, privacy = run.output, run.plan, read_privacy(run, manifest)
    again = f"python -m jobs.refilter --out {shlex.quote(output.root_address)} --name stricter --detector-threshold 0.8"
    return render_report(
        title=f"{plan.people:,} people, {plan.images:,} images",
        summary=summary,
        manifest=manifest,
        configuration=summary["configuration"],
        network=summary["network"],
        check_commands=[("judge the same images by other thresholds", again)],
        privacy=privacy,
        privacy_png=output.read(PRIVACY_SHEET) if privacy else None,
        explorer=gather(run, manifest, summary["thresholds"], sample, people),
        trainings=trainings,
    )


class ImageRow(TypedDict):
    """The columns of an image's row in the manifest that the page shows."""

    person: int
    variant: int
    reference_variant: int | None
    detector_score: float | None
    ssim: float | None
    verdict: str
    source: str
    identity_cosine: float | None


def gather(
    run: GenerationRun,
    manifest: pa.Table,
    thresholds: Mapping[str, float | None],
    sample: int,
    people: Sequence[int] = (),
) -> Explorer:
    """The controls, strips and pictures of the page, for the template and (under "data") for its script."""
    shown = controls(manifest, thresholds)
    strips = choose_strips(manifest, people)
    in_strips = np.concatenate([*strips, np.empty(0, np.int64)]).astype(np.int64)
    more = np.setdiff1d(choose_rows(manifest, shown, sample), in_strips)
    thumbnails = read_thumbnails(run, manifest, np.union1d(in_strips, more))
    pictures = [dataclasses.astuple(thumbnails[row]) for row in more.tolist() if thumbnails[row].jpeg]
    reference = run.plan.configuration.reference_threshold
    return {
        "controls": shown,
        "filters": [control.key for control in shown],
        "strips": [_strip(manifest, rows, thumbnails) for rows in strips if len(rows)],
        "sampled": len(pictures) + sum(bool(thumbnails[row].jpeg) for row in in_strips.tolist()),
        "reference_threshold": reference,
        "data": {
            "scores": pack_scores(manifest),
            "pictures": pictures,
            "thresholds": {name: thresholds.get(name) for name in ("detector", *VERDICTS[3:])},
            "reference_threshold": reference,
            "verdicts": VERDICTS,
            "labels": FILTERS,
            "out": shlex.quote(run.output.root_address),
        },
    }


def _strip(manifest: pa.Table, rows: np.ndarray, thumbnails: Mapping[int, Thumbnail]) -> Strip:
    images: list[ImageRow] = manifest.take(pa.array(rows)).to_pylist()
    cells = [
        {"row": row, "verdict": image["verdict"], "caption": _caption(image), **dataclasses.asdict(thumbnails[row])}
        for row, image in zip(rows.tolist(), images, strict=True)
    ]
    return {"person": images[0]["person"], "cells": cells}


def _caption(image: ImageRow) -> str:
    reference = image["variant"] == image["reference_variant"]
    scores = [image["detector_score"], None if reference else image["ssim"]]
    scores.append(None if reference and image["source"] != LATENT else image["identity_cosine"])
    return " ".join(
        [f"{score:.2f}" for score in scores if score is not None and not math.isnan(score)] + ["ref"] * reference
    )
