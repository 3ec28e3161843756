"""The judge of a card, a re-ID network that says whether two pictures show the same person, and what it says."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from actors.identity_scorer import features_in_chunks
from datasets.people.decoding import decode, decode_bicubic, decode_listing
from datasets.people.listing import Listing
from passersby.errors import InputError
from passersby.metrics.identity import (
    NOBODY,
    near_copy_threshold,
    nearest_pictures,
    same_person_threshold,
)
from passersby.metrics.variants import colour_histograms, measure_variants, others_edge_distance, share
from passersby.options import Json
from passersby.reid.checkpoint import LoadedReid
from passersby.reid.network import FeatureNetwork
from passersby.reid.onnx_network import LoadedOnnx
from pipeline.card.people import decoded, plain_name
from pipeline.features import Workers, embeddings_of

Figures: TypeAlias = dict[str, Any]  # as JSON data

THRESHOLD_PICTURES = 2000  # real pictures, evenly spread, whose pairs give the judge's threshold


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

    def features_of_people(self, people: Sequence[Sequence[bytes]]) -> np.ndarray:
        """Encoded pictures [P][V] -> [P, V, D] float32."""
        features = self.features(content for pictures in people for content in pictures)
        return features.reshape(len(people), -1, features.shape[1])

    def __call__(self, people: Sequence[Sequence[bytes]], gallery: np.ndarray) -> Figures:
        """Figures of people's pictures, base images first; gallery [G, D]: features of one picture each of G people.

        nearest_own: variants whose nearest picture of the gallery is their person's. same_person: pairs of a person's
        pictures that it takes for the same person. different_people: the same of pairs of people's base images.
        """
        features = self.features_of_people(people)
        own = (features[:, 1:] @ gallery.T).argmax(2) == np.arange(len(people))[:, None]
        figures: Figures = {"nearest_own": share(own)}
        if self.threshold is not None:
            between = (features[:, 0] @ features[:, 0].T)[np.triu_indices(len(people), 1)]
            figures["same_person"] = same_person_rate(features, self.threshold)
            figures["different_people"] = float((between >= self.threshold).mean())
        return figures


def same_person_rate(features: np.ndarray, threshold: float) -> Figures:
    """The share of pairs of one person's pictures whose cosine reaches the threshold; features [P, V, D]."""
    pairs = np.triu_indices(features.shape[1], 1)
    cosines = (features @ features.transpose(0, 2, 1))[:, pairs[0], pairs[1]]  # [P, pairs]
    return share(cosines >= threshold)


def different_people_rate(features: np.ndarray, threshold: float) -> float:
    """The share of pairs of two people's pictures whose cosine reaches the threshold; features [P, V, D].

    All pictures count. Pairs of base images alone would be few, and of real people often one camera's.
    """
    people, variants = features.shape[:2]
    matches = 0
    for person in range(people - 1):  # a person with all later ones: memory holds no matrix of all pairs
        others = features[person + 1 :].reshape(-1, features.shape[2])
        matches += int((features[person] @ others.T >= threshold).sum())
    return matches / (people * (people - 1) / 2 * variants**2)


class Measurer:
    """Measures people against a gallery: encoded pictures, one each of people, the first of whom are measured."""

    def __init__(self, gallery: Sequence[bytes], judge: Judge | None):
        pictures = np.stack([decode(content) for content in gallery])
        self.judge = judge
        self.histograms = colour_histograms(pictures)
        self.others = others_edge_distance(pictures)
        self.features = judge.features(gallery) if judge else np.empty((0, 0), np.float32)

    def __call__(self, people: Sequence[Sequence[bytes]], judged: bool = True) -> Figures:
        """What variants keep and change (`measure_variants`), `pose_moved`, and with a judge its figures."""
        figures = measure_variants(decoded(people), self.histograms)
        figures["pose_moved"] = figures["edge_distance"] / self.others if self.others else 0.0
        if self.judge and judged:
            figures["judge"] = self.judge(people, self.features)
        return figures


# ---- Whom the judge was trained on.


def judge_record(loaded: LoadedReid | LoadedOnnx) -> dict[str, Json]:
    """What the file of a judge says about the people that it was trained on, as JSON data.

    people: their number, None where the file does not name them. sources: name, people and sha256 (of their names) of
    each data set of real people in the record.
    """
    trained_on = loaded.record.get("trained_on")
    real = trained_on.get("real") if isinstance(trained_on, dict) else None
    sources: list[Json] = []
    for source in real if isinstance(real, list) else []:
        if isinstance(source, dict):
            values = {name: source.get(name) for name in ("name", "people", "sha256")}
            sources.append({name: value for name, value in values.items() if isinstance(value, str | int)})
    return {"people": len(set(map(plain_name, loaded.class_names))) or None, "sources": sources}


# ---- Near-copies of training pictures.


@dataclasses.dataclass(frozen=True)
class TrainingPictures:
    """Features [M, D] float32 of the real training pictures, their people [M], and the cosine that makes a near-copy:
    1% of them are so like a picture of somebody else."""

    features: np.ndarray
    identities: np.ndarray
    threshold: float | None

    @classmethod
    def of(cls, listing: Listing, network: FeatureNetwork) -> "TrainingPictures":
        """The features of all pictures that can be read."""
        workers = Workers(network.device.type, here=True)
        embeddings = embeddings_of(listing.files, network, workers, listing.name)
        identities = listing.identities[embeddings.places]
        if not np.isfinite(embeddings.features).all():
            raise InputError(f"{listing.name}: the judge gives features that are not finite: give another --identity")
        threshold = near_copy_threshold(embeddings.features, identities, of_same_person=False)
        return cls(embeddings.features, identities, threshold)

    def near_copies(self, features: np.ndarray) -> Figures | None:
        """The share of made pictures [P, V, D] that are near-copies of a training picture; None without a threshold."""
        if self.threshold is None:
            return None
        flat = features.reshape(-1, features.shape[2])
        nearest = nearest_pictures(flat, self.features, self.identities, np.full(len(flat), NOBODY))
        copies = nearest.cosine >= self.threshold
        return {"share": float(copies.mean()), "count": int(copies.sum()), "highest": float(nearest.cosine.max())}
