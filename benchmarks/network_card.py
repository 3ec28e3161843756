"""The card of a network: what its people and their variants are worth, measured as the main job makes them.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 python benchmarks/network_card.py --out /tmp/card
    python benchmarks/network_card.py --network NEW.safetensors --reference /tmp/crowd --out /tmp/card

The stages of jobs/generate.py make and score the images in this process, without Ray; the same command on like hardware
gives the same card. It is written as card.json, card.md, people.png and mixes.png.
"""

import dataclasses
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import pyarrow as pa
import torch

from actors.pedestrian_detector import PedestrianDetector
from actors.style_mixer import StyleMixer
from datasets.people.decoding import decode, decode_listing, decode_scaled
from datasets.people.listing import Listing, joined
from datasets.people.market1501 import list_split
from datasets.runs.plan import LAYER_GROUPS, POSE, Configuration, layer_groups, layers_text, parse_layers
from datasets.runs.rows import images_of
from jobs import generate
from jobs.common import run_job
from passersby import weights
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError
from passersby.files import write_atomically
from passersby.metrics.variants import (
    by_person,
    colour_histograms,
    measure_filter,
    measure_mixing,
    measure_pose,
    nearest,
    other_people,
    share,
)
from passersby.stylegan3.checkpoint import LoadedNetwork, load_network
from passersby.stylegan3.config_limits import as_mapping
from pipeline.generation import Inputs
from reporting.gan.card import Card, card_markdown, mixes_picture, people_picture
from reporting.grid import save_png

UNIT_PEOPLE = 8
SHOWN_PEOPLE, SHOWN_DONORS = 96, 8


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure a network's people: the pedestrian filter, and what style mixing keeps and changes."""

    out: Path
    """A folder for the card; older files of it are replaced."""
    network: Path = weights.DEMO_STYLEGAN3
    """What jobs/generate.py takes: a .safetensors, a reference .pkl or a .pt state dict."""
    people: Annotated[int, Bound(ge=2, note="with one there is nothing to compare")] = 240
    """Number of people. Person i is seed + i."""
    variants: Annotated[int, Bound(ge=2, note="with one there is nothing to compare")] = 16
    """Pictures of each, the base image among them."""
    seed: int = 0
    """Seed of the first person."""
    threshold: Annotated[float, Bound(ge=0, le=1)] = 0.6
    """Least score of the pedestrian filter."""
    layers: str = POSE
    """The mixed layers: a group's name or w indices, as for jobs/generate.py."""
    comparison_people: Annotated[int, Bound(ge=2, note="with one there is nothing to compare")] = 80
    """The first so many people are also mixed in coarse (0-4), middle and fine layers, and shown with their donors."""
    truncation_psi: float = 0.7
    """As for jobs/generate.py."""
    height: int = 128
    """Height of the stored images in pixels."""
    width: int = 64
    """Width of the stored images in pixels."""
    reference: Path | None = None
    """A Market-1501 tree of real people: as many of its training people are measured the same way."""
    inception: Path | None = None
    """Inception weights: FID against the held-out people (query and gallery) of --reference."""
    yolo_weights: Path | None = None
    """yolov4-tiny.weights with its .cfg beside it."""
    threads: int = 1
    """CPU threads."""
    device: str = "cpu"
    """cpu or cuda."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of P people, V each: images [P, V, H, W, 3] uint8 as decoded, detector scores [P, V] float64."""

    images: np.ndarray
    scores: np.ndarray


class SharedDonors(Configuration):
    """A configuration in which variant v of everybody is mixed with the same donor, for a picture of them."""

    def mix_seed(self, person: int, variant: int) -> int:
        """Seed of donor `variant`, none of whom is among the first people."""
        return (self.seed + 1_000_000 + variant) % 2**32

    @classmethod
    def of(cls, configuration: Configuration) -> "SharedDonors":
        """The same configuration with such donors, of whom SHOWN_DONORS are shown."""
        values = {field.name: getattr(configuration, field.name) for field in dataclasses.fields(configuration)}
        values["variants"] = SHOWN_DONORS + 1
        return cls(**values)


def configuration(config: Config, layers: str) -> Configuration:
    """That of a run of jobs/generate.py with these layers."""
    same = {name: getattr(config, name) for name in ("people", "variants", "seed", "truncation_psi", "height", "width")}
    job = generate.Config(out="", network=str(config.network), layers=layers, **same)
    return job.frozen(Inputs(config.network))


