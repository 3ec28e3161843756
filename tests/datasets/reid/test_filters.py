"""Other thresholds than a run's own, for the images that a re-ID training takes."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from datasets.reid.runs import read_run
from datasets.reid.sources import list_sources
from datasets.runs.configuration import Configuration
from datasets.runs.manifest import write_manifest
from datasets.runs.plan import PLAN_FILE, Plan
from datasets.runs.run import Run
from datasets.runs.shards import shard_table, write_shard
from datasets.runs.verdicts import Thresholds, with_filters
from datasets.storage.output import Output
from passersby.errors import InputError
from training.reid.config import ReidTraining

DETECTOR = np.array([[0.9, 0.7, 0.65], [0.9, 0.5, 0.95]])
SSIM = np.array([[1.0, 0.9, 0.7], [1.0, 0.9, 0.8]])
MARGIN = np.array([[0.2, -0.1, 0.3], [0.1, 0.4, -0.2]])


def make_run(root: Path, identity: bool) -> str:
    """Two people with three images each; judged by detector 0.6, no SSIM floor."""
    output = Output(str(root))
    configuration = Configuration(
        seed=0, variants=3, method="mix", layers=(5,), amount=None, truncation_psi=0.7, network="n", height=16,
        width=8, format="png", jpeg_quality=None, unit_images=3, detector="d", reference_threshold=0.6,
        ssim_data_range=4095.0,
    )  # fmt: skip
    plan = Plan(configuration).extended(2)
    output.write(PLAN_FILE, plan.to_json())
    image = cv2.imencode(".png", np.zeros((16, 8, 3), np.uint8))[1].tobytes()
    for unit in plan.units():
        person = unit.first_person
        columns = {
            "person": [person] * 3,
            "variant": [0, 1, 2],
            "source": ["seed"] * 3,
            "image": [image] * 3,
            "status": ["ok"] * 3,
            "detector_score": DETECTOR[person],
            "ssim": SSIM[person],
            "reference_variant": [0] * 3,
        }
        if identity:
            columns |= {"identity_cosine": [0.5] * 3, "identity_margin": MARGIN[person]}
        write_shard(output, configuration.hash, unit.unit, shard_table(unit.unit, pa.table(columns)))
    write_manifest(Run(output, plan), plan.units(), Thresholds(detector=0.6, ssim_floor=None))
    return output.root_address


@pytest.fixture
def run(tmp_path) -> str:
    return make_run(tmp_path / "run", identity=True)


def kept(run: str, *filters: str) -> list[str]:
    return list(read_run(run, filters=filters).names)


def test_filters_change_single_thresholds_of_the_run(run):
    assert kept(run) == ["0/0", "0/1", "0/2", "1/0", "1/2"]
    assert kept(run, "detector_threshold=0.68") == ["0/0", "0/1", "1/0", "1/2"]
    assert kept(run, "detector_threshold=0") == ["0/0", "0/1", "0/2", "1/0", "1/1", "1/2"]
    assert kept(run, "ssim_floor=0.75") == ["0/0", "0/1", "1/0", "1/2"]  # the run's detector threshold holds
    assert kept(run, "ssim_floor=0.75", "--detector-threshold=0.4") == ["0/0", "0/1", "1/0", "1/1", "1/2"]
    assert kept(run, "identity_margin=0") == ["0/0", "0/2", "1/0"]
    assert kept(run, "identity_margin=0", "ssim_floor=0.8") == ["0/0", "1/0"]


def test_a_training_takes_the_filtered_images(run, tmp_path):
    real = tmp_path / "real/0001"
    real.mkdir(parents=True)
    for index in range(3):
        cv2.imwrite(str(real / f"{index}.png"), np.full((16, 8, 3), index, np.uint8))
    plain, strict = (list_sources(real.parent, people=[run], filters=these)[1] for these in ((), ["identity_margin=0"]))
    assert (len(plain), len(strict)) == (5, 3)
    assert plain.listing.fingerprint() != strict.listing.fingerprint()
    with pytest.raises(InputError, match="is no run of jobs/generate.py"):
        list_sources(real.parent, variants=[real.parent], filters=["identity_margin=0"])
    options = ReidTraining(Path("a"), Path("b"), filters=("identity_margin=0",), neck="bnneck")
    assert ReidTraining.from_json(options.as_json()) == options


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (["banana=1"], "--filters banana=1: give key=value, a key being one of detector_threshold, ssim_floor"),
        (["ssim_floor"], "give key=value"),
        (["ssim_floor=high"], "'high' is no number"),
        (["ssim_floor=2"], "--ssim-floor 2.0: SSIM is -1 to 1"),
        (["detector_threshold=None"], "'None' is no number"),
        (["ssim_floor=0.1", "ssim-floor=0.2"], "given twice"),
        (["ssim_floor=nan"], "SSIM is -1 to 1"),
    ],
)
def test_what_is_no_threshold_is_one_line(filters, message):
    with pytest.raises(InputError) as caught:
        with_filters(Thresholds(), filters)
    assert message in str(caught.value)
    with pytest.raises(InputError):
        ReidTraining(Path("a"), Path("b"), filters=tuple(filters)).check()


def test_thresholds_that_keep_nothing_or_judge_what_was_not_measured_are_refused(run, tmp_path):
    with pytest.raises(InputError, match="--filters detector_threshold=1 keeps no image"):
        kept(run, "detector_threshold=1")
    bare = make_run(tmp_path / "bare", identity=False)
    with pytest.raises(InputError, match=r"--filters identity_margin=0: .* measured no likeness to other real people"):
        kept(bare, "identity_margin=0")
