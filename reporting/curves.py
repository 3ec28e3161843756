"""A GAN training's curves as one picture, and the file of JSON lines that they are drawn from.

A record is a dict with "kimg" (thousands of images seen) and any of the other values; a key may be missing in
some records, and a value that is not finite is a gap. What the panels show is in `PANELS`.
"""

import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.ndimage import gaussian_filter1d

from passersby.errors import InputError
from passersby.files import write_atomically
from reporting.palette import BLUE, FAINT, GREEN, INK, LINES, VERMILION

Record = Mapping[str, float | None]
Curve = tuple[np.ndarray, np.ndarray]  # kimg and value of the records that have a finite one, both [n] float64

_GENERATOR, _DISCRIMINATOR, _VALIDATION = VERMILION, BLUE, GREEN
_OVERFITTING = "overfitting"  # no key of records: derived from the scores
_HALF_AN_IMAGE = 0.0005  # kimg


@dataclass(frozen=True)
class Panel:
    """One plot: its title and unit, and its series as (key of the record, name, colour)."""

    title: str
    unit: str
    series: tuple[tuple[str, str, str], ...]
    logarithmic: bool = False
    points: bool = False  # values that are few and costly: each is drawn, none is smoothed, the least is marked


PANELS = (
    Panel(
        "Losses",
        "loss",
        (
            ("G/loss", "generator", _GENERATOR),
            ("D/loss", "discriminator, training people", _DISCRIMINATOR),
            ("validation/D_loss", "discriminator, validation people", _VALIDATION),
        ),
    ),
    Panel(
        "Discriminator's scores",
        "score",
        (
            ("scores/real", "training people", _DISCRIMINATOR),
            ("scores/validation", "validation people", _VALIDATION),
            ("scores/fake", "generated people", _GENERATOR),
        ),
    ),
    Panel(
        "Overfitting of the discriminator",
        "(training - validation) / (training - generated)",
        ((_OVERFITTING, "", INK),),
    ),
    Panel(
        "R1 penalty",
        "R1",
        (("D/r1", "", _DISCRIMINATOR), ("D/pair_r1", "pairs", _GENERATOR)),
        logarithmic=True,
    ),
    Panel("Augmentation probability", "p", (("augment/p", "", INK), ("augment/pair_p", "pairs", _GENERATOR))),
    Panel("FID", "FID", (("fid", "", _GENERATOR),), logarithmic=True, points=True),
)

# Of a training with identity pairs, beside PANELS.
PAIR_PANEL = Panel(
    "Pair discriminator's scores",
    "score",
    (
        ("scores/pair_real", "pairs of training people", _DISCRIMINATOR),
        ("scores/pair_validation", "pairs of validation people", _VALIDATION),
        ("scores/pair_stranger", "pictures of two people", INK),
        ("scores/pair_fake", "generated pairs", _GENERATOR),
    ),
)

# Keys for the overfitting and for the line at the best FID.
_NEEDED = {"scores/real", "scores/validation", "scores/fake", "fid"}


def save_curves(
    path: str | os.PathLike,
    history: Sequence[Record],
    *,
    title: str = "",
    smoothing: float = 0.02,
    panels: Sequence[Panel] = PANELS,
) -> None:
    """Draw `history` (in any order) as a PNG of one panel for each subject that has values, a GAN's by default.

    Smoothed lines lie over faint raw ones; `smoothing` is the standard deviation of their Gaussian as a share of
    the records that have the value. The band between the scores of training and validation people shows how far the
    discriminator overfits; the panel beside it shows the same as a share: 0 where people it never saw score like
    those it trains on, 1 where they score like generated ones (r_v of T. Karras et al., Training generative
    adversarial networks with limited data, 2020, equation 1, of the smoothed scores). A dotted line in all panels
    stands at the best FID. The file is written whole or not at all. Raises InputError when it cannot be written, or no
    record has a value to draw.
    """
    history = sorted(history, key=kimg_of)
    keys = {key for panel in panels for key, *_ in panel.series} | _NEEDED
    curves = {key: _curve(history, key) for key in keys}
    curves[_OVERFITTING] = _overfitting(curves, smoothing)
    panels = [panel for panel in panels if any(len(curves[key][0]) for key, *_ in panel.series)]
    if not panels:
        raise InputError(f"no curves for {path}: none of the {len(history)} records has a value to draw")
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = new_figure(5.6 * columns, 3.7 * rows + 0.5 * bool(title))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    kimg, fid = curves["fid"]
    best = kimg[np.argmin(fid)] if len(fid) else None
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, curves, smoothing)
        _decorate(axes, panel)
        if best is not None:
            axes.axvline(best, color=FAINT, linewidth=1, linestyle=":", zorder=0)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(title)
    write_atomically(path, png_of(figure))


