"""An option that a command does not give takes the value of what was begun in its folder, for every kind of job."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import generate, invert, sweep
from jobs.common import given, parse, preset_defaults, training_begun
from training.encoder import config as encoder_config
from training.encoder import presets as encoder_presets
from training.encoder import start as encoder_start
from training.gan import config as gan_config
from training.gan import presets as gan_presets
from training.gan import start as gan_start
from training.reid import config as reid_config
from training.reid import presets as reid_presets
from training.reid import start as reid_start

BEGUN = Path(__file__).parents[1] / "data" / "continuation"  # folders that lie there as they were begun


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ((), None), (("--out", "a"), "a"), (("--out=a",), "a"), (("--out", "a", "--out", "b"), "b"),
        (("--outer", "a"), None), (("--out",), None), (("--out=a=b",), "a=b"),
    ],
)  # fmt: skip
def test_the_value_that_a_command_line_gives(arguments, value):
    assert given(list(arguments), "out") == value


def test_a_run_keeps_what_it_was_begun_with(tmp_path):
    out = str(BEGUN / "run")
    config = parse(generate.Config, ["--out", out], begun=generate.begun)
    assert (config.people, config.variants, config.seed, config.unit_images) == (4, 3, 5, 3)
    assert (config.height, config.width, config.layers) == (64, 32, "5,6,7,8,9,10,11")
    assert config.generators is None  # where it runs is each start's own
    given_anew = parse(generate.Config, ["--out", out, "--variants", "51", "--people", "9"], begun=generate.begun)
    assert (given_anew.variants, given_anew.people, given_anew.seed) == (51, 9, 5)
    other = parse(generate.Config, ["--out", out, "--method", "interpolate"], begun=generate.begun)
    assert (other.method, other.layers, other.seed) == ("interpolate", None, 5)
    new = parse(generate.Config, ["--out", str(tmp_path)], begun=generate.begun)
    assert new == generate.Config(out=str(tmp_path))


def test_an_inversion_keeps_what_it_was_begun_with(tmp_path):
    words = ["--out", str(BEGUN / "inversion"), "--data", "d", "--encoder", "e"]
    config = parse(invert.Config, words, begun=invert.begun)
    assert (config.people, config.pictures, config.steps, config.refine, config.refine_steps) == (3, 2, 2, "w", 2)
    other = parse(invert.Config, [*words, "--refine", "none"], begun=invert.begun)
    assert (other.refine, other.refine_steps, other.steps) == ("none", None, 2)
    words[1] = str(tmp_path)
    assert parse(invert.Config, words, begun=invert.begun) == invert.Config(out=str(tmp_path), data="d", encoder="e")


def test_a_sweep_keeps_what_it_was_begun_with(tmp_path):
    words = ["--out", str(BEGUN / "sweep"), "--data", "d", "--generated", "g"]
    config = parse(sweep.Config, words, begun=sweep.begun)
    assert (config.sweep, config.preset, config.levels, config.seeds) == ("artificial-people", "tiny", (0, 2), (0,))
    assert (config.steps, config.set) == (20, ("batch=8", "checkpoint_minutes=0.0001"))
    assert (str(config.data), config.concurrent, config.allow_leak) == ("d", None, False)
    more = parse(sweep.Config, [*words, "--seeds", "0", "1", "--set", "batch=16"], begun=sweep.begun)
    assert (more.seeds, more.set, more.levels) == ((0, 1), ("batch=16",), (0, 2))
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(SystemExit):  # the job says what is wrong with it; what has to be given is still to be given
        parse(sweep.Config, ["--out", str(tmp_path)], begun=sweep.begun)


TRAININGS = {
    "gan": (gan_config.GanTraining, gan_config, gan_presets, gan_start),
    "reid": (reid_config.ReidTraining, reid_config, reid_presets, reid_start),
    "encoder": (encoder_config.EncoderTraining, encoder_config, encoder_presets, encoder_start),
}


def parser_of(kind: str) -> Callable:
    config_class, config, presets, start = TRAININGS[kind]
    begun = training_begun(config_class, config.FREE_TO_CHANGE, start.is_begun)
    return lambda words: parse(config_class, words, preset_defaults(words, presets.PRESETS, presets.preset), begun)


def test_files_of_a_training_lie_where_they_lay_until_a_command_says_otherwise(tmp_path):
    out, parser = tmp_path / "out", parser_of("gan")
    shutil.copytree(BEGUN / "gan", out)
    for path in out.rglob("*.xz"):
        path.with_suffix("").touch()
    stored = json.loads((out / "config.json").read_text()) | {"identity_network": "/j.safetensors", "threads": 7}
    (out / "config.json").write_text(json.dumps(stored))
    begun = parser(["--out", str(out)])
    assert (begun.identity_network, begun.threads) == (Path("/j.safetensors"), None)
    assert parser(["--out", str(out), "--identity-network", "k"]).identity_network == Path("k")


@pytest.mark.parametrize(("kind", "expected"), [
    ("gan", {"preset": "tiny", "channel_base": 512, "channel_max": 8, "validation_people": 1}),
    ("reid", {"preset": "tiny", "batch": 8, "steps": 12, "validation_epochs": 2.0}),
    ("encoder", {"preset": "tiny", "width_factor": 0.1, "head_channels": 8, "batch": 4, "steps": 8}),
])  # fmt: skip
def test_a_training_keeps_what_it_was_begun_with(kind, expected, tmp_path):
    out, parser = tmp_path / "out", parser_of(kind)
    shutil.copytree(BEGUN / kind, out)
    for path in out.rglob("*.xz"):  # what is begun is told by the names of files
        path.with_suffix("").touch()
    words = ["--data", "d", "--out", str(out)]
    config = parser(words)
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.data, config.out, config.max_minutes, config.threads) == (Path("d"), out, None, None)
    there = parser(["--out", str(out)])  # the data lie where they lay
    assert there == dataclasses.replace(config, data=Path(json.loads((out / "config.json").read_text())["data"]))
    seed = config.seed + 1
    assert parser([*words, "--seed", str(seed)]).seed == seed
    assert parser([*words, "--preset", "study"]).preset == "study"
    assert parser([*words, "--preset", "study"]) == parser(["--data", "d", "--out", str(out), "--preset=study"])
    assert all(
        getattr(parser([*words, "--preset", "study"]), name) == value
        for name, value in TRAININGS[kind][2].PRESETS["study"].items()
    )
    shutil.rmtree(out / "checkpoints")
    shutil.rmtree(out / "snapshots", ignore_errors=True)
    assert parser(words).preset != "tiny"  # options of a training that never started bind nobody
