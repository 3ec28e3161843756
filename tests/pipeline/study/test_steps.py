"""The steps of a study: their words are those of the jobs, and depend on the data and on earlier results."""

import dataclasses
import shlex

import pytest
import tyro

from jobs import calibrate, export, generate, report, score, sweep, train_gan
from passersby.errors import InputError
from passersby.weights import DEMO_NETWORK
from pipeline.study.sizes import DRAWN, PHOTOGRAPHS, SIZES
from pipeline.study.steps import Files, check_levels, steps
from tests.helpers import studies
from training.reid.config import ReidTraining
from training.reid.presets import preset

JOBS = {job.__name__.removeprefix("jobs."): job.Config for job in (calibrate, export, generate, report, score, sweep)}
NAMES = ["look", "generator", "judge", "card", "people", "export", "sweep", "answer"]


def words_of(study) -> dict[str, list[str]]:
    return {step.name: [*step.words, *step.free] for step in steps(study)}


def value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def after(words: list[str], option: str) -> list[str]:
    """The values of an option, up to the next one."""
    rest = words[words.index(option) + 1 :]
    return rest[: next((place for place, word in enumerate(rest) if word.startswith("--")), len(rest))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("labelled", [30, None])
def test_the_words_of_every_step_are_options_of_its_job(tmp_path, size, labelled):
    files = Files(
        gpus=4 * SIZES[size]["gpu"], yolo_weights="yolo.weights", inception="inception.pt", gpus_per_trial=0.5
    )
    options = {name: SIZES[size][name] for name in ("kimg", "people", "variants", "levels", "seeds", "steps")}
    study = studies.study(tmp_path, files=files, preset=size, labelled_people=labelled, set=("batch=16",), **options)
    studies.write_calibration(study)
    for step in steps(study):
        words = shlex.split(step.command())
        assert words[:2] == ["python", f"jobs/{step.job}.py"]
        if step.job == "train_gan":
            training = tyro.cli(train_gan.GanTraining, args=words[2:], default=train_gan.defaults(words[2:]))
            training.check()
            assert training.pairs
            assert training.labelled_people == labelled
            assert training.workers == files.gpus
            assert dataclasses.replace(study.generator_config, fit="stretch").batch == training.batch
        elif step.job == "train_reid":
            default = preset(value(words, "--preset"), study.data, tmp_path)
            training = tyro.cli(ReidTraining, args=words[2:], default=default)
            training.check()
            assert training.batch == 16
        else:
            tyro.cli(JOBS[step.job], args=words[2:])
    assert [step.name for step in steps(study)] == NAMES


def test_a_generator_and_a_judge_that_exist_are_not_trained(tmp_path):
    study = studies.study(tmp_path, network="0" * 64, judge="none", files=Files(network="net.pkl"))
    words = words_of(study)
    assert list(words) == [name for name in NAMES if name not in ("generator", "judge")]
    assert value(words["people"], "--network") == str(tmp_path / "generator/net.pkl")
    assert "--identity" not in words["people"] + words["card"]
    assert "--networks" not in words["sweep"]
    own = studies.study(tmp_path, judge="1" * 64, files=Files(judge="/data/judge.onnx"))
    assert value(words_of(own)["card"], "--identity") == "/data/judge.onnx"


def test_a_generator_starts_from_the_network_of_the_preset_or_from_another(tmp_path):
    assert "--transfer" not in words_of(studies.study(tmp_path))["generator"]
    study = studies.study(tmp_path, transfer="0" * 64, files=Files(transfer="/data/start.safetensors"))
    (generator,) = (step for step in steps(study) if step.name == "generator")
    assert value(list(generator.free), "--transfer") == "/data/start.safetensors"
    assert "--transfer" not in generator.words  # the file may lie elsewhere at another start
    assert SIZES["laptop"]["transfer"] == DEMO_NETWORK


def test_a_generator_that_learns_from_the_judge_is_trained_after_it(tmp_path):
    study = studies.study(tmp_path, identity_loss=True)
    words = words_of(study)
    assert list(words) == ["look", "judge", "generator", *NAMES[3:]]
    assert value(words["generator"], "--identity-network") == str(study.judge)
    assert value(words["card"], "--identity") == str(study.judge)
    assert after(words["judge"], "--labelled-people") == after(words["generator"], "--labelled-people")
    assert "--identity-network" not in words_of(studies.study(tmp_path))["generator"]


def test_results_of_earlier_steps_decide_later_words(tmp_path):
    study = studies.study(tmp_path, levels=(10, 60), people=80)
    before = words_of(study)
    assert value(before["people"], "--truncation-psi") == "0.7"
    assert "--detector-threshold" not in before["people"]
    assert after(before["sweep"], "--levels") == ["10", "60"]
    studies.write_calibration(study)
    studies.write_teaching(study, psi="0.85")
    studies.write_manifest(study, kept=33)
    words = words_of(study)
    assert value(words["people"], "--truncation-psi") == "0.85"
    assert value(words["people"], "--detector-threshold") == "0.512"
    assert after(words["sweep"], "--levels") == ["10", "33"]
    usual = studies.study(tmp_path, thresholds="usual")
    assert "--detector-threshold" not in words_of(usual)["people"]


def test_the_last_snapshot_is_the_network_and_the_best_by_fid_before_it(tmp_path):
    study = studies.study(tmp_path, kimg=0.05)
    expected = tmp_path / "generator/snapshots/000000064/network.safetensors"  # batches of 16
    assert study.network() == expected
    studies.write_network(study)
    assert study.network() == expected
    (tmp_path / "generator/best.safetensors").write_bytes(b"better")
    assert study.network() == tmp_path / "generator/best.safetensors"


@pytest.mark.parametrize(
    ("people", "unlabelled", "labelled", "arms"),
    [
        (100, 700, 30, ["C", "G", "U", "S"]),
        (69, 700, 30, ["C", "G", "S"]),  # 39 others, and level 40
        (70, 319, 30, ["C", "G", "U"]),  # 40 people x 8 pictures
        (100, 700, None, ["C", "G"]),
    ],
)
def test_the_arms_are_those_that_the_data_allow(tmp_path, people, unlabelled, labelled, arms):
    facts = dataclasses.replace(studies.FACTS, people=people, unlabelled=unlabelled)
    study = studies.study(tmp_path, facts, labelled_people=labelled)
    chosen, reasons = study.arms()
    assert chosen == arms == [arm.partition(":")[0] for arm in after(words_of(study)["sweep"], "--arms")]
    assert len(reasons) == (1 if labelled is None else 4 - len(arms))


def test_recipes_are_chosen_where_enough_people_can_be_set_aside(tmp_path):
    values = {"preset": "cluster", "levels": (40,), "files": Files(gpus=1)}
    few, many = (dataclasses.replace(studies.FACTS, people=count) for count in (169, 170))
    assert after(words_of(studies.study(tmp_path, few, **values))["sweep"], "--arms") == [
        arm.format(recipe="changes-first") for arm in PHOTOGRAPHS.values()
    ]
    words = words_of(studies.study(tmp_path, many, **values))["sweep"]
    assert after(words, "--arms") == ["C", "G", "U", "S"]
    assert after(words, "--choose") == ["plain", "apart", "changes", "changes-first"]
    own = words_of(studies.study(tmp_path, set=("recipe=plain",)))
    assert [word for word in own["sweep"] if "recipe=" in word] == ["recipe=plain"]
    assert "--recipe" not in own["judge"]


def test_arms_have_the_recipes_that_were_best_on_such_data(tmp_path):
    for drawn, ready in ((False, PHOTOGRAPHS), (True, DRAWN)):
        study = studies.study(
            tmp_path, dataclasses.replace(studies.FACTS, drawn=drawn), generated_recipe="changes-half"
        )
        assert after(words_of(study)["sweep"], "--arms") == [
            arm.format(recipe="changes-half") for arm in ready.values()
        ]
    assert all("recipe=plain" in arm for name, arm in PHOTOGRAPHS.items() if name != "G")


@pytest.mark.parametrize("recipe", ["apart", "changes-apart"])
def test_artificial_people_are_those_whom_the_judge_knows_again(tmp_path, recipe):
    study = studies.study(tmp_path, generated_recipe=recipe)
    assert f"G: extras=generated recipe={recipe}" in words_of(study)["sweep"]  # before the card
    studies.write_teaching(study, judge={"threshold": 0.5114})
    assert f"G: extras=generated recipe={recipe} identity_floor=0.511" in words_of(study)["sweep"]
    own = studies.study(tmp_path, generated_recipe=recipe, set=("identity-floor=0.7",))
    assert f"G: extras=generated recipe={recipe}" in words_of(own)["sweep"]
    first = studies.study(tmp_path, generated_recipe="changes-first")
    assert "G: extras=generated recipe=changes-first" in words_of(first)["sweep"]
    nobody = studies.study(tmp_path, generated_recipe=recipe, judge="none")
    assert f"G: extras=generated recipe={recipe}" in words_of(nobody)["sweep"]


def test_the_judge_learns_the_labelled_people_and_at_most_half_of_all(tmp_path):
    for labelled, people in ((30, 30), (80, 50), (None, 50)):
        words = words_of(studies.study(tmp_path, labelled_people=labelled))["judge"]
        assert value(words, "--labelled-people") == str(people)


def test_a_card_needs_two_real_people_with_enough_pictures(tmp_path):
    few = dataclasses.replace(studies.FACTS, many=1)
    assert "--reference" not in words_of(studies.study(tmp_path, few))["card"]
    assert value(words_of(studies.study(tmp_path))["card"], "--reference") == "/data/market"


def test_settings_of_trainings_are_options_of_the_judge_too(tmp_path):
    settings = ("batch=8", "mirror=False", "detector_threshold=0.7", "milestones=3+5")
    words = words_of(studies.study(tmp_path, set=settings))
    assert [value(words["judge"], "--batch"), "--no-mirror" in words["judge"]] == ["8", True]
    assert after(words["judge"], "--milestones") == ["3", "5"]
    assert "--detector-threshold" not in words["judge"]
    assert set(settings) < set(after(words["sweep"], "--set"))


@pytest.mark.parametrize("size", SIZES)
def test_settings_of_the_generator_are_options_of_its_training_alone(tmp_path, size):
    settings = ("batch=32", "projected=True", "intraclass-weight=100", "mirror=False")
    study = studies.study(tmp_path, preset=size, generator_set=settings, kimg=0.05)
    words = words_of(study)
    training = tyro.cli(train_gan.GanTraining, args=words["generator"], default=train_gan.defaults(words["generator"]))
    training.check()
    assert (training.batch, training.projected, training.intraclass_weight, training.mirror) == (32, True, 100, False)
    decided = {name: getattr(training, name) for name in ("kimg", "fit", "enlarge", "labelled_people", "preset")}
    assert dataclasses.replace(study.generator_config, **decided) == training
    assert study.network() == tmp_path / "generator/snapshots/000000064/network.safetensors"  # two batches
    assert "projected" not in str([words[name] for name in NAMES if name != "generator"])
    plain = studies.study(tmp_path, preset=size)
    assert words_of(plain)["judge"] == words["judge"]


def test_an_export_for_torchreid_has_no_more_people_than_it_takes(tmp_path):
    many = words_of(studies.study(tmp_path, people=4000))["export"]
    assert value(many, "--people") == "1501"
    assert "--people" not in words_of(studies.study(tmp_path, people=1501))["export"]
    folder = words_of(studies.study(tmp_path, people=4000, export="folder"))["export"]
    assert "--people" not in folder
    assert value(folder, "--out") == str(tmp_path / "export/folder")


@pytest.mark.parametrize(("gpus", "workers"), [(0, 0), (1, 1), (3, 2), (4, 4), (7, 4)])
def test_the_generator_has_as_many_workers_as_its_batch_can_be_divided_by(tmp_path, gpus, workers):
    study = studies.study(tmp_path, preset="gpu", files=Files(gpus=gpus))
    assert study.workers() == workers
    words = words_of(study)["generator"]
    assert ("--workers" in words) == bool(workers)


def test_a_run_in_which_nobody_is_kept_ends_a_study_with_a_way_out(tmp_path):
    study = studies.study(tmp_path)
    check_levels(study)
    studies.write_manifest(study, kept=0)
    with pytest.raises(InputError, match=r"no picture passed the filters: train the generator longer.*--thresholds"):
        check_levels(study)
