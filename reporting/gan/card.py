"""What is measured of a network, for people: lines about its layers, tables of its figures, pictures of its people.

`jobs/score.py --card` measures the layers, `benchmarks/network_card.py` all other figures.
"""

from collections.abc import Mapping, Sequence
from typing import NotRequired, Required, TypedDict

import numpy as np

from datasets.runs.verdicts import KEPT
from passersby.options import Json
from reporting.grid import SheetCell, SheetRow, contact_sheet
from reporting.page import flatten
from reporting.tables import aligned, percent

# ---- The figures of a card.

_CELL_HEIGHT = 256  # pixels: an image of 128 x 64 is drawn twice as large
_COLUMNS = 16
_LONGEST = 300  # the largest number of characters in a cell of a table


class Share(TypedDict):
    """A mean over people, with its 95% interval."""

    value: float
    low: float
    high: float


class ByPerson(TypedDict):
    """The shares of each person's images that pass the pedestrian filter; none: the share of people without any."""

    median: float
    at_least_half: Share
    none: Share


class Passing(TypedDict):
    """The shares of images that pass the pedestrian filter."""

    all: Share
    base: Share
    by_person: ByPerson


class Compared(TypedDict, total=False):
    """Images compared with the base images, as in `_LEGEND`; shares that were not measured are absent."""

    filter: Share
    filter_minus_base: Share
    nearest_own: Share
    own_before_donor: Share
    nearest_donor: Share
    ssim_4095: Required[float]
    ssim_255: Required[float]
    absolute_difference: Required[float]
    edge_distance: Required[float]


class RealPeople(TypedDict):
    """The figures of real people, from a Market-1501 tree."""

    tree: str
    filter: Share
    other_people: Compared
    same_camera: NotRequired[Compared]
    other_camera: NotRequired[Compared]


class Fid(TypedDict):
    """The FID of all images against held-out people of a tree."""

    value: float
    images: int
    reference: str
    reference_images: int


class GeneratorSettings(TypedDict):
    """The part of a generator's configuration that the card shows."""

    height: int
    width: int
    use_radial_filters: bool


class Network(TypedDict):
    """The network; record: the record of its training, from its file."""

    file: str
    sha256: str
    parameters: int
    generator: GeneratorSettings
    record: Mapping[str, Json]


class Settings(TypedDict):
    """The settings that made the network's people."""

    people: int
    variants: int
    height: int
    width: int
    threshold: float


class Card(TypedDict):
    """All figures. mixing: name of the mixed layers -> variants, compared with their base images."""

    network: Network
    settings: Settings
    command: str
    commit: str | None
    hardware: str
    software: Mapping[str, str]
    filter: Passing
    mixing: Mapping[str, Compared]
    other_people: Compared
    real: RealPeople | None
    fid: Fid | None


# ---- The tables of a card.


def card_markdown(card: Card) -> str:
    """The tables of a card as Markdown text.

    Anybody can write the texts in a network's file, so such a text cannot leave its cell of the table.
    """
    network, settings, threshold = card["network"], card["settings"], card["settings"]["threshold"]
    size = f"{settings['height']} x {settings['width']}"
    parts = [
        f"# {_safe(network['file'])}",
        "![People](people.png)",
        "![Style mixes](mixes.png)",
        "## The network",
        _table([("", ""), *_network_rows(network)]),
        f"## Its people: {settings['people']:,} people x {settings['variants']:,} pictures of {size}",
        _table(_people_rows(card)),
        "## What variants keep and change",
        _table(_mixing_rows(card)),
        _LEGEND,
        f"Pedestrian filter: score {threshold:g} or more. Brackets: 95% interval over people (bootstrap). "
        f"Measured by `{_safe(card['command'])}`, code {_safe(card['commit'] or 'unknown')}, "
        f"{_safe(card['hardware'])}, {_safe(', '.join(' '.join(pair) for pair in card['software'].items()))}.",
    ]
    return "\n\n".join(parts) + "\n"


