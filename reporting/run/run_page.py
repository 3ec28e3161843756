"""The page of a generation run: gathered out of its shards, and given to the template that every run has."""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from datasets.runs.plan import Plan
from datasets.runs.verdicts import LATENT, VERDICTS
from datasets.storage.output import Output
from passersby.errors import InputError
from reporting.gan.report_page_training import Training
from reporting.page import render_report
from reporting.run.copies import PRIVACY_SHEET, read_privacy
from reporting.run.page import SAMPLE, Thumbnail, choose_rows, choose_strips, read_thumbnails
from reporting.run.report_page_scores import controls, pack_scores
from reporting.tables import FILTERS

COLUMNS = ["unit", "person", "variant", "reference_variant", "status", "detector_score", "ssim", "verdict"]
COLUMNS += ["source", "identity_cosine", "identity_margin"]
MOST_SAMPLED = 4000  # pictures of about 2.5 kB: beyond, a page is slow to open


def run_page(
    output: Output,
    plan: Plan,
    manifest: pa.Table,
    summary: Mapping[str, Any],
    *,
    sample: int = SAMPLE,
    trainings: Sequence[Training] = (),
) -> str:
    """The page of a run as HTML. manifest: COLUMNS, in the order of the plan; summary: what results.publish writes.

    sample: pictures for the galleries. Raises InputError for a sample out of range and a shard that is damaged.
    """
    if not 0 <= sample <= MOST_SAMPLED:
        raise InputError(f"--sample {sample}: give 0 to {MOST_SAMPLED} pictures")
    privacy = read_privacy(output, plan, manifest)
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
        explorer=gather(output, plan, manifest, summary["thresholds"], sample),
        trainings=trainings,
    )


def gather(
    output: Output, plan: Plan, manifest: pa.Table, thresholds: Mapping[str, float | None], sample: int
) -> dict[str, Any]:
    """What sliders, galleries and strips need, for the template and (under "data") for the page's script."""
    shown = controls(manifest, thresholds)
    strips = choose_strips(manifest)
    in_strips = np.concatenate([*strips, np.empty(0, np.int64)]).astype(np.int64)
    more = np.setdiff1d(choose_rows(manifest, shown, sample), in_strips)
    thumbnails = read_thumbnails(output, plan, manifest, np.union1d(in_strips, more))
    pictures = [dataclasses.astuple(thumbnails[row]) for row in more.tolist() if thumbnails[row].jpeg]
    reference = plan.configuration.reference_threshold
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
            "out": shlex.quote(output.root_address),
        },
    }


def _strip(manifest: pa.Table, rows: np.ndarray, thumbnails: Mapping[int, Thumbnail]) -> dict[str, Any]:
    images = manifest.take(pa.array(rows)).to_pylist()
    cells = [
        {"row": row, "verdict": image["verdict"], "caption": _caption(image), **dataclasses.asdict(thumbnails[row])}
        for row, image in zip(rows.tolist(), images, strict=True)
    ]
    return {"person": images[0]["person"], "cells": cells}


def _caption(image: Mapping[str, Any]) -> str:
    reference = image["variant"] == image["reference_variant"]
    scores = [image["detector_score"], None if reference else image["ssim"]]
    scores.append(None if reference and image["source"] != LATENT else image["identity_cosine"])
    return " ".join(
        [f"{score:.2f}" for score in scores if score is not None and not math.isnan(score)] + ["ref"] * reference
    )
