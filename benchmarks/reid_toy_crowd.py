"""What the small re-ID presets reach on the toy crowd, beside an untrained network and colour histograms.

    python jobs/make_toy_crowd.py --out /tmp/crowd
    for seed in 0 1 2; do for preset in study strong; do
        python jobs/train_reid.py --preset $preset-small --data /tmp/crowd --seed $seed --threads 1 \\
            --out /tmp/reid/$preset-$seed
    done; done
    python benchmarks/reid_toy_crowd.py --data /tmp/crowd --networks /tmp/reid

Measured figures: see RESULTS below.
"""

import dataclasses
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from datasets.people.decoding import decode_listing
from datasets.people.listing import Listing
from datasets.people.readers import read_split
from jobs.common import run_job
from passersby.errors import InputError
from passersby.metrics.ranking import Ranking, evaluate_ranking
from passersby.metrics.variants import colour_histograms
from passersby.reid.checkpoint import load_reid
from passersby.reid.network import FeatureNetwork, ReidNetwork

RESULTS = """Toy crowd version 1, default tree (500 people to train, 400 to test), the commands above; 2 cores of an
AMD EPYC, no GPU, one thread a training, two trainings and other work at once:
strong, 3 seeds: Rank-1 / mAP 73.2 +- 0.2 / 66.4 +- 0.5, 12 minutes each
study, 3 seeds: Rank-1 / mAP 69.7 +- 1.5 / 59.7 +- 1.3, 7 minutes each
untrained: Rank-1 0.7%, mAP 0.5%, trapezoid 0.4%
colour histograms: Rank-1 4.4%, mAP 2.4%, trapezoid 2.0%
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Rank the test people by every network below a folder, by an untrained one, and by colour histograms."""

    data: Path
    """A tree of jobs/make_toy_crowd.py."""
    networks: Path
    """Folder of trainings named NAME-SEED."""
    threads: int = 1
    """CPU threads."""


def main(config: Config) -> None:
    """One line a network and one line a name, mean and standard deviation over its seeds."""
    torch.set_num_threads(config.threads)
    listings = [read_split(config.data, split) for split in ("query", "gallery")]
    paths = sorted(config.networks.glob("*-*/network.safetensors"))
    if not paths:
        raise InputError(f"--networks {config.networks}: there is no NAME-SEED/network.safetensors")
    found: dict[str, list[Ranking]] = {}
    minutes: dict[str, list[float]] = {}
    untrained = None
    for path in paths:
        loaded = load_reid(path)
        name = path.parent.name.rpartition("-")[0]
        found.setdefault(name, []).append(rank(listings, FeatureNetwork(loaded.network, loaded.sha256)))
        minutes.setdefault(name, []).append(loaded.record["minutes"])
        print(f"{path.parent.name}: {scores(found[name][-1])}", flush=True)
        untrained = untrained or loaded.network.config
    assert untrained is not None  # there is at least one network
    torch.manual_seed(0)
    print(f"untrained: {scores(rank(listings, FeatureNetwork(ReidNetwork(untrained), '')))}", flush=True)
    print(f"colour histograms: {scores(rank(listings, colour_histograms, untrained.height * 2, untrained.width * 2))}")
    for name, rankings in found.items():
        both = [[getattr(ranking, key) * 100 for ranking in rankings] for key in ("rank1", "mAP")]
        means = " / ".join(f"{statistics.mean(values):.1f} +- {statistics.pstdev(values):.1f}" for values in both)
        print(f"{name}, {len(rankings)} seeds: Rank-1 / mAP {means}, {statistics.mean(minutes[name]):.0f} minutes each")


def rank(listings: list[Listing], features_of, height: int | None = None, width: int | None = None) -> Ranking:
    """Query against gallery under the protocol, by features that `features_of` makes of uint8 [N, H, W, 3]."""
    size = (height or features_of.height, width or features_of.width_pixels)
    parts = []
    for listing in listings:
        images, places, _ = decode_listing(listing, *size)
        kept = listing.take(places)
        parts.append((np.asarray(features_of(images)), kept.identities, kept.cameras))
    query, gallery = parts
    return evaluate_ranking(query[0], gallery[0], query[1], gallery[1], query[2], gallery[2])


def scores(ranking: Ranking) -> str:
    """Both scores, in percent."""
    return f"Rank-1 {ranking.rank1:.1%}, mAP {ranking.mAP:.1%}, trapezoid {ranking.mAP_trapezoid:.1%}"


if __name__ == "__main__":
    run_job(main, Config)
