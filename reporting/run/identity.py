"""Identity in a run, by a re-ID network: how like images are to their person, to real pictures and to each other.

Histograms and figures of a manifest's identity scores, near-copies of real pictures, and doubles among
artificial people.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.runs.run import GenerationRun
from datasets.runs.verdicts import KEPT, LATENT, nearest_real, nearest_real_picture
from passersby.metrics.identity import near_copies
from reporting.grid import SheetCell, SheetRow, contact_sheet
from reporting.tables import percent

# ---- Histograms of scores of any kind, with the geometry in which a page draws them.

PLOT_WIDTH, PLOT_HEIGHT = 600, 160  # units of the SVG's coordinates


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: its ends on the x axis, the numbers of kept and (drawn above them) discarded images."""

    start: float
    end: float
    kept: int
    discarded: int


@dataclass(frozen=True)
class Histogram:
    """Bars and threshold lines of one score, with the geometry that the template draws."""

    bars: Sequence[Bar]
    lines: Sequence[tuple[str, float]]  # (name, value)
    scored: int
    missing: int

    @property
    def low(self) -> float:
        """Where the x axis begins."""
        return self.bars[0].start

    @property
    def high(self) -> float:
        """Where the x axis ends."""
        return self.bars[-1].end

    @property
    def tallest(self) -> int:
        """Images in the tallest bar, at least 1."""
        return max(1, *(bar.kept + bar.discarded for bar in self.bars))

    @property
    def ticks(self) -> list[float]:
        """About five round numbers on the x axis."""
        step = next(step for step in (0.05, 0.1, 0.2, 0.5, 1.0) if (self.high - self.low) / step <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 2) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def x(self, value: float) -> float:
        """The horizontal coordinate of a score in the drawing."""
        return round(PLOT_WIDTH * (value - self.low) / (self.high - self.low), 2)

    def height(self, count: int) -> float:
        """The height in the drawing of a bar of so many images."""
        return round(PLOT_HEIGHT * count / self.tallest, 2)


def histogram(
    values: np.ndarray,
    kept: np.ndarray,
    lines: Sequence[tuple[str, float | None]],
    bins: int = 40,
    low: float | None = None,
) -> Histogram:
    """Count scores into bars.

    values [N] float, NaN where an image has no score; kept [N] bool; lines: (name, threshold), left out if the
    threshold is None. The axis ends at 1.0 and begins at `low`, or at the multiple of 0.05 below the least score
    and threshold.
    """
    scored = np.isfinite(values)
    lines = [(name, float(value)) for name, value in lines if value is not None]
    if low is None:
        least = min([*values[scored].tolist(), *(value for _, value in lines), 0.95])
        low = math.floor(least * 20 + 1e-9) / 20
    high = max([1.0, *(value for _, value in lines)])
    edges = np.linspace(low, high, bins + 1)
    inside = np.clip(values, low, high)  # rounding can lift a score above 1
    good = np.histogram(inside[scored & kept], edges)[0]
    bad = np.histogram(inside[scored & ~kept], edges)[0]
    bars = [Bar(float(a), float(b), int(g), int(d)) for a, b, g, d in zip(edges, edges[1:], good, bad, strict=False)]
    return Histogram(bars, lines, int(scored.sum()), int((~scored).sum()))


@dataclass(frozen=True)
class Plot:
    """A histogram on the page, the name of its scores in a word or two, and the sentences below it."""

    histogram: Histogram
    name: str
    what: str


# ---- How like their people images are.

Figures = dict[str, float | None]
Identities = dict[str, dict[str, Figures]]


def identity_summary(manifest: pa.Table) -> Identities | None:
    """Figures of all scored images and of the kept ones, plain JSON values; None where no identities were compared.

    {"all" | "kept": {"variants": of real people, {scored, compared, right, share_right, median_cosine}; "artificial":
    people's images without their references, {scored, compared, median_cosine, median_nearest}}}. scored: images with a
    cosine; compared: images that were also compared with other people's real pictures; right: images whose nearest real
    person is their own; median_nearest: median cosine to the nearest real picture. Without images, medians and shares
    are None.
    """
    if "identity_cosine" not in manifest.column_names or not manifest["identity_cosine"].is_valid().to_numpy().any():
        return None
    cosine, margin, latent, reference = _columns(manifest)
    kept = pc.call_function("equal", [manifest["verdict"], KEPT]).to_numpy()
    nearest, _ = nearest_real_picture(manifest)
    return {
        name: {
            "variants": _variants(cosine[chosen & latent], margin[chosen & latent]),
            "artificial": _artificial(cosine[chosen & ~latent & ~reference], nearest[chosen & ~latent]),
        }
        for name, chosen in (("all", np.ones(len(kept), bool)), ("kept", kept))
    }


