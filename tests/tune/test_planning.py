"""Plans of sweeps from the options of the job, on data on disk: records, leaks, filters, a run for each seed."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from datasets.people.listing import identities_sha256
from datasets.reid.sources import Labelled, people_sha256
from datasets.runs.configuration import Configuration
from datasets.runs.manifest import write_manifest
from datasets.runs.plan import PLAN_FILE, Plan
from datasets.runs.run import Run
from datasets.runs.shards import shard_table, write_shard
from datasets.runs.verdicts import Thresholds
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.reid.checkpoint import save_reid
from passersby.reid.network import ReidNetwork
from tests.helpers import sweep_data
from training.reid.presets import preset
from tune.levels import Trial
from tune.planning import SweepOptions, plan_sweep
from tune.table import SCHEMA, write_table

PEOPLE, VARIANTS = 5, 4


def write_run(root: Path, trained_on: tuple[int, ...], network: str = "n") -> str:
    """Five artificial people; person p has p images whose detector score is 0.9, the others' is 0.7."""
    output = Output(str(root))
    configuration = Configuration(
        seed=0, variants=VARIANTS, method="mix", layers=(5,), amount=None, truncation_psi=0.7, network=network,
        height=32, width=16, format="png", jpeg_quality=None, unit_images=VARIANTS, detector="d",
        reference_threshold=0.6, ssim_data_range=4095.0,
    )  # fmt: skip
    plan = Plan(configuration).extended(PEOPLE)
    output.write(PLAN_FILE, plan.to_json())
    for unit in plan.units():
        columns = {
            "person": [unit.first_person] * VARIANTS,
            "variant": list(range(VARIANTS)),
            "source": ["seed"] * VARIANTS,
            "image": [b"never decoded here"] * VARIANTS,
            "status": ["ok"] * VARIANTS,
            "detector_score": np.where(np.arange(VARIANTS) < unit.first_person, 0.9, 0.7),
        }
        write_shard(output, configuration.hash, unit.unit, shard_table(unit.unit, pa.table(columns)))
    write_manifest(Run(output, plan), plan.units(), Thresholds())
    identities = {"count": len(trained_on), "sha256": identities_sha256(trained_on)}
    record = {"sha256": network, "trained_on": {"name": "market", "split": "train", "identities": identities}}
    output.write("summary.json", json.dumps({"network": record}).encode())
    return output.root_address


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return Path(sweep_data.write_data(tmp_path_factory.mktemp("data"))["data"])


@pytest.fixture(scope="module")
def wanted(data, tmp_path_factory) -> SweepOptions:
    run = write_run(tmp_path_factory.mktemp("run"), tuple(sweep_data.TRAIN))
    return SweepOptions(
        sweep="artificial-people", data=data, generated=run, runs_per_seed=(), latents=(), levels=(2, 4),
        seeds=(0, 1), preset="tiny", set=("batch=8",), arms=(), cross=(), steps=3, equal_epochs=False,
        allow_leak=False,
    )  # fmt: skip


def test_a_generator_of_training_people_is_clean(wanted):
    sweep = plan_sweep(wanted)
    assert [finding.verdict for finding in sweep.findings] == ["clean"]
    assert json.loads(sweep.to_json(""))["leak"]["verdict"] == "clean"


def test_a_generator_that_has_seen_test_people_is_refused_unless_allowed(wanted, tmp_path):
    leaking = dataclasses.replace(wanted, generated=write_run(tmp_path, tuple(sweep_data.TEST)))
    with pytest.raises(InputError, match=r"its generator has seen people that re-ID is tested with .*--allow-leak"):
        plan_sweep(leaking)
    content = json.loads(plan_sweep(dataclasses.replace(leaking, allow_leak=True)).to_json(""))
    assert (content["leak"]["verdict"], content["leak"]["allowed"]) == ("leak", True)


def test_one_leaking_run_of_several_is_enough(wanted, tmp_path):
    runs = (wanted.generated, write_run(tmp_path, tuple(sweep_data.TEST), "other"))
    with pytest.raises(InputError, match="has seen people that re-ID is tested with"):
        plan_sweep(dataclasses.replace(wanted, generated=None, runs_per_seed=runs))


