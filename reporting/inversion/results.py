"""What an inversion leaves for other jobs, for people and for scripts: latents, a sheet and a summary, all derived."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.latents.pictures import Pictures
from datasets.latents.plan import InversionConfiguration, InversionPlan
from datasets.latents.shards import is_complete, write_latents
from datasets.latents.table import read_latents
from datasets.reid.sources import people_sha256
from datasets.storage.output import Output
from passersby.errors import InputError
from reporting.grid import encode_png
from reporting.page import is_toy
from reporting.run.results import SUMMARY, RunTimes, read_summary
from reporting.tables import percent

SHEET = "inversion.png"
FIGURES = ("encoder_lpips", "lpips", "l2", "identity_cosine")
_TIMES = ("seconds", "run_pictures", "pictures_per_second", "seconds_per_picture")
_MOST_MESSAGES = 10


def about_latents(
    configuration: InversionConfiguration,
    pictures: Pictures,
    people: int,
    networks: Mapping[str, Any],
) -> dict:
    """The metadata "about" of latents.parquet. networks: generator, encoder, metric, identity, records as they are."""
    names = pictures.names(people)
    return {
        **networks,
        **{name: getattr(configuration, name) for name in ("steps", "refine", "refine_steps", "pivotal_steps")},
        "data": pictures.name,
        "splits": list(configuration.splits),
        "test_people": configuration.test_people,
        "identities": {"count": len(names), "sha256": people_sha256(names)},
        "plan_hash": configuration.hash,
    }


def is_inversion_published(output: Output, plan: InversionPlan) -> bool:
    """Whether everything derived is there, for this plan. The summary is written last."""
    summary = read_summary(output)
    return (
        summary is not None
        and summary.get("plan_hash") == plan.configuration.hash
        and summary.get("pictures") == plan.pictures
        and output.exists(SHEET)
        and is_complete(output, plan)
    )


def publish_inversion(
    output: Output, plan: InversionPlan, pictures: Pictures, networks: Any, times: RunTimes | None
) -> None:
    """Derive latents.parquet, the sheet and the summary of a finished run.

    networks: `pipeline.inversion.Networks`. times: of the run that has just ended; None keeps those of an earlier
    summary. Raises InputError when the shards do not make up the plan, and where not one picture could be inverted.
    """
    from reporting.inversion.sheet import draw_inversion_sheet, inverted_pictures

    c = plan.configuration
    about = about_latents(c, pictures, plan.people, networks.about())
    table = write_latents(output, plan, about)
    good = table.filter(pc.equal(table["status"], "ok"))
    if not good.num_rows:
        path, message = table["path"][0].as_py(), table["message"][0].as_py()
        raise InputError(
            f"not one of {table.num_rows:,} pictures could be inverted; the first is {path}: {message}. Give JPEG or "
            "PNG files, and networks that belong together"
        )
    latents = read_latents(output.secret_address)
    contents = dict(zip(pictures.listing.names, pictures.listing.contents, strict=True))
    lines = inverted_pictures(latents, contents, networks.encoder, networks.generator, networks.loss, c.steps, c.refine)
    test = f", {', '.join(c.splits)}: TEST PEOPLE, not to be trained on" if c.test_people else ""
    data = f"{len(lines)} of {latents.people:,} people of {pictures.name}{test}"
    sheet = draw_inversion_sheet(lines, about["metric"], data, toy=is_toy(about["records"]["generator"]))
    output.write(SHEET, encode_png(sheet))
    summary = summarise(table, plan, about, list(pictures.listing.notes)) | _timing(output, times)
    output.write(SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def summarise(table: pa.Table, plan: InversionPlan, about: Mapping[str, Any], notes: list[str]) -> dict:
    """What a run found, of the rows of all its pictures. Means and medians are over the pictures that have a figure."""
    good = table.filter(pc.equal(table["status"], "ok"))
    reasons = Counter(table["message"].drop_null().to_pylist())
    figures = {name: _figure(good[name]) for name in FIGURES}
    before, after = figures["encoder_lpips"]["mean"], figures["lpips"]["mean"]
    return {
        "plan_hash": plan.configuration.hash,
        "test_people": plan.configuration.test_people,
        "people": plan.people,
        "pictures": table.num_rows,
        "inverted": good.num_rows,
        "errors": table.num_rows - good.num_rows,
        "error_messages": dict(reasons.most_common(_MOST_MESSAGES)),
        "people_without": plan.people - pc.count_distinct(good["person"]).as_py(),
        "deltas": pc.count_distinct(good["delta"]).as_py(),
        "figures": figures,
        "lpips_reduction": 1 - after / before if before else None,  # by refinement, of the encoder's last step
        "metric": about["metric"],
        "notes": notes,
        "configuration": dataclasses.asdict(plan.configuration),
        "about": dict(about),
    }


def _figure(column: pa.ChunkedArray) -> dict[str, float | int | None]:
    values = column.drop_null().to_numpy().astype(np.float64)
    if not len(values):
        return {"mean": None, "median": None, "pictures": 0}
    return {"mean": float(values.mean()), "median": float(np.median(values)), "pictures": len(values)}


def _timing(output: Output, times: RunTimes | None) -> dict:
    if times is None:
        earlier = read_summary(output) or {}
        return {name: earlier[name] for name in _TIMES if name in earlier}
    pictures = max(1, times.run_images)
    return {
        "seconds": times.seconds,
        "run_pictures": times.run_images,
        "pictures_per_second": times.images_per_second,  # of the whole job, the start of the workers included
        "seconds_per_picture": {name: seconds / pictures for name, seconds in times.stage_seconds.items()},
    }


def summary_lines(summary: Mapping[str, Any], output: Output) -> list[str]:
    """What a run found, in lines for people."""
    figures = summary["figures"]

    def mean(name: str) -> str:
        value = figures[name]["mean"]
        return "not measured" if value is None else f"{value:.3f}"

    lines = [
        f"{summary['inverted']:,} of {summary['pictures']:,} pictures of {summary['people']:,} people inverted, "
        f"{summary['errors']:,} could not be read or made",
        f"{summary['metric']}: {mean('encoder_lpips')} after the encoder, {mean('lpips')} in the end "
        f"({percent(max(0.0, summary['lpips_reduction'] or 0.0)) or '0%'} less); L2 {mean('l2')}; identity cosine "
        f"{mean('identity_cosine')}",
    ]
    if summary["test_people"]:
        lines.append("these are people that re-ID networks are tested with: train on nothing that is made of them")
    return [*lines, f"latents: {output.address('latents.parquet')}", f"sheet: {output.address(SHEET)}"]
