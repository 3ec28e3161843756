"""Which layers hold the pose: the rule, and the measurement of a network whose layers are known."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from passersby.errors import InputError
from passersby.stylegan3 import GeneratorConfig, LoadedNetwork
from pipeline.card import layers as card
from pipeline.card import teaching
from pipeline.card.judge import Judge
from pipeline.card.layers import best_group, measure_layers
from pipeline.card.people import Maker, RealSample, Sample
from pipeline.card.teaching import Measures, card_of
from reporting.gan.card import layers_lines
from reporting.progress import ProgressLine
from tests.helpers import identity_runs

POSE_LAYERS, CLOTHES_LAYERS = range(2, 6), range(9, 16)
SAMPLE = Sample(people=12, variants=4, gallery=16, height=64, width=32)


class DrawnSynthesis(nn.Module):
    """Layers 2-5 place a pale bar, layers 9-15 give the clothes' colour, others nothing."""

    layer_names = ()

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width

    def forward(self, ws: torch.Tensor, shared: int = 0) -> torch.Tensor:
        height, width = self.height, self.width
        images = torch.empty(len(ws), 3, height, width)
        images[:] = torch.tanh(ws[:, list(CLOTHES_LAYERS), :3].mean(1))[:, :, None, None] * 0.8
        for layer in POSE_LAYERS:  # each has a quarter of the height, and a bar in one of 16 places
            for index, place in enumerate((ws[:, layer, 5].sigmoid() * 16).long().clamp(0, 15)):
                top, left = (layer - POSE_LAYERS[0]) * height // 4, int(place) * width // 16
                images[index, :, top : top + height // 4, left : left + 2] += 0.2
        return images


class Drawn(nn.Module):
    """Stands in for a generator whose layers are known."""

    def __init__(self, height: int = 64, width: int = 32):
        super().__init__()
        self.config = GeneratorConfig.config_t(height, width, channel_base=256, channel_max=8)
        self.z_dim, self.num_ws, self.w_dim = self.config.z_dim, self.config.num_ws, self.config.w_dim
        self.weight = nn.Parameter(torch.zeros(1))
        self.synthesis = DrawnSynthesis(height, width)

    def mapping(self, z: torch.Tensor, truncation_psi: float = 1.0) -> torch.Tensor:
        return z[:, None].repeat(1, self.config.num_ws, 1)


def drawn(**size: int) -> LoadedNetwork:
    return LoadedNetwork(Drawn(**size), None, None, {}, "safetensors", "ab" * 32)


def measured(sample: Sample, judge=None, reference: Path | None = None) -> dict:
    threads = torch.get_num_threads()
    maker = Maker(drawn(), "drawn.safetensors", sample, "cpu", 1)
    real = None if reference is None else RealSample.read(reference, sample, 1)
    with ProgressLine(1, sample.gallery, stream=io.StringIO()) as line:
        gallery = [pictures[0] for pictures in maker((0,), sample.gallery, 1, line)]
    result = measure_layers(maker, judge and Judge(judge, real and real.listing), real, gallery)
    torch.set_num_threads(threads)
    return result


@pytest.fixture(scope="module")
def section() -> dict:
    return measured(SAMPLE)


def figures(own: float, pose: float) -> dict:
    return {"nearest_own": {"value": own}, "pose_moved": pose}


@pytest.mark.parametrize(
    ("groups", "best"),
    [
        ({"a": (0.99, 0.4), "b": (0.90, 0.6), "c": (0.89, 0.9)}, "b"),  # the one that moves most, of the clear ones
        ({"a": (1.0, 0.1), "b": (0.80, 0.6), "c": (0.85, 0.4)}, "c"),  # none is clear and moves: the purest that moves
        ({"a": (1.0, 0.0), "b": (0.95, 0.3)}, "b"),  # nothing moves far
        ({"a": (0.95, 0.5), "b": (0.99, 0.5)}, "a"),  # equal: the first
        ({"a": (0.2, 0.9)}, "a"),
    ],
)
def test_the_rule_takes_the_group_that_moves_most_and_keeps_the_clothes(groups, best):
    assert best_group({name: figures(*pair) for name, pair in groups.items()}) == best


@pytest.mark.parametrize(
    ("bad", "largest"),
    [
        ([], [(0, 7)]),
        ([(3, 3)], [(0, 2), (4, 7)]),
        ([(0, 7)], [(0, 6), (1, 7)]),
        ([(0, 0), (7, 7)], [(1, 6)]),
        ([(1, 3), (2, 5)], [(0, 2), (2, 4), (3, 7)]),
        ([(layer, layer) for layer in range(8)], []),
        ([(7, 7)], [(0, 6)]),
    ],
)
def test_the_largest_ranges_without_bad_ones_are_found_in_few_trials(bad, largest):
    """bad: ranges that lose the clothes, and every range around one loses them."""
    trials = []

    def keeps(layers):
        trials.append(layers)
        return not any(layers[0] <= low and high <= layers[1] for low, high in bad)

    assert card.largest_ranges(8, keeps) == largest
    assert len(trials) <= 16
    assert len(set(trials)) == len(trials)


def searched(kept: dict, moved: dict, trial_error: float = 0.0) -> card.Search:
    """A search among 6 layers. Each loses a share of clothes, and moves the pose, by a number of its own."""

    def measure(layers, trial):
        inside = range(layers[0], layers[1] + 1)
        own = 1 - sum(kept.get(layer, 0) for layer in inside) + trial_error * trial
        return figures(own, sum(moved.get(layer, 0) for layer in inside))

    search = card.Search(6, measure)
    search.run()
    return search


def chosen_by(search: card.Search) -> str:
    return best_group({card._name(layers): figures for layers, figures in search.groups.items()})


@pytest.mark.parametrize(
    ("kept", "moved", "best"),
    [
        # 0-3 is the largest range of the trial and keeps 88%, as 0-2; 0-1 keeps 92% and moves the pose by 0.5.
        ({0: 0.04, 1: 0.04, 2: 0.04, 4: 0.5}, {0: 0.2, 1: 0.3, 2: 0.3, 3: 0.1, 5: 0.4}, "0-1"),
        ({0: 0.5, 4: 0.09, 5: 0.09}, dict.fromkeys(range(6), 0.2), "1-4"),
        ({3: 0.5}, dict.fromkeys(range(6), 0.2), "0-2"),
        ({}, dict.fromkeys(range(6), 0.2), "0-5"),
    ],
)
@pytest.mark.parametrize("error", [-0.01, 0.0, 0.05])
def test_the_search_finds_the_clear_range_that_moves_most(kept, moved, best, error):
    search = searched(kept, moved, error)
    assert chosen_by(search) == best
    assert len(search.groups) <= 4  # bisection


def test_the_search_ends_with_the_purest_range_that_moves_where_none_is_clear():
    kept, moved = {layer: 0.12 + 0.02 * layer for layer in range(5)} | {5: 0.3}, dict.fromkeys(range(6), 0.5)
    assert chosen_by(searched(kept, {layer: 0.5 - layer / 100 for layer in range(6)})) == "0"  # keeps 88%
    lost = {layer: 0.5 - 0.05 * layer for layer in range(6)}  # not even the trial lets one through
    assert chosen_by(searched(lost, moved)) == "5"


def test_the_search_ends_where_nothing_moves_the_pose():
    assert chosen_by(searched({}, {2: 0.1, 3: 0.1})) == "0-3"
    assert len(searched({0: 0.3, 3: 0.3}, {}).groups) == 1


@pytest.mark.slow
def test_the_layers_that_place_the_bars_are_found_and_those_of_the_colour_are_not(section):
    groups = section["groups"]
    assert set(POSE_LAYERS) <= set(section["pose"])
    assert not set(CLOTHES_LAYERS) & set(section["pose"])
    best = groups[f"{section['pose'][0]}-{section['pose'][-1]}"]
    assert best["nearest_own"]["value"] > 0.9
    assert best["pose_moved"] > 0.5
    assert best["torso"]["ratio"] < 0.2
    assert groups["12-15"]["pose_moved"] < 0.2  # colours alone
    assert groups["12-15"]["torso"]["ratio"] > best["torso"]["ratio"]
    assert set(section["study"].values()) == {"0-5", "5-11", "12-15"} <= set(groups)
    assert section["trial"]["0"] == {"nearest_own": 1.0, "pose_moved": pytest.approx(0, abs=0.02)}  # nothing moves
    assert len(section["trial"]) <= 32
    assert section["sample"] == {
        "people": 12, "variants": 4, "gallery": 16, "seed": 0, "truncation_psi": 0.7, "height": 64, "width": 32,
    }  # fmt: skip
    assert section["judge"] is section["real"] is None
    json.dumps(section)


@pytest.mark.slow
def test_the_lines_mark_the_chosen_group_and_have_a_column_each(section):
    lines = layers_lines(section, "0-5")
    head, *rows = lines[:-3]
    assert head.split("  ")[0] == "layers"
    assert len(rows) == len(section["groups"])
    assert [row for row in rows if row.startswith("0-5 *")]
    moved = [float(row.split("%")[1]) for row in rows]
    assert moved == sorted(moved, reverse=True)


@pytest.mark.slow
def test_the_same_network_gives_the_same_figures(section):
    assert measured(SAMPLE) == section


@pytest.mark.slow
def test_a_judge_and_real_people_stand_in_the_same_table(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "bounding_box_train").mkdir()
    for person in range(1, 5):
        for picture in range(4 if person < 4 else 2):  # the fourth has too few pictures
            pixels = np.clip((60 * person, 90, 250 - 60 * person) + random.normal(0, 9, (64, 32, 3)), 0, 255)
            name = f"{person:04d}_c{picture + 1}s1_000001_00.jpg"
            cv2.imwrite(str(tmp_path / "bounding_box_train" / name), pixels.astype(np.uint8))
    (tmp_path / "bounding_box_train" / "0001_c1s1_000009_00.jpg").write_bytes(b"damaged")
    sample = Sample(people=6, variants=3, gallery=8, height=64, width=32)
    result = measured(sample, identity_runs.tiny_network(), tmp_path)
    assert result["judge"]["sha256"] == "ab" * 32
    assert -1 <= result["judge"]["threshold"] <= 1
    real = result["real"]
    assert (real["people"], real["gallery"]) == (3, 4)
    assert real["nearest_own"]["value"] == 1
    assert real["torso"]["ratio"] < 0.2
    for group in [*result["groups"].values(), real]:
        assert set(group["judge"]) == {"nearest_own", "same_person", "different_people"}
        assert 0 <= group["judge"]["different_people"] <= 1
    lines = layers_lines(result, "0-5")
    assert lines[0].endswith("judge: own nearest  same person  different people")
    assert [line for line in lines if line.startswith("real people")]


def test_too_few_real_people_are_refused(tmp_path):
    (tmp_path / "bounding_box_train").mkdir()
    for person in (1, 2):
        path = tmp_path / "bounding_box_train" / f"{person:04d}_c1s1_000001_00.jpg"
        cv2.imwrite(str(path), np.full((64, 32, 3), 99, np.uint8))
    with pytest.raises(InputError, match=r"--reference .*: 0 of its 2 training people have 4 pictures"):
        RealSample.read(tmp_path, SAMPLE, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**32 - 3}, "--seed 4294967293: seeds end at 4294967295"),
        ({"truncation_psi": 3.0}, "--truncation-psi 3.0"),
        ({"height": 0}, "--height 0"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Maker(drawn(), "drawn", Sample(**changes), "cpu", 1)


def test_a_network_with_broken_weights_is_refused():
    network = drawn()
    network.generator.synthesis.forward = lambda ws, shared: torch.full((len(ws), 3, 64, 32), float("nan"))
    line = ProgressLine(1, 1, stream=io.StringIO())
    with pytest.raises(InputError, match="--network drawn: person 0: the network's image is not finite"):
        Maker(network, "drawn", SAMPLE, "cpu", 1)((0,), 2, 2, line)


@pytest.mark.slow
def test_a_measured_card_is_that_of_its_network(tmp_path, monkeypatch, capsys):
    """The card's file, from the command's function, with a network that a test can make in a second."""
    from datasets.runs.card import pose_layers

    network = tmp_path / "net.safetensors"
    network.write_bytes(b"stands in")
    monkeypatch.setattr(teaching, "load_network", lambda path: drawn())
    threads = torch.get_num_threads()
    card_of(network, SAMPLE, "cpu", Measures(), dry_run=True)
    assert not list(tmp_path.glob("*.json"))
    card_of(network, SAMPLE, "cpu", Measures(), dry_run=False)
    torch.set_num_threads(threads)
    written = network.with_suffix(".card.json")
    assert capsys.readouterr().out.splitlines()[-1] == str(written)
    content = json.loads(written.read_text())
    assert content["network"] == {
        "file": "net.safetensors", "sha256": "ab" * 32, "num_ws": 16, "height": 64, "width": 32,
    }  # fmt: skip
    assert str(tmp_path) not in written.read_text()
    assert pose_layers(network, "ab" * 32).layers == tuple(content["layers"]["pose"])
    assert network.read_bytes() == b"stands in"


def test_the_demo_networks_have_cards_and_layers_of_the_default_are_those_of_the_card():
    from datasets.runs.card import pose_layers
    from passersby.files import file_sha256
    from passersby.weights import DEMO_NETWORK, DEMO_STYLEGAN3
    from pipeline.generation import Config, Inputs

    for network in (DEMO_NETWORK, DEMO_STYLEGAN3):
        sha256 = file_sha256(network)
        written = json.loads(Path(network).with_suffix(".card.json").read_text())
        assert written["network"]["sha256"] == sha256
        frozen = Config(out="", network=str(network)).frozen(Inputs(network))
        if network == DEMO_NETWORK:  # of identity pairs: it mixes no layers
            assert (frozen.method, frozen.layers) == ("camera", ())
            assert "teaching" in written
    assert written["layers"]["pose"] == list(pose_layers(DEMO_STYLEGAN3, sha256).layers)
    best = best_group(written["layers"]["groups"])
    assert (frozen.method, frozen.layers) == ("mix", tuple(written["layers"]["pose"]))
    assert written["layers"]["groups"][best]["nearest_own"]["value"] >= card.CLEAR
