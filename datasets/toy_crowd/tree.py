"""The toy crowd as a Market-1501 tree: the list of its pictures, and writing them atomically, in parallel and once.

Layout and names follow Market-1501 (Zheng et al., ICCV 2015): bounding_box_train, query, bounding_box_test with files
PPPP_cCsS_FFFFFF_BB.jpg. 0000 are distractors, which are part of the ranking; -1 is junk (bad boxes), which is not.
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np

from datasets.toy_crowd import crowd
from datasets.toy_crowd.people import stream
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError
from passersby.options import Json

# The first crowd identities of each group. A person in the train split of one tree is never in the test splits of
# another tree, whatever the sizes of the two.
FIRST_TRAIN, FIRST_TEST, FIRST_STRANGER, MOST_PEOPLE = 1, 5001, 10001, 4999
TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
RECORD, SHEET = "toy_crowd.json", "sheet.png"
NOTE = "A toy: these people are drawn by a program. Results on them say nothing about real people."
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Picture:
    """One file of the tree: its path, and what to draw (bad_box: None or one of crowd.BAD_BOXES)."""

    path: str
    identity: int
    camera: int
    frame: int
    bad_box: str | None = None


@dataclass(frozen=True)
class TreeOptions:
    """The options that decide the tree's contents. Each person has cameras_min..cameras_max random cameras."""

    train_people: Annotated[int, Bound(ge=1, le=MOST_PEOPLE)]
    test_people: Annotated[int, Bound(ge=1, le=MOST_PEOPLE)]
    images_per_camera: Annotated[int, Bound(ge=2, le=64, note="one of them is the query")]
    cameras_min: int
    cameras_max: int
    distractors: Annotated[int, Bound(ge=0, le=99_999)]
    junk: Annotated[int, Bound(ge=0, le=99_999)]

    def __post_init__(self) -> None:
        check_bounds(self)
        if not 2 <= self.cameras_min <= self.cameras_max <= crowd.CAMERAS:
            raise InputError(f"--cameras-min {self.cameras_min} --cameras-max {self.cameras_max}: 2 <= min <= max <= 6")


def plan(options: TreeOptions) -> list[Picture]:
    """Every picture of the tree, in a fixed order."""
    pictures = []
    for number in range(options.train_people):
        for _, picture in _pictures_of(FIRST_TRAIN + number, TRAIN, options):
            pictures.append(picture)
    for number in range(options.test_people):
        for index, picture in _pictures_of(FIRST_TEST + number, GALLERY, options):
            # As in Market-1501, each camera that saw the person gives one query; its other pictures are gallery.
            query = replace(picture, path=f"{QUERY}/{picture.path.split('/')[1]}")
            pictures.append(picture if index else query)
    for number in range(options.distractors):
        random = stream("distractor", number)
        identity, camera, frame = (
            FIRST_STRANGER + number // 3,
            int(random.integers(6)),
            int(random.integers(64)),
        )
        kind = None if random.random() < 0.6 else str(random.choice(crowd.BAD_BOXES))
        pictures.append(_picture(GALLERY, "0000", identity, camera, frame, number, kind))
    for number in range(options.junk):
        random = stream("junk", number)
        identity = FIRST_TEST + int(random.integers(options.test_people))
        camera, frame, kind = (
            int(random.integers(6)),
            int(random.integers(64)),
            str(random.choice(crowd.BAD_BOXES)),
        )
        pictures.append(_picture(GALLERY, "-1", identity, camera, frame, number, kind))
    return pictures


def _pictures_of(identity: int, folder: str, options: TreeOptions) -> list[tuple[int, Picture]]:
    random = stream("seen by", identity)
    count = int(random.integers(options.cameras_min, options.cameras_max + 1))
    cameras = sorted(int(camera) for camera in random.permutation(crowd.CAMERAS)[:count])
    result = []
    for camera in cameras:
        for index in range(options.images_per_camera):
            # Each pass gives two pictures, half a pass apart, because neighbouring frames are nearly equal.
            frame = index // 2 * crowd.FRAMES_PER_PASS + index % 2 * (crowd.FRAMES_PER_PASS // 2)
            result.append((index, _picture(folder, f"{identity:04d}", identity, camera, frame, frame, None)))
    return result


