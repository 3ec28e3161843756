"""Every score of a run inside its page: packed so that the page judges exactly as datasets/runs/verdicts.py does."""

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.runs.verdicts import LATENT, nearest_real_picture

# Bits of an image's flag byte; report_run.js names the same ones.
FAILED, NO_DETECTOR, NO_SSIM, NO_COSINE, NO_MARGIN, FROM_LATENT, IS_REFERENCE = (1 << bit for bit in range(7))
SCORES = {
    "detector": ("detector_score", NO_DETECTOR),
    "ssim": ("ssim", NO_SSIM),
    "cosine": ("identity_cosine", NO_COSINE),
    "margin": ("identity_margin", NO_MARGIN),
}


@dataclasses.dataclass(frozen=True)
class Control:
    """A threshold that the page can move. value: the run's, None where it has none; low, high: what refilter takes."""

    key: str  # of datasets.runs.verdicts.Thresholds
    score: str  # the plot whose line it is
    label: str
    option: str  # of jobs/refilter.py
    low: float
    high: float
    value: float | None
    suggested: float  # where it starts when it is switched on


_CONTROLS = (
    ("detector", "detector", "Least pedestrian score", "--detector-threshold", 0, 1, 0.6),
    ("ssim_floor", "ssim", "SSIM floor", "--ssim-floor", -1, 1, 0.75),
    ("ssim_ceiling", "ssim", "SSIM ceiling", "--ssim-ceiling", -1, 1, 0.99),
    ("identity_floor", "cosine", "Identity floor", "--identity-floor", -1, 1, 0.5),
    ("identity_margin", "margin", "Identity margin", "--identity-margin", -2, 2, 0.0),
    ("identity_ceiling", "real", "Identity ceiling", "--identity-ceiling", -1, 1, 0.95),
)


def controls(manifest: pa.Table, thresholds: Mapping[str, float | None]) -> list[Control]:
    """The thresholds that judge anything in these images; a run without scores of identities has none of those."""
    there = {name: manifest[column].null_count < manifest.num_rows for name, (column, _) in SCORES.items()}
    there["real"] = not nearest_real_picture(manifest)[1].all()
    latent = bool(pc.any(pc.equal(manifest["source"], LATENT)).as_py())
    found = []
    for key, score, label, option, low, high, suggested in _CONTROLS:
        if there[score]:
            # A real person's pictures are judged by one cosine, from below and from above.
            plot = "cosine" if score == "real" and latent else score
            found.append(Control(key, plot, label, option, low, high, thresholds.get(key), suggested))
    return found


def pack_scores(manifest: pa.Table) -> dict[str, Any]:
    """Scores and flags of all images, for the page's script: {"count", "columns", "flags", "people"}.

    columns: score -> base64 of little-endian float32 [count], the bits of the shards (NaN where null); left out where
    no image has that score. flags: base64 of uint8 [count]. people: base64 of uint32, the images of each person in the
    order of rows, which is the plan's. Columns read: those of datasets.runs.verdicts.verdicts and person. Nothing is
    compressed: 100,000 images with all scores are 2.3 MB, and every browser reads them alike.
    """
    flags = pc.not_equal(manifest["status"], "ok").fill_null(True).to_numpy().astype(np.uint8) * FAILED
    columns = {}
    for name, (column, bit) in SCORES.items():
        null = manifest[column].is_null().to_numpy()
        flags |= null.astype(np.uint8) * bit
        if not null.all():
            columns[name] = _base64(manifest[column].cast(pa.float32()).fill_null(np.nan).to_numpy().astype("<f4"))
    latent = pc.equal(manifest["source"], LATENT).fill_null(False).to_numpy()
    reference = manifest["variant"].to_numpy() == manifest["reference_variant"].fill_null(-1).to_numpy()
    flags |= latent.astype(np.uint8) * FROM_LATENT | reference.astype(np.uint8) * IS_REFERENCE
    return {
        "count": manifest.num_rows,
        "columns": columns,
        "flags": _base64(flags),
        "people": _base64(_people(manifest["person"].to_numpy()).astype("<u4")),
    }


def _people(person: np.ndarray) -> np.ndarray:
    starts = np.flatnonzero(np.diff(person, prepend=person[:1] - 1))
    return np.diff(starts, append=len(person))


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
