"""Whether people can teach: the figures beside an independent computation, and the card of networks of every kind."""

import dataclasses
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.people.decoding import decode
from datasets.runs.card import read_card, teaching_section
from passersby import weights
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.reid.checkpoint import save_reid
from passersby.stylegan2 import Generator as StyleGAN2
from passersby.stylegan2 import GeneratorConfig as StyleGAN2Config
from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.checkpoint import save_network, z_halves
from pipeline.card.judge import different_people_rate, same_person_rate
from pipeline.card.people import RealSample, Sample
from pipeline.card.teaching import Measures, card_of
from reporting.gan.teaching import teaching_lines
from tests.helpers import identity_runs

SAMPLE = Sample(people=6, variants=3, gallery=8, height=64, width=32)
STYLEGAN3 = GeneratorConfig.config_t(64, 32, channel_base=256, channel_max=8, output_scale=4.0)
STYLEGAN2 = StyleGAN2Config(64, 32, channel_base=256, channel_max=8, mapping_layers=2)


def pairs_network(path: Path, config, cameras: tuple[int, ...] = (), **record) -> Path:
    torch.manual_seed(0)
    labels = {"labels": {"kind": "camera", "cameras": list(cameras)}} if cameras else {}
    config = dataclasses.replace(config, c_dim=len(cameras))
    generator = StyleGAN2(config) if isinstance(config, StyleGAN2Config) else Generator(config)
    save_network(path, generator, record={"trained_on": labels, "z": z_halves(512)} | record)
    return path


