"""Jobs with a StyleGAN2 network: generation on Ray, verification, export, and what stands in the pages."""

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from datasets.runs.card import write_card
from datasets.runs.plan import read_plan
from datasets.storage.output import Output
from jobs import export, generate, verify
from jobs.convert import describe
from passersby import stylegan2
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.stylegan3.checkpoint import load_network, save_network
from tests.helpers.drivers import stages_here


@pytest.fixture(scope="module")
def second(tmp_path_factory) -> Path:
    """An untrained StyleGAN2 of 64 x 32 with few channels, and noise."""
    path = tmp_path_factory.mktemp("network") / "second.safetensors"
    torch.manual_seed(0)
    config = stylegan2.GeneratorConfig(64, 32, mapping_layers=2, channel_base=512, channel_max=16)
    generator = stylegan2.Generator(config)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.3)
    save_network(path, generator, record={"trained_on": "nothing, a test"})
    return path


def options(second: Path, out: Path, **changes) -> generate.Config:
    values = {
        "people": 2,
        "variants": 3,
        "seed": 5,
        "detector_threshold": 0.0,
        "ssim_floor": None,
        "generators": 1,
        "detectors": 1,
    }
    return generate.Config(out=str(out), network=str(second), **values | changes)


def test_the_network_decides_what_a_group_of_layers_is(second, tmp_path):
    config = options(second, tmp_path, layers="middle")
    assert config.frozen(config.inputs()).layers == (3, 4, 5, 6, 7)
    config = options(second, tmp_path, method="interpolate")
    assert config.frozen(config.inputs()).layers == tuple(range(10))
    config = options(second, tmp_path, layers="5-10")
    with pytest.raises(InputError, match="10 is not within the w indices 0 to 9"):
        config.frozen(config.inputs())


def test_without_a_card_the_pose_is_the_networks_middle_layers(second, tmp_path):
    config = options(second, tmp_path)
    layers, reason = config.chosen_layers(config.inputs())
    assert layers == (3, 4, 5, 6, 7)
    assert reason is not None
    assert reason.startswith("layers 3-7, the study's")


def test_a_cards_layers_are_within_the_networks_style_inputs(second, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(second.read_bytes())
    config = options(copy, tmp_path / "out")
    write_card(copy, {"sha256": file_sha256(copy)}, {"layers": {"pose": [0, 9]}})
    assert config.frozen(config.inputs()).layers == (0, 9)
    write_card(copy, {"sha256": file_sha256(copy)}, {"layers": {"pose": [0, 10]}})
    inputs = config.inputs()
    with pytest.raises(InputError, match="not w indices from 0 to 9"):
        config.frozen(inputs)


@pytest.mark.slow
@pytest.mark.ray
def test_generate_verify_and_export(ray_cluster, second, tmp_path, capsys):
    config = options(second, tmp_path / "run", layers="middle")
    generate.main(config)
    plan = read_plan(Output(config.out))
    assert plan is not None
    assert plan.configuration.layers == (3, 4, 5, 6, 7)
    manifest = pq.read_table(tmp_path / "run/manifest.parquet")
    assert manifest.num_rows == 6
    generate.main(config)  # nothing is left to do
    assert verify.main(verify.Config(out=config.out, network=second)) == 0
    export.main(export.Config(run=config.out, out=str(tmp_path / "export"), format="folder"))
    assert len(list((tmp_path / "export").rglob("*.jpg"))) == 6
    with stages_here():
        generate.main(dataclasses.replace(config, people=3))  # more people extend the run
    assert pq.read_table(tmp_path / "run/manifest.parquet").num_rows == 9


def test_a_description_names_the_family(second):
    lines = describe(second, load_network(second))
    assert any(line.startswith("StyleGAN2, 64 x 32") for line in lines)
