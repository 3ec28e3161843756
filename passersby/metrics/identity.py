"""Identities by features: the nearest real picture of an image, near-copies of real pictures, doubles of people.

Features are rows of length 1, so cosines are dot products. The functions compare real pictures and people in blocks,
so memory never holds a matrix of all pairs. Results do not depend on the size of a block.
"""

import dataclasses

import numpy as np

from passersby.errors import InputError
from passersby.metrics.verification import count_pairs, same_person_thresholds

NOBODY = 0  # the identity of an image that shows no real person; real people have numbers above 0
ROWS = 8192  # real pictures compared at a time
BLOCK = 4096  # people compared with as many others at a time: 64 MiB of cosines
SHARE = 0.01  # a threshold is the cosine that this share of real pictures, or of pairs of them, reaches
SAMPLE = 4096  # real pictures, evenly spread, that give the threshold


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The real pictures that are nearest to n images, one entry an image.

    picture: [n] int64, the index of the nearest of all pictures. cosine: [n] float32, -1..1, the cosine to it.
    person_cosine: [n] float32, the greatest cosine to a picture of the image's own person. others_cosine: [n] float32,
    the greatest cosine to a picture of anybody else. A cosine is NaN where there is no such picture.
    """

    picture: np.ndarray
    cosine: np.ndarray
    person_cosine: np.ndarray
    others_cosine: np.ndarray


def nearest_pictures(
    features: np.ndarray,
    real: np.ndarray,
    identities: np.ndarray,
    persons: np.ndarray,
    own_pictures: np.ndarray | None = None,
) -> Nearest:
    """Compare images with real pictures by cosine. If several pictures are equally near, the first counts.

    features: [n, D] float32 of the images; real: [M, D] of the pictures; both have rows of length 1. identities: [M]
    int64, above 0. persons: [n] int64, the person that each image should show, NOBODY for an artificial person.
    own_pictures: [n] int64, for each image the index of the picture that is the image itself: the two are not compared.
    Raises InputError without pictures.
    """
    if not len(real):
        raise InputError("there are no pictures of real people to compare with: give a data set with some")
    count = len(features)
    best = {name: np.full(count, -np.inf, np.float32) for name in ("cosine", "person_cosine", "others_cosine")}
    picture = np.zeros(count, np.int64)
    rows = np.arange(count)
    for start in range(0, len(real), ROWS):
        part = slice(start, start + ROWS)
        cosines = np.clip(features @ real[part].T, -1, 1)  # [n, rows] float32; rounding may lead beyond 1
        if own_pictures is not None:
            in_block = (own_pictures >= start) & (own_pictures < start + cosines.shape[1])
            cosines[rows[in_block], own_pictures[in_block] - start] = -np.inf
        columns = cosines.argmax(axis=1)
        nearer = cosines[rows, columns] > best["cosine"]
        picture[nearer] = start + columns[nearer]
        same_person = identities[part] == persons[:, None]
        block_best = {
            "cosine": cosines[rows, columns],
            "person_cosine": np.where(same_person, cosines, -np.inf).max(axis=1),
            "others_cosine": np.where(same_person, -np.inf, cosines).max(axis=1),
        }
        for name, values in block_best.items():
            np.maximum(best[name], values, out=best[name])
    for values in best.values():
        values[np.isneginf(values)] = np.nan
    return Nearest(picture, **best)


def near_copy_threshold(real: np.ndarray, identities: np.ndarray, of_same_person: bool) -> float | None:
    """The cosine that SHARE of real pictures reach with another real picture. Images that reach it are near-copies.

    of_same_person: the other picture is one of the same person. This threshold is for variants of real people: they
    should look like their person, and only a copy of a picture is too much. Otherwise the other picture is one of
    somebody else. That threshold is for artificial people, who should look like nobody.
    The threshold and the images are both measured by a nearest picture, so the size of the data set cancels out. Almost
    any image would reach a threshold for pairs with one of ten thousand pictures. SAMPLE pictures, evenly spread, give
    the threshold; it is None where no picture has such another picture.
    """
    sample, parts = _sample(len(real)), []
    for start in range(0, len(sample), ROWS // 16):
        part = sample[start : start + ROWS // 16]
        nearest = nearest_pictures(real[part], real, identities, identities[part], own_pictures=part)
        parts.append(nearest.person_cosine if of_same_person else nearest.others_cosine)
    cosines = np.concatenate(parts)
    cosines = np.sort(cosines[np.isfinite(cosines)].astype(np.float64))
    if not len(cosines):
        return None
    return float(cosines[len(cosines) - max(1, int(SHARE * len(cosines)))])


def same_person_threshold(real: np.ndarray, identities: np.ndarray) -> float | None:
    """The cosine that SHARE of the pairs of different people's pictures reach: the network's 1% of false accepts.

    SAMPLE of the pictures [M, D], evenly spread, give it; None where they show one person.
    """
    sample = _sample(len(real))
    counts = count_pairs(real[sample], real[sample], identities[sample], identities[sample])
    threshold = same_person_thresholds(counts, SHARE).one_percent
    return None if threshold is None else threshold.similarity


def _sample(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64))


def near_copies(cosines: np.ndarray, threshold: float) -> dict[str, float | int | None]:
    """Count the images whose cosine [N] to the nearest picture reaches `threshold`: {"count", "scored", "share"}.

    An image with the cosine NaN has no score. Without scored images the share is None.
    """
    scored = int(np.isfinite(cosines).sum())
    count = int((cosines >= threshold).sum())
    return {"count": count, "scored": scored, "share": count / scored if scored else None}


@dataclasses.dataclass(frozen=True)
class Doubles:
    """Pairs of people whose cosine reaches a threshold.

    count: the number of such pairs; pairs: the number of all pairs. first: indices [K, 2] int64 of the K pairs that
    are most alike, the smaller index of a pair first; cosines: [K] float32, the cosines of these pairs, descending.
    """

    count: int
    pairs: int
    first: np.ndarray
    cosines: np.ndarray


def doubles(features: np.ndarray, threshold: float, most: int = 100, device: str = "cpu") -> Doubles:
    """Compare everybody with everybody else. `features` [P, D] float32, rows of length 1, may be a memory-mapped file.

    most: the largest number of pairs in `Doubles.first`. Memory: two blocks of BLOCK people and their cosines. The time
    grows with the square of P.
    """
    import torch  # the import takes 2 s, and reports that only count near-copies do not need it

    def block(start: int) -> torch.Tensor:
        return torch.tensor(np.asarray(features[start : start + BLOCK]), device=device)

    people = len(features)
    count, first, cosines = 0, np.empty((0, 2), np.int64), np.empty(0, np.float32)
    for row in range(0, people, BLOCK):
        upper = block(row)
        for column in range(row, people, BLOCK):
            similarity = upper @ block(column).T  # [BLOCK, BLOCK] float32
            if column == row:  # each pair counts once, and nobody is compared with himself
                similarity.masked_fill_(torch.ones_like(similarity, dtype=torch.bool).tril_(), -torch.inf)
            is_double = similarity >= threshold
            block_count = int(is_double.sum())
            if not block_count:
                continue
            count += block_count
            # Only the most alike pairs of a block: with too low a threshold, all pairs would fill the memory.
            scores = torch.where(is_double, similarity, -torch.inf).flatten()
            values, indices = scores.topk(min(most, similarity.numel()))
            values, indices = values.cpu().numpy(), indices.cpu().numpy()
            indices = indices[np.isfinite(values)]
            pairs = np.stack([row + indices // similarity.shape[1], column + indices % similarity.shape[1]], axis=1)
            first, cosines = np.concatenate([first, pairs]), np.append(cosines, values[np.isfinite(values)])
            order = np.lexsort((first[:, 1], first[:, 0], -cosines))[:most]
            first, cosines = first[order], cosines[order]
    return Doubles(count, people * (people - 1) // 2, first, np.minimum(cosines, 1))