def _picture(folder: str, label: str, identity: int, camera: int, frame: int, number: int, bad: str | None) -> Picture:
    session = crowd.session_of(identity, camera, frame)
    return Picture(f"{folder}/{label}_c{camera + 1}s{session + 1}_{number:06d}_00.jpg", identity, camera, frame, bad)


def draw_picture(picture: Picture) -> np.ndarray:
    """RGB uint8 [128, 64, 3]."""
    if picture.bad_box:
        return crowd.draw_bad_box(picture.identity, picture.camera, picture.frame, picture.bad_box)
    return crowd.draw(picture.identity, picture.camera, picture.frame)


def _write_some(task: tuple[str, list[Picture]]) -> int:
    root, pictures = task
    for picture in pictures:
        bgr = cv2.cvtColor(draw_picture(picture), cv2.COLOR_RGB2BGR)
        write_whole(
            Path(root) / picture.path,
            cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes(),
        )
    return len(pictures)


def _start_worker() -> None:
    cv2.setNumThreads(1)  # the pool is the parallelism


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically. Raises InputError if it cannot be written."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; free space there or choose another --out") from error


def write_pictures(root: Path, pictures: list[Picture], workers: int, progress: Callable[[int], None]) -> None:
    """Write these pictures below `root`, and call `progress` with the number of pictures written so far.

    The bytes of a picture depend on the picture alone, not on the number of workers.
    """
    tasks = [(str(root), pictures[start : start + 64]) for start in range(0, len(pictures), 64)]
    written = 0
    if workers == 1 or len(tasks) <= 1:
        for task in tasks:
            written += _write_some(task)
            progress(written)
        return
    # The workers are spawned, not forked: threads of the parent (OpenCV, Arrow) do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(min(workers, len(tasks)), _start_worker) as pool:
        for count in pool.imap_unordered(_write_some, tasks):
            written += count
            progress(written)


def missing(root: Path, pictures: list[Picture]) -> list[Picture]:
    """The pictures whose files do not exist yet."""
    present = {f"{folder}/{name}" for folder in (TRAIN, QUERY, GALLERY) for name in _names(root / folder)}
    return [picture for picture in pictures if picture.path not in present]


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def tree_hash(root: Path, pictures: list[Picture]) -> str:
    """sha256 (hex) of the tree's pictures: of names and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for path in sorted(picture.path for picture in pictures):
        digest.update(f"{path} {hashlib.sha256((root / path).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def read_record(root: Path) -> dict[str, Json] | None:
    """OUT/toy_crowd.json, or None if the folder is new or empty. Raises InputError for any other folder."""
    path = root / RECORD
    if path.is_file():
        try:
            return json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}): remove the folder or choose another --out") from error
    if root.exists() and not root.is_dir():
        raise InputError(f"--out {root} is a file: give a folder")
    if root.is_dir() and any(root.iterdir()):
        raise InputError(f"--out {root} holds other files and no {RECORD}: give a new or empty folder")
    return None


def write_sheet(root: Path, options: TreeOptions) -> None:
    """OUT/sheet.png: eight training people, each in two pictures of six cameras."""
    rows = []
    for number in range(min(8, options.train_people)):
        cells = [crowd.draw(FIRST_TRAIN + number, camera, frame) for camera in range(6) for frame in (0, 12)]
        rows.append(np.concatenate(cells, axis=1))
    sheet = np.concatenate([np.full((36, rows[0].shape[1], 3), 255, np.uint8), *rows])
    title = f"toy crowd: drawn, not real (version {crowd.VERSION}, {crowd.content_hash()[:12]})"
    cv2.putText(sheet, title, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (20, 20, 20), 1, cv2.LINE_AA)
    write_whole(root / SHEET, cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
