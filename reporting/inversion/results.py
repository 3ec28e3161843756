"""The derived files of an inversion, for other jobs, for people and for scripts: latents, a sheet and a summary."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, Protocol, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from datasets.latents.pictures import Pictures
from datasets.latents.plan import InversionConfiguration, InversionPlan, InversionRun
from datasets.latents.shards import is_complete, write_latents
from datasets.latents.table import AboutGenerator, Latents, read_latents
from datasets.people.decoding import DecodingError, decode_bicubic, read_bytes, remarks
from datasets.people.names import FORMATS_TEXT
from datasets.reid.sources import people_sha256
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.options import Json
from passersby.restyle.checkpoint import LoadedEncoder
from passersby.restyle.encoder import pooled, restyle_steps, working_size
from passersby.restyle.losses import InversionLoss, Target
from passersby.restyle.pivotal import apply_delta, load_delta
from passersby.restyle.who import codes_of
from passersby.stylegan3 import Generator, to_uint8
from passersby.stylegan3.generator import z_of_seeds
from reporting.grid import SheetCell, SheetRow, contact_sheet, encode_png
from reporting.page import is_toy, write_for_people
from reporting.run.results import SUMMARY, RunTimes, read_summary
from reporting.tables import percent

# ---- The sheet: people's pictures, their reconstructions after each step of the encoder, and after refinement.

SHEET_PEOPLE = 8
SHEET_VARIANTS = 4


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """An image [H, W, 3] uint8 RGB and its perceptual distance to the input."""

    image: np.ndarray
    lpips: float


@dataclasses.dataclass(frozen=True)
class InvertedPicture:
    """One line of the sheet.

    picture: [H, W, 3] uint8 RGB. steps: the reconstruction after each step of the encoder, () without one. refined:
    that of the refined code. pivotal: that of the person's own generator. The last two are None if the inversion has no
    such stage. variants: images [H, W, 3] uint8 RGB of the person with other hows, () without a who.
    """

    label: str
    picture: np.ndarray
    steps: tuple[Reconstruction, ...]
    refined: Reconstruction | None = None
    pivotal: Reconstruction | None = None
    variants: tuple[np.ndarray, ...] = ()


def draw_inversion_sheet(pictures: Sequence[InvertedPicture], metric: str, data: str, toy: bool = False) -> np.ndarray:
    """Draw the sheet, [H, W, 3] uint8 RGB: one line for each picture, all with the same stages.

    metric: the name of the perceptual distance, which is below each image. data: a description of the pictures. toy:
    the network learned from drawn people, and the title says so. Raises ValueError without pictures.
    """
    if not pictures:
        raise ValueError("a sheet needs at least one picture")
    first = pictures[0]
    count = len(first.steps)
    headings = [("input", 1)]
    headings += [(f"encoder, steps 1 to {count}" if count > 1 else "encoder", count)] * (count > 0)
    headings += [("refined", 1)] * (first.refined is not None) + [("pivotal", 1)] * (first.pivotal is not None)
    headings += [("seen in other ways", len(first.variants))] * bool(first.variants)
    rows = []
    for picture in pictures:
        stages = [*picture.steps, picture.refined, picture.pivotal]
        reconstructions = [SheetCell(stage.image, f"{stage.lpips:.3f}") for stage in stages if stage is not None]
        cells = [SheetCell(picture.picture), *reconstructions, *map(SheetCell, picture.variants)]
        rows.append(SheetRow(picture.label, cells))
    return contact_sheet(
        rows,
        title="Inversion with a toy generator: it learned from drawn people" if toy else "Inversion",
        subtitle=f"{data} · below: {metric} to the input, 0 is equal",
        headings=headings,
    )


@torch.no_grad()
def inverted_pictures(
    latents: Latents,
    contents: dict[str, Path | bytes],
    encoder: LoadedEncoder | None,
    generator: Generator,
    loss: InversionLoss,
    steps: int | None,
    refine: str,
) -> list[InvertedPicture]:
    """The lines of the sheet: the first picture of at most SHEET_PEOPLE people, evenly spread.

    This machine's CPU makes the reconstructions again, from the codes. contents: path in the table -> file or bytes of
    the picture. People whose picture can no longer be read are omitted.
    """
    config = generator.config
    size = working_size(encoder.encoder.config, config) if encoder else (config.height, config.width)
    lines = []
    for person in np.unique(np.linspace(0, latents.people - 1, SHEET_PEOPLE).round().astype(int)).tolist():
        row = int(latents.pictures_of(person)[0])
        content = contents.get(latents.paths[row])
        try:
            data = b"" if content is None else read_bytes(content)
            pixels = decode_bicubic(data, *size)  # [h, w, 3] uint8
        except (OSError, DecodingError):
            continue
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        target = loss.target(image)
        outputs = ()
        if encoder is not None and steps is not None:
            outputs = restyle_steps(encoder.encoder, generator.synthesis, image, encoder.average, steps)
        reconstructions = tuple(_reconstruction(output, loss, target) for _, output in outputs)
        code = torch.from_numpy(latents.codes[row])[None]
        refined = pivotal = None
        if refine != "none":
            refined = _reconstruction(generator.synthesis(code), loss, target)
        delta = latents.delta(person)
        if delta is not None:
            with apply_delta(generator, load_delta(delta, latents.about["generator"]["sha256"])):
                pivotal = _reconstruction(generator.synthesis(code), loss, target)
        label = f"person {latents.names[person]}"
        variants = _seen_in_other_ways(latents, person, generator, size)
        lines.append(InvertedPicture(label, pixels, reconstructions, refined, pivotal, variants))
    return lines


def _seen_in_other_ways(
    latents: Latents, person: int, generator: Generator, size: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    """Images of the person's who and offset with other hows, always the same; a network with labels takes the first."""
    if latents.whos is None or latents.offsets is None:
        return ()
    who, offset = (torch.from_numpy(np.array(values[person])) for values in (latents.whos, latents.offsets))
    hows = torch.from_numpy(z_of_seeds(range(SHEET_VARIANTS), generator.z_dim)).float()[:, len(who) :]
    labels = torch.eye(generator.c_dim)[[0] * SHEET_VARIANTS] if generator.c_dim else None
    images = generator.synthesis(codes_of(generator.mapping, who, hows, offset, labels))
    return tuple(to_uint8(pooled(images, *size)).numpy())