@pytest.fixture(scope="module")
def crowd(tmp_path_factory) -> Path:
    """9 training people with 4 pictures each, of colours of their own on backgrounds that change."""
    root, random = tmp_path_factory.mktemp("data") / "crowd", np.random.default_rng(0)
    (root / "bounding_box_train").mkdir(parents=True)
    for person in range(1, 10):
        clothes = random.integers(0, 256, 3)
        for picture in range(4):
            pixels = np.empty((64, 32, 3))
            pixels[:], pixels[10:, 10:22] = random.integers(0, 256, 3), clothes + random.normal(0, 10, 3)
            pixels += random.normal(0, 10, (64, 32, 1))  # so that each pixel of a region counts
            name = f"{person:04d}_c{picture + 1}s1_000001_00.png"
            cv2.imwrite(str(root / "bounding_box_train" / name), np.clip(pixels, 0, 255).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    network = identity_runs.tiny_network().network
    record = {"trained_on": {"real": [{"name": "others train", "people": 3, "sha256": "ef" * 32}]}}
    save_reid(path, network, class_names=("0001", "2", "x"), record=record)
    return path


def measured(network: Path, **measures) -> dict:
    threads = torch.get_num_threads()
    card_of(network, SAMPLE, "cpu", Measures(near_copies=measures.pop("near_copies", False), **measures), False)
    torch.set_num_threads(threads)
    card = read_card(network)
    assert card is not None
    return card


def spread_by_hand(pictures: np.ndarray, rows: slice, columns: list[slice]) -> tuple[float, float]:
    """Colour spread within and between people of pictures [P, V, H, W, 3], by loops over people and channels."""
    means = [
        [np.concatenate([picture[rows, part].reshape(-1, 3) for part in columns]).mean(0) / 255 for picture in person]
        for person in pictures
    ]  # [P][V][3]
    within = [np.std([mean[c] for mean in person]) for person in means for c in range(3)]
    between = [np.std([np.mean([mean[c] for mean in person]) for person in means]) for c in range(3)]
    return float(np.mean(within)), float(np.mean(between))


@pytest.mark.parametrize("size", [(64, 32), (128, 64)])
def test_the_spreads_of_real_people_are_those_of_an_independent_computation(crowd, size):
    from passersby.metrics.variants import colour_spread, region_colours
    from pipeline.card.people import decoded

    height, width = size
    real = RealSample.read(crowd, dataclasses.replace(SAMPLE, height=height, width=width), 1)
    pictures = decoded(real.chosen)
    assert pictures.shape == (6, 3, height, width, 3)
    sixth, third = round(width / 6), round(height / 3)
    regions = {
        "edges": (slice(0, third), [slice(0, sixth), slice(width - sixth, width)]),
        "torso": (
            slice(round(0.28 * height), round(0.48 * height)), [slice(round(0.38 * width), round(0.62 * width))]
        ),
    }  # fmt: skip
    for name, (rows, columns) in regions.items():
        found = colour_spread(region_colours(pictures, name))
        within, between = spread_by_hand(pictures, rows, columns)
        assert (found["within"], found["between"]) == pytest.approx((within, between), rel=1e-9)
        assert found["ratio"] == pytest.approx(within / between, rel=1e-9)
    assert colour_spread(region_colours(pictures, "edges"))["ratio"] > 1.0
    assert colour_spread(region_colours(pictures, "torso"))["ratio"] < 0.3


def test_the_judges_rates_are_those_of_a_loop_over_pairs():
    random = np.random.default_rng(0)
    features = random.normal(size=(5, 3, 4)) + random.normal(size=(5, 1, 4))
    features = (features / np.linalg.norm(features, axis=2, keepdims=True)).astype(np.float32)
    pictures = [(person, variant) for person in range(5) for variant in range(3)]
    same, different = [], []
    for a, b in itertools.combinations(pictures, 2):
        (same if a[0] == b[0] else different).append(float(features[a] @ features[b]) >= 0.4)
    assert same_person_rate(features, 0.4)["value"] == pytest.approx(np.mean(same))
    assert different_people_rate(features, 0.4) == pytest.approx(np.mean(different))
    assert 0 < np.mean(different) < np.mean(same) < 1


@pytest.mark.parametrize(
    ("config", "cameras"), [(STYLEGAN3, ()), (STYLEGAN2, ()), (STYLEGAN2, (3, 1, 6))], ids=["3", "2", "2-cameras"]
)
def test_networks_of_identity_pairs_have_a_card_without_trials_of_layers(config, cameras, tmp_path, capsys):
    network = pairs_network(tmp_path / "net.safetensors", config, cameras)
    card = measured(network)
    assert set(card) == {"version", "network", "teaching"}
    section = card["teaching"]
    assert (section["method"], section["layers"], section["cameras"]) == ("camera", [], list(cameras))
    assert section["psi"] == "0.7"
    figures = section["by_psi"]["0.7"]
    assert figures["edges"]["ratio"] > 0
    assert 0 <= figures["passing"]["value"] <= 1
    assert section["real"] is section["judge"] is section["reference"] is None
    assert [line["name"] for line in section["gate"]["0.7"] if line["reached"] is None] == [
        "torso_spread", "same_person", "different_people",
    ]  # fmt: skip
    assert any("no --reference" in note for note in section["notes"])
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == str(tmp_path / "net.card.json")
    assert "not measured: give --identity and --reference" in said
    assert teaching_section(network, file_sha256(network)) == section
    assert teaching_section(network, "00" * 32) is None


def test_a_card_with_real_people_and_a_judge_has_every_line_of_the_gate(tmp_path, crowd, judge):
    identity = {"name": "re-ID", "sha256": file_sha256(judge), "record": {}}
    network = pairs_network(tmp_path / "net.safetensors", STYLEGAN2, identity=identity)
    card = measured(network, psi=(0.5, 1.0), reference=crowd, identity=str(judge), near_copies=True)
    section = card["teaching"]
    assert list(section["by_psi"]) == ["0.5", "1"]
    assert section["psi"] in section["by_psi"]
    assert section["by_psi"]["0.5"]["torso"]["between"] < section["by_psi"]["1"]["torso"]["between"]
    for psi, gate in section["gate"].items():
        assert all(line["reached"] in (True, False) for line in gate)
        for line in gate:
            if line["reached"] is False:
                assert line["missed_by"] >= 0
        assert section["by_psi"][psi]["near_copies"]["share"] <= 1
    # 7 of the 9 people do not bear a name that the judge knows ("0001", "2"), and 6 are measured.
    assert section["judge"]["known_people_measured"] == 0
    assert section["judge"]["people"] == 3
    assert section["judge"]["sources"] == [{"name": "others train", "people": 3, "sha256": "ef" * 32}]
    assert section["near_copies"]["pictures"] == 36  # of everybody
    assert section["real"]["people"] == 6
    assert any("the judge was trained on 3 people: others train" in note for note in section["notes"])
    assert any("the judge was part of the generator's loss" in note for note in section["notes"])
    assert not [note for note in section["notes"] if "not honest" in note]
    text = "\n".join(teaching_lines(section))
    assert "psi 0.5" in text
    assert "real people" in text
    json.dumps(section)


def test_people_whom_the_judge_knows_are_named_where_nobody_else_remains(crowd, judge):
    real = RealSample.read(crowd, dataclasses.replace(SAMPLE, people=9), 1, ("0001", "2", "x"))
    assert set(real.known) == {"0001", "0002"}
    assert len(real.chosen) == 9
    others = RealSample.read(crowd, SAMPLE, 1, ("0001", "2", "x"))
    assert others.known == ()
    assert len(others.listing.people) == 7
    assert len(others.everyone.people) == 9


def test_the_same_people_are_measured_whatever_the_order_of_the_cameras(crowd, tmp_path):
    """Drawn by a hash of the names: nested in the number of people, and not one picture of each camera in turn."""
    six, nine = (RealSample.read(crowd, dataclasses.replace(SAMPLE, people=count), 1) for count in (6, 9))
    assert nine.chosen[:6] == six.chosen
    two = RealSample.read(crowd, dataclasses.replace(SAMPLE, variants=2), 1)
    assert [pictures[:2] for pictures in six.chosen] == two.chosen


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ({"layers": "3-5"}, "--layers 3-5: pictures of a person differ in `how`"),
        ({"psi": (0.7, 3.0)}, "--truncation-psi 3.0"),
        ({"reference": Path("/nonexistent")}, "/nonexistent: there is no such folder"),
        ({"identity": "/nonexistent"}, "--identity /nonexistent: no such file"),
        ({"yolo_weights": "/nonexistent/yolov4-tiny.weights"}, "--yolo-weights"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, measures, message):
    network = pairs_network(tmp_path / "net.safetensors", STYLEGAN2)
    with pytest.raises(InputError) as caught:
        measured(network, **measures)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.card.json").exists()


def test_without_the_weights_of_the_filter_the_rest_is_measured_and_it_is_said(tmp_path, monkeypatch):
    def missing(name: str, path: Path | None = None) -> Path:
        raise InputError(f"{name}: no registry here")

    monkeypatch.setattr(weights, "get", missing)
    network = pairs_network(tmp_path / "net.safetensors", STYLEGAN2)
    section = measured(network)["teaching"]
    assert "passing" not in section["by_psi"]["0.7"]
    assert section["detector"] is None
    assert "the pedestrian filter is left out: yolov4-tiny: no registry here" in section["notes"]
    assert section["gate"]["0.7"][-1]["reached"] is None


def test_style_mixing_with_named_layers_keeps_the_measured_layers_of_the_card(tmp_path):
    torch.manual_seed(0)
    network = tmp_path / "net.safetensors"
    save_network(network, Generator(STYLEGAN3), record={})
    written = {"version": 1, "network": {"sha256": file_sha256(network)}, "layers": {"pose": [0, 1]}}
    network.with_suffix(".card.json").write_text(json.dumps(written))
    card = measured(network, layers="pose")
    assert card["layers"] == {"pose": [0, 1]}
    assert (card["teaching"]["method"], card["teaching"]["layers"]) == ("mix", [0, 1])
    assert measured(network, layers="3-5")["teaching"]["layers"] == [3, 4, 5]


def test_the_pictures_are_those_of_the_main_job(tmp_path, monkeypatch):
    """The first picture of a person is seed S + i's whole z, and the figures are those of the decoded pictures."""
    from pipeline.card import teaching

    kept: list = []
    original = teaching.TeachingMeasurer.figures
    monkeypatch.setattr(
        teaching.TeachingMeasurer, "figures", lambda self, *people: kept.append(people) or original(self, *people)
    )
    network = pairs_network(tmp_path / "net.safetensors", STYLEGAN2)
    section = measured(network)["teaching"]
    people, gallery = kept[0]
    assert (len(people), len(people[0]), len(gallery)) == (6, 3, 8)
    loaded = teaching.load_network(network)
    alone = loaded.generator.images([5], truncation_psi=0.7)[0]
    assert np.abs(decode(people[5][0]).astype(int) - alone).mean() < 4  # a JPEG of quality 95
    pictures = np.stack([[decode(content) for content in pictures] for pictures in people])
    within, between = spread_by_hand(pictures, slice(18, 31), [slice(12, 20)])
    assert section["by_psi"]["0.7"]["torso"]["within"] == pytest.approx(within, abs=1e-5)
    assert section["by_psi"]["0.7"]["torso"]["between"] == pytest.approx(between, abs=1e-5)
