"""What the scores see: blur, noise and missing people, on real images of the toy crowd.

    python jobs/make_toy_crowd.py --out /tmp/crowd --train-people 840
    python benchmarks/fid_sensitivity.py --crowd /tmp/crowd

Two disjoint sets of training images of the same people: one is the reference, the other is spoilt more and more.
Without damage the scores show what a perfect generator would reach with so few images. Draws
docs/pictures/fid_sensitivity.png and prints every score.
"""

import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot

from datasets.people.decoding import decode_listing, decode_scaled
from datasets.people.listing import Listing
from datasets.people.market1501 import list_split
from datasets.storage.feature_cache import real_features
from jobs.common import run_job
from passersby import weights
from passersby.errors import InputError
from passersby.metrics.fid import score_features
from passersby.perception.inception import Inception, load_inception

BLURS = (0.0, 0.5, 0.75, 1.0, 1.5, 2.0)  # sigma in pixels
NOISES = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # standard deviation in grey levels of 255
PEOPLE_SHARES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02)
PANELS = (
    ("fid", "FID"),
    ("kid", "KID x 1000"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("density", "density"),
    ("coverage", "coverage"),
)
COLOURS = ("#0b5fa5", "#d55e00", "#3b8f3b")


@dataclasses.dataclass(frozen=True)
class Config:
    """Scores of real images that are blurred, made noisy, or show fewer people, against others of the same people."""

    crowd: Path
    """A tree written by jobs/make_toy_crowd.py."""
    images: int = 300
    """Of each point, and of the reference."""
    height: int = 64
    """Size at which images are compared, in pixels."""
    width: int = 32
    out: Path = Path("docs/pictures/fid_sensitivity.png")
    """The picture."""
    threads: int = 1
    """CPU threads."""


def read(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reference images, other images uint8 [N, H, W, 3] RGB, and the others' identities [N]: of each person as many."""
    random = np.random.default_rng(0)
    listing = list_split(config.crowd, "train")
    by_person = {person: np.flatnonzero(listing.identities == person) for person in np.unique(listing.identities)}
    people = [person for person, places in by_person.items() if len(places) >= 2]
    if len(people) < config.images:
        raise InputError(
            f"--crowd {config.crowd}: {len(people)} people with two images; --images {config.images} asks for more"
        )
    reference, other = [], []
    for person in random.permutation(people)[: config.images]:
        first, second = random.choice(len(by_person[person]), 2, replace=False)
        reference.append(by_person[person][first])
        other.append(by_person[person][second])
    return (
        decoded(config, listing.take(reference)),
        decoded(config, listing.take(other)),
        listing.identities[other],
    )


def decoded(config: Config, listing: Listing) -> np.ndarray:
    """Images of the crowd, uint8 [N, H, W, 3] RGB."""
    return decode_listing(listing, config.height, config.width, decode_one=decode_scaled)[0]


def fewer_people(config: Config, identities: np.ndarray, share: float) -> np.ndarray:
    """As many images, uint8 [N, H, W, 3], of a share of the people: other images of the same ones."""
    if share == 1.0:
        raise ValueError("all people are the undamaged set")
    count = max(2, round(share * len(identities)))
    kept = set(identities[:count].tolist())
    listing = list_split(config.crowd, "train").of_people(kept)
    chosen = np.random.default_rng(1).permutation(len(listing))[: len(identities)]
    chosen = np.resize(chosen, len(identities))  # the fewest people have not enough images: some come twice
    return decoded(config, listing.take(chosen))


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of `sigma` pixels."""
    return np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in images])


def noisy(images: np.ndarray, deviation: float) -> np.ndarray:
    """Independent normal noise in every channel, rounded and clipped to 0..255."""
    noise = np.random.default_rng(2).normal(0, deviation, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def measure(config: Config, inception: Inception) -> dict[str, list[tuple[float, dict[str, float]]]]:
    """For each damage its levels with all scores."""
    reference, other, identities = read(config)
    real = real_features(reference, inception)
    undamaged = score_features(real, real_features(other, inception))
    damages = {
        "blur, sigma in pixels": [(level, lambda level=level: blurred(other, level)) for level in BLURS],
        "noise, deviation in grey levels": [(level, lambda level=level: noisy(other, level)) for level in NOISES],
        "share of the people that is left": [
            (level, lambda level=level: fewer_people(config, identities, level)) for level in PEOPLE_SHARES
        ],
    }
    results = {}
    for name, levels in damages.items():
        results[name] = [(levels[0][0], undamaged)]
        for level, make in levels[1:]:
            results[name].append((level, score_features(real, inception(make()))))
            print(f"{name} {level:g}: {said(results[name][-1][1])}", flush=True)
    print(f"undamaged: {said(undamaged)}")
    return results


def said(scores: dict[str, float]) -> str:
    """Scores in a line."""
    return "  ".join(f"{label} {value(scores, key):.3g}" for key, label in PANELS)


def value(scores: dict[str, float], key: str) -> float:
    """A score as it is drawn."""
    return 1000 * scores[key] if key == "kid" else scores[key]


def draw(config: Config, results: dict[str, list[tuple[float, dict[str, float]]]]) -> None:
    """One row for each damage, one column for each score; the levels evenly spaced, as they are no one unit."""
    figure, axes = pyplot.subplots(3, len(PANELS), figsize=(15, 7), sharey="col", layout="constrained")
    for row, (name, points), colour in zip(axes, results.items(), COLOURS, strict=True):
        for axis, (key, _) in zip(row, PANELS, strict=True):
            axis.plot(
                range(len(points)), [value(scores, key) for _, scores in points], "o-", color=colour, markersize=4
            )
            axis.set_xticks(range(len(points)), [f"{level:g}" for level, _ in points])
            axis.set_xlabel(name, fontsize=9)
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.3)
    for axis, (key, label) in zip(axes[0], PANELS, strict=True):
        drawn = [value(scores, key) for points in results.values() for _, scores in points]
        axis.set_ylim(min(0, *drawn) - 0.03 * max(drawn), 1.05 * max(drawn))  # of the whole column
        better = "lower is better" if key in ("fid", "kid") else "higher is better"
        axis.set_title(f"{label}\n{better}", fontsize=11)
    figure.suptitle(
        f"Toy crowd (drawn people), {config.images} images a point at {config.height}x{config.width} px against "
        f"{config.images} others of the same people; left end of each curve: undamaged",
        fontsize=12,
    )
    config.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.out, dpi=90)


def main(config: Config) -> None:
    """Measure, print, draw."""
    torch.set_num_threads(config.threads)
    start = time.perf_counter()
    results = measure(config, load_inception(weights.get("inception-2015")))
    draw(config, results)
    print(f"{config.out}; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    run_job(main, Config)
