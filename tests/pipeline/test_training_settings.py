"""Options of a training as texts: what is read, what is refused, and the words of a command line."""

from pathlib import Path

import pytest

from passersby.errors import InputError
from pipeline.training_settings import all_parsed, command_words, keys_of, with_settings
from training.gan.config import GanTraining
from training.reid.config import ReidTraining

REID = ReidTraining(Path("data"), Path("out"))


def test_texts_become_options():
    assert all_parsed("--set", ["--lr-factor = 3", "batch=8", "a=b=c"]) == {"lr_factor": "3", "batch": "8", "a": "b=c"}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["batch"], "--set batch: give key=value, such as batch=32"),
        (["batch= "], "--set batch= : give key=value"),
        (["lr-x=1", "lr_x=2"], "--set lr-x=1 lr_x=2: a key is given twice, give it once"),
    ],
)
def test_texts_that_are_no_options_are_refused(texts, message):
    with pytest.raises(InputError, match=f"^{message}"):
        all_parsed("--set", texts)


def test_a_training_gets_options_of_every_kind():
    changed = with_settings(REID, {"batch": "8", "mirror": "False", "milestones": "3+5", "steps": "None"}, "--set")
    assert (changed.batch, changed.mirror, changed.milestones, changed.steps) == (8, False, (3.0, 5.0), None)
    assert (changed.data, changed.lr) == (REID.data, REID.lr)
    assert with_settings(REID, {}, "--set") == REID


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("batch", "many", "Error parsing --batch: invalid literal for int"),
        ("mirror", "perhaps", "invalid choice 'perhaps' for argument '--mirror'. Expected one of"),
        ("optimizer", "none", "invalid choice 'none' for argument '--optimizer'. Expected one of"),
    ],
)
def test_a_value_that_is_none_of_its_option_is_refused_with_the_reason(key, value, reason, capsys):
    with pytest.raises(InputError, match=f"^--set {key}={value}: {reason}") as caught:
        with_settings(REID, {key: value}, "--set")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_the_words_of_a_job_have_flags_without_values():
    settings = {"batch": "8", "one_pass": "True", "mirror": "False", "milestones": "3+5", "filters": "x"}
    words = ["--batch", "8", "--one-pass", "--no-mirror", "--milestones", "3", "5"]
    assert command_words(settings, ("filters",)) == words
    assert command_words({}) == []


def test_the_keys_are_the_options():
    assert {"projected", "kimg"} < keys_of(GanTraining)
    assert "projected" not in keys_of(ReidTraining)