def test_each_seed_draws_from_its_run(wanted, tmp_path):
    runs = (wanted.generated, write_run(tmp_path, tuple(sweep_data.TRAIN), "other"))
    sweep = plan_sweep(dataclasses.replace(wanted, generated=None, runs_per_seed=runs))
    for seed, run in enumerate(runs):
        training = sweep.training(Trial(seed, 2), tmp_path)
        assert (training.people, training.draw_seed, training.most_people) == ((Path(run),), seed, 2)
    assert json.loads(sweep.to_json(""))["one_generator"] is False
    assert json.loads(plan_sweep(wanted).to_json(""))["one_generator"] is True


def test_arms_differ_in_thresholds_and_the_levels_of_each_must_be_there(wanted):
    arms = ("loose: ssim_floor=None", "strict: detector_threshold=0.8")
    sweep = plan_sweep(dataclasses.replace(wanted, arms=arms))
    assert len(sweep.trials()) == (2 * 2 + 1) * 2  # both have the same level 0
    filters = [sweep.training(Trial(1, 2, arm), Path("out")).filters for arm in ("loose", "strict")]
    assert filters == [("ssim_floor=None",), ("detector_threshold=0.8",)]
    assert Trial(1, 2, "strict").name == "level-0002-seed-1-strict"
    with pytest.raises(InputError, match=r"--filters detector_threshold=0.95 keeps no image"):
        plan_sweep(dataclasses.replace(wanted, arms=(*arms, "none: detector_threshold=0.95")))


def test_arms_that_differ_in_generated_images_only_share_level_0(wanted, tmp_path):
    arms = (
        "a: variants_labels=hard",
        "b: generated_weight=0.5 real_only_epochs=1",
        "c: lr=0.5",
        "d: lr=0.5 people_labels=lsro",
    )
    sweep = plan_sweep(dataclasses.replace(wanted, arms=arms, levels=(2,)))
    assert sweep.sharing() == {"a": ["b"], "c": ["d"]}
    baselines = sorted(trial.arm for trial in sweep.trials() if trial.level == 0 and trial.seed == 1)
    assert baselines == ["a", "c"]
    assert json.loads(sweep.to_json(""))["trials"] == len(sweep.trials()) == 2 * (4 + 2)
    ours = [dataclasses.replace(sweep.training(Trial(1, 0, arm), tmp_path), out=tmp_path) for arm in "abcd"]
    assert (ours[0], ours[2]) == (ours[1], ours[3])
    assert ours[0] != ours[2]
    assert sweep.training(Trial(1, 2, "b"), tmp_path).generated_weight == 0.5
    row = dict.fromkeys(SCHEMA.names) | {"trial": "level-0000-seed-0-a", "arm": "a", "level": 0, "seed": 0, "mAP": 0.5}
    more = row | {"trial": "level-0002-seed-0-b", "arm": "b", "level": 2, "mAP": 0.6}
    write_table(Output(str(tmp_path)), {one["trial"]: one for one in (row, more)}, sweep.sharing())
    table = pq.read_table(tmp_path / "trials.parquet").select(["trial", "arm", "level", "mAP"]).to_pylist()
    assert [tuple(one.values()) for one in table] == [
        ("level-0000-seed-0-a", "a", 0, 0.5), ("level-0000-seed-0-a", "b", 0, 0.5),
        ("level-0002-seed-0-b", "b", 2, 0.6),
    ]  # fmt: skip


def test_what_filters_leave_is_counted(wanted, data):
    folder = dataclasses.replace(wanted, generated=str(data.parent / "people"), arms=("a: detector_threshold=0.8",))
    with pytest.raises(InputError, match="is no run of jobs/generate.py"):
        plan_sweep(folder)
    arms = dataclasses.replace(wanted, levels=(5,), arms=("loose: ssim_floor=None",))
    assert plan_sweep(arms).levels == (0, 5)
    with pytest.raises(InputError, match=r"--levels 5: run .* has 4 people that pass"):
        plan_sweep(dataclasses.replace(arms, arms=("loose: ssim_floor=None", "strict: detector_threshold=0.8")))


def test_latents_that_a_run_was_not_made_from_are_refused(wanted, tmp_path):
    with pytest.raises(InputError):
        plan_sweep(dataclasses.replace(wanted, latents=(str(tmp_path),)))


