"""What the card of a network says about its layers, measured on people of the network in this process, without Ray.

Variants take a range of layers from another code, as jobs/generate.py makes them. A trial with few people goes through
the contiguous ranges; the best of them, and the study's groups, are then measured with more people. `best_group` states
the rule by which one range becomes that of `--layers pose`.
"""

import dataclasses
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import cv2
import numpy as np
import pyarrow as pa
import torch

from actors.identity_scorer import features_in_chunks
from actors.style_mixer import StyleMixer, check_network
from datasets.people.decoding import decode, decode_bicubic, decode_listing, decode_scaled
from datasets.people.listing import TRAIN, Listing
from datasets.people.readers import read_split
from datasets.runs.card import LAYERS, check_writable, write_card
from datasets.runs.configuration import Configuration
from datasets.runs.plan import LAYER_GROUPS, layers_text, parse_layers
from datasets.runs.rows import images_of
from datasets.storage.local_copy import local_copy
from passersby.devices import chosen_device
from passersby.errors import InputError
from passersby.metrics.identity import same_person_threshold
from passersby.metrics.variants import colour_histograms, measure_variants, others_edge_distance, share
from passersby.options import Json
from passersby.reid.checkpoint import load_reid
from passersby.reid.network import FeatureNetwork
from passersby.stylegan3 import LoadedNetwork, load_network
from reporting.gan.card import Layers, layers_lines
from reporting.progress import ProgressLine

Figures: TypeAlias = dict[str, Any]  # of one group of layers, as JSON data
Range: TypeAlias = tuple[int, int]  # the first and the last of contiguous layers

CLEAR = 0.9  # wanted: this share of variants is nearest to its own person by clothes
MOVES = 1 / 3  # a pose moves if its edges move by this share of the distance to another person
RULE = (
    f"of the groups that move the pose by {MOVES:.0%} or more of the distance to another person: where some keep the "
    f"clothes of {CLEAR:.0%} of variants or more, the one of them that moves the pose most; else the one that keeps "
    "most. Where no group moves the pose so far, the one that moves it most."
)
NAMED = ("coarse", "middle", "fine")

# The trial. A range is tried where both ranges inside it that are one layer shorter keep the clothes of TRIED of the
# variants: more layers change more. The figure is below CLEAR, as 60 variants give it to about 4 points.
TRIAL_PEOPLE, TRIAL_VARIANTS, TRIED = 20, 4, 0.8
FINALISTS, MOST_FINALISTS = 6, 12
UNIT_PEOPLE = 4  # people made at once, between two updates of the progress line
THRESHOLD_PICTURES = 2000  # real pictures, evenly spread, whose pairs give the judge's threshold


@dataclasses.dataclass(frozen=True)
class Sample:
    """The pictures that are measured: `people` people from `seed` on with `variants` pictures of `height` x `width`
    pixels each, compared with one picture each of `gallery` people, the first of whom are these people."""

    people: int = 60
    variants: int = 8
    gallery: int = 240
    seed: int = 0
    truncation_psi: float = 0.7
    height: int = 128
    width: int = 64


