"""Multi-query: all images of a person by one camera ask together (Zheng et al., Scalable Person Re-identification)."""

import numpy as np


def multi_query_features(
    query_features: np.ndarray,
    query_ids: np.ndarray,
    query_cameras: np.ndarray,
    multi_features: np.ndarray,
    multi_ids: np.ndarray,
    multi_cameras: np.ndarray,
) -> tuple[np.ndarray, int]:
    """For each query the mean of the multi-query features [M, D] of its identity and camera: [Q, D] float32.

    Also how many queries have none of these; they keep their own feature.
    """
    found, alone = np.array(query_features, np.float32), 0
    keys, inverse = np.unique(np.stack([multi_ids, multi_cameras], 1), axis=0, return_inverse=True)
    sums = np.zeros((len(keys), found.shape[1]))
    np.add.at(sums, inverse.reshape(-1), multi_features)
    means = sums / np.bincount(inverse.reshape(-1), minlength=len(keys))[:, None]
    places = {(int(identity), int(camera)): place for place, (identity, camera) in enumerate(keys)}
    for query, key in enumerate(zip(query_ids.tolist(), query_cameras.tolist(), strict=True)):
        if key in places:
            found[query] = means[places[key]]
        else:
            alone += 1
    return found, alone
