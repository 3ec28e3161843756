"""Training options of a sweep: values by their types, arms of every combination, refusals."""

import pytest

from models.errors import InputError
from training.reid_presets import PRESETS
from tune.options import arms_of


def test_settings_have_the_types_of_their_options():
    settings = ["batch=8", "milestones=1+2.5", "mirror=False", "margin=None", "generated_share=0.5", "--lr=0.1"]
    training = arms_of("tiny", settings, [])[""]
    assert (training.batch, training.milestones, training.mirror, training.margin) == (8, (1.0, 2.5), False, None)
    assert (training.generated_share, training.lr, training.neck, training.preset) == (0.5, 0.1, "embedding", "tiny")


def test_every_combination_is_an_arm():
    arms = arms_of("tiny", ["lr=0.2"], ["batch=8,16", "variants_labels=hard,smooth"])
    assert list(arms) == [
        "batch=8, variants_labels=hard", "batch=8, variants_labels=smooth",
        "batch=16, variants_labels=hard", "batch=16, variants_labels=smooth",
    ]  # fmt: skip
    assert [(arm.batch, arm.variants_labels, arm.lr) for arm in arms.values()] == [
        (8, "hard", 0.2), (8, "smooth", 0.2), (16, "hard", 0.2), (16, "smooth", 0.2),
    ]  # fmt: skip


def test_a_crossed_preset_brings_its_own_values():
    arms = arms_of("tiny", [], ["preset=study-small,strong-small"])
    for name in ("study-small", "strong-small"):
        assert arms[f"preset={name}"].epochs == PRESETS[name]["epochs"]
    assert arms_of("strong", [], [])[""].workers == 0


@pytest.mark.parametrize(
    ("settings", "crossed", "message"),
    [
        (["batch"], [], "--set batch: give key=value"),
        (["banana=1"], [], "banana is no option"),
        (["seed=1"], [], "--seeds"),
        (["batch=much"], [], "batch=much"),
        (["batch=8"], ["batch=8,16"], "given twice"),
        ([], ["batch=8,8"], "given twice"),
        (["preset=nothing"], [], "preset nothing"),
        (["teacher=nowhere.safetensors"], [], "no such file"),
        (["batch=8", "batch=9"], [], "given twice"),
    ],
)
def test_what_is_no_option_or_no_value_is_one_line(settings, crossed, message, capsys):
    with pytest.raises(InputError, match=message) as caught:
        arms_of("tiny", settings, crossed)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""
