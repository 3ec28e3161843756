"""The stage that says how like its person an image is, and whether it is liker somebody else."""

import time
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import pyarrow as pa
import torch

from datasets.people.labelled_images import decode_bicubic
from datasets.people.market_tree import DecodingError
from datasets.people.real_people import RealPeople
from datasets.runs.rows import Reference, images_of, resolved, with_columns
from datasets.runs.verdicts import LATENT
from passersby.errors import InputError
from passersby.metrics.identity import NOBODY, nearest_pictures
from passersby.reid.network import FeatureNetwork

# Images that go through the network together. The last ones of a unit are filled up with black, so that the network
# and the matrix product always see one shape: an image's scores are the same to the last bit in any company.
CHUNK = {"cpu": 16, "cuda": 64}


class IdentityScorer:
    """Adds `identity_cosine`, `identity_margin` (float32), `nearest_identity` (int64) and `seconds_identity`.

    All by cosine between flip-averaged features of a re-ID network, taken of the stored bytes, resized as re-ID data
    is (bicubic, areas averaged where shrunk). identity_cosine: of a variant of a real person (`source` "latent") to the
    nearest picture of that person; of an artificial person's image to the person's reference (`reference_variant`),
    the reference itself having 1. nearest_identity: whom the nearest real picture of all shows. identity_margin:
    identity_cosine less the greatest cosine to a real picture of anybody else (of anybody, for artificial people):
    above 0 the nearest real person is the right one.

    Null are the last two without real pictures, the first and the last where the person has no real picture or no
    reference, and all three for images with status "error". An image that cannot be decoded, or whose features are not
    finite, gets that status with a message. It follows the SimilarityScorer, which chooses the references. `network`
    and `real` may be Ray references, `device` is "cpu" or "cuda".
    """

    def __init__(
        self,
        network: FeatureNetwork | Reference[FeatureNetwork],
        real: RealPeople | Reference[RealPeople] | None,
        device: str = "cpu",
        threads: int = 1,
    ):
        if threads < 1:
            raise InputError(f"identity scorer: {threads=} must be at least 1")
        torch.set_num_threads(threads)
        cv2.setNumThreads(1)
        self.network = resolved(network).to(device)  # the driver's: nodes need no copy of the file
        self.real = resolved(real)  # its arrays stay where they are, shared by the actors of a node
        if self.real is not None:
            self.real.check(self.network.width)

    def __call__(self, batch: pa.Table) -> pa.Table:
        start = time.perf_counter()
        names = ["person", "variant", "source", "reference_variant", "image", "status", "message"]
        rows = images_of(batch).select(names).to_pylist()
        features = np.full((len(rows), self.network.width), np.nan, np.float32)
        for row in rows:
            row["cosine"] = row["nearest"] = row["margin"] = None
        for places, found in features_in_chunks(self.network, self._pixels(rows)):
            good = np.all(np.isfinite(found), axis=1)  # [CHUNK] bool
            for place in np.flatnonzero(~good[: len(places)]):
                rows[places[place]] |= {"status": "error", "message": "its features for the identity are not finite"}
            features[places] = found[: len(places)]
            if self.real is not None:
                self._compare(self.real, rows, places, np.where(good[:, None], found, 0))
        self._compare_with_references(rows, features)
        return with_columns(
            batch,
            {
                "status": pa.array([row["status"] for row in rows], pa.string()),
                "message": pa.array([row["message"] for row in rows], pa.string()),
                "identity_cosine": pa.array([row["cosine"] for row in rows], pa.float32()),
                "nearest_identity": pa.array([row["nearest"] for row in rows], pa.int64()),
                "identity_margin": pa.array([row["margin"] for row in rows], pa.float32()),
                "seconds_identity": time.perf_counter() - start,
            },
        )

    def _pixels(self, rows: list[dict]) -> Iterator[tuple[int, np.ndarray]]:
        for place, row in enumerate(rows):
            if row["status"] == "error" or row["image"] is None:
                continue
            try:
                yield place, decode_bicubic(row["image"], self.network.height, self.network.width_pixels)
            except DecodingError as error:
                row["status"], row["message"] = "error", str(error)

    def _compare(self, real: RealPeople, rows: list[dict], places: list[int], features: np.ndarray) -> None:
        """With the real pictures; `features` [CHUNK, D] of the rows at `places`, and of nothing. `margin` of artificial
        people is what the reference's comparison will be lessened by."""
        persons = np.full(len(features), NOBODY)
        for index, place in enumerate(places):
            if rows[place]["source"] == LATENT:
                persons[index] = real.persons.get(rows[place]["person"]) or NOBODY
        found = nearest_pictures(features, real.features, real.identities, persons)
        for index, place in enumerate(places):
            row = rows[place]
            if row["status"] == "error":
                continue
            row["nearest"] = int(real.identities[found.picture[index]])
            own, others = float(found.own[index]), float(found.others[index])
            if row["source"] == LATENT:
                known, compared = not np.isnan(own), not np.isnan(own - others)
                row["cosine"], row["margin"] = own if known else None, own - others if compared else None
            else:
                row["others"] = others

    def _compare_with_references(self, rows: list[dict], features: np.ndarray) -> None:
        places = {(row["person"], row["variant"]): place for place, row in enumerate(rows)}
        for place, row in enumerate(rows):
            reference = places.get((row["person"], row["reference_variant"]))
            if row["source"] == LATENT or row["status"] == "error" or reference is None:
                continue
            if rows[reference]["status"] == "error":
                continue
            pair = features[place].astype(np.float64), features[reference]
            row["cosine"] = 1.0 if place == reference else float(np.clip(np.sum(pair[0] * pair[1]), -1, 1))
            if self.real is not None:
                row["margin"] = row["cosine"] - row["others"]


def features_in_chunks(
    network: FeatureNetwork, pictures: Iterable[tuple[int, np.ndarray]]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Places and pictures (uint8 [H, W, 3] of the network's size) -> some places, and features [CHUNK, D] float32.

    Row i is of the i-th of these places; rows beyond are of nothing. Not more pictures than a chunk are held.
    """
    size = CHUNK[network.device.type]
    places: list[int] = []
    pixels = np.zeros((size, network.height, network.width_pixels, 3), np.uint8)
    for place, picture in pictures:
        pixels[len(places)] = picture
        places.append(place)
        if len(places) == size:
            yield places, network(pixels)
            places = []
    if places:
        pixels[len(places) :] = 0
        yield places, network(pixels)
