"""Training options of a sweep: values by their types, arms of every combination, refusals."""

import pytest

from passersby.errors import InputError
from training.reid.presets import PRESETS
from training.reid.stages import stages_of
from tune.options import RECIPES, arms_of, extras_of


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


def test_a_recipe_may_keep_extras_apart_from_real_pictures():
    training = arms_of("tiny", [], [], ["G: extras=generated recipe=changes-apart"])["G"]
    assert (training.generated_weight, training.separate_batchnorm) == (0.3, True)
    first, last = stages_of(training, 10)
    real = [(stage.config.surroundings, stage.config.colours, stage.config.jitter) for stage in (first, last)]
    assert real == [(1, 0.7, 0.7), (0, 0, 0)]
    extras = last.config
    assert (extras.generated_surroundings, extras.generated_colours, extras.generated_jitter) == (1, 0.7, 0.7)
    assert (first.sources, last.sources) == (None, None)


@pytest.mark.parametrize("preset", ["tiny", "scarce", "scarce-small"])
def test_a_recipe_replaces_the_values_of_the_preset(preset):
    named = ["own:", "plain: recipe=plain", "changes: recipe=changes", "mixed: recipe=plain jitter=0.2"]
    own, plain, changes, mixed = arms_of(preset, ["lr=0.2"], [], named).values()
    assert (own.stages, own.jitter) == (PRESETS[preset].get("stages", ()), PRESETS[preset].get("jitter", 0))
    assert (plain.surroundings, plain.colours, plain.jitter, plain.stages) == (0, 0, 0, ())
    assert (changes.surroundings, changes.colours, changes.jitter) == (1, 0.7, 0.7)
    assert changes.stages == ("0.7", "0.3:plain")
    assert (mixed.surroundings, mixed.jitter) == (0, 0.2)


def test_apart_changes_the_pictures_of_extras_alone():
    (stage,) = stages_of(arms_of("scarce", [], [], ["G: extras=generated recipe=apart"])["G"], 10)
    real, extras = stage.config, stage.config
    assert (real.surroundings, real.colours, real.jitter) == (0, 0, 0)
    assert (extras.generated_surroundings, extras.generated_colours, extras.generated_jitter) == (1, 0.7, 0.7)
    assert (extras.generated_weight, extras.separate_batchnorm) == (0.3, True)


def test_recipes_differ_from_each_other():
    for preset in PRESETS:
        arms = arms_of(preset, [], [f"recipe={','.join(RECIPES)}"])
        assert len(set(map(repr, arms.values()))) == len(RECIPES), preset


def test_thresholds_are_options_like_others():
    arms = arms_of("tiny", ["ssim_floor=None"], ["detector_threshold=0.6,0.8"])
    assert [arm.filters for arm in arms.values()] == [
        ("ssim_floor=None", "detector_threshold=0.6"), ("ssim_floor=None", "detector_threshold=0.8"),
    ]  # fmt: skip
    assert arms_of("tiny", ["filters=ssim_floor=0.5+identity_margin=0"], [])[""].filters == (
        "ssim_floor=0.5", "identity_margin=0",
    )  # fmt: skip


def test_named_arms_are_sets_of_options_and_are_crossed_too():
    named = ["plain: variants_labels=hard generated_share=None", "gated : identity_margin=0 variants_labels=smooth"]
    arms = arms_of("tiny", ["lr=0.2"], [], named)
    assert list(arms) == ["plain", "gated"]
    assert [(arm.variants_labels, arm.filters, arm.lr) for arm in arms.values()] == [
        ("hard", (), 0.2), ("smooth", ("identity_margin=0",), 0.2),
    ]  # fmt: skip
    crossed = arms_of("tiny", [], ["batch=8,16"], named)
    assert list(crossed) == ["plain, batch=8", "plain, batch=16", "gated, batch=8", "gated, batch=16"]
    assert crossed["gated, batch=16"].batch == 16


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["plain"], '--arms plain: give "NAME: key=value'),
        (["a/b: lr=1"], "NAME of letters"),
        (["plain: lr"], "--arms lr: give key=value"),
        (["plain: lr=1 lr=2"], "a key is given twice"),
        (["plain: lr=1", "plain: lr=2"], "two arms have the same name"),
        (["plain: batch=4"], "batch is given twice"),
        (["plain: identity_margin=0 filters=ssim_floor=1"], "give thresholds in one of these ways"),
        (["plain: identity_margin=0 generated_share=lots"], "generated_share=lots"),
    ],
)
def test_arms_that_cannot_be(named, message):
    with pytest.raises(InputError, match=message):
        arms_of("tiny", [], ["batch=8,16"], named)


@pytest.mark.parametrize(
    ("settings", "crossed", "message"),
    [
        (["batch"], [], "--set batch: give key=value"),
        (["banana=1"], [], "banana is neither an option"),
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


def test_arms_named_by_a_letter_need_no_options():
    arms = arms_of("tiny", (), (), ("C", "G", "U", "S: extras=single jitter=0.5"), {"G": "changes"})
    assert [arm for arm, training in arms.items() if training.stages] == ["G"]
    assert extras_of((), (), ("C", "G", "U", "S: extras=single")) == {
        "C": "none", "G": "generated", "U": "real", "S": "single",
    }  # fmt: skip
    with pytest.raises(InputError, match="--arms X: give .* or one of C, G, U, S"):
        arms_of("tiny", (), (), ("X",))
