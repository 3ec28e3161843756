"""Pages for a browser on any machine, each one HTML file that needs nothing beside itself, and the page of a run."""

import base64
import contextlib
import dataclasses
import hashlib
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import jinja2
import markupsafe
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.runs.verdicts import KEPT
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.options import Json
from reporting.gan.scores import HEADINGS, STUDY, WARNING, Training, fid_rows
from reporting.gan.teaching import page_section
from reporting.palette import FRAME_COLOURS
from reporting.progress import duration
from reporting.run.identity import (
    PLOT_HEIGHT,
    PLOT_WIDTH,
    Identities,
    Plot,
    Privacy,
    histogram,
    identity_figures,
    identity_plots,
)
from reporting.tables import FILTERS, OPTIONAL, DiscardRow, discard_rows, filters_set, percent

# ---- What people look at never ends a run.


def write_for_people(output: Output, name: str, draw: Callable[[], bytes]) -> None:
    """Write the bytes that `draw` returns, a page or a picture, to a file of a folder.

    An error is printed. Then an older file is taken away, as it would be taken for the new one. No error ends the run,
    whose numbers are in other files; a file that is missing is made by the next start of the same command.
    """
    try:
        output.write(name, draw())
    # A library that draws may fail over fonts, sizes and versions.
    except Exception as error:  # noqa: BLE001
        with contextlib.suppress(InputError):
            output.remove(name)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"note: no {output.address(name)} ({reason}): the same command tries again", file=sys.stderr)


# ---- Any page: a template of this folder, with its style and its script inside.

# Not allowed in HTML, or not encodable: control characters and lone halves of surrogate pairs.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_FOLDER = Path(__file__).parent
_DARK = 200  # sum of red, green and blue: a darker frame cannot be seen on a dark page


def rendered(template: str, script_file: str | None = None, **values: object) -> str:
    """The page as text: `values` go into the template, escaped, with the style of all pages and, if named, one script.

    The page's content policy allows that script by its hash, and no other.
    """
    script = "\n" + (_FOLDER / script_file).read_text("utf-8") if script_file else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = markupsafe.Markup((_FOLDER / "report.css").read_text("utf-8") + _frame_colours())
    page = _environment().get_template(template)
    html = page.render(style=style, script=markupsafe.Markup(script), script_hash=f"sha256-{digest}", **values)
    return _FORBIDDEN.sub("\ufffd", html)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,  # names, messages and records come from files that anybody may have made
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment


