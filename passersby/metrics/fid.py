"""Distances between two sets of images by their features: FID, KID, and all scores of a set in one call.

FID: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017.
KID: Binkowski et al., "Demystifying MMD GANs", 2018.
"""

import numpy as np
import torch

from passersby.errors import InputError

# ---- Precision, recall, density, coverage: whether fakes lie among reals, and reals among fakes.
#
# By nearest neighbours of features. Precision and recall: Kynkaanniemi et al., "Improved Precision and Recall Metric
# for Assessing Generative Models", 2019. Density and coverage: Naeem et al., "Reliable Fidelity and Diversity Metrics
# for Generative Models", 2020.

PRECISION_NEIGHBOURS = 3  # the papers' own numbers
DENSITY_NEIGHBOURS = 5
CHUNK = 1024  # rows of the matrix of distances that memory holds at a time


def precision_recall(real: np.ndarray, fake: np.ndarray, neighbours: int = PRECISION_NEIGHBOURS) -> tuple[float, float]:
    """Share of fakes [M, D] within the balls of reals [N, D], and of reals within the balls of fakes; 0..1 each.

    A ball reaches to the `neighbours`-th nearest image of its own set, which must have more images than that.
    Computed by torch-fidelity, in float64, a part at a time.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    return calculate_precision_recall_part(_float64(fake), _float64(real), neighbours, batch_size=CHUNK)


def density_coverage(real: np.ndarray, fake: np.ndarray, neighbours: int = DENSITY_NEIGHBOURS) -> tuple[float, float]:
    """Density and coverage of fakes [M, D] among reals [N, D].

    Density is the average number of balls of reals that a fake lies in, divided by `neighbours` (0 or more). Coverage
    is the share of reals whose ball contains a fake (0..1). A ball reaches to the `neighbours`-th nearest other real.
    Outliers among reals have large balls and so make precision too high; density counts these balls little.
    """
    reals, fakes = _float64(real), _float64(fake)
    hit_count, covered_reals = 0, 0
    for chunk in reals.split(CHUNK):
        # `neighbours + 1`, because the nearest is the image itself.
        radii = torch.cdist(chunk, reals).kthvalue(neighbours + 1, dim=1, keepdim=True).values  # [n, 1]
        hits = torch.cdist(chunk, fakes) < radii  # [n, M]
        hit_count += int(hits.sum())
        covered_reals += int(hits.any(1).sum())
    return hit_count / (neighbours * len(fakes)), covered_reals / len(reals)


def _float64(features: np.ndarray) -> torch.Tensor:
    # Squared distances are differences of large numbers: in float32 small distances would be noise.
    return torch.as_tensor(features, dtype=torch.float64)


# ---- FID and KID, and all scores in one call.

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000  # the largest size of a subset; half of the smaller set where that is less
ROWS = 4096  # images whose float64 features memory holds at a time


def fid(real: np.ndarray, fake: np.ndarray) -> float:
    """Frechet distance of two sets of features [N, D] and [M, D], taken as normal distributions; 0 or more.

    All computations are in float64. With C = A'A for the centred features A / sqrt(N - 1), the trace of (C1 C2)^(1/2)
    is the sum of the singular values of A1 A2'. So no root of a matrix is needed. Such a root loses precision where
    there are fewer images than dimensions, and for 2048 x 2048 it takes 8 s; the singular values of 500 images take
    0.2 s. Memory: the features and 200 MB. Raises InputError as `check_features` does.
    """
    check_features(real, fake)
    (mean1, factor1), (mean2, factor2) = _moments(real), _moments(fake)
    cross = np.linalg.svd(factor1 @ factor2.T, compute_uv=False).sum()
    traces = np.square(factor1).sum() + np.square(factor2).sum()
    return max(0.0, float(np.square(mean1 - mean2).sum() + traces - 2 * cross))


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean [D], and a factor A [at most D, D] of the sample covariance A'A, float64."""
    count, dimensions = features.shape
    mean = features.mean(0, dtype=np.float64)
    factor = np.empty((0, dimensions))
    for start in range(0, count, ROWS):
        factor = np.concatenate([factor, features[start : start + ROWS] - mean])
        if len(factor) > dimensions:
            factor = np.linalg.qr(factor, mode="r")
    return mean, factor / np.sqrt(count - 1)


def kid(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of the kernel distance over random subsets of two sets of features [N, D], [M, D].

    The estimate is unbiased: for equal distributions it is near 0, also below 0, whatever the number of images. The
    deviation is that of a subset, not of the mean. torch-fidelity computes KID in float64, with the cubic kernel
    (x y / D + 1)^3 on KID_SUBSETS subsets of KID_SUBSET_SIZE images. Raises InputError for fewer than 4 images, and as
    `check_features` does.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    check_features(real, fake, least=4)
    result = kid_features_to_metric(
        torch.as_tensor(real, dtype=torch.float64),
        torch.as_tensor(fake, dtype=torch.float64),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(KID_SUBSET_SIZE, len(real) // 2, len(fake) // 2),
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=seed,
        verbose=False,
    )
    return result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD]


def score_features(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Every score of fake features [M, D] against real ones [N, D], by name.

    fid, kid, kid_std; precision (fakes that look real) and recall (reals that are covered), 0..1; density (as
    precision, counting how many reals a fake is near; may exceed 1) and coverage (reals with a fake nearby), 0..1. The
    seed chooses the subsets of KID. Raises InputError for fewer than 6 images, and as `check_features` does.
    """
    check_features(real, fake, least=6)
    mean, deviation = kid(real, fake, seed)
    precision, recall = precision_recall(real, fake)
    density, coverage = density_coverage(real, fake)
    return {
        "fid": fid(real, fake),
        "kid": mean,
        "kid_std": deviation,
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }


def check_features(real: np.ndarray, fake: np.ndarray, least: int = 2) -> None:
    """Raise InputError unless the features [N, D] and [M, D] are finite, of `least` images or more, with one D."""
    for name, features in (("real", real), ("fake", fake)):
        if features.ndim != 2:
            raise InputError(f"{name} features have shape {features.shape}: give [images, dimensions]")
        if len(features) < least:
            raise InputError(f"{len(features)} {name} images: give {least} or more to compare sets")
        # The check goes by blocks: a mask of all features would take a quarter of their memory again.
        if not all(np.isfinite(features[start : start + ROWS]).all() for start in range(0, len(features), ROWS)):
            bad = int((~np.isfinite(features)).any(1).sum())
            raise InputError(
                f"{bad} of {len(features)} {name} images have features that are not finite: leave them out"
            )
    if real.shape[1] != fake.shape[1]:
        raise InputError(f"{real.shape[1]} features of real and {fake.shape[1]} of fake images: use one network")


def bias_note(real: int, fake: int, dimensions: int = 2048) -> str | None:
    """A sentence on the bias of FID with few images; None where both sets are larger than the number of features."""
    if min(real, fake) > dimensions:
        return None
    return (
        f"FID of {fake:,} against {real:,} images is biased upwards: compare it only with FIDs of as many. "
        f"With more than {dimensions:,} of each the bias is small, and KID has none"
    )