def _columns(manifest: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    cosine, margin = (manifest[name].cast(pa.float64()).to_numpy() for name in ("identity_cosine", "identity_margin"))
    latent = pc.call_function("equal", [manifest["source"], LATENT]).fill_null(False).to_numpy()
    reference = (
        pc.call_function("equal", [manifest["variant"], manifest["reference_variant"]]).fill_null(False).to_numpy()
    )
    return cosine, margin, latent, reference


def _variants(cosine: np.ndarray, margin: np.ndarray) -> Figures:
    compared, right = int(np.isfinite(margin).sum()), int((margin > 0).sum())
    return {
        "scored": int(np.isfinite(cosine).sum()),
        "compared": compared,
        "right": right,
        "share_right": right / compared if compared else None,
        "median_cosine": _median(cosine),
    }


def _artificial(cosine: np.ndarray, nearest: np.ndarray) -> Figures:
    return {
        "scored": int(np.isfinite(cosine).sum()),
        "compared": int(np.isfinite(nearest).sum()),
        "median_cosine": _median(cosine),
        "median_nearest": _median(nearest),
    }


def _median(values: np.ndarray) -> float | None:
    values = values[np.isfinite(values)]
    return round(float(np.median(values)), 4) if len(values) else None


def identity_figures(manifest: pa.Table) -> list[tuple[str, str, str]]:
    """`identity_summary` as lines of a table: (name, of all images, of the kept images). Empty without scores."""
    summary = identity_summary(manifest)
    if summary is None:
        return []

    def line(label: str, kind: str, name: str, form: Callable[[float], str]) -> tuple[str, str, str]:
        of_all, of_kept = (summary[part][kind][name] for part in ("all", "kept"))
        return label, "" if of_all is None else form(of_all), "" if of_kept is None else form(of_kept)

    def cosine(value: float) -> str:
        return f"{value:.3f}"

    lines = []
    if summary["all"]["variants"]["scored"]:
        lines += [
            line("the nearest real person is the right one", "variants", "share_right", percent),
            line("cosine to the person's nearest picture, median", "variants", "median_cosine", cosine),
        ]
    if summary["all"]["artificial"]["scored"]:
        lines.append(line("cosine to the person's reference, median", "artificial", "median_cosine", cosine))
    if summary["all"]["artificial"]["compared"]:
        lines.append(line("cosine to the nearest real picture, median", "artificial", "median_nearest", cosine))
    return lines


def identity_plots(manifest: pa.Table, kept: np.ndarray, thresholds: Mapping[str, float | None]) -> Sequence[Plot]:
    """Histograms of all identity scores in the manifest; kept: [N] bool. Columns as of `identity_summary`."""
    if identity_summary(manifest) is None:
        return []
    cosine, margin, latent, reference = _columns(manifest)
    floor = ("floor", thresholds.get("identity_floor"))
    ceiling = ("ceiling", thresholds.get("identity_ceiling"))
    plots = []
    if np.isfinite(cosine[latent]).any():
        text = "Cosine to the nearest real picture of the person: the higher, the more alike."
        plots.append(Plot(histogram(cosine[latent], kept[latent], [floor, ceiling]), "identity cosine", text))
    others = ~latent & ~reference
    if np.isfinite(cosine[others]).any():
        text = "Cosine to the person's reference picture, by identity. The references themselves are left out."
        plots.append(Plot(histogram(cosine[others], kept[others], [floor]), "identity cosine", text))
    nearest, _ = nearest_real_picture(manifest)
    if np.isfinite(nearest[~latent]).any():
        text = "Cosine of artificial people's pictures to the nearest real picture of anybody. Kept lies below the "
        text += "ceiling, where one is set."
        plots.append(Plot(histogram(nearest[~latent], kept[~latent], [ceiling]), "likeness to real pictures", text))
    if np.isfinite(margin).any():
        text = (
            "Identity margin: how much more like its own person a picture is than like anybody else real. Above 0 the "
        )
        text += "nearest real person is the right one."
        line = ("margin", thresholds.get("identity_margin"))
        plots.append(Plot(histogram(margin, kept, [line]), "identity margin", text))
    return plots


# ---- Near-copies of real pictures and doubles among artificial people, as pipeline/copies.py found them.

PRIVACY, PRIVACY_SHEET = "privacy.json", "privacy.png"
SHEET_PAIRS = 12  # of each kind
_PAIRS_IN_A_ROW = 4


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two pictures that are alike, [H, W, 3] uint8 RGB, and the text below each.

    If the second picture is not at hand, it is None, and only its name is shown.
    """

    first: np.ndarray
    first_name: str
    second: np.ndarray | None
    second_name: str


class RealPictures(TypedDict):
    """The real pictures that a run was compared with."""

    name: str
    pictures: int
    people: int


class NearCopies(TypedDict):
    """How many images reach the threshold in their cosine to a real picture; chosen: why the threshold has this value.
    kept: count, scored and share among the kept images."""

    count: int
    scored: int
    share: float | None
    threshold: float
    chosen: str
    kept: NotRequired[dict[str, float | int | None]]


class NearestImage(TypedDict):
    """An image, its nearest real picture, and the name of the person in that picture."""

    person: int
    variant: int
    cosine: float
    name: str
    picture: str | None


class DoublePair(TypedDict):
    """Two artificial people who are alike."""

    people: list[int]
    cosine: float


class DoublesFound(TypedDict):
    """How many pairs of artificial people reach the threshold; first: the pairs that are most alike."""

    count: int
    pairs: int
    share: float | None
    people: int
    threshold: float
    chosen: str
    first: list[DoublePair]


class Privacy(TypedDict):
    """privacy.json; network: sha256 of the re-ID network. A part that does not apply is None."""

    plan_hash: str
    images: int
    network: str
    real: RealPictures | None
    near_copies: NearCopies | None
    nearest: list[NearestImage]
    doubles: DoublesFound | None


def read_privacy(run: GenerationRun, manifest: pa.Table) -> Privacy | None:
    """privacy.json of the run; None if it is missing or damaged, or of another plan or number of images.

    The near-copies get "kept", their {count, scored, share} among the kept images. manifest: columns source,
    identity_cosine, identity_margin, verdict.
    """
    text = run.output.read(PRIVACY)
    privacy: Privacy | None = None
    with contextlib.suppress(ValueError):
        privacy = json.loads(text) if text else None
    expected = {"plan_hash": run.hash, "images": run.plan.images}
    if not isinstance(privacy, dict) or {name: privacy.get(name) for name in expected} != expected:
        return None
    copies = privacy.get("near_copies")
    if copies:
        kept = pc.call_function("equal", [manifest["verdict"], KEPT]).to_numpy()
        copies["kept"] = near_copies(nearest_real(manifest)[kept], copies["threshold"])
    return privacy


def privacy_lines(privacy: Privacy) -> list[str]:
    """The figures in lines for the terminal."""
    lines = []
    if copies := privacy["near_copies"]:
        share = f" ({100 * copies['share']:.2f}%)" if copies["share"] is not None else ""
        lines.append(
            f"near-copies of real pictures: {copies['count']:,} of {copies['scored']:,} images{share}, from cosine "
            f"{copies['threshold']:.3f} on: {copies['chosen']}"
        )
    if doubles := privacy["doubles"]:
        share = f" ({100 * doubles['share']:.2f}%)" if doubles["share"] is not None else ""
        lines.append(
            f"doubles among artificial people: {doubles['count']:,} of {doubles['pairs']:,} pairs{share}, from cosine "
            f"{doubles['threshold']:.3f} on: {doubles['chosen']}"
        )
    return lines


def privacy_sheet(copies: Sequence[Pair], doubles: Sequence[Pair]) -> np.ndarray | None:
    """Both kinds of pairs as one picture, [H, W, 3] uint8 RGB; None without any pair."""
    rows = [
        SheetRow(label, [cell for pair in pairs[:SHEET_PAIRS] for cell in _cells(pair)])
        for label, pairs in (("generated, real", copies), ("two artificial people", doubles))
        if pairs
    ]
    if not rows:
        return None
    columns = 2 * min(_PAIRS_IN_A_ROW, max(len(copies), len(doubles)))
    return contact_sheet(
        rows,
        title="The most alike",
        subtitle="by cosine of a re-identification network's features",
        columns=columns,
        headings=[("", 2)] * (columns // 2),
    )


def _cells(pair: Pair) -> list[SheetCell]:
    return [SheetCell(pair.first, pair.first_name), SheetCell(pair.second, pair.second_name)]