class Maker:
    """Makes people of a network as jobs/generate.py makes them. device: "cpu" or "cuda"; threads: CPU threads."""

    def __init__(self, network: LoadedNetwork, name: str, sample: Sample, device: str, threads: int):
        self.network, self.name, self.sample = network, name, sample
        self.execution = {"device": device, "threads": threads}
        check_network(network.generator.config, self._configuration((0,), 1))
        if sample.seed + sample.gallery > 2**32:
            raise InputError(
                f"--seed {sample.seed}: seeds end at {2**32 - 1}, also that of the last of {sample.gallery} people"
            )

    def _configuration(self, layers: Sequence[int], variants: int) -> Configuration:
        s = self.sample
        return Configuration(
            seed=s.seed, variants=variants, method="mix", layers=tuple(layers), amount=None,
            truncation_psi=s.truncation_psi, network=self.network.sha256, height=s.height, width=s.width, format="jpeg",
            jpeg_quality=95, unit_images=1, detector="", reference_threshold=0.0, ssim_data_range=1.0,
        )  # fmt: skip

    def __call__(self, layers: Sequence[int], people: int, variants: int, line: ProgressLine) -> list[list[bytes]]:
        """Encoded pictures of the first people, [people][variants]. Raises InputError where one is not finite."""
        mixer = StyleMixer(self.network.generator, self._configuration(layers, variants), **self.execution)
        contents: list[bytes] = []
        for first in range(0, people, UNIT_PEOPLE):
            count = min(UNIT_PEOPLE, people - first)
            unit = pa.table({"unit": [first // UNIT_PEOPLE], "first_person": [first], "people": [count]})
            for row in images_of(mixer(unit)).to_pylist():
                if row["status"] != "ok":
                    raise InputError(f"--network {self.name}: person {row['person']}: {row['message']}")
                contents.append(row["image"])
            line.update(count * variants)
        return [contents[first : first + variants] for first in range(0, len(contents), variants)]


def _decoded(people: Sequence[Sequence[bytes]]) -> np.ndarray:
    # [P, V, H, W, 3] uint8
    return np.stack([[decode(content) for content in pictures] for pictures in people])


class Judge:
    """A re-ID network that says whether two pictures show the same person: whether their cosine reaches `threshold`.

    real: pictures of real people. They give the threshold: 1% of their pairs of different people reach it. Without
    them there is none. The network should have been trained on other people than the generator and `real`.
    """

    def __init__(self, network: FeatureNetwork, real: Listing | None = None):
        self.network, self.threshold = network, None
        if real is not None:
            places = np.unique(np.linspace(0, len(real) - 1, min(THRESHOLD_PICTURES, len(real))).astype(np.int64))
            images, readable, _ = decode_listing(real.take(places), network.height, network.width_pixels)
            self.threshold = same_person_threshold(network(images), real.identities[places][readable])

    def features(self, contents: Iterable[bytes]) -> np.ndarray:
        """Encoded pictures -> [N, D] float32 of length 1."""
        size = self.network.height, self.network.width_pixels
        pictures = ((index, decode_bicubic(content, *size)) for index, content in enumerate(contents))
        return np.concatenate([features[: len(rows)] for rows, features in features_in_chunks(self.network, pictures)])

    def __call__(self, people: Sequence[Sequence[bytes]], gallery: np.ndarray) -> Figures:
        """Figures of people's pictures, base images first; gallery [G, D]: features of one picture each of G people.

        nearest_own: variants whose nearest picture of the gallery is their person's. same_person: pairs of a person's
        pictures that it takes for the same person. different_people: the same of pairs of people's base images.
        """
        features = self.features(content for pictures in people for content in pictures)
        features = features.reshape(len(people), -1, features.shape[1])  # [P, V, D]
        own = (features[:, 1:] @ gallery.T).argmax(2) == np.arange(len(people))[:, None]
        figures: Figures = {"nearest_own": share(own)}
        if self.threshold is not None:
            pairs = np.triu_indices(features.shape[1], 1)
            cosines = (features @ features.transpose(0, 2, 1))[:, pairs[0], pairs[1]]  # [P, pairs]
            between = (features[:, 0] @ features[:, 0].T)[np.triu_indices(len(people), 1)]
            figures["same_person"] = share(cosines >= self.threshold)
            figures["different_people"] = float((between >= self.threshold).mean())
        return figures


class Measurer:
    """Measures people against a gallery: encoded pictures, one each of people, the first of whom are measured."""

    def __init__(self, gallery: Sequence[bytes], judge: Judge | None):
        pictures = np.stack([decode(content) for content in gallery])
        self.judge = judge
        self.histograms = colour_histograms(pictures)
        self.others = others_edge_distance(pictures)
        self.features = judge.features(gallery) if judge else np.empty((0, 0), np.float32)

    def __call__(self, people: Sequence[Sequence[bytes]], judged: bool = True) -> Figures:
        figures = measure_variants(_decoded(people), self.histograms)
        figures["pose_moved"] = figures["edge_distance"] / self.others if self.others else 0.0
        if self.judge and judged:
            figures["judge"] = self.judge(people, self.features)
        return figures


# ---- Which layers hold the pose.


def best_group(groups: Mapping[str, Figures]) -> str:
    """The group that RULE chooses; of equal ones the first."""
    moving = [name for name, figures in groups.items() if figures["pose_moved"] >= MOVES]
    clear = [name for name in moving if _kept(groups[name]) >= CLEAR]
    if clear:
        return max(clear, key=lambda name: groups[name]["pose_moved"])
    if moving:
        return max(moving, key=lambda name: _kept(groups[name]))
    return max(groups, key=lambda name: groups[name]["pose_moved"])


def _kept(figures: Figures) -> float:
    return figures["nearest_own"]["value"]


def ranges_to_try(length: int, count: int, kept: Mapping[Range, float]) -> list[Range]:
    """The ranges of `length` of `count` layers that are tried. kept: `nearest_own` of the shorter ranges."""
    ranges = [(first, first + length - 1) for first in range(count - length + 1)]
    if length == 1:
        return ranges
    return [r for r in ranges if all(kept.get(part, 0.0) >= TRIED for part in ((r[0] + 1, r[1]), (r[0], r[1] - 1)))]


def _trial(maker: Maker, measurer: Measurer, count: int) -> dict[str, Figures]:
    people, kept, trials = min(TRIAL_PEOPLE, maker.sample.people), {}, {}
    for length in range(1, count + 1):
        ranges = ranges_to_try(length, count, kept)
        if not ranges:
            break
        print(f"{len(ranges)} groups of {length} layer{'s' * (length > 1)}", file=sys.stderr)
        with ProgressLine(*_work(len(ranges), people, TRIAL_VARIANTS)) as line:
            for first, last in ranges:
                layers = range(first, last + 1)
                figures = measurer(maker(layers, people, TRIAL_VARIANTS, line), judged=False)
                kept[first, last] = _kept(figures)
                trials[layers_text(layers)] = figures
    return trials


def _work(groups: int, people: int, variants: int) -> tuple[int, int]:
    return groups * -(-people // UNIT_PEOPLE), groups * people * variants


def _finalists(trials: Mapping[str, Figures]) -> list[str]:
    """The tried groups in the order of a final: those that may be clear and move the pose most, then the purest."""
    moving = [name for name in trials if trials[name]["pose_moved"] >= MOVES]
    near = [name for name in moving if _kept(trials[name]) >= TRIED]
    near.sort(key=lambda name: -trials[name]["pose_moved"])
    others = sorted((name for name in moving if name not in near), key=lambda name: -_kept(trials[name]))
    still = sorted((name for name in trials if name not in moving), key=lambda name: -trials[name]["pose_moved"])
    return [*near, *others, *still][:MOST_FINALISTS]


def measure_layers(
    network: LoadedNetwork,
    name: str,
    sample: Sample,
    device: str = "cpu",
    threads: int = 1,
    judge: FeatureNetwork | None = None,
    reference: Path | None = None,
) -> dict[str, Json]:
    """The section "layers" of a network's card: which layers hold the pose, and the figures that say so.

    name: the network's name in messages. judge: a re-ID network. reference: real people, measured the same way, who
    also give the judge's threshold. Raises InputError, also for a network that cannot make people from seeds.
    """
    maker = Maker(network, name, sample, device, threads)
    real = None if reference is None else _RealPeople.read(reference, sample, threads)
    judging = None if judge is None else Judge(judge.to(device), real and real.listing)
    count = network.generator.config.num_ws
    with ProgressLine(*_work(1, sample.gallery, 1)) as line:
        gallery = [pictures[0] for pictures in maker((0,), sample.gallery, 1, line)]
    measurer = Measurer(gallery, judging)
    trials = _trial(maker, measurer, count)
    study = [name for name in NAMED if parse_layers(name)[-1] < count]
    groups, order = {}, _finalists(trials)
    named = [layers_text(parse_layers(name)) for name in study]
    first = list(dict.fromkeys([*order[:FINALISTS], *named]))
    print(f"{len(first)} groups with {sample.people} people", file=sys.stderr)
    with ProgressLine(*_work(len(first), sample.people, sample.variants)) as line:
        for text in first:
            groups[text] = measurer(maker(parse_layers(text), sample.people, sample.variants, line))
    for text in (text for text in order if text not in groups):
        if _kept(groups[best_group(groups)]) >= CLEAR:
            break
        print(f"one more: {text}", file=sys.stderr)
        with ProgressLine(*_work(1, sample.people, sample.variants)) as line:
            groups[text] = measurer(maker(parse_layers(text), sample.people, sample.variants, line))
    best = best_group(groups)
    return {
        "pose": list(parse_layers(best)),
        "rule": RULE,
        "groups": _rounded(groups),
        "study": {name: "{}-{}".format(*LAYER_GROUPS[name]) for name in study},
        "sample": dataclasses.asdict(sample),
        "other_people_edge_distance": round(measurer.others, 5),
        "trial": _rounded({text: _short(figures) for text, figures in trials.items()}),
        "trial_sample": {"people": min(TRIAL_PEOPLE, sample.people), "variants": TRIAL_VARIANTS},
        "real": None if real is None else _rounded(real.figures(judging)),
        "judge": None if judge is None or judging is None else _about(judge, judging),
        "software": {"torch": torch.__version__, "numpy": np.__version__, "opencv": cv2.__version__},
        "hardware": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU",
    }


def card_of(
    network: str | Path, sample: Sample, device: str, identity: str | None, reference: Path | None, dry_run: bool
) -> None:
    """Measure a network, given by path or URI, print the figures, and write them into the card beside it.

    device: "auto" | "cpu" | "cuda", of this process. identity: file of the judge. Raises InputError, before the
    measurement also where the card cannot be written.
    """
    usable = torch.cuda.is_available()
    if device == "cuda" and not usable:
        raise InputError("--device cuda: no usable GPU here; leave it out to run on the CPU")
    path = local_copy(network, "--network")
    loaded, judge = load_network(path), None
    if identity is not None:
        reid = load_reid(local_copy(identity, "--identity"))
        for note in reid.notes:
            print(f"note: --identity: {note}", file=sys.stderr)
        judge = FeatureNetwork(reid.network, reid.sha256)
    check_writable(network)
    people = f"{sample.people} people x {sample.variants} pictures, seeds from {sample.seed}"
    print(f"{path.name}: the layers that hold the pose, by {people}, truncation {sample.truncation_psi:g}", flush=True)
    chosen = chosen_device(device, int(usable))
    threads = torch.get_num_threads()
    if dry_run:
        Maker(loaded, path.name, sample, chosen, threads)
        return
    section = measure_layers(loaded, path.name, sample, chosen, threads, judge, reference)
    best = layers_text(cast(list[int], section["pose"]))
    print(*layers_lines(cast(Layers, section), best), sep="\n")
    config = loaded.generator.config
    about = {"file": path.name, "sha256": loaded.sha256, "num_ws": config.num_ws}
    about |= {"height": config.height, "width": config.width}
    print(write_card(network, about, {LAYERS: section}))


def _about(network: FeatureNetwork, judge: Judge) -> dict[str, Json]:
    return {"sha256": network.sha256, "threshold": None if judge.threshold is None else round(judge.threshold, 5)}


def _short(figures: Figures) -> Figures:
    return {"nearest_own": _kept(figures), "pose_moved": figures["pose_moved"]}


def _rounded(values: Any) -> Any:
    # 5 digits: the last ones of a machine's arithmetic say nothing.
    if isinstance(values, Mapping):
        return {name: _rounded(value) for name, value in values.items()}
    return round(values, 5) if isinstance(values, float) else values


# ---- Real people in the same table.


@dataclasses.dataclass(frozen=True)
class _RealPeople:
    """The training people of a data set, those with enough pictures first, in the size of the made pictures.

    chosen [P][V]: the measured people's pictures, evenly spread over each one's; gallery: one each of all people.
    """

    listing: Listing
    chosen: list[list[bytes]]
    gallery: list[bytes]

    @classmethod
    def read(cls, reference: Path, sample: Sample, threads: int) -> "_RealPeople":
        listing = read_split(reference, TRAIN)
        of = {person: np.flatnonzero(listing.identities == person) for person in sorted(listing.people)}
        many = [person for person in of if len(of[person]) >= sample.variants][: sample.people]
        pictures = _pictures(listing, [_spread(of[person], sample.variants) for person in many], sample, threads)
        chosen = [contents for contents in pictures if None not in contents]
        if len(chosen) < 2:
            raise InputError(
                f"--reference {reference}: {len(chosen)} of its {len(of)} training people have {sample.variants} "
                "pictures that can be read, and at least 2 people are compared: leave --reference out"
            )
        others = [of[person][:1] for person in of if person not in set(many)][: max(0, sample.gallery - len(chosen))]
        gallery = [contents[0] for contents in [*chosen, *_pictures(listing, others, sample, threads)]]
        return cls(listing, chosen, [content for content in gallery if content is not None])

    def figures(self, judge: Judge | None) -> Figures:
        people = {"people": len(self.chosen), "gallery": len(self.gallery)}
        return people | Measurer(self.gallery, judge)(self.chosen)


def _spread(places: np.ndarray, count: int) -> np.ndarray:
    return places[np.linspace(0, len(places) - 1, count).astype(int)]


def _pictures(listing: Listing, groups: Sequence[np.ndarray], sample: Sample, threads: int) -> list[list]:
    """The pictures at each group's places as PNG files of the sample's size; None for those that cannot be read."""
    if not groups:
        return []
    images, places, _ = decode_listing(
        listing.take(np.concatenate(groups)), sample.height, sample.width, threads, decode_scaled
    )
    contents: list[bytes | None] = [None] * sum(map(len, groups))
    for place, image in zip(places.tolist(), images, strict=True):
        contents[place] = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
    rest = iter(contents)
    return [[next(rest) for _ in group] for group in groups]
