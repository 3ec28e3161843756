"""Measure how well a re-identification network finds people: Rank-k, mAP, mINP, thresholds, and pictures."""

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.reid.feature_files import write_features
from datasets.storage.output import Output
from jobs.common import Judge, JudgeOptions, connect, run_job
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError
from passersby.options import Json

if TYPE_CHECKING:
    from passersby.metrics.ranking import Ranking
    from passersby.metrics.verification import PairCounts, Thresholds
    from pipeline.evaluation import Evaluated

RANKING, FEATURES, QUERIES = "ranking.json", "features.parquet", "queries.parquet"
SHEET, CMC, SIMILARITIES = "queries.png", "cmc.png", "similarities.png"
TOP = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Rank a gallery for every query with a re-ID network of this project or of another program.

    Example: python jobs/evaluate_reid.py --network reid.safetensors --data /data/market1501 --out /data/evaluation
    With --features instead of --network, the job ranks features that another tool has computed: Parquet as this
    job writes it, pytorch_result.mat of layumi's test.py, or a .npz or .pt file with the arrays
    qf, q_pids, q_camids, gf, g_pids, g_camids.
    """

    out: Annotated[str, tyro.conf.arg(metavar="DIR_OR_URI")]
    """Where to write ranking.json, features.parquet, queries.parquet and the pictures."""
    network: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The network: a .safetensors of jobs/train_reid.py, a checkpoint of layumi's baseline, torchreid, fast-reid, BoT
    or TransReID, or an .onnx file."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Images with query and gallery. With --features they are used only for the pictures. Every node must see them."""
    features: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Rank the features of this file instead of those of a network."""
    rerank: bool = False
    """Also re-rank by k-reciprocal neighbours (k1 = 20, k2 = 6, lambda = 0.3)."""
    multi_query: bool = False
    """Also query with the mean feature of all images (gt_bbox) of the query's person by the query's camera."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """The distance that ranks. Features of this project have length 1, so that both rank them alike."""
    judge: Judge = JudgeOptions()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if the cluster has GPUs, else the CPU."""
    here: bool = False
    """Compute in this process, without Ray."""
    workers: Annotated[int | None, Bound(ge=1, note="or give --here")] = None
    """Number of actors that compute features. By default one for each GPU, or without GPUs one for each CPU."""


def main(config: Config) -> None:
    """Take features, rank, print, write."""
    start = time.monotonic()
    check(config)
    output = Output(config.out)
    from passersby.metrics.verification import camera_pairs, count_pairs, same_person_thresholds
    from pipeline.evaluation import GALLERY, QUERY, RECORDED, rank_all, write_queries
    from reporting.reid import ranking as report

    evaluation = evaluated(config)
    if config.network is not None:  # features take most of the time: they are written first
        with output.replacing(FEATURES) as path:
            write_features(path, evaluation.sets, {"network": evaluation.network, "data": evaluation.data})
    rankings, notes = rank_all(evaluation, config.metric, config.rerank, TOP)
    query, gallery = evaluation.sets[QUERY], evaluation.sets[GALLERY]
    arrays = (query.features, gallery.features, query.identities, gallery.identities)
    query_cameras, gallery_cameras = evaluation.cameras
    counts = count_pairs(*arrays, query_cameras, gallery_cameras)
    thresholds = same_person_thresholds(counts)
    pairs = []
    if query_cameras is not None and gallery_cameras is not None:
        pairs = camera_pairs(*arrays, query_cameras, gallery_cameras, config.metric)
    notes = list(dict.fromkeys([*evaluation.notes, *notes]))
    write_pictures(output, evaluation, rankings, counts, thresholds, notes)
    with output.replacing(QUERIES) as path:
        write_queries(path, evaluation, rankings)
    record = {
        "scores": {RECORDED[name]: report.scores_record(ranking) for name, ranking in rankings.items()},
        "thresholds": report.thresholds_record(thresholds),
        "pairs": {"same_person": int(counts.same.sum()), "different_people": int(counts.different.sum())},
        "camera_pairs": [dataclasses.asdict(pair) for pair in pairs],
        "network": evaluation.network,
        "data": evaluation.data,
        "protocol": {"metric": config.metric, "cameras": query_cameras is not None, "similarity": "cosine"},
        "notes": notes,
        "configuration": recorded(config),
        "command": shlex.join(sys.argv),
        "seconds": round(time.monotonic() - start, 1),
    }
    output.write(RANKING, f"{json.dumps(report.json_values(record), indent=2, allow_nan=False)}\n".encode())
    lines = [*report.camera_lines(pairs), *report.score_table(rankings), *report.threshold_lines(thresholds)]
    print(*(f"note: {note}" for note in notes), *lines, output.address(RANKING), sep="\n")


