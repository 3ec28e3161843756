"""The command that measures a network, on an untrained one and a few people of a tree."""

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from passersby.errors import InputError
from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.checkpoint import save_network

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "network_card.py"


@pytest.fixture(scope="module")
def command():
    """The module benchmarks/network_card.py, which is a program and in no package."""
    threads = torch.get_num_threads()
    spec = importlib.util.spec_from_file_location("network_card", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("network") / "tiny.safetensors"
    torch.manual_seed(0)
    tiny = GeneratorConfig.config_t(32, 16, channel_base=256, channel_max=8, output_scale=4.0)
    save_network(path, Generator(tiny), record={"kimg": 0.0, "trained_on": "nothing, a test"})
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Three people of one colour each, by two cameras, two pictures of each."""
    root = tmp_path_factory.mktemp("tree")
    random = np.random.default_rng(0)
    (root / "bounding_box_train").mkdir()
    for person, colour in enumerate([(200, 40, 40), (40, 180, 60), (60, 60, 220)], start=1):
        for camera in (1, 2):
            for frame in (1, 2):
                pixels = np.clip(colour + random.normal(0, 15, (64, 32, 3)), 0, 255).astype(np.uint8)
                name = f"{person:04d}_c{camera}s1_{frame:06d}_00.jpg"
                cv2.imwrite(str(root / "bounding_box_train" / name), pixels)
    return root


@pytest.fixture(scope="module")
def settings(network, tree) -> dict:
    size = {"height": 32, "width": 16}
    return {"network": network, "reference": tree, "people": 4, "variants": 3, "comparison_people": 2, **size}


@pytest.fixture(scope="module")
def card(command, settings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("card") / "new"
    command.main(command.Config(out=out, **settings))
    return out


@pytest.mark.slow
def test_it_writes_the_figures_and_the_pictures(card):
    assert sorted(path.name for path in card.iterdir()) == ["card.json", "card.md", "mixes.png", "people.png"]
    figures = json.loads((card / "card.json").read_text())
    assert figures["filter"]["all"]["images"] == 12
    assert figures["filter"]["base"]["people"] == 4
    mixing = figures["mixing"]
    assert {name: group["people"] for name, group in mixing.items()} == {
        "pose (5-11)": 4,  # without a card of the network: the study's layers
        "coarse (0-4)": 2,
        "fine (12-15)": 2,
        "all (0-15)": 2,
    }
    assert mixing["all (0-15)"]["nearest_donor"]["value"] == 1  # all layers of the donor are the donor
    assert mixing["all (0-15)"]["own_before_donor"]["value"] == 0
    assert figures["real"]["people"] == 3
    assert figures["real"]["images"] == 12
    for camera, images in (("same_camera", 3), ("other_camera", 6)):  # one of each person is compared with
        assert figures["real"][camera]["nearest_own"]["value"] == 1  # told apart by their colours
        assert figures["real"][camera]["nearest_own"]["images"] == images
    assert figures["network"]["record"] == {"kimg": 0.0, "trained_on": "nothing, a test"}
    text = (card / "card.md").read_text()
    assert figures["network"]["sha256"] in text
    assert str(card) not in text + (card / "card.json").read_text()


def test_the_images_are_those_of_the_main_job(command, settings, network):
    from actors.style_mixer import StyleMixer
    from datasets.people.decoding import decode
    from datasets.runs.rows import images_of
    from passersby.stylegan3.checkpoint import load_network

    config = command.Config(out=Path("unused"), **settings)
    plan = command.configuration(config, "middle")
    assert (plan.seed, plan.variants, plan.layers, plan.jpeg_quality) == (0, 3, tuple(range(5, 12)), 95)
    made = command.Maker(config, load_network(network))(plan, 2)
    unit = pa.table({"unit": [0], "first_person": [0], "people": [2]})
    rows = images_of(StyleMixer(load_network(network).generator, plan)(unit)).to_pylist()
    images = [decode(row["image"]) for row in rows if row["person"] == 1]
    np.testing.assert_array_equal(made.images[1], np.stack(images))


@pytest.mark.slow
def test_the_same_command_gives_the_same_card(command, settings, card, tmp_path):
    command.main(command.Config(out=tmp_path, **settings))
    for name in ("card.json", "people.png", "mixes.png"):
        assert (tmp_path / name).read_bytes() == (card / name).read_bytes()


def test_all_donors_of_the_mixes_are_shared(command, settings):
    config = command.Config(out=Path("unused"), **settings)
    shared = command.SharedDonors(**vars(command.configuration(config, "middle")))
    assert shared.mix_seed(0, 2) == shared.mix_seed(5, 2) != shared.mix_seed(5, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"people": 1}, "--people 1"),
        ({"variants": 1}, "--variants 1"),
        ({"comparison_people": 1}, "--comparison-people 1"),
        ({"reference": None, "inception": Path("weights")}, "needs --reference"),
        ({"reference": Path("nowhere")}, "no folder nowhere"),
        ({"layers": "head"}, "--layers 'head'"),
        ({"threshold": 2.0}, "--threshold 2.0"),
        ({"network": Path("absent")}, "absent"),
    ],
)
def test_wrong_options_are_named(command, settings, tmp_path, wrong, message):
    with pytest.raises(InputError, match=message):
        command.main(command.Config(out=tmp_path, **(settings | wrong)))
    assert not list(tmp_path.iterdir())


def test_the_compared_groups_do_not_overlap_and_fit_the_network(command):
    groups, whole = command.compared_groups(16)
    assert list(groups) == ["coarse (0-4)", "middle (5-11)", "fine (12-15)", "all (0-15)"]
    assert groups[whole] == "0-15"
    assert list(command.compared_groups(10)[0].values()) == ["0-2", "3-7", "8-9", "0-9"]
