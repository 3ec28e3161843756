"""A picture of what the augmentation sets do to people at growing probabilities: docs/pictures/augmentation.png.

python jobs/make_toy_crowd.py --out /tmp/crowd
python benchmarks/augmentation_sheet.py --crowd /tmp/crowd
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from datasets.people.decoding import decode_listing, decode_scaled
from datasets.people.market1501 import list_split
from jobs.common import run_job
from passersby.errors import InputError
from reporting.grid import SheetCell, SheetRow, contact_sheet, save_png
from training.gan.augment import apply, draw


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw a sheet: one row for each set and probability, the same people in every row."""

    crowd: Path
    """A tree in the layout of Market-1501, such as one written by jobs/make_toy_crowd.py."""
    out: Path = Path("docs/pictures/augmentation.png")
    """The picture to write."""
    sets: tuple[str, ...] = ("upright", "bgc")
    """Augmentation sets."""
    probabilities: tuple[float, ...] = (0.2, 0.6, 1.0)
    """Probability of each transform."""
    people: int = 8
    """Pictures in a row, each of another person."""
    seed: int = 0
    """Of the random draws; the same in every row, so that a larger probability shows more of the same."""


def first_pictures(root: Path, people: int) -> np.ndarray:
    """The first picture of each of the first training people, uint8 [people, 128, 64, 3]."""
    listing = list_split(root, "train")
    first = np.sort(np.unique(listing.identities, return_index=True)[1])
    if len(first) < people:
        raise InputError(f"--people {people} is more than the {len(first)} training people in {root}")
    images, _, _ = decode_listing(listing.take(first[:people]), 128, 64, decode_one=decode_scaled)
    return images


def main(config: Config) -> None:
    """Augment and draw."""
    originals = first_pictures(config.crowd, config.people)
    images = torch.from_numpy(originals).permute(0, 3, 1, 2).float() / 127.5 - 1
    rows = [SheetRow("as they are", [SheetCell(image) for image in originals])]
    for name in config.sets:
        for p in config.probabilities:
            count, _, height, width = images.shape
            draws = draw(name, p, count, height, width, np.random.default_rng(config.seed))
            augmented = apply(images, draws).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
            rows.append(
                SheetRow(f"{name}, p = {p}", [SheetCell(image) for image in augmented.permute(0, 2, 3, 1).numpy()])
            )
    save_png(config.out, contact_sheet(rows, title="What the discriminator sees"))
    print(f"wrote {config.out}")


if __name__ == "__main__":
    run_job(main, Config)
