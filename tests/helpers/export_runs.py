"""Small finished runs with tiny real pictures, for the tests of exports. No test itself."""

import cv2
import numpy as np
import pyarrow as pa

from datasets.runs.configuration import Origin
from datasets.runs.manifest import write_manifest
from datasets.runs.plan import PLAN_FILE, Configuration, Plan
from datasets.runs.run import Run
from datasets.runs.shards import shard_table, write_shard
from datasets.runs.verdicts import Thresholds
from datasets.storage.output import Output

SEED = 1000
NOBODY, FEW = 2, 5  # of person NOBODY no picture passes the detector, of person FEW only two


def picture(person: int, variant: int, suffix: str = ".jpg") -> bytes:
    """JPEG or PNG bytes of a 16 x 8 picture, soft and colourful, different for each person and variant."""
    noise = np.random.default_rng([person, variant]).integers(0, 256, (3, 2, 3), np.uint8)
    return cv2.imencode(suffix, cv2.resize(noise, (8, 16)))[1].tobytes()


def kept(person: int, variant: int) -> bool:
    """Whether a picture passes the detector at 0.6: each third variant from 1 on does not."""
    if person in (NOBODY, FEW):
        return person == FEW and variant in (1, 3)
    return variant % 3 != 1


def make_run(
    address: str, people: int = 8, variants: int = 6, image_format: str = "jpeg", camera=None, names=()
) -> Output:
    """A finished run: plan, shards of two people or fewer, manifest.

    camera: None, or a function of the variant. names: the names of real people, whose variants the images are.
    """
    run = Output(address)
    configuration = Configuration(
        seed=SEED, variants=variants, method="mix", layers=(5,), amount=None, truncation_psi=0.7, network="n",
        height=16, width=8, format=image_format, jpeg_quality=95 if image_format == "jpeg" else None,
        unit_images=2 * variants, detector="d", reference_threshold=0.6, ssim_data_range=4095.0,
        latents="t" if names else None, origins=tuple(Origin(name, f"{name}.jpg", 1, 1) for name in names),
    )  # fmt: skip
    plan = Plan(configuration).extended(people)
    run.write(PLAN_FILE, plan.to_json())
    suffix = ".jpg" if image_format == "jpeg" else ".png"
    for unit in plan.units():
        rows = [(p, v) for p in range(unit.first_person, unit.first_person + unit.people) for v in range(variants)]
        columns = {
            "person": pa.array([p for p, _ in rows], pa.int64()),
            "variant": pa.array([v for _, v in rows], pa.int64()),
            "seed": pa.array([None if names else SEED + p for p, _ in rows], pa.int64()),
            "camera": pa.array([camera(v) if camera else None for _, v in rows], pa.int64()),
            "image": pa.array([picture(p, v, suffix) for p, v in rows], pa.binary()),
            "mix_layers": pa.array([[5] if v else [] for _, v in rows], pa.list_(pa.int64())),
            "status": pa.array(["ok"] * len(rows)),
            "detector_score": pa.array([0.7 + 0.01 * v if kept(p, v) else 0.1 for p, v in rows], pa.float32()),
        }
        write_shard(run, configuration.hash, unit.unit, shard_table(unit.unit, pa.table(columns)))
    write_manifest(Run(run, plan), plan.units(), Thresholds())
    return run


def tree(folder) -> dict[str, bytes]:
    """Every file below a folder by its relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
