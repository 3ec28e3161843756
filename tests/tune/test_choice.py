"""Recipes chosen on people set aside: who they are, the sweep that chooses, and what it chooses."""

import dataclasses
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datasets.people.listing import GALLERY, QUERY, TRAIN, drawn_names
from datasets.people.readers import read_split
from datasets.storage.output import Output
from passersby.errors import InputError
from tests.helpers import sweep_data
from tune.choice import chosen_recipes, plan_choice, set_aside
from tune.levels import Trial
from tune.planning import SweepOptions, plan_sweep

RECIPES = ("plain", "changes")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return sweep_data.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def wanted(folders) -> SweepOptions:
    return SweepOptions(
        sweep="artificial-people", data=Path(folders["data"]), generated=folders["people"], runs_per_seed=(),
        latents=(), levels=(2,), seeds=(3, 4), preset="tiny", set=("batch=8", "labelled_people=2"),
        arms=("C", "G", "U", "S"), cross=(), steps=3, equal_epochs=False, allow_leak=False,
    )  # fmt: skip


def test_the_last_of_the_draw_are_set_aside_and_every_picture_has_one_place(folders, tmp_path):
    (tmp_path / "people.parquet").write_bytes(set_aside(folders["data"], 2, draw=5))
    everybody = read_split(folders["data"], TRAIN)
    parts = {split: read_split(tmp_path / "people.parquet", split) for split in (TRAIN, QUERY, GALLERY)}
    names = drawn_names(everybody.people.values(), 5)
    assert {*parts[TRAIN].people.values()} == {*names[:-2]}
    assert {*parts[QUERY].people.values()} == {*parts[GALLERY].people.values()} == {*names[-2:]}
    assert sum(map(len, parts.values())) == len(everybody)
    # 3 pictures by camera 1 and 2 by camera 2: a query at each
    assert sorted(zip(parts[QUERY].identities, parts[QUERY].cameras, strict=True)) == sorted(
        (identity, camera) for identity in parts[QUERY].people for camera in (1, 2)
    )


def test_a_person_with_one_picture_a_camera_has_one_query(tmp_path):
    for person in range(1, 5):
        sweep_data.write_person(tmp_path / "data/bounding_box_train", person, 2)
    (tmp_path / "data/query").mkdir()
    table = pq.read_table(io.BytesIO(set_aside(tmp_path / "data", 2, 0))).to_pylist()
    splits = [row["split"] for row in table]
    assert (splits.count(TRAIN), splits.count(QUERY), splits.count(GALLERY)) == (4, 2, 2)


def test_the_sweep_that_chooses_tries_every_recipe_with_every_arm_once(wanted, tmp_path):
    sweep = plan_sweep(wanted)
    choice = plan_choice(sweep, wanted, RECIPES, 2, Output(str(tmp_path / "out")))
    arms = [(arm, recipe) for arm in ("C", "G", "U", "S") for recipe in RECIPES]
    expected = {Trial(3, 0 if arm == "C" else 2, f"{arm}, recipe={recipe}") for arm, recipe in arms}
    assert set(choice.trials()) == expected
    assert not choice.data.train & choice.data.test
    assert choice.data.train | choice.data.test == sweep.data.train
    training = choice.training(Trial(3, 2, "U, recipe=changes"), tmp_path)
    assert (training.further_people, training.labelled_people, training.stages != ()) == (2, 2, True)
    # the people set aside stay the same ones
    with pytest.raises(InputError, match=r"people.parquet sets other people aside: choose another --out"):
        plan_choice(sweep, wanted, RECIPES, 3, Output(str(tmp_path / "out")))


def test_each_arm_gets_its_best_recipe(wanted, tmp_path):
    sweep = plan_sweep(wanted)
    choice = plan_choice(sweep, wanted, RECIPES, 2, Output(str(tmp_path / "out")))
    best = {"C": "changes", "G": "plain", "U": "changes"}
    rows = [
        {"arm": trial.arm, "level": trial.level, "mAP": 0.5 + 0.1 * (best.get(trial.arm[0]) == trial.arm[10:])}
        for trial in choice.trials()
    ]
    recipes, record = chosen_recipes(sweep, choice, rows, RECIPES, 2)
    assert recipes == best | {"S": "plain"}  # equal: the first
    assert (record["people"], record["seed"], record["mAP"]["G"]) == (2, 3, {"plain": 0.6, "changes": 0.5})
    answer = plan_sweep(dataclasses.replace(wanted, recipes=recipes))
    assert [bool(answer.arms[arm].stages) for arm in "CGUS"] == [True, False, True, False]
    assert [trial.arm for trial in answer.trials() if trial.level == 0] == ["C", "C"]
    assert answer.sharing() == {"C": ["G", "U", "S"]}


@pytest.mark.parametrize(
    ("changes", "recipes", "message"),
    [
        ({"arms": ("G: extras=generated",)}, RECIPES, "--choose: without a control nothing is compared"),
        ({}, ("plain",), "--choose plain: give two or more recipes, each once"),
        ({}, ("plain", "best"), "--choose best: give recipes of plain, changes"),
        ({"arms": ("C: extras=none label_draw=1", "G: label_draw=1", "D: extras=none")}, RECIPES, "one for all arms"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(wanted, tmp_path, changes, recipes, message):
    options = dataclasses.replace(wanted, **changes)
    with pytest.raises(InputError, match=message):
        plan_choice(plan_sweep(options), options, recipes, 2, Output(str(tmp_path / "out")))


def test_too_many_people_and_another_sweep_are_refused(wanted, tmp_path):
    sweep = plan_sweep(wanted)
    with pytest.raises(InputError, match="--choose-people 5: give 2 to 4 of the 6 training people"):
        plan_choice(sweep, wanted, RECIPES, 5, Output(str(tmp_path / "out")))
    output = Output(str(tmp_path / "other"))
    output.write("sweep.json", json.dumps({"choice": None}).encode())
    with pytest.raises(InputError, match="has a sweep without such a choice: choose another --out"):
        plan_choice(sweep, wanted, RECIPES, 2, output)
