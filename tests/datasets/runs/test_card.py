"""The card beside a network: which layers it names, and which cards are not this network's."""

import json
import os
from pathlib import Path

import pytest

from datasets.runs.card import card_name, check_writable, pose_layers, read_card, write_card
from datasets.runs.plan import layers_text, parse_layers
from passersby.errors import InputError

SHA, OTHER = "ab" * 32, "cd" * 32
ABOUT = {"file": "net.safetensors", "sha256": SHA}
MIDDLE = tuple(range(5, 12))
GROUPS = {"0-3": {"nearest_own": {"value": 0.934}, "pose_moved": 0.5}}


@pytest.fixture
def network(tmp_path) -> Path:
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"weights")
    return path


def card(**changes) -> dict:
    return {"version": 1, "network": ABOUT, "layers": {"pose": [0, 1, 2, 3], "groups": GROUPS}} | changes


def put(network: Path, content: dict | bytes) -> Path:
    path = network.with_suffix(".card.json")
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("net.safetensors", "net.card.json"), ("a/b/net.v2.pkl", "net.v2.card.json"), ("net", "net.card.json"),
        ("s3://bucket/run/net.pkl?endpoint_override=http://127.0.0.1:9", "net.card.json"),
    ],
)  # fmt: skip
def test_the_card_is_named_by_its_network(network, name):
    assert card_name(network) == name


@pytest.mark.parametrize("text", ["0-2,5", "3", "0-15", "0,2,4-5", "7-8"])
def test_layers_as_text_are_read_as_the_same_layers(text):
    assert layers_text(parse_layers(text)) == text


def test_the_card_of_the_network_names_its_layers_and_what_they_keep(network):
    put(network, card())
    pose = pose_layers(network, SHA)
    assert pose.layers == (0, 1, 2, 3)
    assert pose.reason == (
        "layers 0-3 move the pose of this network, says net.card.json; 93% of variants keep their clothes"
    )


def test_a_card_with_parts_that_this_program_does_not_know_is_read(network):
    put(network, card(people={"fid": 9.0}, layers={"pose": [3], "groups": 7, "more": None}))
    assert pose_layers(network, SHA).layers == (3,)


def test_a_network_without_a_card_gets_the_studys_layers_in_one_line(network):
    pose = pose_layers(network, SHA)
    assert pose.layers == MIDDLE
    assert pose.reason.startswith(
        "layers 5-11, the study's: there is no net.card.json beside the network; python jobs/"
    )
    assert "\n" not in pose.reason


def test_the_card_of_another_network_is_ignored_in_one_line(network):
    path = put(network, card())
    pose = pose_layers(network, OTHER)
    assert pose.layers == MIDDLE
    assert pose.reason == (
        f"layers 5-11, the study's: {path} is the card of another network (abababababab, not cdcdcdcdcdcd)"
    )


def test_a_card_without_the_section_gives_the_studys_layers(network):
    path = put(network, {"version": 1, "network": ABOUT})
    pose = pose_layers(network, SHA)
    assert (pose.layers, pose.reason) == (
        MIDDLE, f"layers 5-11, the study's: {path} does not say which layers move the pose",
    )  # fmt: skip


def test_a_card_that_cannot_be_read_gives_the_studys_layers(network):
    network.with_suffix(".card.json").mkdir()
    pose = pose_layers(network, SHA)
    assert pose.layers == MIDDLE
    assert "cannot read" in pose.reason
    assert "net.card.json" in pose.reason


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"3", b'"text"', b"\xff\xfe", b"[" * 100_000, b"{}",
        {"version": 1}, {"version": 1, "network": []}, {"version": 1, "network": {"sha256": 3}},
        {"version": "1", "network": ABOUT}, {"version": True, "network": ABOUT}, {"network": ABOUT},
    ],
)  # fmt: skip
def test_a_file_that_is_no_card_is_refused_in_one_line(network, content):
    path = put(network, content)
    with pytest.raises(InputError) as caught:
        pose_layers(network, SHA)
    assert str(caught.value).startswith(f"{path} is not the card of a network: remove it, or measure it anew with")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pose", [[], [16], [-1], [True], [1.0], [2, 1], [1, 1], "0-4", None, {"0": 1}, [[0]], [0, None], list(range(99))]
)
def test_layers_that_no_network_has_are_refused(network, pose):
    path = put(network, card(layers={"pose": pose}))
    with pytest.raises(InputError) as caught:
        pose_layers(network, SHA)
    assert str(caught.value).startswith(f"{path}: its layers of the pose are {json.dumps(pose)[:60]}, not w indices")


@pytest.mark.parametrize("section", [[], "pose", 3, {}])
def test_a_section_of_another_form_is_refused(network, section):
    put(network, card(layers=section))
    with pytest.raises(InputError, match="its layers of the pose are null"):
        pose_layers(network, SHA)


def test_a_card_of_a_later_version_is_refused(network):
    path = put(network, card(version=2))
    with pytest.raises(InputError, match=f"{path} has version 2, and this program reads cards up to version 1"):
        pose_layers(network, SHA)


def test_a_measured_section_keeps_the_others_and_the_network_is_not_touched(network):
    before = os.stat(network)
    path = put(network, card(people={"fid": 9.0}))
    assert write_card(network, ABOUT, {"layers": {"pose": [4]}}) == str(path)
    assert read_card(network) == {
        "version": 1, "network": ABOUT, "people": {"fid": 9.0}, "layers": {"pose": [4]},
    }  # fmt: skip
    assert os.stat(network) == before
    assert sorted(file.name for file in network.parent.iterdir()) == ["net.card.json", "net.safetensors"]


@pytest.mark.parametrize("old", [b"{", card(network={"sha256": OTHER}, people={"fid": 9.0}), card(version=9)])
def test_the_card_of_another_network_is_replaced(network, old):
    put(network, old)
    write_card(network, ABOUT, {"layers": {"pose": [4]}})
    assert read_card(network) == {"version": 1, "network": ABOUT, "layers": {"pose": [4]}}


@pytest.mark.parametrize("form", ["{}", "file://{}", "relative"])
def test_the_card_lies_beside_the_network_in_every_form_of_address(network, form, monkeypatch):
    monkeypatch.chdir(network.parent)
    address = network.name if form == "relative" else form.format(network)
    write_card(address, ABOUT, {"layers": {"pose": [4]}})
    assert network.with_suffix(".card.json").is_file()
    assert pose_layers(address, SHA).layers == (4,)


def test_a_folder_that_takes_no_card_is_refused_before_the_measurement(network, monkeypatch):
    check_writable(network)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(InputError, match="cannot write .*net.card.json: no permission: copy the network"):
        check_writable(network)