def compared_groups(num_ws: int) -> tuple[dict[str, str], str]:
    """What --layers is compared with: heading -> layers; and the heading of the group that is the donor itself.

    Coarse layers end where the middle ones begin, so that no layer is in two groups.
    """
    ranges = layer_groups(num_ws)
    ranges["coarse"] = (0, ranges["middle"][0] - 1)
    texts = {name: f"{first}-{last}" for name, (first, last) in ranges.items()}
    return {f"{name} ({text})": text for name, text in texts.items()}, f"all ({texts['all']})"


def layers_name(text: str, layers: tuple[int, ...]) -> str:
    """The option's text; of a group's name also which layers it means."""
    return f"{text} ({layers_text(layers)})" if text in (POSE, *LAYER_GROUPS) else text


class Maker:
    """The stages of jobs/generate.py that make and score images, called one after the other."""

    def __init__(self, config: Config, network: LoadedNetwork):
        self.config, self.network = config, network
        self.here = {"device": config.device, "threads": config.threads}
        detector = weights.get("yolov4-tiny", config.yolo_weights)
        self.detector = PedestrianDetector(detector, config.height, config.width, **self.here)

    def __call__(self, configuration: Configuration, people: int) -> Pictures:
        """The first people of a configuration. Raises InputError when the network makes no proper images."""
        mixer = StyleMixer(self.network.generator, configuration, **self.here)
        images, scores = [], []
        for first in range(0, people, UNIT_PEOPLE):
            count = min(UNIT_PEOPLE, people - first)
            unit = pa.table({"unit": [first // UNIT_PEOPLE], "first_person": [first], "people": [count]})
            for row in images_of(self.detector(mixer(unit))).to_pylist():
                if row["status"] != "ok":
                    raise InputError(f"--network {self.config.network}: person {row['person']}: {row['message']}")
                images.append(decode(row["image"]))
                scores.append(row["detector_score"])
        shape = (people, configuration.variants)
        return Pictures(np.stack(images).reshape(*shape, *images[0].shape), np.array(scores).reshape(shape))

    def scores(self, images: np.ndarray) -> np.ndarray:
        """Detector scores [N] of real images [N, H, W, 3] uint8."""
        size = self.detector.batch_images
        parts = [self.detector.filter.scores(images[first : first + size]) for first in range(0, len(images), size)]
        return np.concatenate(parts).astype(np.float64)


# ---- The measures of real people: what other pictures of the same person are like.


def measure_reference(config: Config, reference: Path, maker: Maker) -> dict:
    """The same of real people: what the measures would be if variants were other pictures of the person."""
    listing = list_split(reference, "train").people_only()
    listing = listing.of_people(sorted(listing.people)[: config.people])
    images, places = real_images(config, listing)
    person, camera = listing.identities[places], listing.cameras[places]
    _, first, index = np.unique(person, return_index=True, return_inverse=True)
    found = colour_histograms(images)
    own = nearest(found, found[first]) == index
    apart = np.ones(len(own), bool)
    apart[first] = False
    some = index < config.comparison_people
    passed = maker.scores(images[some]) >= config.threshold
    result = {
        "tree": reference.name,
        "people": len(first),
        "images": len(own),
        "filter": share(by_person(index[some], passed), len(passed)),
        "other_people": other_people(images[first]),
    }
    for name, kept in (
        ("same_camera", apart & (camera == camera[first][index])),
        ("other_camera", apart & (camera != camera[first][index])),
    ):
        if kept.any():
            pose = measure_pose(images[first][index[kept]], images[kept])
            result[name] = {"nearest_own": share(by_person(index[kept], own[kept]), int(kept.sum()))} | pose
    return result


def real_images(config: Config, listing: Listing) -> tuple[np.ndarray, np.ndarray]:
    """Images of --reference, in the size of the stored ones, and their places in the listing."""
    return decode_listing(listing, config.height, config.width, config.threads, decode_scaled)[:2]


def held_out(reference: Path) -> Listing:
    """The images of the tree's query and gallery people, without junk and distractors. Raises InputError for none."""
    listing = joined([list_split(reference, split) for split in ("query", "gallery")]).people_only()
    if not len(listing):
        raise InputError(f"--reference {reference}: no person in its query and gallery, which FID is taken against")
    return listing


def measure_fid(
    config: Config, reference: Path, inception: Callable[[np.ndarray], np.ndarray], made: Pictures
) -> dict[str, str | int | float]:
    """FID of all made images against the held-out people of --reference."""
    from passersby.metrics.fid import fid

    real, _ = real_images(config, held_out(reference))
    fake = made.images.reshape(-1, *made.images.shape[2:])
    value = fid(inception(real), inception(fake))
    return {"value": value, "images": len(fake), "reference": reference.name, "reference_images": len(real)}


# ---- The card: where the figures come from, and all of them in one file.


def describe(config: Config, network: LoadedNetwork) -> dict:
    """Where the figures come from: the network's record, the settings, the command, the code and the software."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    settings = {
        name: value for name, value in dataclasses.asdict(config).items() if isinstance(value, int | float | str)
    }
    return {
        "network": {
            "file": config.network.name,
            "sha256": network.sha256,
            "parameters": sum(parameter.numel() for parameter in network.generator.parameters()),
            "generator": as_mapping(network.generator.config),
            "record": network.record,
        },
        "settings": settings,
        "command": shlex.join(["benchmarks/network_card.py", *words]),
        "commit": commit or None,
        "detector": weights.WEIGHTS["yolov4-tiny"].files[0].sha256,
        "software": {"torch": torch.__version__, "numpy": np.__version__, "opencv": cv2.__version__},
        "hardware": torch.cuda.get_device_name() if config.device == "cuda" else f"{platform.machine()} CPU",
    }


def check(config: Config) -> None:
    """InputError for options that make no card."""
    check_bounds(config)
    if config.inception and not config.reference:
        raise InputError(f"--inception {config.inception}: needs --reference, the people to compare with")
    if config.reference and len(list_split(config.reference, "train").people) < 2:
        raise InputError(f"--reference {config.reference}: its training folder has one person: 2 or more are compared")
    if config.inception and config.reference:
        held_out(config.reference)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {config.out}: {error.strerror}: give a folder that can be written") from error


def main(config: Config) -> None:
    """Make, measure, write."""
    check(config)
    plan = configuration(config, config.layers)
    network, inception = load_network(config.network), None
    if config.inception:
        from passersby.perception.inception import load_inception

        inception = load_inception(config.inception, config.device)
    maker, threshold = Maker(config, network), config.threshold
    card = describe(config, network)
    made = maker(plan, config.people)
    card["filter"] = measure_filter(made.scores, threshold)
    print(f"{made.scores.size:,} images: {card['filter']['all']['value']:.1%} pass the pedestrian filter", flush=True)
    some = min(config.people, config.comparison_people)
    name = layers_name(config.layers, plan.layers)
    num_ws = network.generator.num_ws
    compared, all_layers = compared_groups(num_ws)
    others = {
        other: text
        for other, text in compared.items()
        if other != name and (other == all_layers or parse_layers(text, num_ws) != plan.layers)
    }
    groups = {name: made} | {other: maker(configuration(config, text), some) for other, text in others.items()}
    donors = groups[all_layers].images
    card["mixing"] = {
        name: measure_mixing(group.images, group.scores, made.images[:, 0], donors, threshold)
        for name, group in groups.items()
    }
    card["other_people"] = other_people(made.images[:, 0])
    card["real"] = measure_reference(config, config.reference, maker) if config.reference else None
    card["fid"] = measure_fid(config, config.reference, inception, made) if inception and config.reference else None

    rows = maker(SharedDonors.of(plan), min(config.people, SHOWN_DONORS))
    head = maker(SharedDonors.of(configuration(config, compared[all_layers])), 1)
    people = made.images[:SHOWN_PEOPLE, 0], made.scores[:SHOWN_PEOPLE, 0]
    save_png(config.out / "people.png", people_picture(*people, threshold, config.network.stem))
    shown = (head.images[0, 1:], head.scores[0, 1:], rows.images, rows.scores)
    title = f"{config.network.stem}: each person with the {name} layers of the donors"
    save_png(config.out / "mixes.png", mixes_picture(*shown, threshold, title))
    write_atomically(config.out / "card.json", (json.dumps(card, indent=2) + "\n").encode())
    text = card_markdown(cast(Card, card))
    write_atomically(config.out / "card.md", text.encode())
    print(text)


if __name__ == "__main__":
    run_job(main, Config)