def check(config: Config) -> None:
    """Raises InputError for options that cannot be used together or are out of range."""
    if (config.network is None) == (config.features is None):
        both = "both --network and --features" if config.network else "neither --network nor --features"
        raise InputError(f"{both}: give one of them")
    if config.network is not None and config.data is None:
        raise InputError("--network needs images: give --data")
    check_bounds(config)
    check_bounds(config.judge)


def recorded(config: Config) -> dict[str, Json]:
    """Option -> value as JSON, also of the options about the network."""
    values: dict[str, Json] = {}
    for name, value in dataclasses.asdict(config).items():
        values |= value if name == "judge" else {name: str(value) if isinstance(value, Path) else value}
    return values


def evaluated(config: Config) -> "Evaluated":
    """The features to rank: those of a file, or those that the network computes, on Ray unless --here is given."""
    from pipeline.evaluation import evaluated_by, evaluated_file
    from pipeline.features import Workers

    if config.features is not None:
        return evaluated_file(config.features, config.data, config.multi_query)
    assert config.network is not None  # `check` has made sure of it
    assert config.data is not None
    loaded = config.judge.load(config.network)
    if not config.here:
        connect()
    workers = Workers.chosen(config.device, config.here, config.workers)
    return evaluated_by(loaded, config.data, workers, config.multi_query)


def write_pictures(
    output: Output,
    evaluation: "Evaluated",
    rankings: Mapping[str, "Ranking"],
    counts: "PairCounts",
    thresholds: "Thresholds",
    notes: list[str],
) -> None:
    """CMC curve, histogram of similarities and, if there are images and a match, the sheet of queries."""
    from pipeline.evaluation import GALLERY, QUERY, SINGLE, top_similarities
    from reporting.grid import encode_png
    from reporting.page import write_for_people
    from reporting.reid.queries import query_sheet
    from reporting.reid.ranking import cmc_plot, similarity_plot

    query, gallery, ranking = evaluation.sets[QUERY], evaluation.sets[GALLERY], rankings[SINGLE]
    title = f"{len(query):,} queries, {len(gallery):,} images in the gallery"
    write_for_people(output, SIMILARITIES, lambda: similarity_plot(counts, thresholds, title))
    for name in (CMC, SHEET):  # pictures of an earlier evaluation would be taken for those of this evaluation
        output.remove(name)
    if not ranking.valid:
        notes.append(f"no {CMC} and no {SHEET}: no query has a match in the gallery")
        return
    write_for_people(output, CMC, lambda: cmc_plot({name: ranked.cmc for name, ranked in rankings.items()}, title))
    if {QUERY, GALLERY} <= evaluation.listings.keys():
        similarities = top_similarities(evaluation, ranking)
        people = {**evaluation.listings[GALLERY].people, **evaluation.listings[QUERY].people}
        subtitle = f"Rank-1 {100 * ranking.rank1:.1f}%, mAP {100 * ranking.mAP:.1f}% of {title}"
        pictures = (query, gallery, evaluation.picture, people, subtitle)
        write_for_people(output, SHEET, lambda: encode_png(query_sheet(ranking, similarities, *pictures)))


if __name__ == "__main__":
    run_job(main, Config)
