"""--layers of the main job: what its default means, and that a plan freezes it. Without Ray."""

import dataclasses
import json
from pathlib import Path

import pytest

from datasets.runs.plan import PLAN_FILE, read_plan
from datasets.runs.run import begin_run
from datasets.storage.output import Output
from jobs import generate
from jobs.common import parse
from jobs.generate import Config
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.stylegan3.checkpoint import save_network
from pipeline.generation import Inputs

COARSE, MIDDLE = tuple(range(3)), tuple(range(5, 12))


@pytest.fixture
def measured(tmp_path, tiny) -> Path:
    """A network whose card names layers 0-2."""
    path = tmp_path / "net.safetensors"
    save_network(path, tiny.generator(), record={})
    name_layers(path, [0, 1, 2])
    return path


def name_layers(network: Path, layers: list[int]) -> None:
    about = {"sha256": file_sha256(network)}
    text = json.dumps({"version": 1, "network": about, "layers": {"pose": layers}})
    network.with_suffix(".card.json").write_text(text)


def layers_of(config: Config, network: Path) -> tuple[tuple[int, ...], str | None]:
    """The layers, and the line for the user, of a command in its folder."""
    inputs, existing = Inputs(network), read_plan(Output(config.out))
    frozen = config.frozen(inputs, existing)
    layers, reason = config.chosen_layers(inputs, existing)
    assert frozen.layers == layers
    begin_run(Output(config.out), frozen, 2)  # refuses what the folder's plan contradicts
    return layers, reason


def begin(config: Config, network: Path) -> None:
    run = begin_run(Output(config.out), config.frozen(Inputs(network)), 2)
    run.output.write(PLAN_FILE, run.plan.to_json())


def command(out: str, *words: str) -> Config:
    return parse(Config, ["--out", out, *words], begun=generate.begun)


@pytest.mark.parametrize("layers", [None, "pose"])
def test_by_default_variants_take_the_layers_that_the_card_names(measured, tmp_path, layers):
    chosen, reason = layers_of(Config(out=str(tmp_path / "out"), layers=layers), measured)
    assert chosen == COARSE
    assert reason == "layers 0-2 move the pose of this network, says net.card.json"


@pytest.mark.parametrize("layers", [None, "pose"])
def test_without_a_card_the_studys_layers_are_taken_and_it_is_said(measured, tmp_path, layers):
    measured.with_suffix(".card.json").unlink()
    chosen, reason = layers_of(Config(out=str(tmp_path / "out"), layers=layers), measured)
    assert chosen == MIDDLE
    assert "the study's: there is no net.card.json" in reason


def test_the_card_of_an_older_network_of_this_name_is_not_taken(measured, tmp_path, tiny):
    save_network(measured, tiny.generator(seed=1), record={})  # trained for longer
    chosen, reason = layers_of(Config(out=str(tmp_path / "out")), measured)
    assert chosen == MIDDLE
    assert "is the card of another network" in reason


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({"layers": "middle"}, MIDDLE),
        ({"layers": "coarse"}, tuple(range(6))),
        ({"layers": "3,5-8"}, (3, 5, 6, 7, 8)),
        ({"method": "interpolate"}, tuple(range(16))),
    ],
)
def test_layers_that_are_named_and_those_of_interpolation_are_as_before(measured, tmp_path, changes, layers):
    assert layers_of(Config(out=str(tmp_path / "out"), **changes), measured) == (layers, None)


def test_interpolation_takes_the_layers_of_the_pose_where_they_are_asked_for(measured, tmp_path):
    config = Config(out=str(tmp_path / "out"), method="interpolate", layers="pose")
    assert layers_of(config, measured)[0] == COARSE


@pytest.mark.parametrize("words", [(), ("--layers", "pose"), ("--layers", "0-2"), ("--layers=0,1,2",)])
def test_a_folder_goes_on_with_its_layers_after_the_card_has_changed(measured, tmp_path, words):
    out = str(tmp_path / "out")
    begin(Config(out=out), measured)
    name_layers(measured, [0, 1, 2, 3, 4])
    assert layers_of(command(out, *words), measured)[0] == COARSE
    measured.with_suffix(".card.json").unlink()
    assert layers_of(command(out, *words), measured)[0] == COARSE
    measured.with_suffix(".card.json").write_text("damaged")
    assert layers_of(command(out, *words), measured)[0] == COARSE


@pytest.mark.parametrize("words", [(), ("--layers", "pose"), ("--layers", "middle")])
def test_a_folder_that_was_begun_with_the_studys_layers_goes_on_with_them(measured, tmp_path, words):
    out = str(tmp_path / "out")
    begin(Config(out=out, layers="middle"), measured)
    layers, reason = layers_of(command(out, *words), measured)
    assert layers == MIDDLE
    assert reason == ("layers 5-11, which the plan of the folder says" if "pose" in words else None)


@pytest.mark.parametrize("words", [("--layers", "middle"), ("--layers", "0-4")])
def test_other_layers_than_those_of_the_folder_are_refused(measured, tmp_path, words):
    out = str(tmp_path / "out")
    begin(Config(out=out), measured)
    with pytest.raises(InputError, match=r"layers is \[0, 1, 2\], not \["):
        layers_of(command(out, *words), measured)


def test_a_damaged_card_is_refused_before_anything_is_written(measured, tmp_path):
    measured.with_suffix(".card.json").write_text("{")
    with pytest.raises(InputError, match="net.card.json is not the card of a network: remove it"):
        generate.main(Config(out=str(tmp_path / "out"), network=str(measured)))
    assert not (tmp_path / "out").exists()


def test_bad_input_stays_one_line_beside_the_line_about_layers(measured, tmp_path, capsys):
    with pytest.raises(InputError, match="--people 0"):
        generate.main(Config(out=str(tmp_path / "out"), network=str(measured), people=0))
    assert capsys.readouterr().err == ""


def test_the_plan_says_numbers_and_a_moved_folder_needs_no_card(measured, tmp_path):
    begin(Config(out=str(tmp_path / "out")), measured)
    values = json.loads((tmp_path / "out" / PLAN_FILE).read_text())["configuration"]
    assert values["layers"] == [0, 1, 2]
    assert "pose" not in json.dumps(values)
    explicit = dataclasses.replace(Config(out=str(tmp_path / "other")), layers="0-2")
    assert explicit.frozen(Inputs(measured)) == read_plan(Output(str(tmp_path / "out"))).configuration
