"""The training loop with config 2 in this process: going on exactly, transfer, Freeze-D, labels, one pass."""

from pathlib import Path

import pytest
import torch

from passersby import stylegan2
from passersby.errors import InputError
from passersby.stylegan3.checkpoint import load_network
from reporting.curves import read_history
from tests.helpers.gan_trainings import check_equal_trainings, make_tree, run, tiny
from training.checkpoints import STATE, last_checkpoint
from training.gan.config import GanTraining
from training.gan.presets import PRESETS, preset
from training.gan.start import NETWORK
from training.log import HISTORY


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return make_tree(tmp_path_factory.mktemp("market"))


def config2(tree: Path, out: Path, **changes) -> GanTraining:
    return tiny(tree, out, **{"config": "2", "style_mixing_probability": 0.9, "mapping_layers": 2} | changes)


@pytest.fixture(scope="module")
def straight(tree, tmp_path_factory) -> Path:
    """A training of six iterations in one go; its last snapshot."""
    return run(config2(tree, tmp_path_factory.mktemp("straight")))


def test_snapshots_hold_a_stylegan2(straight):
    loaded = load_network(straight / NETWORK)
    assert type(loaded.generator) is stylegan2.Generator
    assert loaded.generator.config == stylegan2.GeneratorConfig(
        16, 8, mapping_layers=2, channel_base=128, channel_max=16
    )
    assert loaded.discriminator is not None
    assert loaded.discriminator.config.last_size == (4, 2)
    assert "StyleGAN2, " in (straight.parent.parent / "log.txt").read_text()
    assert loaded.record["configuration"]["config"] == "2"


def test_path_lengths_are_in_the_history_and_the_checkpoint(straight):
    out = straight.parent.parent
    assert any("G/path_length" in record for record in read_history(out / HISTORY))
    state = torch.load(last_checkpoint(out) / STATE, weights_only=True)
    assert state["path_length"].item() > 0
    # Adam took a step more in iterations 0 and 4.
    steps = {int(value["step"]) for value in state["generator_optimizer"]["state"].values()}
    assert max(steps) == 8


def test_training_moves_every_weight(straight):
    first, last = (load_network(straight.parent / name / NETWORK) for name in ("000000024", "000000048"))
    after = last.training_generator.state_dict()
    for name, before in first.training_generator.named_parameters():
        assert not torch.equal(before, after[name]), name
    for name, buffer in first.training_generator.named_buffers():
        if name.endswith("noise_const"):  # one constant noise from the first picture to the last
            assert torch.equal(buffer, after[name])


@pytest.mark.slow
def test_stopped_and_continued_equals_never_stopped(straight, tree, tmp_path):
    # After path lengths and an adaptation. Other moments are no matter of the family: test_run.py has them.
    run(config2(tree, tmp_path, kimg=0.04))
    check_equal_trainings(straight, run(config2(tree, tmp_path)), histories=False)


@pytest.mark.slow
def test_one_pass_goes_on_exactly_too(tree, tmp_path):
    whole = run(config2(tree, tmp_path / "whole", one_pass=True))
    run(config2(tree, tmp_path / "parts", one_pass=True, kimg=0.024))
    check_equal_trainings(whole, run(config2(tree, tmp_path / "parts", one_pass=True)), histories=False)


@pytest.mark.slow
def test_transfer_and_freeze_d(straight, tree, tmp_path):
    source = straight / NETWORK
    options = {"transfer": source, "freeze_d": 2, "kimg": 0.016, "snapshot_kimg": 0.016}
    folder = run(config2(tree, tmp_path, **options))
    old, new = load_network(source), load_network(folder / NETWORK)
    frozen = ("b16.fromrgb", "b16.conv0.")
    for name, value in old.discriminator.named_parameters():
        assert torch.equal(value, new.discriminator.get_parameter(name)) == name.startswith(frozen), name
    log = (tmp_path / "log.txt").read_text()
    assert "Generator" in log
    assert "100.0%" in log
    assert new.record["transferred_from"]["sha256"] == old.sha256


@pytest.mark.slow
def test_transfer_into_another_size(straight, tree, tmp_path):
    options = {"transfer": straight / NETWORK, "kimg": 0.008, "height": 32, "width": 16, "snapshot_kimg": 0.008}
    assert load_network(run(config2(tree, tmp_path, **options)) / NETWORK).generator.config.height == 32


def test_transfer_between_the_families_is_one_line(straight, tree, tmp_path):
    with pytest.raises(InputError, match="StyleGAN2.*StyleGAN3") as error:
        run(tiny(tree, tmp_path / "t", transfer=straight / NETWORK))
    assert "\n" not in str(error.value)
    third = Path("passersby/demo/toy_crowd.safetensors").resolve()
    with pytest.raises(InputError, match="StyleGAN3.*StyleGAN2"):
        run(config2(tree, tmp_path / "2", transfer=third, height=64, width=32, enlarge=True))


@pytest.mark.slow
def test_conditional_training_on_cameras(tree, tmp_path):
    loaded = load_network(run(config2(tree, tmp_path, condition="camera", kimg=0.016)) / NETWORK)
    assert loaded.generator.config.c_dim == loaded.discriminator.config.c_dim == 2


# ---- Options.


def test_presets_of_config_2_have_the_references_rates():
    for name in ("person-128x64-2", "tiny-2"):
        config = preset(name, Path("a"), Path("b"))
        config.check()
        assert (config.generator_lr, config.discriminator_lr, config.style_mixing_probability) == (0.002, 0.002, 0.9)
        settings = config.step_settings()
        assert (settings.path_length_weight, settings.path_length_interval) == (2.0, 4)
        assert config.generator().mapping_layers == 8
    assert PRESETS["tiny"].items() - PRESETS["tiny-2"].items() == {("margin_size", 4)}
    assert preset("tiny", Path("a"), Path("b")).config == "t"


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_own_values_hold(name):
    config = preset(name, Path("a"), Path("b"))
    assert {option: getattr(config, option) for option in PRESETS[name]} == PRESETS[name]


def test_a_config_in_the_command_line_brings_its_rates():
    from jobs.train_gan import defaults

    config = defaults(["--config", "2", "--data", "x"])
    assert (config.config, config.generator_lr, config.style_mixing_probability) == ("2", 0.002, 0.9)
    config = defaults(["--preset", "tiny", "--config=2"])
    assert (config.height, config.config, config.generator_lr) == (64, "2", 0.002)
    config = defaults(["--preset", "tiny-2", "--config", "t"])
    assert (config.height, config.config, config.generator_lr, config.style_mixing_probability) == (
        64,
        "t",
        0.0025,
        0.5,
    )
    for words in ([], ["--config", "t"], ["--config", "r"]):
        config = defaults(words)
        assert (config.generator_lr, config.style_mixing_probability, config.path_length) == (0.0025, 0.5, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "t", "path_length_weight": 2.0}, "--path-length-weight 2.0"),
        ({"path_length_weight": -1.0}, "--path-length-weight"),
        ({"mapping_layers": 0}, "--mapping-layers"),
        ({"one_pass": True, "batch_gpu": 4}, "--batch-gpu 4 with --one-pass"),
    ],
)
def test_options_that_cannot_work_are_named(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        config2(tmp_path, tmp_path, **changes).check()


def test_a_network_too_tall_is_refused(tmp_path):
    with pytest.raises(InputError, match="64 x 8"):
        config2(tmp_path, tmp_path, height=64, width=8).generator()
