"""The sweep job: real tiny trainings on Ray Tune, their table, going on, extending, refusals, trials that fail."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs import sweep
from passersby.errors import InputError
from passersby.reid.checkpoint import load_reid
from passersby.reid.network import FeatureNetwork
from tests.helpers import sweep_data
from tests.helpers.drivers import without_ray
from training.reid.config import ReidTraining
from training.reid.presets import PRESETS
from training.reid.run import train
from tune.table import SCHEMA

OPTIONS = {"preset": "tiny", "set": ("batch=8",), "steps": 3, "seeds": (0, 1), "concurrent": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    return sweep_data.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def config(data, tmp_path_factory) -> sweep.Config:
    out = str(tmp_path_factory.mktemp("sweep") / "out")
    return sweep.Config("artificial-people", Path(data["data"]), out, generated=data["people"], levels=(2,), **OPTIONS)


@pytest.fixture(scope="module")
def finished(ray_cluster, config) -> Path:
    """Level 2, and 0, which the sweep adds; seeds 0 and 1."""
    assert sweep.main(config) is None
    return Path(config.out)


@pytest.fixture
def no_ray() -> Iterator[None]:
    """Trials one by one in this process: for what a sweep asks for, not how it is run."""
    with without_ray():
        yield


def rows_of(out: Path) -> dict[str, dict]:
    return {row["trial"]: row for row in pq.read_table(out / "trials.parquet").to_pylist()}


@pytest.mark.slow
def test_every_trial_is_a_row(finished):
    table, rows = pq.read_table(finished / "trials.parquet"), rows_of(finished)
    assert table.schema.equals(SCHEMA)
    assert [(row["level"], row["seed"], row["steps"], row["generated_images"]) for row in rows.values()] == [
        (0, 0, 3, 0), (0, 1, 3, 0), (2, 0, 3, 6), (2, 1, 3, 6),
    ]  # fmt: skip
    for name, row in rows.items():
        assert row["real_images"] == 24  # of 6 people with 5 pictures, one aside
        assert row["query_identity"] == list(sweep_data.TEST)
        assert load_reid(finished / row["network"]).record["configuration"]["seed"] == row["seed"], name
        assert not math.isnan(row["mAP"])
    networks = [load_reid(finished / row["network"]) for row in rows.values()]
    drawn = [{name for name in loaded.class_names if name.startswith("people/")} for loaded in networks]
    assert [len(people) for people in drawn] == [0, 0, 2, 2]
    assert drawn[2] != drawn[3]  # another seed draws other people


def test_scores_are_those_of_a_slow_obvious_ranking(finished, data):
    row = rows_of(finished)["level-0002-seed-1"]
    network = FeatureNetwork(load_reid(finished / row["network"]).network, "")
    features = {}
    for split in ("query", "bounding_box_test"):
        for path in sorted((Path(data["data"]) / split).iterdir()):
            image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            features[split, path.name] = network(image[None])[0]
    precisions, firsts = [], []
    for (split, name), feature in features.items():
        if split != "query":
            continue
        person, camera = name[:4], name[6]
        others = [key for key in features if key[0] != "query" and (key[1][:4], key[1][6]) != (person, camera)]
        ranked = sorted(others, key=lambda key: -float(features[key] @ feature))  # noqa: B023
        hits = [place for place, key in enumerate(ranked) if key[1][:4] == person]
        precisions.append(np.mean([(number + 1) / (place + 1) for number, place in enumerate(hits)]))
        firsts.append(hits[0])
    assert row["query_ap"] == pytest.approx(precisions, abs=1e-9)
    assert row["query_first_hit"] == firsts
    assert row["mAP"] == pytest.approx(np.mean(precisions))
    assert row["rank1"] == pytest.approx(np.mean([first == 0 for first in firsts]))


@pytest.mark.slow
def test_a_trial_is_the_training_that_jobs_train_reid_runs(finished, data, tmp_path):
    values = PRESETS["tiny"] | {"batch": 8, "steps": 3, "seed": 1, "threads": 1, "most_people": 2, "draw_seed": 1}
    people = (Path(data["people"]),)
    made = train(ReidTraining(Path(data["data"]), tmp_path, "tiny", people=people, **values), torch.device("cpu"))
    one, two = (load_reid(path) for path in (made, finished / "trials/level-0002-seed-1/network.safetensors"))
    assert one.class_names == two.class_names
    for name, value in one.network.state_dict().items():
        assert torch.equal(value, two.network.state_dict()[name]), name


def test_the_sweep_says_what_it_is(finished):
    content = json.loads((finished / "sweep.json").read_text())
    assert (content["sweep"], content["levels"], content["seeds"]) == ("artificial-people", [0, 2], [0, 1])
    assert content["leak"]["verdict"] == "unknown"  # a folder has no record
    assert content["one_generator"] is True
    assert content["configuration"]["training"][""]["batch"] == 8


def test_the_same_command_has_nothing_to_do_and_other_options_are_refused(finished, config, data, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("trials/*/*")}
    assert sweep.main(config) is None
    assert {path: path.stat().st_mtime_ns for path in finished.glob("trials/*/*")} == before
    assert "4/4 trials done" in capsys.readouterr().out
    variants = {"sweep": "variants-of-real-people", "generated": data["variants"]}
    for changes, message in (
        ({"set": ("batch=16",)}, "batch is 8, not 16"),
        ({"steps": 4}, "steps is 3, not 4"),
        ({"seeds": (0,)}, "seeds had 1"),
        ({"levels": (1,)}, "levels had 2"),
        (variants, 'sweep is "artificial-people", not "variants-of-real-people"'),
    ):
        with pytest.raises(InputError) as caught:
            sweep.main(dataclasses.replace(config, **changes))
        assert message in str(caught.value)


@pytest.mark.slow
def test_more_levels_extend_a_sweep_and_a_damaged_result_is_named(finished, config, capsys):
    old = rows_of(finished)
    assert sweep.main(dataclasses.replace(config, levels=(2, 4))) is None
    assert "4 of 6 trials are finished, 2 to run" in capsys.readouterr().out
    new = rows_of(finished)
    assert {name: new[name] for name in old} == old
    assert new["level-0004-seed-0"]["generated_images"] == 12
    people = [set(load_reid(finished / new[f"level-{level:04d}-seed-0"]["network"]).class_names) for level in (2, 4)]
    assert people[0] < people[1]
    result = finished / "trials/level-0004-seed-0/result.json"
    result.write_text(result.read_text()[:100])
    with pytest.raises(InputError, match=r"result.json cannot be used .* remove it"):
        sweep.main(dataclasses.replace(config, levels=(2, 4)))


@pytest.mark.slow
def test_variants_and_a_trial_that_fails(ray_cluster, data, tmp_path, capsys):
    """One arm's rate makes the loss no number; the other arm's trials are finished all the same."""
    options = OPTIONS | {"seeds": (0,), "cross": ("lr=0.05,1e30",), "levels": (0, 3), "set": ("batch=8",)}
    config = sweep.Config(
        "variants-of-real-people", Path(data["data"]), str(tmp_path / "out"), generated=data["variants"], **options
    )
    assert sweep.main(config) == 1
    rows = rows_of(tmp_path / "out")
    assert [(row["arm"], row["level"], row["generated_images"]) for row in rows.values()] == [
        ("lr=0.05", 0, 0), ("lr=0.05", 3, 18),
    ]  # fmt: skip
    said = capsys.readouterr().err
    assert "level-0003-seed-0-lr-1e30 failed: the loss is" in said
    assert "2 of 4 trials failed" in said
    reason = json.loads((tmp_path / "out/trials/level-0003-seed-0-lr-1e30/failed.json").read_text())["reason"]
    assert "the training has diverged" in reason


@pytest.mark.slow
def test_two_ray_train_workers_in_a_trial(ray_cluster, config, tmp_path):
    changes = {"set": ("batch=8", "workers=2"), "levels": (0,), "seeds": (0,), "cpus_per_trial": 1}
    assert sweep.main(dataclasses.replace(config, out=str(tmp_path / "out"), **changes)) is None
    assert rows_of(tmp_path / "out")["level-0000-seed-0"]["steps"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": (9,)}, r"--levels 9: people has 5 people"),
        ({"generated": None}, "give either --generated"),
        ({"runs_per_seed": ("a",)}, "give either --generated"),
        ({"generated": None, "runs_per_seed": ("a",)}, "1 runs for 2 --seeds"),
        ({"equal_epochs": True}, "--equal-epochs with --steps 3"),
        ({"set": ("batch=64",)}, "do not fill"),
        ({"generated": "nowhere"}, "nowhere"),
        ({"out": "s3://bucket/x"}, "--out s3://bucket/x"),
        ({"retries": -1}, "--retries -1"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_written(config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        sweep.main(dataclasses.replace(config, **{"out": str(tmp_path / "out")} | changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_without_steps_every_level_has_those_of_level_0(ray_cluster, config, tmp_path, capsys):
    """24 images in batches of 8, 4 epochs: 12 steps; by the study's way what 4 epochs of all images are."""
    dry = dataclasses.replace(config, out=str(tmp_path / "out"), steps=None, dry_run=True)
    assert sweep.main(dry) is None
    assert "12 steps at every level" in capsys.readouterr().out
    sweep.main(dataclasses.replace(dry, equal_epochs=True))
    assert "4 epochs, batches of 8" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_recipes_are_chosen_first_and_every_arm_is_compared_with_the_control(no_ray, config, tmp_path, capsys):
    options = {"set": ("batch=8", "labelled_people=2"), "arms": ("C", "G", "U", "S"), "steps": 2, "seeds": (0,)}
    chosen = dataclasses.replace(
        config, out=str(tmp_path / "out"), levels=(2,), choose=("plain", "changes"), choose_people=2, **options
    )
    assert sweep.main(dataclasses.replace(chosen, dry_run=True)) is None
    assert "before it, 8 trainings choose a recipe for each arm" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert sweep.main(chosen) is None
    choice = json.loads((tmp_path / "out/sweep.json").read_text())["choice"]
    first = pq.read_table(tmp_path / "out/choice/trials.parquet").to_pylist()
    tried = {(row["arm"], row["level"]): row["mAP"] for row in first}
    for arm, level in (("C", 0), ("G", 2), ("U", 2), ("S", 2)):
        figures = {recipe: tried[f"{arm}, recipe={recipe}", level] for recipe in ("plain", "changes")}
        assert choice["mAP"][arm] == figures
        assert figures[choice["chosen"][arm]] == max(figures.values())
    rows = pq.read_table(tmp_path / "out/trials.parquet").to_pylist()
    assert len({row["trial"] for row in rows}) == 4
    assert sorted({(row["arm"], row["level"]) for row in rows if row["level"]}) == [("G", 2), ("S", 2), ("U", 2)]
    stages = {row["arm"]: load_reid(tmp_path / "out" / row["network"]).record for row in rows if row["level"]}
    for arm, record in stages.items():
        assert bool(record["configuration"]["stages"]) == (choice["chosen"][arm] == "changes")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}
    assert sweep.main(chosen) is None  # nothing is trained again
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}
