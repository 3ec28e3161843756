"""The people that a card measures: people of the network, as jobs/generate.py makes them, and real people beside."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from actors.style_mixer import StyleMixer, check_network
from datasets.people.decoding import decode, decode_listing, decode_scaled
from datasets.people.listing import TRAIN, Listing, drawn_key
from datasets.people.readers import read_split
from datasets.runs.configuration import CAMERA, MIX, RECIPE, Configuration
from datasets.runs.rows import images_of
from passersby.errors import InputError
from passersby.stylegan3 import LoadedNetwork
from reporting.progress import ProgressLine

UNIT_PEOPLE = 4  # people made at once, between two updates of the progress line


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
    """Makes people of a network as jobs/generate.py makes them. device: "cpu" or "cuda"; threads: CPU threads.

    Raises InputError for a network that cannot make people, and for a sample out of range.
    """

    def __init__(self, network: LoadedNetwork, name: str, sample: Sample, device: str, threads: int):
        self.network, self.name, self.sample = network, name, sample
        self.execution = {"device": device, "threads": threads}
        check_network(network.generator.config, self._configuration(() if network.has_who else (0,), 1))
        if sample.seed + sample.gallery > 2**32:
            raise InputError(
                f"--seed {sample.seed}: seeds end at {2**32 - 1}, also that of the last of {sample.gallery} people"
            )

    def _configuration(self, layers: Sequence[int], variants: int) -> Configuration:
        s = self.sample
        return Configuration(
            seed=s.seed, variants=variants, method=MIX if layers else CAMERA, layers=tuple(layers), amount=None,
            truncation_psi=s.truncation_psi, network=self.network.sha256, height=s.height, width=s.width, format="jpeg",
            jpeg_quality=95, unit_images=1, detector="", reference_threshold=0.0, ssim_data_range=1.0,
            recipe=RECIPE, cameras=() if layers else self.network.cameras,
        )  # fmt: skip

    def __call__(
        self, layers: Sequence[int], people: int, variants: int, line: ProgressLine, first: int = 0
    ) -> list[list[bytes]]:
        """Encoded pictures of people `first` ... `first` + people - 1, [people][variants].

        layers: the w indices in which variants differ; none: the method camera of a network trained by identity pairs.
        Raises InputError where a picture is not finite.
        """
        mixer = StyleMixer(self.network.generator, self._configuration(layers, variants), **self.execution)
        contents: list[bytes] = []
        for start in range(first, first + people, UNIT_PEOPLE):
            count = min(UNIT_PEOPLE, first + people - start)
            unit = pa.table({"unit": [start // UNIT_PEOPLE], "first_person": [start], "people": [count]})
            for row in images_of(mixer(unit)).to_pylist():
                if row["status"] != "ok":
                    raise InputError(f"--network {self.name}: person {row['person']}: {row['message']}")
                contents.append(row["image"])
            line.update(count * variants)
        return [contents[start : start + variants] for start in range(0, len(contents), variants)]


def work(people: int, variants: int) -> tuple[int, int]:
    """Units and images of so many people, for a progress line."""
    return -(-people // UNIT_PEOPLE), people * variants


def decoded(people: Sequence[Sequence[bytes]]) -> np.ndarray:
    """Encoded pictures [P][V] -> [P, V, H, W, 3] uint8 RGB."""
    return np.stack([[decode(content) for content in pictures] for pictures in people])


# ---- Real people.


@dataclasses.dataclass(frozen=True)
class RealSample:
    """Training people of a data set who have enough pictures, in the size of the made pictures.

    People and pictures are drawn by a hash of their names, whatever their cameras: a picture from each camera in turn
    would spread the colours of backgrounds further than pictures do that are drawn independently of each other.

    everyone: the pictures of all training people. listing: the same; where the judge knows some people, and enough
    others have enough pictures, only those of the others. chosen [P][V]: the measured people's pictures. gallery: one
    picture each of people of the listing, the measured ones first. known: the names of the measured people who bear a
    name of `known_names`.
    """

    everyone: Listing
    listing: Listing
    chosen: list[list[bytes]]
    gallery: list[bytes]
    known: tuple[str, ...]

    @classmethod
    def read(cls, reference: Path, sample: Sample, threads: int, known_names: Collection[str] = ()) -> "RealSample":
        """Read the data set `reference`. known_names: names of people whom the judge was trained on.

        Raises InputError where fewer than two people have enough pictures that can be read.
        """
        everyone = listing = read_split(reference, TRAIN)
        numbers = {plain_name(name) for name in known_names}
        known = {person for person, name in listing.people.items() if plain_name(name) in numbers}
        people, counts = np.unique(listing.identities, return_counts=True)
        many = _drawn(people[counts >= sample.variants], listing.people)
        unknown = [person for person in many if person not in known]
        if known and len(unknown) >= sample.people:
            many, listing = unknown, listing.of_people(set(listing.people) - known)
        of = {person: np.flatnonzero(listing.identities == person) for person in sorted(listing.people)}
        many = many[: sample.people]
        drawn = [_drawn(of[person], listing.names)[: sample.variants] for person in many]
        pictures = _pictures(listing, [np.array(places) for places in drawn], sample, threads)
        usable = [index for index, contents in enumerate(pictures) if None not in contents]
        chosen, people = [pictures[index] for index in usable], [many[index] for index in usable]
        if len(chosen) < 2:
            raise InputError(
                f"--reference {reference}: {len(chosen)} of its {len(of)} training people have {sample.variants} "
                "pictures that can be read, and at least 2 people are compared: leave --reference out"
            )
        others = [of[person][:1] for person in of if person not in set(many)][: max(0, sample.gallery - len(chosen))]
        gallery = [contents[0] for contents in [*chosen, *_pictures(listing, others, sample, threads)]]
        overlap = tuple(listing.people[person] for person in people if person in known)
        return cls(everyone, listing, chosen, [content for content in gallery if content is not None], overlap)


def plain_name(name: str) -> str:
    """A person's name for comparison: a name that is a number counts by its value, as 2 and 0002 are one person."""
    return str(int(name)) if name.isascii() and name.isdecimal() and len(name) < 19 else name


def _drawn(keys: np.ndarray, names: Mapping[int, str] | Sequence[str]) -> list[int]:
    """Keys of names, in the order that a hash of the names draws."""
    return sorted(keys.tolist(), key=lambda key: drawn_key(0, names[key]))


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
