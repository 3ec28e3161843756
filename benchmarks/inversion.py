"""How well pictures that the encoder has not seen are inverted, what each stage costs, and who variants still are.

    python jobs/make_toy_crowd.py --out /tmp/crowd
    for seed in 0 1; do python jobs/train_reid.py --preset strong-small --data /tmp/crowd --seed $seed --threads 1 \\
        --out /tmp/reid/strong-$seed; done
    python jobs/train_encoder.py --preset tiny --data /tmp/crowd --generated-share 0.25 --steps 1500 --threads 1 \\
        --out /tmp/encoder --identity-network /tmp/reid/strong-0/network.safetensors
    python benchmarks/inversion.py --data /tmp/crowd --encoder /tmp/encoder/encoder.safetensors --out /tmp/inversion \\
        --identity /tmp/reid/strong-0/network.safetensors --judge /tmp/reid/strong-1/network.safetensors

The first picture of each training person is what jobs/train_encoder.py keeps from training. Identity is judged by
another network than the one in the loss. Measured figures: docs/inversion.md.
"""

import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from actors.identity_scorer import features_in_chunks
from datasets.people.decoding import decode_listing
from datasets.people.listing import Listing
from datasets.people.names import is_image
from datasets.people.readers import read_split
from jobs.common import run_job
from passersby import weights
from passersby.errors import InputError
from passersby.metrics.bootstrap import mean_interval
from passersby.metrics.features import normalised
from passersby.metrics.identity import nearest_pictures
from passersby.perception.perceptual import load_perceptual
from passersby.reid.checkpoint import load_reid
from passersby.reid.identity_features import load_identity
from passersby.reid.network import FeatureNetwork
from passersby.restyle.checkpoint import check_pair, load_encoder
from passersby.restyle.encoder import pooled, restyle_steps, working_size
from passersby.restyle.losses import InversionLoss, LossWeights
from passersby.restyle.pivotal import apply_delta, tune
from passersby.restyle.refinement import person_code, refine, w_statistics
from passersby.stylegan3 import Generator, to_uint8
from passersby.stylegan3.checkpoint import load_network
from reporting.grid import SheetCell, SheetRow, contact_sheet, save_png

# The study mixes the middle layers; in the demo network clothes lie there, and poses in the coarse ones.
LAYERS = {"middle": slice(5, 12), "coarse": slice(0, 5)}
CHUNK = 8


@dataclasses.dataclass(frozen=True)
class Config:
    """Invert pictures that were kept from an encoder's training, stage by stage, and mix the people's middle layers."""

    data: Path
    """The data set that the encoder was trained on."""
    encoder: Path
    identity: Path
    """Re-ID network of the losses, and of the gate."""
    judge: Path
    """Another re-ID network, that says who an image shows."""
    out: Path
    """Folder for results.json and the pictures."""
    network: Path | None = None
    """The generator; default: the demo network."""
    people: int = 32
    """People whose kept picture is inverted."""
    mixed_people: int = 16
    """Of them, those whose variants are compared."""
    pictures: int = 4
    """Pictures of each of these for the refined setting."""
    variants: int = 12
    """Mixed variants of each of these."""
    psi: float = 0.7
    """Truncation of the random codes that are mixed in."""
    refine_steps: int = 100
    pivotal_steps: int = 200
    outside: Path | None = None
    """Folder of other pictures, shown inverted: out of the domain, whatever comes out."""
    threads: int = 1
    """CPU threads."""


