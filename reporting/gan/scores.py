"""Reports of scores of image sets: a table of FIDs with published ones, lines, records, and a training's best FID."""

import base64
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.people.image_sets import ImageSet
from passersby.errors import InputError
from reporting.curves import kimg_of, read_history, save_curves

# ---- The table of FIDs: those of the study's table, and our own, each with the images that it compares.

STUDY = "Generation of Images using Generative Adversarial Networks for Augmentation of Training Data in " + (
    "Re-identification Models, Universidad Autonoma de Yucatan"
)
MARKET = "Market-1501"
TOY = "toy crowd (drawn people)"
WARNING = (
    "Only rows of one data set, image size, reference and number of images can be compared. FIDs of the toy crowd "
    "(people drawn by a program) say nothing beside those of Market-1501 (photographs). The study's own 9.29 is "
    "against the images that its network was trained on; the other rows do not say what theirs are against."
)
HEADINGS = ("model", "FID", "data set", "compared with", "source")


@dataclasses.dataclass(frozen=True)
class FidRow:
    """One line of the table.

    model: its name; fid: its FID; data_set: the data set; compared_with: the reference images, "" if they are not
    stated; source: who published the FID.
    """

    model: str
    fid: float
    data_set: str
    compared_with: str
    source: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADINGS."""
        return self.model, f"{self.fid:.2f}", self.data_set, self.compared_with or "not stated", self.source


# The study's table of FIDs on Market-1501, with the sources that it names.
PUBLISHED = tuple(
    FidRow(model, fid, MARKET, compared_with, source)
    for model, fid, compared_with, source in [
        ("real images", 7.22, "", "Hao Chen et al."),
        ("StyleGAN3 of the study", 9.29, "its own training set, 51,247 images", "the study"),
        ("DG-Net", 18.24, "", "Hao Chen et al."),
        ("DG-GAN", 18.24, "", "Saleh Hussin et al."),
        ("GCL", 53.07, "", "Hao Chen et al."),
        ("PN-GAN", 54.23, "", "Zhedong Zheng et al."),
        ("DCGAN", 136.26, "", "Saleh Hussin et al."),
        ("LSGAN", 136.26, "", "Zhedong Zheng et al."),
        ("PG-GAN", 151.16, "", "Zhedong Zheng et al."),
        ("FD-GAN", 257.00, "", "Saleh Hussin et al."),
        ("IS-GAN", 281.63, "", "Hao Chen et al."),
    ]
)


def fid_rows(our_rows: Sequence[FidRow] = ()) -> list[FidRow]:
    """Our rows, then the published rows, each group from the best FID to the worst."""
    return sorted(our_rows, key=lambda row: row.fid) + list(PUBLISHED)


def fid_markdown(our_rows: Sequence[FidRow] = ()) -> str:
    """The table as Markdown; our rows are bold."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|---:|---|---|---|"]
    for row in fid_rows(our_rows):
        cells = [text.replace("|", "\\|") for text in row.cells]
        if row in our_rows:
            cells[:2] = [f"**{text}**" for text in cells[:2]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", WARNING, "", f"Published rows: {STUDY}."])


# ---- A comparison of two sets of images, in lines and as a record.


def describe_sets(evaluated: ImageSet, reference: ImageSet, height: int, width: int) -> list[str]:
    """Lines that describe both sets of images, and how their images are resized."""
    lines = [f"scored     {evaluated.description}", f"reference  {reference.description}"]
    for name, images in (("scored", evaluated), ("reference", reference)):
        other_sizes = [size for size, _ in images.sizes if size != (height, width)]
        if not other_sizes:
            continue
        sizes = ", ".join(f"{h}x{w}" for h, w in other_sizes[:3]) + (f" and {len(other_sizes) - 3} more sizes") * (
            len(other_sizes) > 3
        )
        smaller = [h for h, w in other_sizes if h < height or w < width]
        way = "enlarging (bilinear) or averaging areas" if smaller else "averaging areas"
        stretched = any(abs(h * width - w * height) > max(height, width) for h, w in other_sizes)
        note = ", which changes their proportions" if stretched else ""
        lines.append(f"{name} images are brought from {sizes} to {height}x{width} by {way}{note}")
    return [*lines, *dict.fromkeys([*evaluated.notes, *reference.notes])]


def score_lines(scores: Mapping[str, float]) -> list[str]:
    """The scores as lines of a small table."""
    fid, kid, deviation = scores["fid"], 1000 * scores["kid"], 1000 * scores["kid_std"]
    figures = [f"{scores[name]:8.3f}" for name in ("precision", "recall", "density", "coverage")]
    return [
        f"FID                {fid:8.2f}            lower is better",
        f"KID x 1000         {kid:8.2f}            lower is better; of one subset +- {deviation:.2f}",
        f"precision, recall  {figures[0]} {figures[1]}   fakes that look real, reals that are covered",
        f"density, coverage  {figures[2]} {figures[3]}   the same, less led by outliers",
    ]


def set_record(images: ImageSet, readable: int) -> dict:
    """A set of images as plain JSON values. readable: the number of images with features."""
    return {
        "kind": images.kind,
        "description": images.description,
        "images": readable,
        "unreadable": images.count - readable,
        "people": images.people,
        "sizes": [[height, width, count] for (height, width), count in images.sizes],
        "sha256": images.sha256,
    }


def own_row(scored: ImageSet, reference: ImageSet, fid: float, size: tuple[int, int], data_set: str) -> FidRow:
    """The row of a comparison at `size` (height, width) in the table of FIDs."""
    compared_with = f"{reference.description}, at {size[0]}x{size[1]}"
    return FidRow(scored.description, fid, data_set, compared_with, "measured here")


# ---- A GAN training: its curves and its best FID, from its folder, for the page of a run.

HISTORY, CONFIG = "history.jsonl", "config.json"


@dataclasses.dataclass(frozen=True)
class Training:
    """One training: its name, a sentence about it, its curves as base64 of a PNG, and its FID if one was measured."""

    name: str
    summary: str
    png: str
    fid: FidRow | None


def read_training(folder: Path, toy: bool) -> Training:
    """The training in a folder of jobs/train_gan.py. toy: the training set is the drawn toy crowd.

    Raises InputError if the folder has no history, or no value to draw.
    """
    history = read_history(folder / HISTORY)
    if not history:
        raise InputError(f"--training {folder}: no {HISTORY} there: give a folder that jobs/train_gan.py wrote")
    config = _read_config(folder / CONFIG)
    name = folder.resolve().name
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "curves.png"
        save_curves(path, history, title=name)
        png = base64.b64encode(path.read_bytes()).decode()
    length = max(map(kimg_of, history))
    pairs = [(record.get("fid"), kimg_of(record)) for record in history]
    scores = [(fid, kimg) for fid, kimg in pairs if isinstance(fid, int | float)]
    summary = f"{length:,.4g} thousand images seen"
    if not scores:
        return Training(name, f"{summary}, no FID was measured", png, None)
    fid, kimg = min(scores, key=lambda pair: pair[0])
    summary += f", FID {fid:.2f} at its best, after {kimg:,.4g} thousand"
    data_set = TOY if toy else Path(str(config.get("data", "not stated"))).name
    size = f"{config['height']}x{config['width']}" if {"height", "width"} <= config.keys() else "size not stated"
    reference = {"validation": "held-out people", "training": "training people"}.get(
        str(config.get("fid_reference")), ""
    )
    compared_with = f"{reference or 'people of its data'}, {size}"
    return Training(name, summary, png, FidRow(name, float(fid), data_set, compared_with, "measured in training"))


def _read_config(path: Path) -> dict:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # the curves do not need the configuration
    return content if isinstance(content, dict) else {}
