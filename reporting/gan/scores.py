"""The scores of a set of images for people, and as the record that scripts read."""

from collections.abc import Mapping

from datasets.people.image_sets import ImageSet
from reporting.gan.fid_table import FidRow


def describe_sets(scored: ImageSet, reference: ImageSet, height: int, width: int) -> list[str]:
    """What is compared with what, and what happens to the images first, in lines."""
    lines = [f"scored     {scored.description}", f"reference  {reference.description}"]
    for name, images in (("scored", scored), ("reference", reference)):
        others = [size for size, _ in images.sizes if size != (height, width)]
        if not others:
            continue
        sizes = ", ".join(f"{h}x{w}" for h, w in others[:3]) + (f" and {len(others) - 3} more sizes") * (
            len(others) > 3
        )
        smaller = [h for h, w in others if h < height or w < width]
        way = "enlarging (bilinear) or averaging areas" if smaller else "averaging areas"
        stretched = any(abs(h * width - w * height) > max(height, width) for h, w in others)
        note = ", which changes their proportions" if stretched else ""
        lines.append(f"{name} images are brought from {sizes} to {height}x{width} by {way}{note}")
    return lines


def score_lines(scores: Mapping[str, float]) -> list[str]:
    """The scores as a small table, in lines."""
    fid, kid, deviation = scores["fid"], 1000 * scores["kid"], 1000 * scores["kid_std"]
    near = [f"{scores[name]:8.3f}" for name in ("precision", "recall", "density", "coverage")]
    return [
        f"FID                {fid:8.2f}            lower is better",
        f"KID x 1000         {kid:8.2f}            lower is better; of one subset +- {deviation:.2f}",
        f"precision, recall  {near[0]} {near[1]}   fakes that look real, reals that are covered",
        f"density, coverage  {near[2]} {near[3]}   the same, less led by outliers",
    ]


def set_record(images: ImageSet, used: int) -> dict:
    """A set of images as plain JSON values; `used` of them have features."""
    return {
        "kind": images.kind,
        "description": images.description,
        "images": used,
        "unreadable": images.count - used,
        "people": images.people,
        "sizes": [[height, width, count] for (height, width), count in images.sizes],
        "sha256": images.sha256,
    }


def own_row(scored: ImageSet, reference: ImageSet, fid: float, size: tuple[int, int], data_set: str) -> FidRow:
    """A comparison at `size` (height, width) as a line of the table of FIDs."""
    compared_with = f"{reference.description}, at {size[0]}x{size[1]}"
    return FidRow(scored.description, fid, data_set, compared_with, "measured here")