_LEGEND = """- passes: share that the pedestrian filter lets through; over base: points more than their base images
- own by clothes: share whose nearest base image, among those of all people, by the colours of the central columns in
  three stripes, is their person's
- own before donor: share that is nearer to their person's base image than to their donor, by these colours
- donor by clothes: share that is nearer to their donor than to any base image
- pose: edges that moved from the base image, blind to colour; 100% is as far as another person is
- SSIM: with the base image, at data ranges 4095 (that of the filter) and 255; difference: mean, of values 0 to 255"""


def _network_rows(network: Network) -> list[tuple[str, str]]:
    generator, record = network["generator"], dict(network["record"])
    kind = "StyleGAN2"
    if generator.get("architecture") != "stylegan2":
        kind = "StyleGAN3-" + ("R" if generator["use_radial_filters"] else "T")
    rows = [
        ("sha256", network["sha256"]),
        ("architecture", f"{kind}, {generator['height']} x {generator['width']}"),
        ("parameters", f"{network['parameters']:,}"),
    ]
    record.pop("configuration", None)  # the command contains it
    return rows + flatten(record)


def _people_rows(card: Card) -> list[tuple[str, ...]]:
    shares, real = card["filter"], card["real"]
    person = shares["by_person"]
    rows = [
        ("", "share"),
        ("all images that pass the pedestrian filter", _share(shares["all"])),
        ("base images", _share(shares["base"])),
        ("median person's images", percent(person["median"])),
        ("people with half of their images or more", _share(person["at_least_half"])),
        ("people with none", _share(person["none"])),
    ]
    if real:
        rows.append((f"for comparison: real images of {_safe(real['tree'])}", _share(real["filter"])))
    if card["fid"]:
        fid = card["fid"]
        against = f"{fid['reference_images']:,} images of held-out people of {_safe(fid['reference'])}"
        rows.append((f"FID of {fid['images']:,} images against {against}", f"{fid['value']:.2f}"))
    return rows


def _mixing_rows(card: Card) -> list[tuple[str, ...]]:
    columns = ("passes", "over base", "own by clothes", "own before donor", "donor by clothes", "pose")
    rows = [("compared with the base image", *columns, "SSIM 4095", "SSIM 255", "difference")]
    other_people = card["other_people"]
    rows += [_mixing_row(f"{name} mixed", group, other_people) for name, group in card["mixing"].items()]
    rows.append(_mixing_row("other people's base images", other_people, other_people))
    if card["real"]:
        real = card["real"]
        for row, name in ((real.get("same_camera"), "same camera"), (real.get("other_camera"), "another camera")):
            if row is not None:
                rows.append(_mixing_row(f"real: same person, {name}", row, real["other_people"]))
        rows.append(_mixing_row("real: other people", real["other_people"], real["other_people"]))
    return rows


def _mixing_row(name: str, row: Compared, other_people: Compared) -> tuple[str, ...]:
    over = f"{100 * row['filter_minus_base']['value']:+.1f}" if "filter_minus_base" in row else ""
    groups = (row.get(key) for key in ("filter", "nearest_own", "own_before_donor", "nearest_donor"))
    shares = ["" if share is None else _share(share) for share in groups]
    pose = row["edge_distance"] / other_people["edge_distance"] if other_people["edge_distance"] else 0.0
    ssim = [f"{value:.3f}" for value in (row["ssim_4095"], row["ssim_255"])]
    return (name, shares[0], over, *shares[1:], f"{100 * pose:.0f}%", *ssim, f"{row['absolute_difference']:.1f}")


