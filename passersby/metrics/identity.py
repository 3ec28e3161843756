"""Who an image shows, by its features: the nearest real picture, how far everybody else is, copies and doubles.

Features are rows of length 1, so cosines are dot products. No matrix of all pairs is ever held: real pictures and
people are taken in blocks, and results do not depend on their size.
"""

import dataclasses

import numpy as np

from passersby.errors import InputError
from passersby.metrics.verification import count_pairs, same_person_thresholds

NOBODY = 0  # whose picture nothing real is; real people are above
ROWS = 8192  # real pictures compared at a time
BLOCK = 4096  # people compared with as many at a time: 64 MiB of cosines
SHARE = 0.01  # of real pictures, or of pairs of them, that count as near-copies or doubles, and so set the threshold
SAMPLE = 4096  # real pictures that set it, evenly spread


@dataclasses.dataclass(frozen=True)
class Nearest:
    """What real pictures are nearest to n images, one entry an image.

    picture: [n] int64, place of the nearest of all. cosine: [n] float32, -1..1, to it. own: [n] float32, the greatest
    cosine to a picture of the image's own person; others: [n] float32, to one of anybody else. NaN where there is none.
    """

    picture: np.ndarray
    cosine: np.ndarray
    own: np.ndarray
    others: np.ndarray


def nearest_pictures(
    features: np.ndarray,
    real: np.ndarray,
    identities: np.ndarray,
    persons: np.ndarray,
    itself: np.ndarray | None = None,
) -> Nearest:
    """Compare images with real pictures, by cosine; of pictures that are equally near the first counts.

    features: [n, D] float32 of the images, real: [M, D] of the pictures, rows of length 1 both. identities: [M] int64,
    above 0. persons: [n] int64, whom the images are to show, NOBODY for nobody real. itself: [n] int64, the place of a
    picture that an image is not compared with, as it is the same. Raises InputError without pictures.
    """
    if not len(real):
        raise InputError("there are no pictures of real people to compare with: give a data set with some")
    count = len(features)
    best = {name: np.full(count, -np.inf, np.float32) for name in ("cosine", "own", "others")}
    picture = np.zeros(count, np.int64)
    rows = np.arange(count)
    for start in range(0, len(real), ROWS):
        part = slice(start, start + ROWS)
        cosines = np.clip(features @ real[part].T, -1, 1)  # [n, rows] float32; rounding may lead beyond 1
        if itself is not None:
            here = (itself >= start) & (itself < start + cosines.shape[1])
            cosines[rows[here], itself[here] - start] = -np.inf
        place = cosines.argmax(axis=1)
        nearer = cosines[rows, place] > best["cosine"]
        picture[nearer] = start + place[nearer]
        same = identities[part] == persons[:, None]
        found = {
            "cosine": cosines[rows, place],
            "own": np.where(same, cosines, -np.inf).max(axis=1),
            "others": np.where(same, -np.inf, cosines).max(axis=1),
        }
        for name, values in found.items():
            np.maximum(best[name], values, out=best[name])
    for values in best.values():
        values[np.isneginf(values)] = np.nan
    return Nearest(picture, **best)


def near_copy_threshold(real: np.ndarray, identities: np.ndarray, of_same_person: bool) -> float | None:
    """The cosine that SHARE of real pictures reach with another real picture: from there on, images are near-copies.

    of_same_person: with another one of the same person - for variants of real people, who are to look like them, and
    of whom only a copied picture is too much. Otherwise with one of somebody else - for artificial people, who are to
    look like nobody. It is a nearest picture on both sides, so the size of the data set cancels out (a threshold for
    pairs would be reached by almost any image among ten thousand pictures). Taken of SAMPLE pictures evenly spread;
    None where no picture has another such.
    """
    places, found = _sample(len(real)), []
    for start in range(0, len(places), ROWS // 16):
        part = places[start : start + ROWS // 16]
        nearest = nearest_pictures(real[part], real, identities, identities[part], itself=part)
        found.append(nearest.own if of_same_person else nearest.others)
    cosines = np.concatenate(found)
    cosines = np.sort(cosines[np.isfinite(cosines)].astype(np.float64))
    if not len(cosines):
        return None
    return float(cosines[len(cosines) - max(1, int(SHARE * len(cosines)))])


def same_person_threshold(real: np.ndarray, identities: np.ndarray) -> float | None:
    """The cosine that SHARE of the pairs of different people's pictures reach: 1% false accepts of the network there.

    Of SAMPLE pictures [M, D] evenly spread; None where they are of one person.
    """
    places = _sample(len(real))
    counts = count_pairs(real[places], real[places], identities[places], identities[places])
    found = same_person_thresholds(counts, SHARE).one_percent
    return None if found is None else found.similarity


def _sample(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64))


def near_copies(cosines: np.ndarray, threshold: float) -> dict[str, float | int | None]:
    """{"count", "scored", "share"} of the images whose cosine [N] to the nearest picture reaches `threshold`; NaN is
    no score, and the share of nothing is None."""
    scored = int(np.isfinite(cosines).sum())
    count = int((cosines >= threshold).sum())
    return {"count": count, "scored": scored, "share": count / scored if scored else None}


@dataclasses.dataclass(frozen=True)
class Doubles:
    """Pairs of people who are more alike than a threshold.

    count: of all such pairs, among `pairs`. first: places [K, 2] int64 of the K most alike, the smaller place first;
    cosines: [K] float32, theirs, descending.
    """

    count: int
    pairs: int
    first: np.ndarray
    cosines: np.ndarray


def doubles(features: np.ndarray, threshold: float, most: int = 100, device: str = "cpu") -> Doubles:
    """Compare everybody with everybody else: `features` [P, D] float32, rows of length 1, may be a file in memory.

    Memory: two blocks of BLOCK people and their cosines; time grows with the square of P. most: pairs that are named.
    """
    import torch  # it takes 2 s, and reports count near-copies without

    def block(start: int) -> torch.Tensor:
        return torch.tensor(np.asarray(features[start : start + BLOCK]), device=device)

    people = len(features)
    count, first, cosines = 0, np.empty((0, 2), np.int64), np.empty(0, np.float32)
    for top in range(0, people, BLOCK):
        upper = block(top)
        for left in range(top, people, BLOCK):
            alike = upper @ block(left).T  # [BLOCK, BLOCK] float32
            if left == top:  # each pair once, and nobody with himself
                alike.masked_fill_(torch.ones_like(alike, dtype=torch.bool).tril_(), -torch.inf)
            found = alike >= threshold
            here = int(found.sum())
            if not here:
                continue
            count += here
            # The most alike of this block alone: a threshold that is too low must not fill the memory with pairs.
            values, places = torch.where(found, alike, -torch.inf).flatten().topk(min(most, alike.numel()))
            values, places = values.cpu().numpy(), places.cpu().numpy()
            places = places[np.isfinite(values)]
            pairs = np.stack([top + places // alike.shape[1], left + places % alike.shape[1]], axis=1)
            first, cosines = np.concatenate([first, pairs]), np.append(cosines, values[np.isfinite(values)])
            order = np.lexsort((first[:, 1], first[:, 0], -cosines))[:most]
            first, cosines = first[order], cosines[order]
    return Doubles(count, people * (people - 1) // 2, first, np.minimum(cosines, 1))
