"""Propose thresholds for the filters, from the real images that they would reject."""

import dataclasses
import json
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.people.any_folder import of_names, without_clutter
from datasets.people.decoding import decode_listing, remarks
from datasets.people.image_sets import ROW_IMAGES, choose
from datasets.people.listing import Listing
from datasets.people.names import is_clutter, is_image
from datasets.people.readers import address, read_split
from datasets.storage.local_copy import local_copy
from datasets.storage.output import Output
from jobs.common import connect, run_job
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError
from passersby.yolo.detector_file import DetectorFile, chosen_detector
from pipeline.generation import fetched_detector
from reporting.calibration import (
    STUDY_DATA_RANGE,
    calibration_lines,
    calibration_notes,
    calibration_plot,
    chosen_pairs,
    detector_record,
    similarities,
    similarity_record,
    threshold_options,
)
from reporting.page import write_for_people
from reporting.progress import ProgressLine

RECORD, PICTURE = "calibration.json", "calibration.png"
DATA_RANGES = (STUDY_DATA_RANGE, 255.0)
HERE_IMAGES = 1000  # so many images are scored in this process before Ray has started


@dataclasses.dataclass(frozen=True)
class Config:
    """Propose thresholds for the filters of jobs/generate.py, from the real images that they would reject.

    Example: python jobs/calibrate.py --data /data/market1501 --out /data/calibration
    The job writes calibration.json and calibration.png. It prints a table and the options with the thresholds.
    """

    data: Annotated[str, tyro.conf.arg(metavar="DIR_OR_TABLE")]
    """Real images: a Market-1501 tree, another re-ID data set, or a folder with one sub-folder for each person.
    A table of paths and identities will do too, or a flat folder.
    In a flat folder the people are known only if all files are named as in Market-1501."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR_OR_URI")]
    """Where to write calibration.json and calibration.png."""
    reject: Annotated[float, Bound(ge=0, lt=1)] = 0.0645
    """Share of real images, 0 to 1, that the pedestrian filter may reject. The study accepted 0.0645."""
    ssim_lost: Annotated[float, Bound(ge=0, lt=0.5, note="else floor and ceiling would meet")] = 0.01
    """Share of pairs of real pictures of one person that the SSIM floor may reject. The ceiling may reject as many."""
    split: Literal["train", "query", "gallery"] = "train"
    """The split to use, if the data have splits. Training people are the choice that leaves test people unseen."""
    most_images: Annotated[int, Bound(ge=1)] = 5000
    """Most images to use. If there are more, a random part of them is used."""
    most_pairs: Annotated[int, Bound(ge=1)] = 10_000
    """Most pairs of pictures of one person to use, spread over the people as evenly as possible."""
    height: Annotated[int, Bound(ge=8)] = 128
    """Bring the images to this height in pixels first. Give the height at which you generate."""
    width: Annotated[int, Bound(ge=8)] = 64
    """Bring the images to this width in pixels first. Give the width at which you generate."""
    seed: Annotated[int, Bound(ge=0)] = 0
    """Decides which images and pairs are used."""
    yolo_weights: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """Path of yolov4-tiny.weights, with its .cfg beside it, for machines without a package registry."""
    detector_file: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """A detector of your own in place of YOLOv4-tiny, as for jobs/generate.py."""
    detector_person: int | None = None
    """With --detector-file: the number of the class of people, as for jobs/generate.py."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if the cluster has GPUs, else the CPU."""
    workers: Annotated[int | None, Bound(ge=0)] = None
    """Number of detectors on Ray. 0 detects in this process, without Ray.
    By default 0 for up to 1,000 images, else one for each GPU, or without GPUs one for each CPU."""