def kimg_of(record: Record) -> float:
    """Thousands of images seen, as a record of a history says. Raises ValueError if there is no finite number."""
    kimg = record.get("kimg")
    if kimg is None or not math.isfinite(kimg):
        raise ValueError(f"a record of the history needs a finite kimg: {dict(record)}")
    return kimg


def _curve(history: Iterable[Record], key: str) -> Curve:
    pairs = [(kimg_of(record), record.get(key)) for record in history]
    finite = [(kimg, value) for kimg, value in pairs if value is not None and math.isfinite(value)]
    table = np.array(finite, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _overfitting(curves: Mapping[str, Curve], smoothing: float) -> Curve:
    (real_kimg, real), (kimg, validation), (fake_kimg, fake) = (
        (curves[key][0], _smooth(curves[key][1], smoothing))
        for key in ("scores/real", "scores/validation", "scores/fake")
    )
    if not (len(real_kimg) and len(kimg) and len(fake_kimg)):
        return kimg[:0], validation[:0]
    real, fake = np.interp(kimg, real_kimg, real), np.interp(kimg, fake_kimg, fake)
    apart = real > fake  # before D tells them apart the quotient means nothing
    return kimg[apart], ((real - validation) / np.where(apart, real - fake, 1))[apart]


def _smooth(values: np.ndarray, smoothing: float) -> np.ndarray:
    sigma = smoothing * len(values)
    # Below a third of a record the kernel is one record alone.
    return gaussian_filter1d(values, sigma, mode="nearest") if sigma > 1 / 3 else values


def _draw(axes: Axes, panel: Panel, curves: Mapping[str, Curve], smoothing: float) -> None:
    drawn = {}
    for key, label, colour in panel.series:
        kimg, values = curves[key]
        if not len(kimg):
            continue
        smooth = values if panel.points or key == _OVERFITTING else _smooth(values, smoothing)
        drawn[key] = kimg, smooth
        if smooth is not values:
            axes.plot(kimg, values, color=colour, alpha=0.22, linewidth=0.8)
        dots = {"marker": "o", "markersize": 3} if panel.points or len(values) == 1 else {}
        name = f"{label or 'last'}: {smooth[-1]:.3g}"
        axes.plot(kimg, smooth, color=colour, linewidth=1.6, label=name, **dots)
        if panel.points:
            best = np.argmin(values)
            name = f"best: {values[best]:.4g} at {kimg[best]:,.4g} kimg"
            axes.plot(
                kimg[best : best + 1], values[best : best + 1], "*", color=INK, markersize=12, label=name, zorder=3
            )
    if {"scores/validation", "scores/real"} <= drawn.keys():
        kimg, validation = drawn["scores/validation"]
        axes.fill_between(kimg, validation, np.interp(kimg, *drawn["scores/real"]), color=_VALIDATION, alpha=0.12)


def _decorate(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel("kimg")
    axes.set_ylabel(panel.unit, fontsize=9)
    axes.tick_params(labelbottom=True)
    if panel.logarithmic and all((np.asarray(line.get_ydata()) > 0).all() for line in axes.lines):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    plain_axes(axes)
    axes.legend(fontsize=8, framealpha=0.85)


# ---- What all plots have in common.


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size [inches], at 110 pixels an inch."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Axes) -> None:
    """Draw faint lines behind the curves, and no box around them."""
    axes.grid(True, color=LINES, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def png_of(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


# ---- The file of JSON lines: append to it, read it, and shorten it when a training resumes.


def append_history(path: str | os.PathLike, record: Record) -> None:
    """Add one record as a line of JSON; on the disk when this returns. The folder must exist.

    Numbers that are not finite become null. A torn last line, left by a process that was killed, is cut off first.
    Raises ValueError for a record without a finite "kimg", InputError when the file cannot be written.
    """
    kimg_of(record)
    finite = {key: None if _is_undefined(value) else value for key, value in record.items()}
    line = json.dumps(finite, allow_nan=False) + "\n"
    path = Path(path)
    try:
        with open(path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _is_undefined(value: float | None) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def read_history(path: str | os.PathLike, until_kimg: float = math.inf) -> list[Record]:
    """The records up to and with `until_kimg`, in the file's order; none when there is no file.

    A last line without its end was torn by a kill and is left out. Raises InputError for any other line that is not
    a record.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            inside = record["kimg"] <= until_kimg + _HALF_AN_IMAGE
        except (ValueError, KeyError, TypeError) as error:
            shown = line[:40].decode(errors="replace")
            raise InputError(
                f"{path}, line {number}, is not a record ({shown!r}): delete that line, or the file"
            ) from error
        if inside:
            records.append(record)
    return records


def rewind_history(path: str | os.PathLike, kimg: float) -> list[Record]:
    """For a training that resumes at `kimg`: drop the later records, in the file too; returns the other records.

    So the file of a resumed training has the same records as the file of an undisturbed training. Errors as
    `read_history`.
    """
    records = read_history(path, kimg)
    if Path(path).exists():
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in records).encode())
    return records