def _reconstruction(output: torch.Tensor, loss: InversionLoss, target: Target) -> Reconstruction:
    output = pooled(output, *target.images.shape[2:])
    return Reconstruction(to_uint8(output)[0].numpy(), float(loss.measure(output, target).lpips))


# ---- Latents and summary, and all files of an inversion together.

SHEET = "inversion.png"
FIGURES = ("encoder_lpips", "lpips", "l2", "identity_cosine")
_TIMES = ("seconds", "run_pictures", "pictures_per_second", "seconds_per_picture")
_MOST_MESSAGES = 10


class AboutNetworks(TypedDict):
    """The description of the networks in the metadata of latents.parquet.

    metric, identity: the names of the networks that measure; trained_on, records: those of generator and encoder.
    encoder: None without one.
    """

    generator: AboutGenerator
    encoder: Mapping[str, Json] | None
    metric: str
    identity: str | None
    weights: Mapping[str, float]
    trained_on: Mapping[str, Json]
    records: Mapping[str, Json]


class Networks(Protocol):
    """The networks of an inversion, on the CPU: pipeline.inversion.Networks."""

    @property
    def encoder(self) -> LoadedEncoder | None: ...
    @property
    def generator(self) -> Generator: ...
    @property
    def loss(self) -> InversionLoss: ...

    def about(self) -> AboutNetworks:
        """The description of the networks for the metadata."""
        ...


class Figure(TypedDict):
    """A loss over the pictures that have it."""

    mean: float | None
    median: float | None
    pictures: int


class InversionSummary(TypedDict):
    """The values of an inversion's summary.json that programs read; the file has more, for people."""

    plan_hash: str
    test_people: bool
    people: int
    pictures: int
    inverted: int
    errors: int
    figures: dict[str, Figure]
    lpips_reduction: float | None
    metric: str
    remarks: NotRequired[list[str]]  # lines for the user about peculiar pictures; older files have none


def about_latents(
    configuration: InversionConfiguration, pictures: Pictures, people: int, networks: AboutNetworks
) -> dict[str, Json]:
    """The metadata "about" of latents.parquet."""
    names = pictures.names(people)
    about = {
        **networks,
        **{name: getattr(configuration, name) for name in ("steps", "refine", "refine_steps", "pivotal_steps")},
        "data": pictures.name,
        "splits": list(configuration.splits),
        "test_people": configuration.test_people,
        "identities": {"count": len(names), "sha256": people_sha256(names)},
        "plan_hash": configuration.hash,
    }
    return cast(dict[str, Json], about)


def read_inversion_summary(output: Output) -> InversionSummary | None:
    """summary.json, or None if it does not exist or cannot be read."""
    return cast(InversionSummary | None, read_summary(output))


def is_inversion_published(run: InversionRun) -> bool:
    """Whether all derived files exist, for this plan. The summary is written last."""
    summary = read_inversion_summary(run.output)
    return (
        summary is not None
        and summary.get("plan_hash") == run.hash
        and summary.get("pictures") == run.plan.pictures
        and run.output.exists(SHEET)
        and is_complete(run)
    )


