"""Stages of a re-ID training: what a text means, and what every step of a training of stages does."""

import dataclasses
from pathlib import Path

import pytest

from datasets.reid.sources import PEOPLE, REAL, SINGLES
from passersby.errors import InputError
from training.reid.config import ReidTraining
from training.reid.presets import PRESETS, preset
from training.reid.stages import STAGE_OPTIONS, stages_of


def training(*stages: str, **changes) -> ReidTraining:
    values = PRESETS["strong-small"] | {"surroundings": 1.0, "jitter": 0.7, "stages": stages}
    return ReidTraining(data=Path("data"), out=Path("out"), **values | changes)


def test_a_training_without_stages_is_one_stage():
    config = training()
    (stage,) = stages_of(config, 100)
    assert (stage.first, stage.steps, stage.config, stage.sources) == (0, 100, config, None)
    assert [stage.rate_factor(step, config, 100) for step in range(100)] == [
        config.rate_factor(step, 100) for step in range(100)
    ]


def test_a_text_gives_steps_options_and_sources():
    config = training("0.7:generated-share=0.5,erasing=0.1,milestones=2/4,lr=0.002", "0.3:plain,sources=real/people")
    first, second = stages_of(config, 1000)
    assert (first.first, first.steps, second.first, second.steps) == (0, 700, 700, 300)
    assert first.config.generated_share == 0.5
    assert first.config.milestones == (2.0, 4.0)
    assert first.config.jitter == 0.7
    assert (second.config.jitter, second.config.surroundings, second.config.generated_jitter) == (0, 0, 0)
    assert second.config.erasing == config.erasing
    assert second.sources == (REAL, PEOPLE)
    assert str(second) == "300 steps, sources real, people"
    assert str(first) == "700 steps, surroundings 1; jitter 0.7"


@pytest.mark.parametrize("text", ["1:plain,generated-jitter=0.5", "1:generated-jitter=0.5,plain"])
def test_what_is_given_beside_plain_holds(text):
    (stage,) = stages_of(training(text), 10)
    assert (stage.config.jitter, stage.config.generated_jitter, stage.config.generated_surroundings) == (0, 0.5, 0)


def test_a_stage_has_its_own_schedule_or_continues_the_training_s():
    config = training("0.5:lr=0.002", "0.5:continued")
    first, second = stages_of(config, 100)
    # The first has the whole schedule in 50 steps, at twice the rate.
    assert first.rate_factor(10, config, 100) == pytest.approx(2 * config.rate_factor(20, 100))
    assert [second.rate_factor(step, config, 100) for step in range(50, 100)] == [
        config.rate_factor(step, 100) for step in range(50, 100)
    ]
    _, restarted = stages_of(training("0.5", "0.5"), 100)
    assert restarted.rate_factor(50, config, 100) == pytest.approx(config.rate_factor(0, 100))


@pytest.mark.parametrize("texts", [["0.3"] * 3 + ["0.1"], ["0.333", "0.333", "0.334"], ["1"]])
def test_the_steps_of_all_stages_are_those_of_the_training(texts):
    for steps in (10, 37, 1000):
        stages = stages_of(training(*texts), steps)
        assert sum(stage.steps for stage in stages) == steps
        assert [stage.first for stage in stages[1:]] == [stage.first + stage.steps for stage in stages[:-1]]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["0.7"], "add up to 0.7"),
        (["0.7", "0.4"], "add up to 1.1"),
        (["x:plain"], "x:plain: give a share"),
        (["0:plain", "1"], "give a share"),
        (["nan"], "give a share"),
        (["1:batch=3"], "batch=3 is no option of a stage"),
        (["1:plain=1"], "plain=1 is no option"),
        (["1:jitter"], "jitter is no option"),
        (["1:jitter=high"], "jitter=high is no value"),
        (["1:jitter=-1"], "--jitter -1.0"),
        (["1:jitter=nan"], "--jitter nan"),
        (["1:schedule=linear"], "schedule=linear is no value"),
        (["1:jitter=1,jitter=2"], "jitter is given twice"),
        (["1:sources=people"], "part of every stage"),
        (["1:sources=real/persons"], "'persons' is no source"),
        (["0.999", "0.001"], "none of the 10 steps"),
    ],
)
def test_a_wrong_text_is_named(texts, message):
    with pytest.raises(InputError, match="--") as error:
        training(*texts, steps=10).check()
    assert message in str(error.value)


def test_values_of_every_kind_are_read():
    text = "1:margin=None,mirror=False,schedule=cosine,generated_share=None,pad=4,generated_triplet=True"
    (stage,) = stages_of(training(text), 10)
    config = stage.config
    assert (config.margin, config.mirror, config.schedule, config.pad) == (None, False, "cosine", 4)
    assert config.generated_share is None
    assert config.generated_triplet is True


def test_options_of_a_stage_are_options_of_the_training():
    assert set(STAGE_OPTIONS) <= {field.name for field in dataclasses.fields(ReidTraining)}
    training("1:sources=real/singles").check()
    assert stages_of(training("1:sources=real/singles"), 5)[0].sources == (REAL, SINGLES)


def test_the_presets_for_few_people_change_pictures_and_end_without():
    for name in ("scarce", "scarce-small"):
        config = preset(name, Path("data"), Path("out"))
        config.check()
        first, last = stages_of(config, 1000)
        assert (first.steps, last.steps) == (700, 300)
        assert first.config.needs_donors()
        assert not last.config.needs_donors()
        assert last.config.jitter == 0


def test_further_people_and_single_pictures_belong_to_labelled_people():
    for name in ("further_people", "single_pictures"):
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')} 3: give --labelled-people"):
            training(**{name: 3}).check()
        training(**{name: 3, "labelled_people": 5}).check()
