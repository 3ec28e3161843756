"""People found as one who, hows and an offset, beside plain w and w+: the error, and who variants still are.

    python jobs/make_toy_crowd.py --out /tmp/crowd
    python jobs/train_reid.py --preset scarce-small --data /tmp/crowd --labelled-people 60 --threads 1 --out /tmp/judge
    python benchmarks/person_codes.py --data /tmp/crowd --judge /tmp/judge/network.safetensors --out /tmp/person_codes

All ways start without an encoder and take equally many steps. Variants of who have another how. Variants of w and w+
have layers of a random code in the place of the person's. The judge, a re-ID network that takes no part in the search,
compares variants with real pictures of the person that were not inverted. It says "the same person" from the cosine
that 1% of the pairs of different real people reach. Measured figures: docs/inversion.md.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from datasets.people.decoding import decode_bicubic, decode_listing
from datasets.people.listing import Listing
from datasets.people.readers import read_split
from datasets.runs.plan import layer_groups
from jobs.common import run_job
from passersby import weights
from passersby.errors import InputError
from passersby.metrics.bootstrap import mean_interval
from passersby.metrics.features import normalised
from passersby.metrics.identity import same_person_threshold
from passersby.metrics.variants import colour_spread, region_colours
from passersby.perception.perceptual import load_perceptual
from passersby.reid.checkpoint import load_reid
from passersby.reid.network import FeatureNetwork
from passersby.restyle.losses import InversionLoss, LossWeights
from passersby.restyle.refinement import person_code, refine, w_statistics
from passersby.restyle.who import PersonCode, Starts, codes_of, refine_person
from passersby.stylegan3 import to_uint8
from passersby.stylegan3.checkpoint import load_network
from passersby.stylegan3.generator import z_of_seeds
from passersby.stylegan3.mapping import who_size
from reporting.grid import SheetCell, SheetRow, contact_sheet, encode_png, save_png

MIXED = ("coarse", "middle")  # groups of layers that variants of w and w+ take from a random code
PSI = 0.7  # of random codes that are mixed in, as jobs/generate.py draws them by default
SHOWN, FEW = 8, 3  # people and variants of the picture; pictures of each person in it


@dataclasses.dataclass(frozen=True)
class Config:
    """Invert people's pictures in w, in w+ and as one who; measure the error and the same-person rate of variants."""

    data: Path
    """The data set that the network was trained on; its training people are inverted."""
    judge: Path
    """A re-ID network, which measures only."""
    out: Path
    """Folder for results.json and the picture."""
    network: Path = weights.DEMO_NETWORK
    """A network of jobs/train_gan.py --pairs."""
    people: int = 12
    """People, evenly spread."""
    pictures: int = 4
    """Pictures of each person that are inverted, evenly spread; the others are compared with."""
    steps: int = 100
    """Steps of every way."""
    variants: int = 8
    """Variants of each person."""
    threshold_pictures: int = 1000
    """Real pictures whose pairs give the judge's threshold."""
    threads: int = 1
    """CPU threads."""


class Bench:
    """The networks, the real people, and what is measured with them."""

    def __init__(self, config: Config):
        torch.set_num_threads(config.threads)
        loaded = load_network(config.network)
        if not loaded.has_who or loaded.generator.c_dim:
            raise InputError(f"--network {config.network}: give a network of jobs/train_gan.py --pairs without labels")
        self.generator, self.loss = loaded.generator, InversionLoss(LossWeights(identity=0), load_perceptual(), None)
        self.statistics, self.starts = w_statistics(self.generator), Starts.of(self.generator)
        self.average = self.statistics.mean.expand(self.generator.num_ws, -1)
        judge = load_reid(config.judge)
        self.judge = FeatureNetwork(judge.network, judge.sha256)
        listing = read_split(config.data, "train")
        self.listing = listing.take(np.flatnonzero(listing.identities > 0))
        several = np.linspace(0, len(self.listing) - 1, config.threshold_pictures).astype(int)
        real = self.listing.take(np.unique(several))
        threshold = same_person_threshold(self.judged(real), real.identities)
        if threshold is None:
            raise InputError("--threshold-pictures: no two of them are of different people: give more")
        self.threshold = threshold

    def floats(self, listing: Listing) -> torch.Tensor:
        """Pictures [N, 3, h, w] of the generator's size, -1..1."""
        pixels, _, unreadable = decode_listing(listing, self.generator.config.height, self.generator.config.width)
        if unreadable:
            raise InputError(f"--data: {unreadable[0]} cannot be read: remove it")
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1

    def judged(self, pictures: Listing | np.ndarray) -> np.ndarray:
        """The judge's features [N, D] of real pictures, or of images [N, h, w, 3] uint8."""
        size = self.judge.height, self.judge.width_pixels
        if isinstance(pictures, Listing):
            pixels = decode_listing(pictures, *size)[0]
        else:
            pixels = np.stack([decode_bicubic(encode_png(image), *size) for image in pictures])
        parts = [self.judge(pixels[first : first + 32]) for first in range(0, len(pixels), 32)]
        return normalised(np.concatenate(parts), "images")

    @torch.no_grad()
    def draw(self, codes: torch.Tensor) -> np.ndarray:
        """Codes -> uint8 [N, h, w, 3]."""
        return to_uint8(self.generator.synthesis(codes)).numpy()


