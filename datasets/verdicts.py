"""Verdicts: a pure function of the scores in the shards and of thresholds, computed again whenever asked."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import InputError

KEPT = "kept"
VERDICTS = (KEPT, "error", "detector", "ssim_floor", "ssim_ceiling")


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What an image must reach to be kept; the defaults are the study's.

    detector: least person score, 0 to 1. ssim_floor: least SSIM to the person's reference, -1 to 1; None
    has no floor. ssim_ceiling: greatest SSIM, against near-copies; None has no ceiling. Raises InputError
    out of range.
    """

    detector: float = 0.6
    ssim_floor: float | None = 0.75
    ssim_ceiling: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.detector <= 1:
            raise InputError(f"--detector-threshold {self.detector}: scores are 0 to 1")
        for option, value in (("--ssim-floor", self.ssim_floor), ("--ssim-ceiling", self.ssim_ceiling)):
            if value is not None and not -1 <= value <= 1:
                raise InputError(f"{option} {value}: SSIM is -1 to 1")
        floor, ceiling = self.ssim_floor, self.ssim_ceiling
        if floor is not None and ceiling is not None and floor > ceiling:
            raise InputError(f"--ssim-ceiling {ceiling} is below --ssim-floor {floor}: nothing could be kept")


def verdicts(table: pa.Table, thresholds: Thresholds) -> pa.StringArray:
    """One of VERDICTS for each row (an image): kept, or the first filter that it does not pass.

    Columns read: status, detector_score, ssim, variant, reference_variant. The order is error (not made
    or not scored), detector, ssim_floor, ssim_ceiling. A person's reference is compared with itself and
    therefore exempt from both SSIM thresholds. A score that is null because its stage did not run rejects
    nothing; NaN passes no filter.
    """
    failed = pc.not_equal(table["status"], "ok").fill_null(True).to_numpy()
    person, person_null = _scores(table, "detector_score")
    ssim, ssim_null = _scores(table, "ssim")
    variant = table["variant"].to_numpy()
    reference = table["reference_variant"].fill_null(-1).to_numpy()
    compared = ~ssim_null & (variant != reference)
    floor = -math.inf if thresholds.ssim_floor is None else thresholds.ssim_floor
    ceiling = math.inf if thresholds.ssim_ceiling is None else thresholds.ssim_ceiling
    reasons = [
        failed,
        ~person_null & ~(person >= thresholds.detector),
        compared & ~(ssim >= floor),
        compared & ~(ssim <= ceiling),
    ]
    index = np.select(reasons, [1, 2, 3, 4], default=0)
    return pa.array(np.array(VERDICTS, dtype=object)[index], pa.string())


def _scores(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    column = table[name]
    null = column.is_null().to_numpy()
    # float32 scores against float32 thresholds would disagree with a reader who computes in float64.
    return column.cast(pa.float64()).fill_null(math.nan).to_numpy(), null


def count_verdicts(column: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    """Number of images with each verdict, every one of VERDICTS named."""
    found = {item["values"].as_py(): item["counts"].as_py() for item in column.value_counts()}
    return {name: found.get(name, 0) for name in VERDICTS}


def add_counts(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """The sums of two counts of verdicts."""
    return {name: first.get(name, 0) + second.get(name, 0) for name in VERDICTS}
