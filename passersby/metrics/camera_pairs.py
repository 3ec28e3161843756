"""Rankings from one camera to another: which pairs of cameras a network connects, and which it does not."""

import dataclasses

import numpy as np

from passersby.metrics.ranking import evaluate_ranking


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