class Bench:
    """The networks, the real people, and what is measured with them."""

    def __init__(self, config: Config):
        torch.set_num_threads(config.threads)
        loaded, network = load_encoder(config.encoder), load_network(config.network or weights.DEMO_STYLEGAN3)
        check_pair(loaded, network.generator.config, network.sha256)
        self.generator: Generator = network.generator
        self.encoder, self.average = loaded.encoder, loaded.average
        self.loss = InversionLoss(LossWeights(), load_perceptual(), load_identity(config.identity))
        self.statistics = w_statistics(self.generator)
        self.size = working_size(self.encoder.config, self.generator.config)
        networks = [load_reid(path) for path in (config.judge, config.identity)]
        if networks[0].sha256 == networks[1].sha256:
            raise InputError(f"--judge {config.judge} is the network of --identity: give another one")
        self.judge, self.gate = (FeatureNetwork(found.network, found.sha256) for found in networks)
        listing = read_split(config.data, "train")
        listing = listing.take(np.flatnonzero(listing.identities > 0))
        _, firsts = np.unique(listing.identities, return_index=True)
        self.kept, rest = listing.take(firsts), np.setdiff1d(np.arange(len(listing)), firsts)
        self.gallery = listing.take(rest)
        self.real = {
            name: self._real_features(network) for name, network in (("judge", self.judge), ("gate", self.gate))
        }

    def _real_features(self, network: FeatureNetwork) -> np.ndarray:
        pixels, places, _ = decode_listing(self.gallery, network.height, network.width_pixels)
        if len(places) < len(self.gallery):
            raise InputError("unreadable pictures among those of --data: remove them")
        return self.features(network, pixels)

    @staticmethod
    def features(network: FeatureNetwork, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> [N, D] float32 of length 1; images of another size than the network's are refused."""
        if pixels.shape[1:3] != (network.height, network.width_pixels):
            raise InputError(
                f"the networks see {network.height}x{network.width_pixels}, images are {pixels.shape[1:3]}"
            )
        found = np.empty((len(pixels), network.width), np.float32)
        for places, rows in features_in_chunks(network, enumerate(pixels)):
            found[places] = rows[: len(places)]
        return normalised(found, "images")

    def floats(self, listing: Listing) -> torch.Tensor:
        """Pictures [N, 3, h, w] at the working size, -1..1."""
        pixels, places, unreadable = decode_listing(listing, *self.size)
        if len(places) < len(listing):
            print(f"not readable: {', '.join(unreadable[:3])}")
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1

    def encode(self, images: torch.Tensor, steps: int) -> list[torch.Tensor]:
        """Codes after each step."""
        with torch.no_grad():
            found = restyle_steps(self.encoder, self.generator.synthesis, images, self.average, steps)
            return [codes for codes, _ in found]

    def refined(self, codes: torch.Tensor, images: torch.Tensor, steps: int) -> torch.Tensor:
        """Codes optimised."""
        return refine(
            self.generator.synthesis, self.loss, self.loss.target(images), codes, steps, average=self.average,
            spread=self.statistics.spread,
        )  # fmt: skip

    def draw(self, codes: torch.Tensor, delta=None) -> np.ndarray:
        """Codes -> uint8 [N, h, w, 3] of the generator, or of the person's own one."""
        own = contextlib.nullcontext() if delta is None else apply_delta(self.generator, delta)
        with own, torch.no_grad():
            return to_uint8(self.generator.synthesis(codes)).numpy()

    def score(self, pixels: np.ndarray, images: torch.Tensor, identities: np.ndarray) -> dict[str, np.ndarray]:
        """L2, LPIPS, the judge's cosine to the picture itself, and whether the nearest real picture is the person's."""
        made = pooled(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, *self.size)
        with torch.no_grad():
            losses = self.loss.measure(made, self.loss.target(images))
        pictures = to_uint8(images).numpy()
        found, own = self.features(self.judge, pixels), self.features(self.judge, pictures)
        return {
            "l2": losses.l2.numpy(),
            "lpips": losses.lpips.numpy(),
            "cosine": (found * own).sum(1),
            "kept": self.who("judge", found, identities)[0],
        }

    def who(self, name: str, features: np.ndarray, identities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[N] bool: the nearest real picture is one of the person; [N]: the margin over everybody else."""
        found = nearest_pictures(features, self.real[name], self.gallery.identities, identities)
        return self.gallery.identities[found.picture] == identities, found.person_cosine - found.others_cosine


def main(config: Config) -> None:
    """The table of the stages, the comparison of variants, the pictures."""
    config.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(config)
    results = {"stages": stages(bench, config), "variants": variants(bench, config)}
    if config.outside:
        outside(bench, config, config.outside)
    (config.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"pictures and results.json: {config.out}")


def stages(bench: Bench, config: Config) -> dict:
    """Pictures kept from training: each stage's figures, with seconds an image."""
    places = np.linspace(0, len(bench.kept) - 1, config.people).round().astype(int)
    listing = bench.kept.take(places)
    images, identities = bench.floats(listing), listing.identities
    drawn: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    codes = {}
    for steps in (1, 3, 5):
        clock = time.perf_counter()
        codes[steps] = torch.cat([bench.encode(part, steps)[-1] for part in images.split(CHUNK)])
        seconds[f"encoder step {steps}"] = (time.perf_counter() - clock) / len(images)
        drawn[f"encoder step {steps}"] = bench.draw(codes[steps])
    clock = time.perf_counter()
    parts = zip(codes[5].split(CHUNK), images.split(CHUNK), strict=True)
    best = torch.cat([bench.refined(code, part, config.refine_steps) for code, part in parts])
    seconds["+ w"] = seconds["encoder step 5"] + (time.perf_counter() - clock) / len(images)
    drawn["+ w"] = bench.draw(best)
    clock, tuned = time.perf_counter(), []
    for place in range(len(images)):
        image, pivot = images[place : place + 1], best[place : place + 1]
        tuned.append(
            bench.draw(pivot, tune(bench.generator, bench.loss, bench.loss.target(image), pivot, config.pivotal_steps))
        )
    seconds["+ pivotal"] = seconds["+ w"] + (time.perf_counter() - clock) / len(images)
    drawn["+ pivotal"] = np.concatenate(tuned)

    table = {}
    print(f"{'stage':16} {'LPIPS':>7} {'L2':>7} {'cosine':>7} {'identity kept':>24} {'s/image':>8}")
    scores = {name: bench.score(pixels, images, identities) for name, pixels in drawn.items()}
    scores["the picture"] = bench.score(to_uint8(images).numpy(), images, identities)
    for name, found in scores.items():
        kept, low, high = mean_interval(found["kept"])
        row = {key: float(values.mean()) for key, values in found.items()} | {"interval": [low, high]}
        table[name] = row | {"seconds": seconds.get(name)}
        print(
            f"{name:16} {row['lpips']:7.3f} {row['l2']:7.4f} {row['cosine']:7.3f} "
            f"{kept:7.1%} ({low:.0%} to {high:.0%}) {seconds.get(name, float('nan')):8.2f}"
        )
    fall = 1 - table["+ w"]["lpips"] / table["encoder step 5"]["lpips"]
    print(f"refinement of w lowers LPIPS by {fall:.0%} against encoder step 5")
    shown = range(0, len(images), max(1, len(images) // 10))
    pictures = to_uint8(images).numpy()
    rows = [
        SheetRow(
            f"person {listing.people[int(identities[place])]}",
            [SheetCell(pictures[place], "picture")]
            + [SheetCell(drawn[name][place], f"{scores[name]['lpips'][place]:.2f}") for name in drawn],
        )
        for place in shown
    ]
    headings = [("picture", 1), ("encoder, step 1, 3, 5", 3), ("+ w", 1), ("+ pivotal", 1)]
    save(
        config.out / "stages.png",
        rows,
        "Pictures that the encoder has not seen",
        "below: LPIPS to the picture",
        headings,
    )
    return table


WAYS = ("encoder, one picture", "refined, one picture", "refined, several pictures", "+ pivotal", "+ gate")


def variants(bench: Bench, config: Config) -> dict:
    """The study's way against refined codes and a gate: is the nearest real person still the right one?"""
    people = np.unique(bench.gallery.identities)
    people = people[np.linspace(0, len(people) - 1, config.mixed_people).round().astype(int)]
    shares: dict[str, dict[str, list[float]]] = {group: {way: [] for way in (*WAYS, "passed")} for group in LAYERS}
    rows: dict[str, list[SheetRow]] = {group: [] for group in LAYERS}
    for number, identity in enumerate(people):
        image, codes, delta = invert_person(bench, config, int(identity))
        z = np.random.RandomState(10_000 + number).randn(config.variants, 512)  # noqa: NPY002
        with torch.no_grad():
            others = bench.generator.mapping(torch.from_numpy(z).float(), truncation_psi=config.psi)
        for group, layers in LAYERS.items():
            cells = compare(bench, int(identity), image, codes, delta, others, layers, shares[group])
            if len(rows[group]) < 8:
                rows[group].append(SheetRow(f"person {bench.kept.people[int(identity)]}", cells))
        print(f"{number + 1}/{len(people)} people", flush=True)
    shown = min(config.variants, 5)
    headings = [("", 1), ("encoder alone, mixed", shown + 1), ("refined and tuned, mixed", shown + 1)]
    for group in LAYERS:
        title = f"Variants of real people: {group} layers of random codes"
        save(config.out / f"variants_{group}.png", rows[group], title, "framed: thrown away by the gate", headings)
    return {group: tell(group, found) for group, found in shares.items()}


def invert_person(bench: Bench, config: Config, identity: int):
    """(the kept picture [1, 3, h, w], its code and the person's by way, the person's delta)."""
    place = int(np.flatnonzero(bench.kept.identities == identity)[0])
    image = bench.floats(bench.kept.take([place]))
    own = np.flatnonzero(bench.gallery.identities == identity)
    own = own[np.linspace(0, len(own) - 1, min(config.pictures, len(own))).round().astype(int)]
    images = bench.floats(bench.gallery.take(own))
    first = bench.encode(image, 5)[-1]
    several = bench.refined(bench.encode(images, 5)[-1], images, config.refine_steps)
    delta = tune(bench.generator, bench.loss, bench.loss.target(images), several, config.pivotal_steps)
    person = torch.from_numpy(person_code(several.numpy()))[None]
    codes = [first, bench.refined(first, image, config.refine_steps), person, person]
    return image, dict(zip(WAYS, codes, strict=False)), delta


def compare(bench: Bench, identity, image, codes, delta, others, layers, shares) -> list[SheetCell]:
    """Adds one person's shares to `shares`, and returns the pictures."""
    made = {
        way: bench.draw(mixed(code, others, layers), delta if way == "+ pivotal" else None)
        for way, code in codes.items()
    }
    whom = np.full(len(others), identity)
    right = {way: bench.who("judge", bench.features(bench.judge, pixels), whom)[0] for way, pixels in made.items()}
    gate = bench.who("gate", bench.features(bench.gate, made["+ pivotal"]), whom)[1] >= 0
    for way, found in right.items():
        shares[way].append(float(found.mean()))
    shares["passed"].append(float(gate.mean()))
    if gate.any():
        shares["+ gate"].append(float(right["+ pivotal"][gate].mean()))
    cells = [SheetCell(to_uint8(image)[0].numpy(), "picture"), SheetCell(bench.draw(codes[WAYS[0]])[0], "base")]
    cells += [SheetCell(pixels) for pixels in made[WAYS[0]][:5]]
    cells += [SheetCell(bench.draw(codes["+ pivotal"], delta)[0], "base")]
    tuned = zip(made["+ pivotal"][:5], gate, strict=False)
    return cells + [SheetCell(pixels, "", "kept" if good else "identity_margin") for pixels, good in tuned]


def tell(group: str, shares: dict[str, list[float]]) -> dict:
    """Means over people with their intervals, printed."""
    print(f"{group} layers mixed: share of variants whose nearest real person is the right one")
    table = {}
    for way in WAYS:
        if not shares[way]:
            print(f"  {way:26} none passed")
            continue
        mean, low, high = mean_interval(np.array(shares[way]))
        table[way] = {"kept": mean, "interval": [low, high], "people": len(shares[way])}
        print(f"  {way:26} {mean:6.1%} ({low:.1%} to {high:.1%}), {len(shares[way])} people")
    mean, low, high = mean_interval(np.array(shares["passed"]))
    print(f"  the gate (margin 0 or more, by the other network) lets {mean:.1%} ({low:.1%} to {high:.1%}) pass")
    return table | {"passed": [mean, low, high]}


def mixed(code: torch.Tensor, others: torch.Tensor, layers: slice) -> torch.Tensor:
    """A person's code [1, num_ws, w_dim] with some layers of each of the others [V, num_ws, w_dim]."""
    found = code.repeat(len(others), 1, 1)
    found[:, layers] = others[:, layers]
    return found


def outside(bench: Bench, config: Config, folder: Path) -> None:
    """Pictures of another kind than the generator's: how they come out."""
    files = sorted(path for path in folder.rglob("*") if is_image(path.name))
    files = files[:: max(1, len(files) // 8)][:8]
    none = np.zeros(len(files), np.int64)
    listing = Listing("outside", tuple(files), none, none, tuple(path.name for path in files), {})
    images = bench.floats(listing)
    steps = bench.encode(images, 5)
    best = bench.refined(steps[-1], images, config.refine_steps)
    rows = []
    for place in range(len(images)):
        image, pivot = images[place : place + 1], best[place : place + 1]
        delta = tune(bench.generator, bench.loss, bench.loss.target(image), pivot, config.pivotal_steps)
        cells = [to_uint8(image)[0].numpy()]
        cells += [bench.draw(steps[step - 1][place : place + 1])[0] for step in (1, 3, 5)]
        cells += [bench.draw(pivot)[0], bench.draw(pivot, delta)[0]]
        rows.append(SheetRow(str(place + 1), [SheetCell(cell) for cell in cells]))
    headings = [("picture", 1), ("encoder, step 1, 3, 5", 3), ("+ w", 1), ("+ pivotal", 1)]
    title = "Photographs, inverted by networks that have seen drawn people only"
    save(config.out / "outside.png", rows, title, "out of the domain", headings)


def save(path: Path, rows: list[SheetRow], title: str, subtitle: str, headings: list[tuple[str, int]]) -> None:
    """Write a contact sheet."""
    save_png(path, contact_sheet(rows, title=title, subtitle=subtitle, headings=headings))


if __name__ == "__main__":
    run_job(main, Config)
