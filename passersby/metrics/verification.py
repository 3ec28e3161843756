"""Same person or not: similarities of pairs of images, and the thresholds that separate same from different people.

The thresholds are those of face verification (P. J. Grother et al., Face Recognition Vendor Test): at the equal error
rate and at a share of false accepts. Market-1501 has 60 million pairs: a histogram counts them, memory never holds all.
"""

import dataclasses
import math

import numpy as np

from passersby.errors import InputError
from passersby.metrics.features import normalised
from passersby.metrics.ranking import evaluate_ranking

# ---- Pairs of cameras: how well a network finds people of one camera in pictures by another.


@dataclasses.dataclass(frozen=True)
class CameraPair:
    """Scores 0..1 of the queries of one camera in the gallery of another; queries: the number with a match there."""

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

    Only the gallery images of that camera count, with its distractors. A camera and itself are no pair, because the
    protocol removes all their matches. Raises InputError as `evaluate_ranking` does.
    """
    pairs = []
    for query_camera in np.unique(query_cameras):
        queries = query_cameras == query_camera
        for gallery_camera in np.unique(gallery_cameras):
            gallery = gallery_cameras == gallery_camera
            matched = queries & np.isin(query_ids, gallery_ids[gallery]) & (query_ids > 0)
            if gallery_camera == query_camera or not matched.any():
                continue
            ranking = evaluate_ranking(
                query_features[matched], gallery_features[gallery], query_ids[matched], gallery_ids[gallery],
                metric=metric,
            )  # fmt: skip
            count = int(matched.sum())
            pairs.append(CameraPair(int(query_camera), int(gallery_camera), count, ranking.rank1, ranking.mAP))
    return pairs


# ---- Pairs of the same and of different people, counted by their similarity.

STEP = 1e-4  # the width of a bin of similarities
BINS = 20_001  # the bins' centres are -1, -1 + STEP, ..., 1
JUNK, DISTRACTOR = -1, 0  # identities: junk is in no pair; distractors are different from everybody
CHUNK_BYTES = 64 << 20  # similarities that memory holds at a time


@dataclasses.dataclass(frozen=True)
class PairCounts:
    """Numbers of pairs of the same person and of different people by similarity, both [BINS] int64."""

    same: np.ndarray
    different: np.ndarray


@dataclasses.dataclass(frozen=True)
class Threshold:
    """From this cosine similarity on, a pair is called the same person. Its errors are shares 0..1.

    false_accepts: the share of pairs of different people that are called the same person. false_rejects: the share of
    pairs of the same person that are called different; nan where there are no such pairs.
    """

    similarity: float
    false_accepts: float
    false_rejects: float


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """The thresholds of a network; None where one is not defined.

    equal_error: equal shares of false rejects and accepts; one_percent: at most 1% false accepts.
    """

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
    """Count the cosine similarities of every query [Q, D] with every gallery image [G, D], rounded to STEP.

    Identities [Q], [G] and cameras (None: not known) are integers. Junk (-1) is in no pair. With cameras, only pairs
    of two different cameras count, same person or not, because the background alone makes images by one camera alike.
    Memory: CHUNK_BYTES a few times, and the gallery's features once. Raises InputError for features that are not
    finite or do not fit together.
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
    # The last bin is for pairs that do not count.
    all_pairs, same_person = np.zeros(BINS + 1, np.int64), np.zeros(BINS + 1, np.int64)
    step = max(1, CHUNK_BYTES // (4 * max(1, len(gallery))))
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        similarity = query[part] @ gallery.T  # [chunk, G] float32, -1..1
        similarity += 1 + STEP / 2
        similarity *= 1 / STEP
        bins = similarity.astype(np.int32)
        np.clip(bins, 0, BINS - 1, out=bins)  # through rounding a cosine may exceed 1
        bins[query_ids[part] == JUNK] = BINS
        bins[:, gallery_ids == JUNK] = BINS
        if query_cameras is not None and gallery_cameras is not None:
            bins[query_cameras[part, None] == gallery_cameras] = BINS
        all_pairs += np.bincount(bins.ravel(), minlength=BINS + 1)
        matches = (query_ids[part, None] == gallery_ids) & (gallery_ids > DISTRACTOR)
        same_person += np.bincount(bins[matches], minlength=BINS + 1)
    return PairCounts(same_person[:BINS], (all_pairs - same_person)[:BINS])


def same_person_thresholds(counts: PairCounts, accepts: float = 0.01) -> Thresholds:
    """The threshold at the equal error rate, and the lowest with at most the share `accepts` of false accepts.

    If a gap separates the pairs of the same person from those of different people, equal error is in its middle.
    Without pairs of different people both thresholds are None. Without pairs of the same person the threshold at equal
    error is None.
    """
    same, different = int(counts.same.sum()), int(counts.different.sum())
    if not different:
        return Thresholds(None, None)
    # Edge k accepts the bins k, k + 1, ...; k = BINS accepts nothing.
    accepted = _from_here_on(counts.different) / different
    rejected = 1 - _from_here_on(counts.same) / same if same else np.full(BINS + 1, math.nan)

    def at(edge: int) -> Threshold:
        return Threshold((edge - 0.5) * STEP - 1, float(accepted[edge]), float(rejected[edge]))

    one_percent = at(int(np.argmax(accepted <= accepts)))
    if not same:
        return Thresholds(None, one_percent)
    gap = np.abs(accepted - rejected)
    first = int(np.argmin(gap))
    same_rates = (accepted == accepted[first]) & (rejected == rejected[first])  # one range, as both are monotonic
    last = first + int(same_rates[first:].sum()) - 1
    return Thresholds(at((first + last) // 2), one_percent)


def _from_here_on(counts: np.ndarray) -> np.ndarray:
    """[BINS + 1]: the sum of the counts from each bin on, 0 at the end."""
    return np.append(counts[::-1].cumsum()[::-1], 0)
