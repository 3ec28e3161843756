"""How long ranking and re-ranking take and how much memory, on clustered features of Market-1501's sizes.

    OMP_NUM_THREADS=2 python benchmarks/ranking.py --threads 2
    OMP_NUM_THREADS=2 python benchmarks/ranking.py --threads 2 --gallery 200000 --rounds 1
    OMP_NUM_THREADS=2 python benchmarks/ranking.py --threads 2 --torchreid FOLDER

From features to scores: distances are included. FOLDER is a checkout of torchreid with its Cython evaluator built; its
distances and evaluator then run beside, in turns with ours. Every case has a process of its own: its peak memory is
that of Python, PyTorch, the features and the case.
"""

import dataclasses
import importlib
import importlib.util
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from jobs.common import run_job
from passersby.metrics.ranking import evaluate_ranking, rank_distances
from passersby.metrics.reranking import k_reciprocal_distances


@dataclasses.dataclass(frozen=True)
class Config:
    """Seconds and peak memory of ranking and re-ranking."""

    queries: int = 3368
    gallery: int = 19_732
    """All images of it, of which the shares of Market-1501 are junk (19%) and distractors (14%)."""
    people: int = 750
    dimensions: int = 512
    rerank: bool = True
    rounds: int = 3
    threads: int = 1
    torchreid: Path | None = None
    """A checkout of torchreid: its evaluator runs beside."""
    torchreid_rerank: bool = False
    """Its re-ranking too: minutes, and 8 GiB at the sizes of Market-1501."""


Scores = tuple[float, float]  # Rank-1, mAP


def features(config: Config) -> dict[str, np.ndarray]:
    """Queries and gallery: float32 features around the people's centres, identities, cameras 1..6."""
    random = np.random.default_rng(0)
    junk, distractors = int(config.gallery * 0.19354), int(config.gallery * 0.14155)
    people = random.integers(1, config.people + 1, config.gallery - junk - distractors)
    identities = {
        "query": np.arange(config.queries) % config.people + 1,
        "gallery": random.permutation(np.concatenate([people, np.full(junk, -1), np.zeros(distractors, np.int64)])),
    }
    centres = random.standard_normal((config.people + 1, config.dimensions), np.float32)
    made = {}
    for name, ids in identities.items():
        made[name] = random.standard_normal((len(ids), config.dimensions), np.float32)
        # Pictures of a person differ more than the people do, as a middling network sees them.
        made[name] *= random.uniform(1.5, 4, (len(ids), 1)).astype(np.float32)
        made[name][ids > 0] += centres[ids[ids > 0]]
        made[name] /= np.linalg.norm(made[name], axis=1, keepdims=True)
        made[f"{name}_ids"], made[f"{name}_cameras"] = ids, random.integers(1, 7, len(ids))
    return made


def without_junk(made: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Re-ranking, and torchreid, want the junk gone before."""
    kept = made["gallery_ids"] >= 0
    return {name: values[kept] if name.startswith("gallery") else values for name, values in made.items()}


def arguments(made: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Identities and cameras, in the order that everybody takes them."""
    return [made[name] for name in ("query_ids", "gallery_ids", "query_cameras", "gallery_cameras")]


def ranking(config: Config, made: dict[str, np.ndarray]) -> Scores:
    """Ours."""
    found = evaluate_ranking(made["query"], made["gallery"], *arguments(made))
    return found.rank1, found.mAP


def reranking(config: Config, made: dict[str, np.ndarray]) -> Scores:
    """Ours, ranked."""
    made = without_junk(made)
    found = rank_distances(k_reciprocal_distances(made["query"], made["gallery"]), *arguments(made))
    return found.rank1, found.mAP


def torchreid_ranking(config: Config, made: dict[str, np.ndarray]) -> Scores:
    """Its distances and its evaluator in Cython."""
    sys.path.insert(0, str(config.torchreid))
    metrics = importlib.import_module("torchreid.metrics")
    rank = metrics.rank
    if not rank.IS_CYTHON_AVAI:
        raise SystemExit(f"{config.torchreid}: its evaluator is not built: run make in torchreid/metrics/rank_cylib")
    made = without_junk(made)
    query, gallery = torch.from_numpy(made["query"]), torch.from_numpy(made["gallery"])
    distances = metrics.compute_distance_matrix(query, gallery, "cosine").numpy()
    cmc, mean = rank.evaluate_rank(distances, *arguments(made))
    return float(cmc[0]), float(mean)


def torchreid_reranking(config: Config, made: dict[str, np.ndarray]) -> Scores:
    """Its re-ranking of its squared distances, ranked by us."""
    assert config.torchreid is not None  # this case is measured only where it is given
    spec = importlib.util.spec_from_file_location("rerank", config.torchreid / "torchreid/utils/rerank.py")
    assert spec is not None  # as the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = without_junk(made)
    query, gallery = made["query"], made["gallery"]
    squared = [2 - 2 * a @ b.T for a, b in ((query, gallery), (query, query), (gallery, gallery))]
    found = rank_distances(module.re_ranking(*squared), *arguments(made))
    return found.rank1, found.mAP


def measured(case: Callable[[Config, dict[str, np.ndarray]], Scores], config: Config) -> tuple[float, float, Scores]:
    """Seconds, peak GiB and scores, in this process."""
    torch.set_num_threads(config.threads)
    made = features(config)
    torch.mm(torch.ones(256, 256), torch.ones(256, 256))  # its threads start here
    start = time.perf_counter()
    scores = case(config, made)
    took = time.perf_counter() - start
    return took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20), scores  # from KiB


def main(config: Config) -> None:
    """Measure and print."""
    cases = {"ranking": ranking}
    if config.rerank:
        cases["re-ranking"] = reranking
    if config.torchreid is not None:
        cases["torchreid's ranking"] = torchreid_ranking
        if config.torchreid_rerank:
            cases["torchreid's re-ranking"] = torchreid_reranking
    best: dict[str, tuple[float, float, Scores]] = {}
    context = multiprocessing.get_context("spawn")
    for _ in range(config.rounds):
        for name, case in cases.items():
            with ProcessPoolExecutor(1, context) as process:
                result = process.submit(measured, case, config).result()
            best[name] = min(best.get(name, result), result)
    print(
        f"{config.queries} x {config.gallery} x {config.dimensions}, {config.threads} threads, best of {config.rounds}"
    )
    for name, (seconds, peak, (rank1, mean)) in best.items():
        print(f"{name:24}{seconds:8.2f} s, peak {peak:5.2f} GiB, Rank-1 {rank1:.4f}, mAP {mean:.4f}")


if __name__ == "__main__":
    run_job(main, Config)
