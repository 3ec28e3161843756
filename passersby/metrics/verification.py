"""Same person or not: similarities of pairs of images, and the thresholds that tell same from different people.

Equal error rate and threshold at a share of false accepts, as in face verification (P. J. Grother et al., Face
Recognition Vendor Test). All pairs of Market-1501 are 60 million: they are counted in a histogram, never stored.
"""

import dataclasses
import math

import numpy as np

from passersby.errors import InputError
from passersby.metrics.features import normalised
from passersby.metrics.ranking import evaluate_ranking

# ---- Pairs of cameras: which of them a network connects, and which it does not.


@dataclasses.dataclass(frozen=True)
class CameraPair:
    """Scores 0..1 of the queries of one camera against the gallery of another; queries: how many have a match there."""

    query_camera: int
    gallery_camera: int
    queries: int
    rank1: float
    mAP: float  # noqa: N815 - the field's own term


def camera_pairs(
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    metric: str = "cosine",
) -> list[CameraPair]:
    """Scores of every pair of two cameras in which a query has a match, in ascending order.

    Only the gallery images of that one camera count, distractors among them. A camera against itself is no pair: the
    protocol removes all its matches. Errors as `evaluate_ranking`.
    """
    pairs = []
    for seen in np.unique(query_cameras):
        queries = query_cameras == seen
        for camera in np.unique(gallery_cameras):
            gallery = gallery_cameras == camera
            matched = queries & np.isin(query_ids, gallery_ids[gallery]) & (query_ids > 0)
            if camera == seen or not matched.any():
                continue
            found = evaluate_ranking(
                query_features[matched], gallery_features[gallery], query_ids[matched], gallery_ids[gallery],
                metric=metric,
            )  # fmt: skip
            pairs.append(CameraPair(int(seen), int(camera), int(matched.sum()), found.rank1, found.mAP))
    return pairs


# ---- Pairs of the same and of different people, counted by their similarity.

STEP = 1e-4  # of similarity, the width of a bin
BINS = 20_001  # centred at -1, -1 + STEP, ..., 1
JUNK, DISTRACTOR = -1, 0  # identities: junk is in no pair; distractors are different from everybody
CHUNK_BYTES = 64 << 20  # of similarities held at a time


@dataclasses.dataclass(frozen=True)
class PairCounts:
    """How many pairs of the same and of different people have which similarity, both [BINS] int64."""

    same: np.ndarray
    different: np.ndarray


@dataclasses.dataclass(frozen=True)
class Threshold:
    """The same person from this cosine similarity on, and how often that is wrong, as shares 0..1.

    false_accepts: of the pairs of different people, that are called the same; false_rejects: the other way round, nan
    where there are no pairs of the same person.
    """

    similarity: float
    false_accepts: float
    false_rejects: float


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """equal_error: as many false rejects as accepts; one_percent: at most 1% false accepts. None where undefined."""

    equal_error: Threshold | None
    one_percent: Threshold | None


def count_pairs(
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray | None = None,
    gallery_cameras: np.ndarray | None = None,
) -> PairCounts:
    """Count cosine similarities of every query [Q, D] with every gallery image [G, D], to STEP.

    Identities [Q], [G] and cameras (None: not known) are integers. Junk (-1) is in no pair, and with cameras only
    pairs of two cameras count, same person or not: the background alone makes images of one camera alike. Memory:
    CHUNK_BYTES a few times, and the gallery's features once. Raises InputError for features that are not finite or do
    not fit together.
    """
    query, gallery = normalised(query_features, "query"), normalised(gallery_features, "gallery")
    query_ids, gallery_ids = np.asarray(query_ids), np.asarray(gallery_ids)
    if query.shape[1] != gallery.shape[1]:
        raise InputError(f"{query.shape[1]} features of queries and {gallery.shape[1]} of the gallery: use one network")
    if (len(query), len(gallery)) != (len(query_ids), len(gallery_ids)):
        raise InputError(
            f"{len(query)} queries and {len(gallery)} gallery images have {len(query_ids)} and {len(gallery_ids)} "
            "identities: give one for each"
        )
    everything, same = np.zeros(BINS + 1, np.int64), np.zeros(BINS + 1, np.int64)  # the last bin: pairs not to count
    step = max(1, CHUNK_BYTES // (4 * max(1, len(gallery))))
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        similarity = query[part] @ gallery.T  # [chunk, G] float32, -1..1
        similarity += 1 + STEP / 2
        similarity *= 1 / STEP
        bins = similarity.astype(np.int32)
        np.clip(bins, 0, BINS - 1, out=bins)  # rounding may lead beyond 1
        bins[query_ids[part] == JUNK] = BINS
        bins[:, gallery_ids == JUNK] = BINS
        if query_cameras is not None and gallery_cameras is not None:
            bins[query_cameras[part, None] == gallery_cameras] = BINS
        everything += np.bincount(bins.ravel(), minlength=BINS + 1)
        matches = (query_ids[part, None] == gallery_ids) & (gallery_ids > DISTRACTOR)
        same += np.bincount(bins[matches], minlength=BINS + 1)
    return PairCounts(same[:BINS], (everything - same)[:BINS])


def same_person_thresholds(counts: PairCounts, accepts: float = 0.01) -> Thresholds:
    """The thresholds at equal error rate, and at a share `accepts` of false accepts at most, the lowest such.

    Where a gap lies between the pairs of same and of different people, equal error is in its middle. Undefined (None):
    both without pairs of different people, that of equal error also without pairs of the same.
    """
    same, different = int(counts.same.sum()), int(counts.different.sum())
    if not different:
        return Thresholds(None, None)
    # Place k: bins k, k + 1, ... are accepted; k = BINS accepts nothing.
    accepted = _from_here_on(counts.different) / different
    rejected = 1 - _from_here_on(counts.same) / same if same else np.full(BINS + 1, math.nan)

    def at(place: int) -> Threshold:
        return Threshold((place - 0.5) * STEP - 1, float(accepted[place]), float(rejected[place]))

    one_percent = at(int(np.argmax(accepted <= accepts)))
    if not same:
        return Thresholds(None, one_percent)
    apart = np.abs(accepted - rejected)
    first = int(np.argmin(apart))
    alike = (accepted == accepted[first]) & (rejected == rejected[first])  # a stretch: both are monotonic
    last = first + int(alike[first:].sum()) - 1
    return Thresholds(at((first + last) // 2), one_percent)


def _from_here_on(counts: np.ndarray) -> np.ndarray:
    """[BINS + 1]: the sum of the counts from each bin on, 0 at the end."""
    return np.append(counts[::-1].cumsum()[::-1], 0)
