"""The stage that measures how much an image looks like its person, and whether it looks more like somebody else."""

import time
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import pyarrow as pa
import torch

from datasets.people.decoding import DecodingError, decode_bicubic
from datasets.people.real_people import RealPeople
from datasets.runs.rows import Reference, images_of, resolved, with_columns
from datasets.runs.verdicts import LATENT
from passersby.errors import InputError
from passersby.metrics.identity import NOBODY, nearest_pictures
from passersby.reid.network import FeatureNetwork

# The number of images that go through the network together. Black images fill up the last chunk of a unit, so that the
# network and the matrix product always see one shape: an image's scores never depend on the images beside it.
CHUNK = {"cpu": 16, "cuda": 64}


class IdentityScorer:
    """A stage that adds `identity_cosine`, `identity_margin` (float32), `nearest_identity` (int64), `seconds_identity`.

    A re-ID network computes flip-averaged features of the stored bytes, resized as re-ID data is (bicubic, areas
    averaged where shrunk). Similarity is the cosine of two features.
    identity_cosine: for a variant of a real person (`source` "latent"), the cosine to the nearest picture of that
    person; for an image of an artificial person, the cosine to the person's reference (`reference_variant`). The
    reference itself has 1.
    nearest_identity: the person in the nearest of all real pictures.
    identity_margin: identity_cosine minus the greatest cosine to a real picture of anybody else. For artificial people
    everybody is somebody else. Above 0 the nearest real person is the right one.

    Without real pictures `nearest_identity` and `identity_margin` are null. Where the person has no real picture or no
    reference, `identity_cosine` and `identity_margin` are null. Images with status "error" have none of the three. An
    image that cannot be decoded, or whose features are not finite, gets that status with a message. The stage runs
    after the SimilarityScorer, which chooses the references. `network` and `real` may be Ray references; `device` is
    "cpu" or "cuda".
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
        self.network = resolved(network).to(device)  # the driver sends it: nodes need no copy of the file
        self.real = resolved(real)  # the arrays are not copied: the actors of a node share them
        if self.real is not None:
            self.real.check(self.network.width)

    def __call__(self, batch: pa.Table) -> pa.Table:
        start = time.perf_counter()
        names = ["person", "variant", "source", "reference_variant", "image", "status", "message"]
        rows = images_of(batch).select(names).to_pylist()
        features = np.full((len(rows), self.network.width), np.nan, np.float32)
        for row in rows:
            row["cosine"] = row["nearest"] = row["margin"] = None
        for indices, outputs in features_in_chunks(self.network, self._pixels(rows)):
            finite = np.all(np.isfinite(outputs), axis=1)  # [CHUNK] bool
            for position in np.flatnonzero(~finite[: len(indices)]):
                rows[indices[position]] |= {
                    "status": "error",
                    "message": "its features for the identity are not finite",
                }
            features[indices] = outputs[: len(indices)]
            if self.real is not None:
                self._compare(self.real, rows, indices, np.where(finite[:, None], outputs, 0))
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
        for index, row in enumerate(rows):
            if row["status"] == "error" or row["image"] is None:
                continue
            try:
                yield index, decode_bicubic(row["image"], self.network.height, self.network.width_pixels)
            except DecodingError as error:
                row["status"], row["message"] = "error", str(error)

    def _compare(self, real: RealPeople, rows: list[dict], indices: list[int], features: np.ndarray) -> None:
        """Compare images with the real pictures and note the results in their rows.

        Row i of `features` [CHUNK, D] belongs to the image rows[indices[i]]; the rows beyond belong to no image. The
        row of an artificial person gets `others`, the greatest cosine to a real picture: its margin needs this later.
        """
        persons = np.full(len(features), NOBODY)
        for position, row_index in enumerate(indices):
            if rows[row_index]["source"] == LATENT:
                persons[position] = real.persons.get(rows[row_index]["person"]) or NOBODY
        nearest = nearest_pictures(features, real.features, real.identities, persons)
        for position, row_index in enumerate(indices):
            row = rows[row_index]
            if row["status"] == "error":
                continue
            row["nearest"] = int(real.identities[nearest.picture[position]])
            to_person, to_others = float(nearest.person_cosine[position]), float(nearest.others_cosine[position])
            if row["source"] == LATENT:
                has_picture, has_margin = not np.isnan(to_person), not np.isnan(to_person - to_others)
                row["cosine"], row["margin"] = (
                    to_person if has_picture else None,
                    to_person - to_others if has_margin else None,
                )
            else:
                row["others"] = to_others

    def _compare_with_references(self, rows: list[dict], features: np.ndarray) -> None:
        row_indices = {(row["person"], row["variant"]): index for index, row in enumerate(rows)}
        for index, row in enumerate(rows):
            reference = row_indices.get((row["person"], row["reference_variant"]))
            if row["source"] == LATENT or row["status"] == "error" or reference is None:
                continue
            if rows[reference]["status"] == "error":
                continue
            pair = features[index].astype(np.float64), features[reference]
            row["cosine"] = 1.0 if index == reference else float(np.clip(np.sum(pair[0] * pair[1]), -1, 1))
            if self.real is not None:
                row["margin"] = row["cosine"] - row["others"]


def features_in_chunks(
    network: FeatureNetwork, pictures: Iterable[tuple[int, np.ndarray]]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Indices and pictures (uint8 [H, W, 3] of the network's size) -> indices of a chunk, features [CHUNK, D] float32.

    Row i of the features belongs to the i-th index of the chunk; the rows beyond belong to no picture. Memory holds the
    pictures of one chunk.
    """
    size = CHUNK[network.device.type]
    indices: list[int] = []
    pixels = np.zeros((size, network.height, network.width_pixels, 3), np.uint8)
    for index, picture in pictures:
        pixels[len(indices)] = picture
        indices.append(index)
        if len(indices) == size:
            yield indices, network(pixels)
            indices = []
    if indices:
        pixels[len(indices) :] = 0
        yield indices, network(pixels)
