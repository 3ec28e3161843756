"""Whether fakes lie among reals, and reals among fakes, by nearest neighbours of features.

Precision and recall: Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019.
Density and coverage: Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020.
"""

import numpy as np
import torch

PRECISION_NEIGHBOURS = 3  # the papers' own numbers
DENSITY_NEIGHBOURS = 5
CHUNK = 1024  # rows of the matrix of distances that exist at a time


def precision_recall(real: np.ndarray, fake: np.ndarray, neighbours: int = PRECISION_NEIGHBOURS) -> tuple[float, float]:
    """Share of fakes [M, D] within the balls of reals [N, D], and of reals within the balls of fakes; 0..1 each.

    A ball reaches to the `neighbours`-th nearest image of its own set, which must have more images than that.
    Computed by torch-fidelity, in float64, a part at a time.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    return calculate_precision_recall_part(_float64(fake), _float64(real), neighbours, batch_size=CHUNK)


def density_coverage(real: np.ndarray, fake: np.ndarray, neighbours: int = DENSITY_NEIGHBOURS) -> tuple[float, float]:
    """How many balls of reals [N, D] a fake [M, D] lies in, over `neighbours`, on average (0 or more); and the share
    of reals in whose ball a fake lies (0..1).

    A ball reaches to the `neighbours`-th nearest other real. Outliers among reals make precision high where they
    should not: their large balls count little here.
    """
    reals, fakes = _float64(real), _float64(fake)
    inside, covered = 0, 0
    for chunk in reals.split(CHUNK):
        # The nearest is the image itself.
        radii = torch.cdist(chunk, reals).kthvalue(neighbours + 1, dim=1, keepdim=True).values  # [n, 1]
        hits = torch.cdist(chunk, fakes) < radii  # [n, M]
        inside += int(hits.sum())
        covered += int(hits.any(1).sum())
    return inside / (neighbours * len(fakes)), covered / len(reals)


def _float64(features: np.ndarray) -> torch.Tensor:
    # Squared distances are differences of large numbers: in float32 near ones would be noise.
    return torch.as_tensor(features, dtype=torch.float64)