def publish_inversion(run: InversionRun, pictures: Pictures, networks: Networks, times: RunTimes | None) -> None:
    """Derive latents.parquet, the sheet and the summary of a finished run.

    times: those of the run that has just ended; None keeps the times of an earlier summary. Raises InputError if the
    shards are not those of the plan, and if no picture could be inverted.
    """
    output, plan, description = run.output, run.plan, networks.about()
    c = plan.configuration
    about = about_latents(c, pictures, plan.people, description)
    table = write_latents(run, about)
    usable = table.filter(pc.call_function("equal", [table["status"], "ok"]))
    if not usable.num_rows:
        path, message = table["path"][0].as_py(), table["message"][0].as_py()
        raise InputError(
            f"not one of {table.num_rows:,} pictures could be inverted; the first is {path}: {message}. Give "
            f"{FORMATS_TEXT} files, and networks that belong together"
        )
    latents = read_latents(output.secret_address)
    contents = dict(zip(pictures.listing.names, pictures.listing.files, strict=True))

    def sheet() -> bytes:
        encoder, generator, loss = networks.encoder, networks.generator, networks.loss
        lines = inverted_pictures(latents, contents, encoder, generator, loss, c.steps, c.refine)
        test = f", {', '.join(c.splits)}: TEST PEOPLE, not to be trained on" if c.test_people else ""
        data = f"{len(lines)} of {latents.people:,} people of {pictures.name}{test}"
        toy = is_toy(description["records"]["generator"])
        return encode_png(draw_inversion_sheet(lines, description["metric"], data, toy=toy))

    write_for_people(output, SHEET, sheet)
    summary = summarise(table, plan, about, description["metric"], list(pictures.listing.notes)) | _timing(
        output, times
    )
    output.write(SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())


def summarise(
    table: pa.Table, plan: InversionPlan, about: Mapping[str, Json], metric: str, notes: list[str]
) -> InversionSummary:
    """The summary of the rows of all pictures. Means and medians are over the pictures that have a figure."""
    usable = table.filter(pc.call_function("equal", [table["status"], "ok"]))
    is_error = pc.call_function("not_equal", [table["status"], "ok"])
    reasons = Counter(table.filter(is_error)["message"].drop_null().to_pylist())
    peculiar = Counter(kind for message in usable["message"].drop_null().to_pylist() for kind in message.split())
    figures = {name: _figure(usable[name]) for name in FIGURES}
    before, after = figures["encoder_lpips"]["mean"], figures["lpips"]["mean"]
    summary = {
        "plan_hash": plan.configuration.hash,
        "test_people": plan.configuration.test_people,
        "people": plan.people,
        "pictures": table.num_rows,
        "inverted": usable.num_rows,
        "errors": table.num_rows - usable.num_rows,
        "error_messages": dict(reasons.most_common(_MOST_MESSAGES)),
        "people_without": plan.people - pc.call_function("count_distinct", [usable["person"]]).as_py(),
        "deltas": pc.call_function("count_distinct", [usable["delta"]]).as_py(),
        "figures": figures,
        # The reduction by refinement, compared with the encoder's last step.
        "lpips_reduction": 1 - after / before if before and after is not None else None,
        "metric": metric,
        "notes": notes,
        "remarks": remarks(peculiar),
        "configuration": dataclasses.asdict(plan.configuration),
        "about": about,
    }
    return cast(InversionSummary, summary)


def _figure(column: pa.ChunkedArray) -> Figure:
    values = column.drop_null().to_numpy().astype(np.float64)
    if not len(values):
        return {"mean": None, "median": None, "pictures": 0}
    return {"mean": float(values.mean()), "median": float(np.median(values)), "pictures": len(values)}


def _timing(output: Output, times: RunTimes | None) -> dict:
    if times is None:
        earlier = read_summary(output) or {}
        return {name: earlier.get(name) for name in _TIMES if name in earlier}
    pictures = max(1, times.run_images)
    return {
        "seconds": times.seconds,
        "run_pictures": times.run_images,
        "pictures_per_second": times.images_per_second,  # of the whole job, with the start of the workers
        "seconds_per_picture": {name: seconds / pictures for name, seconds in times.stage_seconds.items()},
    }


def summary_lines(summary: InversionSummary, output: Output) -> list[str]:
    """The summary as lines of text for people."""
    figures = summary["figures"]

    def mean(name: str) -> str:
        value = figures[name]["mean"]
        return "not measured" if value is None else f"{value:.3f}"

    end = f"{mean('lpips')} in the end"
    if figures["encoder_lpips"]["mean"] is not None:  # None without an encoder
        less = percent(max(0.0, summary["lpips_reduction"] or 0.0)) or "0%"
        end = f"{mean('encoder_lpips')} after the encoder, {end} ({less} less)"
    lines = [
        f"{summary['inverted']:,} of {summary['pictures']:,} pictures of {summary['people']:,} people inverted, "
        f"{summary['errors']:,} could not be read or made",
        f"{summary['metric']}: {end}; L2 {mean('l2')}; identity cosine {mean('identity_cosine')}",
    ]
    if summary["test_people"]:
        lines.append("these are people that re-ID networks are tested with: train on nothing that is made of them")
    lines += [f"note: {remark}" for remark in summary.get("remarks", [])]
    return [*lines, f"latents: {output.address('latents.parquet')}", f"sheet: {output.address(SHEET)}"]