def _share(share: Share) -> str:
    return f"{percent(share['value'])} ({100 * share['low']:.1f} to {100 * share['high']:.1f})"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(_safe(cell) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _safe(text: str) -> str:
    # One line without markup: the text cannot end its cell, and cannot begin a link or a tag.
    line = " ".join(text.split())
    line = line if len(line) <= _LONGEST else line[:_LONGEST] + "..."
    return line.translate({ord(character): f"&#{ord(character)};" for character in "|<>[]`"})


# ---- The layers that hold the pose: the section "layers" of the file NAME.card.json (datasets/runs/card.py).


class Spread(TypedDict):
    """The colour spread of a region, within people over between people."""

    ratio: float


class Judged(TypedDict, total=False):
    """What a re-ID network says; shares of pairs are absent where there was no threshold."""

    nearest_own: Required[Share]
    same_person: Share
    different_people: float


class Group(TypedDict):
    """Figures of variants that differ in a group of layers. pose_moved: 1 is as far as another person is."""

    nearest_own: Share
    pose_moved: float
    edges: Spread
    torso: Spread
    judge: NotRequired[Judged]


class Layers(TypedDict):
    """The section. pose: the w indices that were chosen; groups: by their layers as text; real: of real people."""

    pose: Sequence[int]
    groups: Mapping[str, Group]
    real: Group | None


def layers_lines(layers: Layers, chosen: str) -> list[str]:
    """The groups as a table, that which moves the pose most first. chosen: the name of the chosen group."""
    groups = sorted(layers["groups"].items(), key=lambda pair: -pair[1]["pose_moved"])
    real = [] if layers["real"] is None else [("real people", layers["real"])]
    judged = any("judge" in group for _, group in [*groups, *real])
    head = ("layers", "own clothes nearest", "pose moved", "edges", "torso")
    head += ("judge: own nearest", "same person", "different people") * judged
    rows = [
        head,
        *(_group_row(f"{name} *" if name == chosen else name, group, judged) for name, group in [*groups, *real]),
    ]
    return [
        *aligned(rows),
        "* the layers of --layers pose. Own clothes nearest: variants whose nearest person by colours is their own.",
        "Pose moved: 100% is as far as another person is. Edges (the background), torso (the clothes): colour spread",
        "within people over between people.",
    ]


def _group_row(name: str, group: Group, judged: bool) -> tuple[str, ...]:
    row = (
        name,
        percent(group["nearest_own"]["value"]),
        percent(group["pose_moved"]),
        *(f"{group[region]['ratio']:.2f}" for region in ("edges", "torso")),
    )
    if not judged:
        return row
    judge = group.get("judge")
    if judge is None:
        return (*row, "", "", "")
    same, other = judge.get("same_person"), judge.get("different_people")
    return (*row, percent(judge["nearest_own"]["value"]), percent(same and same["value"]), percent(other))


# ---- The pictures of a card.


def people_picture(images: np.ndarray, scores: np.ndarray, threshold: float, name: str) -> np.ndarray:
    """Draw base images [N, H, W, 3] uint8 and their scores [N]; scores below the threshold get a frame.

    Returns [h, w, 3] uint8.
    """
    title = f"{name}: base images of the first {len(images)} people"
    return contact_sheet(
        [SheetRow("", _cells(images, scores, threshold))],
        title=title,
        subtitle=f"score of the pedestrian filter; framed: below {threshold:g}",
        columns=min(len(images), _COLUMNS),
        cell_height=_CELL_HEIGHT,
    )


def mixes_picture(
    donors: np.ndarray,
    donor_scores: np.ndarray,
    people: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    title: str,
) -> np.ndarray:
    """Draw donors [D, H, W, 3] uint8 in the first row, and below them each person's base image and its D mixes.

    people [P, 1 + D, H, W, 3]; donor_scores [D] and scores [P, 1 + D] decide the frames. Returns [h, w, 3] uint8.
    """
    head = SheetRow("donors", [SheetCell(None), *_cells(donors, donor_scores, threshold)])
    rows = [SheetRow(f"{index}", _cells(*row, threshold)) for index, row in enumerate(zip(people, scores, strict=True))]
    return contact_sheet(
        [head, *rows],
        title=title,
        subtitle=f"score of the pedestrian filter; framed: below {threshold:g}",
        cell_height=_CELL_HEIGHT,
        headings=(("base", 1), ("mixes with the donors of the first row", len(donors))),
    )


def _cells(images: np.ndarray, scores: np.ndarray, threshold: float) -> list[SheetCell]:
    verdicts = [KEPT if score >= threshold else "detector" for score in scores]
    return [
        SheetCell(image, f"{score:.2f}", verdict)
        for image, score, verdict in zip(images, scores, verdicts, strict=True)
    ]
