"""Draw the toy crowd and write it as a Market-1501 tree: `python jobs/make_toy_crowd.py --out OUT`."""

import dataclasses
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.toy_crowd import crowd, tree
from jobs.common import run_job
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError
from reporting.progress import Bar


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw a crowd of toy pedestrians (drawn, not real) and write it as a Market-1501 tree.

    Example: python jobs/make_toy_crowd.py --out /data/crowd --train-people 500 --test-people 400
    The same command again continues where it stopped. It leaves a finished tree as it is.
    """

    out: Path
    """Folder to write: bounding_box_train, query, bounding_box_test, toy_crowd.json and sheet.png."""
    train_people: int = 500
    """People of the training split."""
    test_people: int = 400
    """People of query and gallery. None of them is ever a training person of any tree."""
    images_per_camera: int = 4
    """Pictures of a person by each camera that sees the person. In the test split one of them is the query."""
    cameras_min: int = 3
    """Fewest cameras, of the six, that see a person."""
    cameras_max: int = 6
    """Most cameras that see a person."""
    distractors: int = 1000
    """Gallery pictures of strangers and of bad boxes, identity 0000."""
    junk: int = 500
    """Gallery pictures that the protocol ignores, identity -1: cut off, shifted, far away or empty boxes."""
    workers: Annotated[int, Bound(ge=0, note="0 is one for each core")] = 0
    """Number of processes that draw. 0 is one for each core. The pictures do not depend on the number."""


def main(config: Config) -> None:
    """Draw what is missing of the tree, then its record and a sheet to look at."""
    check_bounds(config)
    names = [field.name for field in dataclasses.fields(tree.TreeOptions)]
    options = tree.TreeOptions(**{name: getattr(config, name) for name in names})
    pictures = tree.plan(options)
    record = {
        "note": tree.NOTE,
        "version": crowd.VERSION,
        "content_hash": crowd.content_hash(),
        "options": dataclasses.asdict(options),
    }
    stored = tree.read_record(config.out)
    if stored:
        check_same(stored, record, config.out)
    todo = tree.missing(config.out, pictures)
    if stored and "sha256" in stored and not todo:
        print(f"{config.out} is finished: {len(pictures)} pictures, nothing to do")
        return
    write(config, options, record, pictures, todo)


def check_same(stored: dict, expected: dict, out: Path) -> None:
    """Refuse to mix two crowds in one folder, naming the first key that differs."""
    pairs = [(key, stored.get(key), expected[key]) for key in ("version", "content_hash")]
    pairs += [
        (f"options.{key}", stored.get("options", {}).get(key), value) for key, value in expected["options"].items()
    ]
    for key, old, new in pairs:
        if old != new:
            raise InputError(f"{out} was made with {key} = {old}, not {new}: choose another --out or the old value")


def write(
    config: Config,
    options: tree.TreeOptions,
    record: dict,
    pictures: list[tree.Picture],
    todo: list[tree.Picture],
) -> None:
    """Draw what is missing, then the sheet, then the record with counts and hash.

    A record with a sha256 means that the tree is finished.
    """
    try:
        for folder in (tree.TRAIN, tree.QUERY, tree.GALLERY):
            (config.out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {config.out} cannot be made: {error.strerror}; choose another folder") from error
    path = config.out / tree.RECORD
    tree.write_whole(path, _json(record))
    workers = config.workers or len(os.sched_getaffinity(0))
    amount = f"{len(todo)} of {len(pictures)} pictures to draw"
    print(f"toy crowd {crowd.VERSION}: {amount}, {workers} processes", flush=True)
    start = time.monotonic()

    bar = Bar(len(todo), sys.stdout) if sys.stdout.isatty() else None

    def progress(done: int) -> None:
        rate = done / (time.monotonic() - start)
        line = f"{done}/{len(todo)} pictures, {rate:.0f}/s, {(len(todo) - done) / rate:.0f} s left "
        if bar is not None:
            bar.show(done, line)
        elif done == len(todo) or done % 1024 < 64:
            print(line, flush=True)

    tree.write_pictures(config.out, todo, workers, progress)
    if bar is not None:
        bar.close()
    tree.write_sheet(config.out, options)
    record["counts"] = dict(Counter(picture.path.split("/")[0] for picture in pictures))
    record["sha256"] = tree.tree_hash(config.out, pictures)
    tree.write_whole(path, _json(record))
    print(f"{config.out}: {record['counts']}; look at {config.out / tree.SHEET} (drawn, not real)")


def _json(record: dict) -> bytes:
    return (json.dumps(record, indent=2) + "\n").encode()


if __name__ == "__main__":
    run_job(main, Config)
