"""Verdicts: a pure function of the scores in the shards and of thresholds. They are computed whenever needed."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from passersby.errors import InputError

KEPT = "kept"
VERDICTS: tuple[str, ...] = (
    KEPT,
    "error",
    "detector",
    "ssim_floor",
    "ssim_ceiling",
    "identity_floor",
    "identity_margin",
    "identity_ceiling",
)
LATENT = "latent"  # the `source` of images made from a real person's latents
# A threshold's option at the jobs -> its field of Thresholds.
FILTERS = {"detector_threshold": "detector"} | {
    name: name for name in ("ssim_floor", "ssim_ceiling", "identity_floor", "identity_margin", "identity_ceiling")
}
SCORES = ("status", "detector_score", "ssim", "variant", "reference_variant", "source", "identity_cosine")
SCORES += ("identity_margin",)  # the columns that `verdicts` reads


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The thresholds for the scores of a kept image. The defaults are the study's. None sets no limit.

    detector: the least person score, 0 to 1. ssim_floor: the least SSIM to the person's reference, -1 to 1.
    ssim_ceiling: the greatest SSIM, which rejects near-copies. The other thresholds need a re-ID network's
    scores. identity_floor: the least `identity_cosine`, -1 to 1. identity_margin: the least `identity_margin`,
    -2 to 2; above 0 the nearest real person is the right one. identity_ceiling: the greatest cosine to an
    existing real picture, -1 to 1. A floor above that ceiling makes sense: artificial people should resemble
    their own reference and no real person. Records of older runs name only the first three thresholds; the
    other three are None. Raises InputError for a value out of range.
    """

    detector: float = 0.6
    ssim_floor: float | None = 0.75
    ssim_ceiling: float | None = None
    identity_floor: float | None = None
    identity_margin: float | None = None
    identity_ceiling: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.detector <= 1:
            raise InputError(f"--detector-threshold {self.detector}: scores are 0 to 1")
        for option, value in (("--ssim-floor", self.ssim_floor), ("--ssim-ceiling", self.ssim_ceiling)):
            if value is not None and not -1 <= value <= 1:
                raise InputError(f"{option} {value}: SSIM is -1 to 1")
        limits = (
            ("--identity-floor", self.identity_floor, 1),
            ("--identity-margin", self.identity_margin, 2),
            ("--identity-ceiling", self.identity_ceiling, 1),
        )
        for option, value, most in limits:
            if value is not None and not -most <= value <= most:
                kind = "a cosine" if most == 1 else "a difference of cosines"
                raise InputError(f"{option} {value}: {kind} is -{most} to {most}")
        floor, ceiling = self.ssim_floor, self.ssim_ceiling
        if floor is not None and ceiling is not None and floor > ceiling:
            raise InputError(f"--ssim-ceiling {ceiling} is below --ssim-floor {floor}: nothing could be kept")


def with_filters(thresholds: Thresholds, filters: Sequence[str]) -> Thresholds:
    """Return the thresholds with the changes of `filters`: "ssim_floor=0.8" or "ssim_floor=None", keys as in FILTERS.

    Raises InputError for a text that names no threshold or gives no valid value.
    """
    changed: dict[str, float | None] = {}
    for text in filters:
        option, equals, value = text.partition("=")
        key = FILTERS.get(option.strip().lstrip("-").replace("-", "_"))
        if key is None or not equals:
            raise InputError(f"--filters {text}: give key=value, a key being one of {', '.join(FILTERS)}")
        if key in changed:
            raise InputError(f"--filters {text}: {option} is given twice, give it once")
        try:
            changed[key] = None if value.strip() == "None" and key != "detector" else float(value)
        except ValueError as error:
            raise InputError(f"--filters {text}: {value!r} is no number") from error
    return dataclasses.replace(thresholds, **changed)


