"""What real images say about the filters' thresholds: proposed values, a table, one picture."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from datasets.people.image_sets import choose
from passersby.metrics.ssim import ssim

# Share of real Market-1501 images that the study's detector rejected, by threshold.
STUDY_REJECTED: Mapping[float, float] = {0.5: 0.0510, 0.6: 0.0646, 0.7: 0.0846, 0.8: 0.119, 0.9: 0.196, 1.0: 1.0}
STUDY_FLOOR, STUDY_DATA_RANGE = 0.75, 4095.0
THRESHOLDS = np.linspace(0, 1, 101)
FEW_LOST = 10  # fewer images than this say little about a share
_PAIRS_AT_A_TIME = 8  # of SSIM, as in actors/similarity_scorer.py
_DECIMALS = 1000  # thresholds are given to 1 / _DECIMALS
_BINS, _FEW_BINS, _FEW_PAIRS = 60, 30, 2000  # a histogram of few pairs is ragged
_OWN, _STUDY, _DIFFERENT, _INK = "#0072b2", "#d55e00", "#9aa0a6", "#202124"


def share_rejected(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The share 0..1 of scores [N] below each threshold [K], [K] float64: the images that the filter would reject."""
    return np.searchsorted(np.sort(scores), thresholds, "left") / len(scores)


def least_threshold(scores: np.ndarray, lost: float) -> float:
    """The highest threshold, in thousandths, below which at most the share `lost` (0..1) of scores [N] lies."""
    ascending = np.sort(np.asarray(scores, np.float64))
    return math.floor(float(ascending[_may_be_lost(len(ascending), lost)]) * _DECIMALS) / _DECIMALS


def greatest_threshold(scores: np.ndarray, lost: float) -> float:
    """The lowest threshold, in thousandths, above which at most the share `lost` (0..1) of scores [N] lies."""
    descending = np.sort(np.asarray(scores, np.float64))[::-1]
    return math.ceil(float(descending[_may_be_lost(len(descending), lost)]) * _DECIMALS) / _DECIMALS


def _may_be_lost(count: int, share: float) -> int:
    return min(math.floor(share * count + 1e-9), count - 1)  # 0.29 * 100 is 28.999999999999996


def detector_record(scores: np.ndarray, most_rejected: float) -> dict:
    """The detector's part of calibration.json: curve, the study's curve, and a threshold for a share of rejections.

    scores: [N] float32 of real images, 0..1. The threshold rejects at most the share `most_rejected` of them, 0..1. It
    may reject less: threshold 0 keeps all images, also those in which the detector sees nobody.
    """
    threshold = least_threshold(scores, most_rejected)
    return {
        "images": len(scores),
        "wanted_rejected": most_rejected,
        "threshold": threshold,
        "rejected": float(share_rejected(scores, np.array([threshold]))[0]),
        "curve": [[float(t), float(s)] for t, s in zip(THRESHOLDS, share_rejected(scores, THRESHOLDS), strict=True)],
        "study": [[threshold, share] for threshold, share in STUDY_REJECTED.items()],
    }


def similarity_record(same: np.ndarray, different: np.ndarray, data_range: float, lost: float) -> dict:
    """The part of one data range of SSIM: of pairs [P] of pictures of one person, and [D] of two people.

    floor and ceiling each lose at most the share `lost` of the pairs of one person.
    """
    edges = np.linspace(min(0.0, float(same.min())), 1, _BINS + 1)
    return {
        "data_range": data_range,
        "pairs": len(same),
        "floor": least_threshold(same, lost),
        "ceiling": greatest_threshold(same, lost),
        "lost_at_each": lost,
        "percentiles": {str(p): float(np.percentile(same, p)) for p in (0, 1, 5, 25, 50, 75, 95, 99, 100)},
        "below_study_floor": float(share_rejected(same, np.array([STUDY_FLOOR]))[0]),
        "histogram": {"edges": edges.tolist(), "pairs": np.histogram(same, edges)[0].tolist()},
        "different_people": {
            "pairs": len(different),
            "median": float(np.median(different)) if len(different) else None,
            "below_floor": float((different < least_threshold(same, lost)).mean()) if len(different) else None,
        },
    }


