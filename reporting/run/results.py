"""What a run leaves for people and for scripts: manifest, contact sheet, report and summary, all derived."""

import dataclasses
import json
from collections.abc import Mapping
from typing import cast

import numpy as np
import pyarrow as pa

from datasets.people.decoding import decode
from datasets.runs.configuration import Configuration
from datasets.runs.manifest import manifest_name, read_manifest, write_manifest
from datasets.runs.plan import Unit
from datasets.runs.run import GenerationRun
from datasets.runs.shards import read_shard
from datasets.runs.verdicts import LATENT, VERDICTS, Thresholds, verdicts
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.options import Json
from reporting.grid import KEPT, SheetCell, SheetRow, contact_sheet, encode_png
from reporting.page import Summary, is_toy, write_for_people
from reporting.run.identity import identity_summary, read_privacy
from reporting.run.page import COLUMNS, run_page

SUMMARY, SHEET, REPORT = "summary.json", "contact_sheet.png", "report.html"
SHEET_PEOPLE, SHEET_VARIANTS = 24, 16
SELDOM_RUN = ("identity",)  # stages that most runs do not have


@dataclasses.dataclass(frozen=True)
class RunTimes:
    """Cost of the last run: wall clock seconds, images made, and seconds of each stage summed over its actors."""

    seconds: float
    run_images: int
    stage_seconds: Mapping[str, float]

    @property
    def images_per_second(self) -> float:
        """Images of the whole job for each second of wall clock, the start of the workers included."""
        return self.run_images / self.seconds if self.seconds > 0 else 0.0


def read_summary(output: Output) -> Summary | None:
    """summary.json, or None if it is missing or damaged: it is derived, and can be derived again."""
    text = output.read(SUMMARY)
    try:
        content: Summary | None = json.loads(text) if text else None
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def is_published(run: GenerationRun, thresholds: Thresholds) -> bool:
    """Whether all derived files are there, for this plan and these thresholds. The summary is written last."""
    summary = read_summary(run.output)
    return (
        summary is not None
        and summary.get("plan_hash") == run.hash
        and summary.get("images") == run.plan.images
        and _recorded(summary) == thresholds
        and all(run.output.exists(name) for name in (manifest_name(), SHEET, REPORT))
    )


def _recorded(summary: Summary) -> Thresholds | None:
    # Not compared as mappings: records of older runs lack later thresholds, which means that they are not set.
    try:
        return dataclasses.replace(Thresholds(), **summary["thresholds"])
    except (KeyError, TypeError, ValueError):
        return None


def publish(
    run: GenerationRun,
    thresholds: Thresholds,
    network: Mapping[str, Json],
    times: RunTimes | None,
    card: Mapping[str, Json] | None = None,
) -> dict[str, int]:
    """Derive manifest, contact sheet, report and summary of a finished run; returns images by verdict.

    network: the record of the network. times: of the run that has just ended; None keeps the times of an
    earlier summary. card: the section "teaching" of the network's card, for the report. Near-copies and doubles that
    pipeline.copies has written for these images go into report and summary. Raises InputError when the shards do not
    make up the plan.
    """
    output, plan = run.output, run.plan
    counts = write_manifest(run, plan.units(), thresholds)
    if sum(counts.values()) != plan.images:
        raise InputError(f"{output.root_address}: {sum(counts.values())} images, the plan says {plan.images}")
    if times:
        ran = {name: seconds for name, seconds in times.stage_seconds.items() if seconds or name not in SELDOM_RUN}
        times = dataclasses.replace(times, stage_seconds=ran)
    timing = dataclasses.asdict(times) | {"images_per_second": times.images_per_second} if times else {}
    if times is None:
        names = ("seconds", "run_images", "stage_seconds", "images_per_second")
        earlier = read_summary(output) or {}
        timing = {name: earlier.get(name) for name in names if name in earlier}
    manifest = read_manifest(output, columns=COLUMNS)
    privacy, identity = read_privacy(run, manifest), identity_summary(manifest)
    scored = {"identity": identity, "privacy": privacy}
    content = {
        "plan_hash": run.hash,
        "people": plan.people,
        "images": plan.images,
        "counts": counts,
        "percent": {name: round(100 * count / plan.images, 3) for name, count in counts.items()},
        "thresholds": dataclasses.asdict(thresholds),
        **timing,
        "configuration": plan.configuration.settings(),
        "network": dict(network),
        **{name: figures for name, figures in scored.items() if figures},
        **({"card": dict(card)} if card else {}),
    }
    summary = cast(Summary, content)
    write_for_people(output, SHEET, lambda: encode_png(draw_sheet(run, thresholds, toy=is_toy(network))))
    write_for_people(output, REPORT, lambda: run_page(run, manifest, summary).encode())
    output.write(SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
    return counts


def draw_sheet(run: GenerationRun, thresholds: Thresholds, toy: bool = False) -> np.ndarray:
    """The contact sheet of the first people and their first variants: [H, W, 3] uint8 RGB.

    A caption is the detector's score, the SSIM (not for the reference) and, if identities were compared, the cosine to
    the person (not for the reference of an artificial person). `toy`: the network learned from drawn people, and the
    title says so.
    """
    rows: list[SheetRow] = []
    plan, compared = run.plan, False
    for unit in plan.units():
        table = read_shard(run, unit)
        compared |= table["identity_cosine"].null_count < table.num_rows
        rows += _sheet_rows(table, unit, plan.configuration, thresholds)
        if len(rows) >= SHEET_PEOPLE:
            break
    shown = "" if plan.people <= SHEET_PEOPLE else f"the first {SHEET_PEOPLE} of {plan.people:,} people · "
    return contact_sheet(
        rows[:SHEET_PEOPLE],
        title="Contact sheet: made from a toy, drawn people, no real ones" if toy else "Contact sheet",
        subtitle=f"{shown}below: score of the pedestrian filter, SSIM to the person's reference (ref)"
        + ", cosine to the person" * compared,
    )


def _sheet_rows(table: pa.Table, unit: Unit, configuration: Configuration, thresholds: Thresholds) -> list[SheetRow]:
    variants = configuration.variants
    names = ["image", "variant", "reference_variant", "detector_score", "ssim", "status", "source", "identity_cosine"]
    images = table.select(names).append_column("verdict", verdicts(table, thresholds)).to_pylist()
    people = [images[index * variants :][: min(variants, SHEET_VARIANTS)] for index in range(unit.people)]
    return [
        SheetRow(f"person {configuration.called(unit.first_person + index)}", [_sheet_cell(image) for image in person])
        for index, person in enumerate(people)
    ]


def _sheet_cell(image: Mapping) -> SheetCell:
    content = image["image"] if image["status"] == "ok" else None
    reference = image["variant"] == image["reference_variant"]
    is_own_reference = reference and image["source"] != LATENT
    scores = [image["detector_score"], None if reference else image["ssim"]]
    scores.append(None if is_own_reference else image["identity_cosine"])
    caption = " ".join([f"{score:.2f}" for score in scores if score is not None] + ["ref"] * reference)
    return SheetCell(None if content is None else decode(content), caption, image["verdict"])


def counts_of(summary: Summary | None) -> dict[str, int]:
    """Images by verdict out of a summary, in the order of VERDICTS."""
    counts = {} if summary is None else summary.get("counts", {})
    return {name: int(counts.get(name, 0)) for name in (KEPT, *VERDICTS[1:])}
