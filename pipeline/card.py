"""What the card of a network says about its layers, measured on people of the network in this process, without Ray.

Variants take a range of layers from another code, as jobs/generate.py makes them. A trial with few people looks for the
largest ranges that keep the clothes. The best of what it tried, and the study's groups, are then measured with more
people. RULE says which range becomes that of `--layers pose`.
"""

import dataclasses
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from datasets.runs.configuration import RECIPE, Configuration
from datasets.runs.plan import layer_groups, layers_text, parse_layers
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
from reporting.tables import percent

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

# More layers change more. So ranges within a range that keeps the clothes keep them too, and move the pose less. A
# trial with few people looks for the largest ranges that keep the clothes of TRIED of the variants, which is below
# CLEAR, as 36 variants give it to about 5 points. What it tried on its way is then measured with all people.
TRIAL_PEOPLE, TRIAL_VARIANTS, TRIED = 12, 4, 0.8
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
            recipe=RECIPE,
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


def _short(figures: Figures) -> Figures:
    return {"nearest_own": round(_kept(figures), 3), "pose_moved": round(figures["pose_moved"], 3)}


def largest_ranges(count: int, keeps: Callable[[Range], bool]) -> list[Range]:
    """The ranges of `count` layers that keep the clothes, and that lie in no larger such range; by 2 * count trials.

    keeps: whether a range keeps the clothes. It is taken as true for all ranges inside a range for which it is true.
    """
    ranges, first, last = [], 0, 0
    while last < count:
        if keeps((first, last)):
            last += 1
            continue
        if last > first and (not ranges or ranges[-1][1] < last - 1):
            ranges.append((first, last - 1))
        first += 1
        last = max(first, last)
    return ranges + [(first, count - 1)] * (first < count)


class Search:
    """Looks for the range that RULE chooses. measure: figures of a range, by the people of the trial or by all."""

    def __init__(self, count: int, measure: Callable[[Range, bool], Figures]):
        self.count, self.measure = count, measure
        self.trials: dict[Range, Figures] = {}
        self.groups: dict[Range, Figures] = {}

    def _keeps(self, layers: Range) -> bool:
        self.trials[layers] = self.measure(layers, True)
        return _kept(self.trials[layers]) >= TRIED

    def run(self) -> None:
        """Fill `trials` and `groups`: figures of the ranges that were tried, and of those that were measured.

        The range that moves the pose most of those that are clear is found by bisection: what moves the pose more keeps
        less of the clothes.
        """
        largest_ranges(self.count, self._keeps)
        moving = [layers for layers in self.trials if self.trials[layers]["pose_moved"] >= MOVES]
        order = [layers for layers in moving if _kept(self.trials[layers]) >= TRIED]
        order.sort(key=lambda layers: -self.trials[layers]["pose_moved"])
        first, end = 0, len(order)
        while first < end:
            middle = (first + end) // 2
            figures = self.groups[order[middle]] = self.measure(order[middle], False)
            first, end = (first, middle) if _kept(figures) >= CLEAR else (middle + 1, end)
        if not any(_kept(figures) >= CLEAR for figures in self.groups.values()):
            by_pose = max(self.trials, key=lambda layers: self.trials[layers]["pose_moved"])
            best = max(moving, key=lambda layers: _kept(self.trials[layers])) if moving else by_pose
            self.groups[best] = self.groups.get(best) or self.measure(best, False)


def _name(layers: Range) -> str:
    return layers_text(range(layers[0], layers[1] + 1))


def _work(people: int, variants: int) -> tuple[int, int]:
    return -(-people // UNIT_PEOPLE), people * variants


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
    with ProgressLine(*_work(sample.gallery, 1)) as line:
        gallery = [pictures[0] for pictures in maker((0,), sample.gallery, 1, line)]
    measurer = Measurer(gallery, judging)

    def measure(layers: Range, trial: bool) -> Figures:
        people, variants = (min(TRIAL_PEOPLE, sample.people), TRIAL_VARIANTS) if trial else full
        with ProgressLine(*_work(people, variants)) as line:
            figures = measurer(maker(range(layers[0], layers[1] + 1), people, variants, line), judged=not trial)
        kept, moved = percent(_kept(figures)), percent(figures["pose_moved"])
        about = f"{people} people: own clothes nearest {kept}, pose moved {moved}"
        print(f"layers {_name(layers)}, {about}", file=sys.stderr, flush=True)
        return figures

    full, study = (sample.people, sample.variants), {name: layer_groups(count)[name] for name in NAMED}
    search = Search(count, measure)
    search.run()
    for layers in study.values():
        if layers not in search.groups:
            search.groups[layers] = measure(layers, False)
    groups = {_name(layers): figures for layers, figures in sorted(search.groups.items())}
    best = best_group(groups)
    return {
        "pose": list(parse_layers(best, count)),
        "rule": RULE,
        "groups": _rounded(groups),
        "study": {name: "{}-{}".format(*layers) for name, layers in study.items()},
        "sample": dataclasses.asdict(sample),
        "other_people_edge_distance": round(measurer.others, 5),
        "trial": {_name(layers): _short(figures) for layers, figures in search.trials.items()},
        "trial_sample": {"people": min(TRIAL_PEOPLE, sample.people), "variants": TRIAL_VARIANTS},
        "real": None if real is None else _rounded(real.figures(judging)),
        "judge": judging and _rounded({"sha256": judging.network.sha256, "threshold": judging.threshold}),
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