def chosen_pairs(identities: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of pairs of images of one person [P, 2] and of two people [D, 2], at most `most` of each.

    identities [N] int64: pairs are of people (> 0) only. Every person gives equally many pairs, or all pairs of the
    person: otherwise a person with ten times the pictures would count a hundred times.
    """
    random = np.random.default_rng(seed)
    shown = [np.flatnonzero(identities == person) for person in np.unique(identities[identities > 0])]
    several = [indices for indices in shown if len(indices) > 1]
    share = max(1, most // max(1, len(several)))
    same = []
    for indices in several:
        first, second = np.triu_indices(len(indices), 1)
        taken = choose(len(first), share, int(random.integers(2**32)))
        same.append(np.stack([indices[first[taken]], indices[second[taken]]], 1))
    pairs = np.concatenate(same) if same else np.empty((0, 2), np.int64)
    pairs = pairs[choose(len(pairs), most, seed)]
    candidates = np.flatnonzero(identities > 0)
    if len(shown) < 2:
        return pairs, np.empty((0, 2), np.int64)
    others = random.choice(candidates, (2 * len(pairs), 2))
    others = others[identities[others[:, 0]] != identities[others[:, 1]]]
    return pairs, others[: len(pairs)]


def similarities(images: np.ndarray, pairs: np.ndarray, data_range: float) -> np.ndarray:
    """SSIM [P] float64 of pairs [P, 2] of images [N, H, W, 3] uint8."""
    values = [np.empty(0)]
    for start in range(0, len(pairs), _PAIRS_AT_A_TIME):
        first, second = (torch.from_numpy(images[pairs[start : start + _PAIRS_AT_A_TIME, side]]) for side in (0, 1))
        values.append(ssim(first, second, data_range).numpy())
    return np.concatenate(values)


def calibration_notes(detector: dict, unreadable: Sequence[str], people: int, pairs: int) -> list[str]:
    """What a reader of the thresholds should know, in lines; people, pairs (of one person): how many were compared."""
    notes = []
    if unreadable:
        notes.append(f"{len(unreadable):,} images cannot be read and are left out, the first is {unreadable[0]!r}")
    if not people:
        notes.append("nobody knows who the images show, so no SSIM: give one sub-folder a person, or Market-1501 names")
    elif not pairs:
        notes.append("nobody has two images, so no SSIM: give several images of a person")
    share = detector["wanted_rejected"]
    lost = round(share * detector["images"])
    if lost < FEW_LOST:
        notes.append(f"only {lost} images decide the detector threshold: it is a rough one, give more images")
    if not detector["threshold"]:
        notes.append(
            f"in more than {100 * share:.4g}% of these images the detector sees nobody: any threshold above 0 rejects "
            "more than was asked for"
        )
    return notes


def calibration_lines(detector: dict, similarities: Sequence[dict]) -> list[str]:
    """The table for the terminal, in lines."""
    curve = {round(threshold, 2): share for threshold, share in detector["curve"]}
    lines = ["detector threshold   rejected here   in the study"]
    lines += [
        f"{threshold:18.1f}   {100 * curve[threshold]:12.2f}%   {100 * share:11.2f}%"
        for threshold, share in STUDY_REJECTED.items()
    ]
    lines += [
        f"{detector['threshold']:18.3f}   {100 * detector['rejected']:12.2f}%   proposed, for at most "
        f"{100 * detector['wanted_rejected']:.4g}%"
    ]
    if similarities:
        lines.append("SSIM data range   pairs    1%   median    99%   floor   ceiling   two people: median, below")
    for record in similarities:
        low, middle, high = (record["percentiles"][name] for name in ("1", "50", "99"))
        other = record["different_people"]
        two = f"{other['median']:.3f}, {100 * other['below_floor']:.1f}%" if other["pairs"] else "-"
        lines.append(
            f"{record['data_range']:15g} {record['pairs']:7,} {low:5.3f}    {middle:5.3f}  {high:5.3f}   "
            f"{record['floor']:5.3f}     {record['ceiling']:5.3f}   {two}"
        )
    return lines


def threshold_options(detector: dict, similarities: Sequence[dict]) -> list[str]:
    """The proposed thresholds as options of jobs/generate.py and jobs/refilter.py, at the study's data range."""
    options = ["--detector-threshold", f"{detector['threshold']:.3f}"]
    for record in similarities:
        if record["data_range"] == STUDY_DATA_RANGE:
            options += ["--ssim-floor", f"{record['floor']:.3f}", "--ssim-ceiling", f"{record['ceiling']:.3f}"]
    return options


def calibration_plot(
    detector: dict, similarities: Sequence[tuple[dict, np.ndarray, np.ndarray]], title: str = ""
) -> bytes:
    """A PNG: share rejected against threshold, and for each data range the SSIM of pairs of one and of two people.

    similarities: of each data range its record and both arrays of SSIM, [P] and [D].
    """
    panels = 1 + len(similarities)
    figure = Figure(figsize=(5.6 * panels, 4.4 + 0.3 * bool(title)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12)
    plots = figure.subplots(1, panels, squeeze=False)[0]
    _draw_curve(plots[0], detector)
    for axes, (record, same, different) in zip(plots[1:], similarities, strict=True):
        _draw_similarities(axes, record, same, different)
    for axes in plots:
        axes.grid(True, color="#e8eaed", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, framealpha=0.9, loc="upper left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_curve(axes: Axes, detector: dict) -> None:
    curve, study = np.array(detector["curve"]), np.array(detector["study"])
    axes.plot(curve[:, 0], 100 * curve[:, 1], color=_OWN, linewidth=1.8, label=f"here: {detector['images']:,} images")
    axes.plot(
        study[:, 0], 100 * study[:, 1], color=_STUDY, linewidth=1.2, linestyle="--", marker="o", markersize=4,
        label="the study: Market-1501",
    )  # fmt: skip
    threshold, rejected = detector["threshold"], 100 * detector["rejected"]
    axes.axvline(threshold, color=_INK, linewidth=1.2, label=f"proposed {threshold:.3f}: {rejected:.2f}% rejected")
    # Thresholds that reject half of all real images are of no use: only the part below is shown.
    axes.set_ylim(0, max(30, min(100, 1.6 * rejected, float(100 * curve[-2, 1]))))
    axes.set_xlim(0, 1)
    axes.set_title("Real images that the pedestrian filter takes away", fontsize=11)
    axes.set_xlabel("detector threshold")
    axes.set_ylabel("images rejected, %")


def _draw_similarities(axes: Axes, record: dict, same: np.ndarray, different: np.ndarray) -> None:
    both = np.concatenate([same, different])
    edges = np.linspace(
        float(both.min()), max(1.0, float(both.max())), (_BINS if len(same) >= _FEW_PAIRS else _FEW_BINS) + 1
    )
    for name, values, colour in (("two people", different, _DIFFERENT), ("one person", same, _OWN)):
        if len(values):
            share = 100 * np.histogram(values, edges)[0] / len(values)
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(share, edges, color=colour, linewidth=1.4, label=f"{name}: {len(values):,} pairs")
    for name, style in (("floor", "--"), ("ceiling", "-.")):
        axes.axvline(record[name], color=_INK, linestyle=style, linewidth=1.2, label=f"{name} {record[name]:.3f}")
    if record["data_range"] == STUDY_DATA_RANGE:
        axes.axvline(STUDY_FLOOR, color=_STUDY, linestyle=":", linewidth=1.4, label=f"the study's floor {STUDY_FLOOR}")
    axes.set_ylim(0, 1.4 * axes.dataLim.ymax)  # room for the legend
    axes.set_title(f"SSIM of two real pictures, data range {record['data_range']:g}", fontsize=11)
    axes.set_xlabel("SSIM")
    axes.set_ylabel(f"pairs in {edges[1] - edges[0]:.3f} of SSIM, %")