def main(config: Config) -> None:
    """Read, score, compare, propose, write."""
    start = time.monotonic()
    check_bounds(config)
    output = Output(config.out)
    listing = real_images(config.data, config.split)
    listing = listing.take(choose(len(listing), config.most_images, config.seed))
    own = fetched_detector(config.detector_file, config.detector_person, config.yolo_weights)
    yolo_path = local_copy(config.yolo_weights, "--yolo-weights", beside=(".cfg",)) if config.yolo_weights else None
    detector_file = chosen_detector(own, yolo_path)
    peculiar: Counter[str] = Counter()
    decoded = decode_listing(listing, config.height, config.width, peculiar=peculiar)
    images, indices, unreadable = decoded  # images: [N, H, W, 3] uint8 RGB
    identities = listing.identities[indices]
    people = np.unique(identities[identities > 0])
    people_text = f" of {len(people):,} people" if len(people) else ""
    print(f"{listing.name}: {len(images):,} images{people_text}, at {config.height}x{config.width}", flush=True)
    scores = detector_scores(config, images, detector_file)
    detector = detector_record(scores, config.reject) | detector_file.identity
    same, different = chosen_pairs(identities, config.most_pairs, config.seed)
    compared = [
        (similarity_record(same_ssim, different_ssim, data_range, config.ssim_lost), same_ssim, different_ssim)
        for data_range in DATA_RANGES
        if len(same)
        for same_ssim, different_ssim in [
            (similarities(images, same, data_range), similarities(images, different, data_range))
        ]
    ]
    records = [record for record, _, _ in compared]
    notes = [*listing.notes, *remarks(peculiar), *calibration_notes(detector, unreadable, len(people), len(same))]
    options = threshold_options(detector, records)
    commands = [
        shlex.join(["python", "jobs/generate.py", "--out", "RUN", *detector_options(config), *options]),
        shlex.join(["python", "jobs/refilter.py", "--out", "RUN", "--name", "calibrated", *options]),
    ]
    record = {
        "data": {"name": listing.name, "images": len(images), "unreadable": len(unreadable), "people": len(people)},
        "size": {"height": config.height, "width": config.width},
        "detector": detector,
        "ssim": records,
        "commands": commands,
        "notes": notes,
        "configuration": dataclasses.asdict(config),
        "command": shlex.join(sys.argv),
        "seconds": round(time.monotonic() - start, 1),
    }
    write_for_people(output, PICTURE, lambda: calibration_plot(detector, compared, listing.name))
    output.write(RECORD, f"{json.dumps(record, indent=2)}\n".encode())
    print(*calibration_lines(detector, records), *(f"note: {note}" for note in notes), *commands, sep="\n")
    print(output.address(PICTURE))


def real_images(data: str, split: str) -> Listing:
    """The images of people in a data set's split, or all of a folder. Raises InputError if there are no images."""
    root = address(data)
    if isinstance(root, str):  # a run on a store
        return read_split(root, split)
    flat = sorted(path for path in root.iterdir() if is_image(path.name)) if root.is_dir() else []
    if not flat or any(path.is_dir() and not is_clutter(path.name) for path in root.iterdir()):
        return read_split(data, split)
    clutter = sum(is_clutter(path.name) for path in root.iterdir())
    return without_clutter(of_names(root.resolve(), [path.name for path in flat], flat), clutter)


def detector_options(config: Config) -> list[str]:
    """The options of jobs/generate.py for the detector that was calibrated; none for YOLOv4-tiny."""
    given = {"--detector-file": config.detector_file, "--detector-person": config.detector_person}
    return [text for option, value in given.items() if value is not None for text in (option, str(value))]


def detector_scores(config: Config, images: np.ndarray, file: DetectorFile) -> np.ndarray:
    """Scores [N] float32, 0..1, of images [N, H, W, 3] uint8 RGB, by the stage that scores generated images."""
    import cv2
    import ray

    from actors.pedestrian_detector import PedestrianDetector
    from pipeline.cluster import resources
    from pipeline.features import THREADS, Workers, run_here
    from pipeline.pools import Pool, describe, fit_pools
    from pipeline.run import run_units

    in_process = config.workers == 0 or (config.workers is None and len(images) <= HERE_IMAGES)
    if not in_process:
        connect()
    workers = Workers.chosen(config.device, in_process)
    rows = []
    for unit, first in enumerate(range(0, len(images), ROW_IMAGES)):
        part = images[first : first + ROW_IMAGES]
        encoded = [cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for image in part]  # lossless
        rows.append({"unit": unit, "image": encoded, "status": ["ok"] * len(part), "message": [""] * len(part)})
    arguments = {"height": config.height, "width": config.width, "device": workers.device, "threads": THREADS}
    arguments |= file.arguments

    def pools(units: int) -> list[Pool]:
        cluster = resources()
        fitted = fit_pools([Pool("detectors", config.workers or None)], cluster, workers.device == "cuda", units)
        print(describe(fitted, cluster), flush=True)
        return fitted

    if in_process:
        results = run_here(rows, [(PedestrianDetector, {"weights": file.path, **arguments})])
    else:
        stages = [(PedestrianDetector, {"weights": ray.put(file.contents()), **arguments})]
        results = run_units(rows, stages, pools(len(rows)), pools, ROW_IMAGES * images[0].nbytes)
    scores = {}
    with ProgressLine(len(rows), len(images)) as line:
        for row in results:
            if "failure" in row:
                raise InputError(f"{config.data}: {row['failed_stage']} failed: {row['failure']}")
            scores[row["unit"]] = row["detector_score"]
            line.update(len(row["detector_score"]))
    return np.array([score for unit in sorted(scores) for score in scores[unit]], np.float32)


if __name__ == "__main__":
    run_job(main, Config)
