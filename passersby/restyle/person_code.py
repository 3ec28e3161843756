"""The code of a person: the robust mean of the codes of that person's pictures."""

import numpy as np

from passersby.errors import InputError

ITERATIONS = 1000  # Weiszfeld's converge linearly; tens are usual
TOLERANCE = 1e-9  # of the step, relative to the codes' mean distance from their mean
TIE = 1e-9  # two pictures of one weight withstand each other up to rounding: neither is the median, their middle is


def person_code(codes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The geometric median of codes [n, num_ws, w_dim], a picture being one point: [num_ws, w_dim] float32.

    It is the point whose summed distance to all pictures, times `weights` [n] (0 or more, default 1), is least, found
    as Weiszfeld (1937) does, from the mean on. A badly inverted picture pulls on it no harder than any other, however
    far away it is; a mean would follow it. One picture is its own code; two of one weight give their middle, two of
    unequal weight the heavier one. The result does not depend on the order of the pictures, to the last bit.

    Raises InputError for no picture, values that are not finite, and weights of another number, below 0 or all 0.
    """
    points, weights, shape = _checked(codes, weights)
    points, weights = _merged(points, weights)
    # Where the median is one of the pictures, Weiszfeld's iterations would only creep up to it: that is looked up.
    nearest = int(np.argmin([weights @ _distances(points, point) for point in points]))
    if np.linalg.norm(_pull(points, weights, points[nearest])) < weights[nearest] * (1 - TIE):
        return points[nearest].reshape(shape).astype(np.float32)
    middle = weights @ points / weights.sum()
    size = weights @ _distances(points, middle) / weights.sum()
    for _ in range(ITERATIONS):
        step = _step(points, weights, middle)
        middle = middle + step
        if np.linalg.norm(step) <= TOLERANCE * size:
            break
    return middle.reshape(shape).astype(np.float32)


def _checked(codes, weights):
    codes = np.asarray(codes, np.float64)
    if codes.ndim != 3 or not codes.size:
        raise InputError(f"codes of a person: shape {codes.shape}, [n, num_ws, w_dim] with n of 1 or more is needed")
    if not np.isfinite(codes).all():
        wrong = np.flatnonzero(~np.isfinite(codes).all((1, 2))).tolist()
        raise InputError(
            f"codes of a person: pictures {wrong[:5]} hold values that are no finite numbers: leave them out"
        )
    weights = np.ones(len(codes)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (len(codes),):
        raise InputError(f"weights of shape {weights.shape} for {len(codes)} pictures: one each is needed")
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise InputError(f"weights {weights.tolist()[:8]}: numbers of 0 or more, not all 0, are needed")
    return codes[weights > 0].reshape(int((weights > 0).sum()), -1), weights[weights > 0], codes.shape[1:]


def _merged(points, weights):
    # Equal pictures become one of their summed weight, all in the order of their values: sums then come out the same
    # whatever order the pictures were given in.
    points, inverse = np.unique(points, axis=0, return_inverse=True)
    order = np.lexsort((weights, inverse.ravel()))
    return points, np.bincount(inverse.ravel()[order], weights[order])


def _distances(points, middle):
    return np.linalg.norm(points - middle, axis=1)


def _pull(points, weights, middle):
    # The weighted sum of the unit vectors from `middle` to the points; one that lies there does not pull. The median
    # is the point where this is 0, or where it is less than the weight of the picture that lies there.
    distances = _distances(points, middle)
    away = distances > 0
    return (weights[away] / distances[away]) @ (points[away] - middle)


def _step(points, weights, middle):
    # Weiszfeld's step, with the share that Vardi and Zhang (2000) give it on one of the points.
    distances = _distances(points, middle)
    away = distances > 0
    pull = _pull(points, weights, middle)
    if not pull.any():
        return pull
    share = max(0.0, 1 - weights[~away].sum() / np.linalg.norm(pull))
    return share * pull / (weights[away] / distances[away]).sum()
