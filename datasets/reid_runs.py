"""Pictures of a run of jobs/generate.py, as images of people."""

from pathlib import Path

import numpy as np

from datasets.manifest import manifest_name, read_manifest
from datasets.output import Output
from datasets.plan import read_plan
from datasets.reid_images import UNKNOWN_CAMERA, Listing
from datasets.shards import read_shard
from datasets.verdicts import KEPT
from models.errors import InputError


def is_run(root: Path) -> bool:
    """Whether a folder is a run's output."""
    return (Path(root) / "plan.json").is_file()


def read_run(root: Path, split: str) -> Listing:
    """The kept images of a run, in the order of the plan. They are for training: there is no query and no gallery.

    Raises InputError for another split, and where no image is kept or the run has not ended.
    """
    root, name = Path(root), Path(root).resolve().name
    if split != "train":
        raise InputError(f"{root} is a run of generated images: it has no {split} images")
    output = Output(str(root))
    plan = read_plan(output)
    if not output.exists(manifest_name(None)):
        raise InputError(f"{root}: no {manifest_name(None)} says which images are kept: end the run")
    table = read_manifest(output, None, ["unit", "person", "variant", "camera", "verdict"])
    kept = [row for row in table.to_pylist() if row["verdict"] == KEPT]
    if not kept:
        raise InputError(f"{root}: the run kept no image")
    units = {unit.unit: unit for unit in plan.units()}
    wanted: dict[int, list[dict]] = {}
    for row in kept:
        wanted.setdefault(row["unit"], []).append(row)
    contents, people, cameras, names = [], [], [], []
    for unit, rows in wanted.items():
        shard = read_shard(output, plan, units[unit], ["person", "variant", "image"]).to_pylist()
        images = {(row["person"], row["variant"]): row["image"] for row in shard}
        for row in rows:
            contents.append(images[row["person"], row["variant"]])
            people.append(row["person"])
            cameras.append(UNKNOWN_CAMERA if row["camera"] is None else row["camera"])
            names.append(f"{row['person']}/{row['variant']}")
    # Person 0 is a person too, and 0 means distractor elsewhere: identities are shifted, names keep the number.
    identities = np.array(people, np.int64) + 1
    known = {person + 1: str(person) for person in sorted(set(people))}
    return Listing(name, tuple(contents), identities, np.array(cameras, np.int64), tuple(names), known)
