"""Runs made from real people's latents, as re-ID data: their people are the real ones, by name."""

import cv2
import numpy as np
import pyarrow as pa
import pytest

from datasets.people.readers import read_split
from datasets.reid.runs import read_run
from datasets.reid.sources import list_sources
from datasets.runs.configuration import Configuration, Origin
from datasets.runs.manifest import write_manifest
from datasets.runs.plan import PLAN_FILE, Plan
from datasets.runs.run import Run
from datasets.runs.shards import shard_table, write_shard
from datasets.runs.verdicts import Thresholds
from datasets.storage.output import Output

NAMES, VARIANTS = ("0010", "0002", "0007", "0099"), 3


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (16, 8, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.fixture
def run(tmp_path) -> str:
    """Four people of a table, not in the order of their names; the second's variant 1 does not pass the detector."""
    output = Output(str(tmp_path / "run"))
    origins = tuple(Origin(name, f"{name}.jpg", place or None, 2) for place, name in enumerate(NAMES))
    configuration = Configuration(
        seed=0, variants=VARIANTS, method="mix", layers=(5,), amount=None, truncation_psi=0.7, network="n", height=16,
        width=8, format="png", jpeg_quality=None, unit_images=3, detector="d", reference_threshold=0.6,
        ssim_data_range=4095.0, latents="t", origins=origins,
    )  # fmt: skip
    plan = Plan(configuration).extended(len(NAMES))
    output.write(PLAN_FILE, plan.to_json())
    for unit in plan.units():
        person = unit.first_person
        columns = {
            "person": [person] * VARIANTS,
            "variant": list(range(VARIANTS)),
            "source": ["latent"] * VARIANTS,
            "camera": pa.array([origins[person].camera] * VARIANTS, pa.int64()),
            "image": [picture(10 * person + variant) for variant in range(VARIANTS)],
            "status": ["ok"] * VARIANTS,
            "detector_score": [0.1 if (person, variant) == (1, 1) else 0.9 for variant in range(VARIANTS)],
        }
        write_shard(output, configuration.hash, unit.unit, shard_table(unit.unit, pa.table(columns)))
    write_manifest(Run(output, plan), plan.units(), Thresholds())
    return output.root_address


def test_people_are_called_what_the_real_data_call_them(run):
    listing = read_run(run, latent_only=True)
    assert listing.people == {1: "0010", 2: "0002", 3: "0007", 4: "0099"}
    assert listing.names[3:5] == ("1/0", "1/2")
    assert listing.identities.tolist() == [1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4]
    assert listing.cameras.tolist() == [-1, -1, -1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert read_split(run, "train").people == listing.people


@pytest.mark.parametrize("style", ["market", "folders"])
def test_variants_join_their_person_in_a_training(run, tmp_path, style):
    real = tmp_path / "real"
    for name in ("0002", "0007", "0010"):
        for index in range(2):
            path = real / name / f"{index}.png"
            if style == "market":
                path = real / "bounding_box_train" / f"{name}_c1s1_{index:06d}_00.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(1000 + int(name) + index))
    if style == "market":
        for folder in ("query", "bounding_box_test"):
            (real / folder).mkdir()
    _, variants = list_sources(real, variants=[run])
    expected = ["0010"] * 3 + ["0002"] * 2 + ["0007"] * 3
    assert list(variants.persons) == expected
    by_person = {name: place for place, name in enumerate(NAMES)}
    kept = [(by_person[name], variant) for name, variant in zip(expected, [0, 1, 2, 0, 2, 0, 1, 2], strict=True)]
    assert variants.listing.contents == tuple(picture(10 * person + variant) for person, variant in kept)
    assert "1 people who are not in" in variants.listing.notes[-1]
    assert "0099" in variants.listing.notes[-1]
