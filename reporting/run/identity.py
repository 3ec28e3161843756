"""How like their people the images of a run are: figures and plots out of a manifest's identity scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.runs.verdicts import KEPT, LATENT, nearest_real_picture
from reporting.run.histograms import Plot, histogram
from reporting.tables import percent


def identity_summary(manifest: pa.Table) -> dict[str, Any] | None:
    """Figures of all scored images and of the kept ones, plain JSON values; None where no identities were compared.

    {"all" | "kept": {"variants": of real people, {scored, compared, right, share_right, median_cosine}; "artificial":
    people's images but for their references, {scored, compared, median_cosine, median_nearest}}}. scored: images with a
    cosine; compared: also with other people's real pictures; right: whose nearest real person is the right one;
    median_nearest: of the cosine to the nearest real picture. Medians and shares of nothing are None.
    """
    if "identity_cosine" not in manifest.column_names or not manifest["identity_cosine"].is_valid().to_numpy().any():
        return None
    cosine, margin, latent, reference = _columns(manifest)
    kept = pc.equal(manifest["verdict"], KEPT).to_numpy()
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
    latent = pc.equal(manifest["source"], LATENT).fill_null(False).to_numpy()
    reference = pc.equal(manifest["variant"], manifest["reference_variant"]).fill_null(False).to_numpy()
    return cosine, margin, latent, reference


def _variants(cosine: np.ndarray, margin: np.ndarray) -> dict[str, Any]:
    compared, right = int(np.isfinite(margin).sum()), int((margin > 0).sum())
    return {
        "scored": int(np.isfinite(cosine).sum()),
        "compared": compared,
        "right": right,
        "share_right": right / compared if compared else None,
        "median_cosine": _median(cosine),
    }


def _artificial(cosine: np.ndarray, nearest: np.ndarray) -> dict[str, Any]:
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
    """The same as lines of a table: what, of all images, of the kept ones. Empty without scores."""
    summary = identity_summary(manifest)
    if summary is None:
        return []

    def line(what: str, kind: str, name: str, form: Any) -> tuple[str, str, str]:
        return (what, *("" if (v := summary[part][kind][name]) is None else form(v) for part in ("all", "kept")))

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
    """Histograms of the scores that there are; kept: [N] bool. Columns as of `identity_summary`."""
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