def without_scores(table: pa.Table, thresholds: Thresholds) -> dict[str, str]:
    """Map each identity threshold that is set and cannot reject any image to the missing score, in words.

    Such a threshold needs a score that no image of `table` has.
    Columns read: source, identity_cosine, identity_margin.
    """
    scores = {
        "identity_floor": (table["identity_cosine"].is_valid().to_numpy(), "likeness to its person"),
        "identity_margin": (table["identity_margin"].is_valid().to_numpy(), "likeness to other real people"),
        "identity_ceiling": (~nearest_real_picture(table)[1], "likeness to real pictures"),
    }
    return {
        name: what
        for name, (scored, what) in scores.items()
        if getattr(thresholds, name) is not None and not scored.any()
    }


def verdicts(table: pa.Table, thresholds: Thresholds) -> pa.StringArray:
    """One of VERDICTS for each row (an image): kept, or the first filter that the image does not pass.

    Columns read: SCORES. The order of the filters is error (not made or not scored), then that of VERDICTS.
    A person's reference is compared with itself, so both SSIM thresholds exempt it. An artificial person's
    reference has a cosine of 1, so it passes any identity floor; it need not pass the ceiling. The ceiling
    judges the greatest cosine to a real picture: of the same person where the source is "latent"
    (`identity_cosine`), of anybody otherwise (`identity_cosine` - `identity_margin`). A score that is null
    because its stage did not run rejects no image; NaN passes no filter.
    """
    failed = pc.call_function("not_equal", [table["status"], "ok"]).fill_null(True).to_numpy()
    person, person_null = _scores(table, "detector_score")
    ssim, ssim_null = _scores(table, "ssim")
    cosine, cosine_null = _scores(table, "identity_cosine")
    margin, margin_null = _scores(table, "identity_margin")
    variant = table["variant"].to_numpy()
    reference = table["reference_variant"].fill_null(-1).to_numpy()
    compared = ~ssim_null & (variant != reference)
    real, real_null = nearest_real_picture(table)
    reasons = [
        failed,
        ~person_null & ~(person >= thresholds.detector),
        compared & ~(ssim >= _or(thresholds.ssim_floor, -math.inf)),
        compared & ~(ssim <= _or(thresholds.ssim_ceiling, math.inf)),
        ~cosine_null & ~(cosine >= _or(thresholds.identity_floor, -math.inf)),
        ~margin_null & ~(margin >= _or(thresholds.identity_margin, -math.inf)),
        ~real_null & ~(real <= _or(thresholds.identity_ceiling, math.inf)),
    ]
    index = np.select(reasons, range(1, len(VERDICTS)), default=0)
    return pa.array(np.array(VERDICTS, dtype=object)[index], pa.string())


def nearest_real_picture(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The cosines that the identity ceiling judges: (cosines [N] float64, whether each is missing [N] bool).

    Columns read: source, identity_cosine, identity_margin. For variants of real people it is the greatest
    cosine to a picture of the same person, for artificial people to a picture of anybody. A missing cosine
    is NaN.
    """
    cosine, cosine_null = _scores(table, "identity_cosine")
    margin, margin_null = _scores(table, "identity_margin")
    latent = pc.call_function("equal", [table["source"], LATENT]).fill_null(False).to_numpy()
    return np.where(latent, cosine, cosine - margin), cosine_null | (~latent & margin_null)


def nearest_real(table: pa.Table) -> np.ndarray:
    """The greatest cosine of each image to a real picture of anybody, [N] float64, NaN where it is unknown.

    Columns read: as in `nearest_real_picture`.
    """
    cosine, _ = _scores(table, "identity_cosine")
    margin, _ = _scores(table, "identity_margin")
    nearest, _ = nearest_real_picture(table)
    return np.fmax(nearest, cosine - margin)


def _or(threshold: float | None, otherwise: float) -> float:
    return otherwise if threshold is None else threshold


def _scores(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    column = table[name]
    null = column.is_null().to_numpy()
    # Scores are compared in float64: in float32 a verdict could differ from that of a reader who uses float64.
    return column.cast(pa.float64()).fill_null(math.nan).to_numpy(), null


def count_verdicts(column: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    """The number of images with each verdict, for all of VERDICTS."""
    counts = {item["values"].as_py(): item["counts"].as_py() for item in column.value_counts()}
    return {name: counts.get(name, 0) for name in VERDICTS}


def add_counts(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """The sums of two counts of verdicts."""
    return {name: first.get(name, 0) + second.get(name, 0) for name in VERDICTS}