def _frame_colours() -> str:
    lifted = {
        key: tuple((c + 170) // 2 for c in colour) for key, colour in FRAME_COLOURS.items() if sum(colour) < _DARK
    }
    light, dark = (
        "".join(f".v-{key} {{ --verdict: rgb{colour}; }}\n" for key, colour in colours.items())
        for colours in (FRAME_COLOURS, lifted)
    )
    return f"{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"


# ---- The page of a run: everything that a run's template shows, from its summary and its manifest.

STAGES = {
    "generate": "making the images",
    "detect": "pedestrian filter",
    "similarity": "similarity",
    "identity": "identity",
    "write": "writing shards",
}
# The score of each histogram, and the names of the funnel's steps.
PLOT_SCORES = {
    "pedestrian scores": "detector",
    "SSIM": "ssim",
    "identity cosine": "cosine",
    "identity margin": "margin",
    "likeness to real pictures": "real",
}
STEPS = {
    "error": "making",
    "detector": "pedestrian filter",
    "ssim_floor": "SSIM floor",
    "ssim_ceiling": "SSIM ceiling",
    "identity_floor": "identity floor",
    "identity_margin": "identity margin",
    "identity_ceiling": "identity ceiling",
}


# Parts of a record that say nothing about the people whom a network was trained on last: the networks that it started
# from, and how it was called.
_OF_THE_START = ("transferred_from", "transfer", "start", "command", "identity")


def is_toy(record: Json) -> bool:
    """Whether a network's record says, in a key or text, that it was trained on the drawn toy crowd.

    A network that started from one of drawn people and was then trained on photographs is none of the toy's.
    """
    if isinstance(record, Mapping):
        parts = {name: value for name, value in record.items() if name not in _OF_THE_START and value is not None}
        return any(is_toy(name) or is_toy(value) for name, value in parts.items())
    if isinstance(record, list | tuple):
        return any(map(is_toy, record))
    return isinstance(record, str) and re.search(r"toy[ _-]?crowd", record, re.IGNORECASE) is not None


def flatten(settings: Mapping[str, Json], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as (dotted key, value as text) in its own order; None reads "none"."""
    pairs = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            pairs += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            pairs.append((f"{prefix}{key}", ", ".join(map(str, value)) or "none"))
        else:
            pairs.append((f"{prefix}{key}", "none" if value is None else str(value)))
    return pairs


class Summary(TypedDict):
    """summary.json of a run of generation.

    thresholds: of `datasets.runs.verdicts.Thresholds`; records of older runs lack the optional ones. seconds: wall
    clock of the last run; run_images: made by it; stage_seconds: name in STAGES or other -> seconds, summed over all
    workers. configuration: the frozen one; network: the record of the network.
    identity, privacy: absent if the run compared no identities. card: the section "teaching" of the network's card,
    where it had one when the summary was written.
    """

    plan_hash: str
    people: int
    images: int
    counts: dict[str, int]
    percent: dict[str, float]
    thresholds: Mapping[str, float | None]
    seconds: NotRequired[float]
    run_images: NotRequired[int]
    stage_seconds: NotRequired[Mapping[str, float]]
    images_per_second: NotRequired[float]
    configuration: Mapping[str, Json]
    network: Mapping[str, Json]
    identity: NotRequired[Identities]
    privacy: NotRequired[Privacy]
    card: NotRequired[Mapping[str, Json]]


@dataclasses.dataclass(frozen=True)
class Control:
    """A threshold that the page can move. value: the run's, or None; low, high: the range that refilter takes."""

    key: str  # of datasets.runs.verdicts.Thresholds
    score: str  # the plot that has it as a line
    label: str
    option: str  # of jobs/refilter.py
    low: float
    high: float
    value: float | None
    suggested: float  # its value when it is switched on


class Strip(TypedDict):
    """A person's first pictures: each has its row in the manifest, verdict, caption and the fields of a `Thumbnail`."""

    person: int
    cells: list[dict[str, int | str]]


class Explorer(TypedDict):
    """Data of sliders, galleries and strips. filters: the keys of the controls; sampled: how many pictures are in the
    page; data: for the page's script."""

    controls: list[Control]
    filters: list[str]
    strips: list[Strip]
    sampled: int
    reference_threshold: float
    data: dict[str, Json]


def render_report(
    *,
    title: str,
    summary: Summary,
    manifest: pa.Table,
    sheet_png: bytes | None = None,
    configuration: Mapping[str, Json],
    network: Mapping[str, Json],
    check_commands: Sequence[tuple[str, str]] = (),
    privacy: Privacy | None = None,
    privacy_png: bytes | None = None,
    explorer: Explorer | None = None,
    trainings: Sequence[Training] = (),
) -> str:
    """The report of one run as the text of a self-contained HTML page.

    summary: thresholds, and seconds, images_per_second, run_images and stage_seconds if they are there; other keys are
        ignored.
    manifest: every image's row; columns person, variant, reference_variant, detector_score, ssim, verdict; of runs that
        compared identities also source, identity_cosine, identity_margin.
    sheet_png: the contact sheet, as the bytes of a PNG file.
    explorer: the data that reporting/run/page.py gathers for sliders, galleries and strips, which replace the sheet. A
        page without an explorer has no script.
    configuration: the frozen configuration; network: its record (with the data that it was trained on). Both may be
        nested.
    check_commands: (what it does, command) to check the run again.
    trainings: of the generator, for curves and the table of FIDs.
    privacy: the near-copies and doubles of pipeline.copies, with counts of the kept images
        (reporting/run/identity.py); privacy_png: their pictures.

    Every text is escaped: none can bring markup into the page. Raises ValueError for unknown verdicts and KeyError for
    missing thresholds or columns.
    """
    verdicts = manifest["verdict"].value_counts()
    counts = {str(item["values"]): item["counts"].as_py() for item in verdicts}
    shown = {*filters_set(summary["thresholds"]), *(explorer["filters"] if explorer else ())}
    rows = discard_rows(counts, shown)
    unset = {
        row.key for row in rows if row.key in set(OPTIONAL) - set(filters_set(summary["thresholds"])) and not row.count
    }
    plots = _plots(manifest, summary["thresholds"])
    fid = [training.fid for training in trainings if training.fid]
    return rendered(
        "report.html.j2",
        script_file="report_run.js" if explorer else None,
        title=title,
        toy=is_toy(network),
        rows=rows,
        filters=FILTERS,
        unset=unset,
        headline=_headline(summary, rows, manifest, privacy),
        plots=plots,
        plot_width=PLOT_WIDTH,
        plot_height=PLOT_HEIGHT,
        explorer=explorer and {**explorer, "cards": _cards(plots, explorer["controls"]), "funnel": _funnel(rows)},
        sheet=base64.b64encode(sheet_png).decode() if sheet_png else None,
        identity=identity_figures(manifest),
        privacy=privacy,
        privacy_sheet=base64.b64encode(privacy_png).decode() if privacy_png else None,
        people=_kept_per_person(manifest),
        trainings=trainings,
        fid_rows=[{"own": row in fid, "cells": row.cells} for row in fid_rows(fid)],
        fid_headings=HEADINGS,
        fid_warning=WARNING,
        fid_study=STUDY,
        stages=_stages(summary),
        configuration=flatten(configuration),
        network=flatten(network),
        check_commands=check_commands,
        teaching=page_section(summary.get("card"), configuration),
    )


def _cards(plots: Sequence[Plot], controls: Sequence[Control]) -> list[dict[str, str | Plot | list[Control]]]:
    """Each plot with the thresholds that are its lines."""
    scores = [(PLOT_SCORES[plot.name], plot) for plot in plots]
    return [
        {"score": score, "plot": plot, "controls": [control for control in controls if control.score == score]}
        for score, plot in scores
    ]


def _funnel(rows: Sequence[DiscardRow]) -> list[dict[str, str | float]]:
    """The number of images after each filter; left, gone: percent of all images."""
    steps, remaining, total = [], rows[0].count, max(1, rows[0].count)
    for row in rows[1:-2]:
        remaining -= row.count
        share = {"left": round(100 * remaining / total, 2), "gone": round(100 * row.count / total, 2)}
        steps.append({"key": row.key, "name": STEPS[row.key], "count": remaining} | share)
    return steps


def _kept(manifest: pa.Table) -> np.ndarray:
    return pc.call_function("equal", [manifest["verdict"], KEPT]).to_numpy()  # [N] bool


def _plots(manifest: pa.Table, thresholds: Mapping[str, float | None]) -> list[Plot]:
    kept = _kept(manifest)
    detector, ssim = (manifest[name].cast(pa.float64()).to_numpy() for name in ("detector_score", "ssim"))
    others = (
        pc.call_function("not_equal", [manifest["variant"], manifest["reference_variant"]]).fill_null(True).to_numpy()
    )
    ends = [("floor", thresholds["ssim_floor"]), ("ceiling", thresholds["ssim_ceiling"])]
    return [
        Plot(
            histogram(detector, kept, [("threshold", thresholds["detector"])], low=0.0),
            "pedestrian scores",
            "Pedestrian score: how sure the detector is of a person in the picture. Below the line a picture is "
            "discarded.",
        ),
        Plot(
            histogram(ssim[others], kept[others], ends),
            "SSIM",
            "SSIM to the person's reference picture: the higher, the more alike. Kept lies above the floor and, where "
            "one is set, below the ceiling. The references themselves are left out.",
        ),
        *identity_plots(manifest, kept, thresholds),
    ]


def _headline(
    summary: Summary, rows: Sequence[DiscardRow], manifest: pa.Table, privacy: Privacy | None
) -> list[tuple[str, str]]:
    made_row, kept_row = rows[0], rows[-1]
    people = len(manifest["person"].unique())
    figures = [
        (f"{people:,}", "people" if people != 1 else "person"),
        (f"{made_row.count:,}", "images made"),
        (f"{kept_row.count:,}", f"kept, {percent(kept_row.of_all)}" if made_row.count else "kept"),
    ]
    if privacy and privacy["near_copies"] and privacy["near_copies"]["scored"]:
        figures.append((percent(privacy["near_copies"]["share"]), "near-copies of real pictures"))
    if rate := summary.get("images_per_second"):
        figures.append((f"{rate:,.1f}", "images/s"))
    if (seconds := summary.get("seconds")) is not None:
        figures.append((duration(seconds), "in all"))
    return figures


def _kept_per_person(manifest: pa.Table) -> dict[str, str | int | list[tuple[int, int, int]]] | None:
    """How many people kept how many images, in at most ten steps of equal width."""
    if not manifest.num_rows:
        return None
    _, person = np.unique(manifest["person"].to_numpy(), return_inverse=True)
    kept_counts = np.bincount(person, weights=_kept(manifest)).astype(np.int64)
    variants = int(np.bincount(person).max())
    width = math.ceil(variants / 10)
    # People without a kept image have a bar of their own: they are lost to training.
    steps = [(0, 0)] + [(first, min(first + width - 1, variants)) for first in range(1, variants + 1, width)]
    bars = [(first, last, int(((kept_counts >= first) & (kept_counts <= last)).sum())) for first, last in steps]
    return {
        "bars": bars,
        "most": max(count for *_, count in bars),
        "people": len(kept_counts),
        "none": int((kept_counts == 0).sum()),
        "median": f"{np.median(kept_counts):g}",
        "least": int(kept_counts.min()),
        "best": int(kept_counts.max()),
    }


def _stages(summary: Summary) -> list[dict[str, str | float | None]]:
    seconds = summary.get("stage_seconds") or {}
    total = sum(seconds.values())
    images = summary.get("run_images")
    return [
        {
            "name": STAGES.get(name, name),
            "time": f"{value:.1f} s" if value < 60 else duration(value),
            "share": value / total if total else None,
            "rate": f"{images / value:,.1f}" if images and value > 0 else "",
        }
        for name, value in seconds.items()
    ]