def in_w(space: str):
    """A way that gives every picture a code of its own; variants take layers from random codes."""

    def way(bench: Bench, images: torch.Tensor, z: torch.Tensor, steps: int):
        start = bench.average.expand(len(images), -1, -1)
        codes = refine(
            bench.generator.synthesis, bench.loss, bench.loss.target(images), start, steps, average=bench.average,
            spread=bench.statistics.spread, space=space,
        )  # fmt: skip
        others, person = bench.generator.mapping(z, truncation_psi=PSI), torch.from_numpy(person_code(codes.numpy()))
        variants = {}
        for group in MIXED:
            first, last = layer_groups(bench.generator.num_ws)[group]
            variants[f"{group} layers"] = person.repeat(len(z), 1, 1)
            variants[f"{group} layers"][:, first : last + 1] = others[:, first : last + 1]
        return codes, variants

    return way


def as_who(bench: Bench, images: torch.Tensor, z: torch.Tensor, steps: int):
    """The way of jobs/invert.py --refine who; variants have another how."""
    start = bench.starts.nearest(images)
    found = refine_person(
        bench.generator, bench.loss, bench.loss.target(images), start, steps, spread=bench.statistics.spread
    )
    return found.codes(bench.generator.mapping), variants_of(bench, found, z)


def variants_of(bench: Bench, found: PersonCode, z: torch.Tensor) -> dict[str, torch.Tensor]:
    """The codes of variants with the second half of z as how."""
    how = z[:, who_size(bench.generator.z_dim) :]
    return {"another how": codes_of(bench.generator.mapping, found.who, how, found.offset)}


WAYS = {"w": in_w("w"), "w+": in_w("w+"), "who": as_who}


def main(config: Config) -> None:
    """The table, results.json and the picture."""
    config.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(config)
    people = np.unique(bench.listing.identities)
    people = people[np.linspace(0, len(people) - 1, config.people).round().astype(int)]
    figures: dict[str, dict[str, list]] = {}
    rows, table = [], {}
    for number, identity in enumerate(people.tolist()):
        cells = person(bench, config, number, identity, figures)
        if number < SHOWN:
            rows.append(SheetRow(f"person {bench.listing.people[identity]}", cells))
        print(f"{number + 1}/{len(people)} people", flush=True)
        table = {way: means(found) for way, found in figures.items()}
        results = {"threshold": float(bench.threshold), "people": number + 1, "ways": table}
        (config.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    for way, found in table.items():
        texts = [f"{name} {mean:.3f} ({low:.3f} to {high:.3f})" for name, (mean, low, high) in found.items()]
        print(f"{way:20} {'  '.join(texts)}")
    few, variants = min(config.pictures, FEW), min(config.variants, SHOWN)
    headings = [("pictures", few), ("found", few), ("with another how", variants)]
    title = "Real people found as one who, and with another how"
    save_png(config.out / "people.png", contact_sheet(rows, title=title, subtitle="drawn people", headings=headings))


def person(bench: Bench, config: Config, number: int, identity: int, figures: dict) -> list[SheetCell]:
    """Add a person's figures of every way to `figures`; returns the line of the picture."""
    own = np.flatnonzero(bench.listing.identities == identity)
    chosen = np.unique(np.linspace(0, len(own) - 1, min(config.pictures, len(own))).round().astype(int))
    pictures, others = bench.listing.take(own[chosen]), bench.listing.take(np.delete(own, chosen))
    images, real = bench.floats(pictures), bench.judged(others)
    found_in = bench.judged(pictures)
    target = bench.loss.target(images)
    z = torch.from_numpy(
        z_of_seeds(range(10_000 + 100 * number, 10_000 + 100 * number + config.variants), bench.generator.z_dim)
    ).float()
    add(figures, "real pictures", same_person=(found_in @ real.T >= bench.threshold).mean())
    cells = [SheetCell(image) for image in to_uint8(images).numpy()[:FEW]]
    for name, way in WAYS.items():
        clock = time.perf_counter()
        with torch.no_grad():
            codes, variants = way(bench, images, z, config.steps)
            seconds = (time.perf_counter() - clock) / len(images)
            losses = bench.loss.measure(bench.generator.synthesis(codes), target)
        drawn = bench.draw(codes)
        cosines = (bench.judged(drawn) * found_in).sum(1)
        add(
            figures, name, lpips=losses.lpips.mean(), l2=losses.l2.mean(), cosine=cosines.mean(), seconds=seconds,
            same_person=(bench.judged(drawn) @ real.T >= bench.threshold).mean(),
        )  # fmt: skip
        for kind, made in variants.items():
            shown = bench.draw(made)
            features = bench.judged(shown)
            among = (features @ features.T)[np.triu_indices(len(features), 1)] >= bench.threshold
            spreads = {
                f"{region}_within": colour_spread(region_colours(shown, region)[None])["within"]
                for region in ("edges", "torso")
            }
            same = (features @ real.T >= bench.threshold).mean()
            add(figures, f"{name}, {kind}", same_person=same, among=among.mean(), **spreads)
    cells += [SheetCell(image) for image in drawn[:FEW]]
    return cells + [SheetCell(image) for image in shown[:SHOWN]]


def add(figures: dict, row: str, **values) -> None:
    """Append a person's values to the row."""
    for name, value in values.items():
        figures.setdefault(row, {}).setdefault(name, []).append(float(value))


def means(found: dict[str, list]) -> dict[str, list[float]]:
    """The mean of each figure over people, with its 95% interval."""
    return {name: [float(value) for value in mean_interval(np.array(values))] for name, values in found.items()}


if __name__ == "__main__":
    run_job(main, Config)
