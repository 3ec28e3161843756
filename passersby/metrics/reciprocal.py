"""k-reciprocal neighbours: images that are among each other's nearest, and their like-minded neighbours' neighbours."""

from collections.abc import Iterator

import numpy as np

ROWS = 2048  # images at a time: some 500 kB of their candidates' neighbours fit a processor's cache


def reciprocal_neighbours(neighbours: np.ndarray, k1: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (image, neighbour) of the sets R*(image, k1) of Zhong et al., 2017, equation 3, as two int64 arrays.

    neighbours [N, k1 + 1 or more] int32: the nearest images of each, itself first. In ascending order of image, then of
    neighbour, without repetition, some images at a time; every image is a neighbour of itself.
    R(image): those of its k1 nearest that have it among their k1 nearest. R* adds, of every such neighbour, the set
    R(neighbour, k1 / 2), where more than two thirds of it are in R(image).
    """
    full = neighbours[:, : k1 + 1]
    half = neighbours[:, : round(k1 / 2) + 1]  # to even, as NumPy's around in the authors' program
    mutual, mutual_half = _mutual(full), _mutual(half)
    halves = np.where(mutual_half, half, -1)  # R(i, k1 / 2) in rows, -1 where not mutual
    sizes = mutual_half.sum(1)
    for start in range(0, len(full), ROWS):
        part = slice(start, start + ROWS)
        own = np.where(mutual[part], full[part], -1)  # [n, k1 + 1]: R(i)
        theirs = halves[full[part]]  # [n, k1 + 1, half]: R(j, k1 / 2) of its neighbours j
        inside = np.zeros(theirs.shape, bool)
        for member in own.T:
            inside |= theirs == member[:, None, None]
        inside &= theirs >= 0
        alike = mutual[part] & (3 * inside.sum(2) > 2 * sizes[full[part]])
        theirs[~alike] = -1
        every = np.concatenate([own, theirs.reshape(len(own), -1)], 1)
        every.sort(1)
        first = every >= 0
        first[:, 1:] &= every[:, 1:] != every[:, :-1]
        rows = first.nonzero()[0]
        yield rows + start, every[first].astype(np.int64)


def _mutual(neighbours: np.ndarray) -> np.ndarray:
    """[N, K] bool: whether each neighbour has the image among its own, neighbours [N, K]."""
    found = np.empty(neighbours.shape, bool)
    for start in range(0, len(neighbours), ROWS):
        part = slice(start, start + ROWS)
        own = np.arange(start, start + len(neighbours[part]))[:, None, None]
        found[part] = (neighbours[neighbours[part]] == own).any(2)
    return found