def test_a_start_network_and_the_judge_of_the_filters_are_judged(wanted, data, tmp_path):
    """By their records: whom they have seen, and whose labels they know."""
    names = [path.name[:4] for path in sorted((data / "bounding_box_train").iterdir())]
    people = sorted(set(names))
    part = {"name": "market train", "people": len(people), "sha256": people_sha256(people)}
    torch.manual_seed(0)
    training = preset("tiny", Path(), Path())
    network = ReidNetwork(training.network(len(people)))
    file = tmp_path / "start.safetensors"
    save_reid(file, network, class_names=people, record={"trained_on": {"real": [part]}})
    settings = ("batch=4", f"start={file}")
    sweep = plan_sweep(dataclasses.replace(wanted, set=settings))
    assert [finding.verdict for finding in sweep.findings if "start" in finding.what] == ["clean"]
    assert [finding.verdict for finding in sweep.labels if "start" in finding.what] == ["clean"]
    assert json.loads(sweep.to_json(""))["labels"]["findings"][-1]["what"] == "start network start.safetensors"
    with pytest.raises(InputError, match="knows more labels than the trainings .*6 people, 2 of whom.*--allow-leak"):
        plan_sweep(dataclasses.replace(wanted, set=(*settings, "labelled_people=4")))
    allowed = plan_sweep(dataclasses.replace(wanted, set=(*settings, "labelled_people=4"), allow_leak=True))
    assert json.loads(allowed.to_json(""))["labels"]["verdict"] == "leak"
    assert sweep.hash != plan_sweep(dataclasses.replace(wanted, set=("batch=4",))).hash


def test_arms_of_generated_and_real_extras_share_their_control(wanted):
    """C is level 0. G, U and S add to it generated people, further real people, single pictures without a label."""
    arms = ("G: recipe=changes", "U: recipe=changes-first extras=real", "S: recipe=changes extras=single")
    settings = ("labelled_people=3", "label_draw=5", "batch=4", "generated_share=0.5")
    sweep = plan_sweep(dataclasses.replace(wanted, arms=arms, set=settings, levels=(2,)))
    names = [trial.name for trial in sweep.trials() if trial.seed == 0]
    assert sorted(names) == ["level-0000-seed-0-G", *(f"level-0002-seed-0-{arm}" for arm in "GSU")]
    of = {arm: sweep.training(Trial(0, 2, arm), Path("out")) for arm in "GUS"}
    assert (of["G"].most_people, of["G"].labelled.further, of["G"].labelled.singles) == (2, 0, 0)
    assert (of["U"].people, of["U"].labelled.further, of["U"].labelled.singles) == ((), 2, 0)
    assert of["U"].stages == ("0.7", "0.3:plain,sources=real")
    images = sweep.run_of(Trial(0, 2, "S")).images
    assert (of["S"].people, of["S"].labelled.further, of["S"].labelled.singles) == ((), 0, round(images / PEOPLE * 2))
    control = sweep.training(Trial(0, 0, "G"), Path("out"))
    assert (control.people, control.labelled, control.stages) == ((), Labelled(3, 5), ("0.7", "0.3:plain"))
    assert {training.steps for training in sweep.arms.values()} == {3}
    assert {training.surroundings for training in sweep.arms.values()} == {1.0}
    swapped = plan_sweep(dataclasses.replace(wanted, arms=(*arms[:2], "S: recipe=changes"), set=settings, levels=(2,)))
    assert swapped.hash != sweep.hash


@pytest.mark.parametrize(
    ("arm", "settings", "levels", "message"),
    [
        ("U: extras=real", ("batch=4",), (2,), "extras=real: it belongs to .*labelled_people=N"),
        ("U: extras=real", ("batch=4", "labelled_people=3"), (4,), "--further-people 4: .*3 people beside the 3"),
        ("U: extras=people", ("batch=4",), (2,), "extras people: give one of generated, real, single, none"),
        ("U: recipe=best", ("batch=4",), (2,), "recipe best: give one of plain, changes"),
    ],
)
def test_impossible_extras_and_recipes_are_refused(wanted, arm, settings, levels, message):
    with pytest.raises(InputError, match=message):
        plan_sweep(dataclasses.replace(wanted, arms=(arm,), set=settings, levels=levels))
