"""What scores and rankings cost: Inception's features, FID, ranking of Market-1501's sizes."""

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.gpu_parts.common import Bench, Figure, rate
from passersby.metrics.fid import fid
from passersby.metrics.ranking import evaluate_ranking
from passersby.perception.inception import FEATURES, Inception, inception_network


def scores(bench: Bench) -> Iterator[Figure]:
    """Images a second of the Inception network with random weights, and seconds of FID's own arithmetic."""
    torch.manual_seed(0)
    inception = Inception(inception_network().eval(), "random weights", bench.device)
    random = np.random.default_rng(0)
    count = bench.sizes.inception_images
    images = random.integers(0, 256, (count, bench.sizes.height, bench.sizes.width, 3), np.uint8)
    seconds = bench.seconds(lambda: inception(images), 3)
    yield Figure("Inception features, from arrays to arrays", rate(count, seconds), "images/s")
    features = random.standard_normal((2, max(count, 2), FEATURES), np.float32)
    seconds = bench.seconds(lambda: fid(*features), 1, warm_up=0)
    yield Figure(f"FID of 2 x {len(features[0]):,} features, on the CPU", seconds, "s")


def ranking(bench: Bench) -> Iterator[Figure]:
    """Seconds from features on the device to scores; both tables of random features."""
    queries, gallery, values = bench.sizes.ranking
    random = np.random.default_rng(0)
    people = max(queries // 5, 2)
    ids = [random.integers(1, people + 1, count) for count in (queries, gallery)]
    cameras = [random.integers(0, 6, count) for count in (queries, gallery)]
    centres = torch.from_numpy(random.standard_normal((people, values), np.float32))
    features = [(centres[torch.from_numpy(part - 1)] + torch.randn(len(part), values)).to(bench.device) for part in ids]
    for metric in ("cosine", "euclidean"):
        seconds = bench.seconds(lambda m=metric: evaluate_ranking(*features, *ids, *cameras, metric=m), 3)
        yield Figure(f"ranking {queries:,} x {gallery:,}, {metric}", seconds, "s")
