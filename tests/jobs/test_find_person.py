"""Finding a person without labels: known order, threshold of an evaluation, features kept, bad input in one line."""

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from jobs.common import JudgeOptions
from jobs.find_person import SHEET, TABLE, Config, main
from passersby.errors import InputError
from passersby.reid.checkpoint import load_reid, save_reid
from passersby.reid.network import ReidConfig, ReidNetwork

HEIGHT, WIDTH = 32, 16


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "reid.safetensors"
    made = ReidNetwork(ReidConfig(3, "resnet10", "bnneck", HEIGHT, WIDTH, stem="small"))
    save_reid(path, made, class_names=("a", "b", "c"), record={})
    return path


@pytest.fixture
def crops(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PASSERSBY_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "crops"
    (folder / "deeper").mkdir(parents=True)
    for name, colour in {"red.png": (0, 0, 255), "deeper/pink.png": (60, 60, 255), "green.png": (0, 255, 0)}.items():
        cv2.imwrite(str(folder / name), np.full((40, 20, 3), colour, np.uint8))
    (folder / "broken.png").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "query.png"), np.full((64, 32, 3), (0, 0, 255), np.uint8))
    return folder


def rows(out: Path) -> list[dict]:
    with open(out / TABLE) as file:
        return list(csv.DictReader(file))


def test_the_same_picture_comes_first_and_features_are_kept(network, crops, tmp_path, capsys, monkeypatch):
    config = Config(
        query=tmp_path / "query.png", gallery=crops, network=network, out=str(tmp_path / "out"), device="cpu"
    )
    main(config)
    said = capsys.readouterr().out
    found = rows(tmp_path / "out")
    assert [row["name"] for row in found][:1] == ["red.png"]
    assert float(found[0]["similarity"]) == pytest.approx(1.0, abs=1e-5)
    assert {row["name"] for row in found} == {"red.png", "deeper/pink.png", "green.png"}
    assert {row["same_person"] for row in found} == {""}
    assert "no threshold says who is the same person" in said
    assert "1 of 4 images are unreadable" in said
    assert cv2.imread(str(tmp_path / "out" / SHEET)) is not None
    from pipeline import features as embeddings

    def again(*_, **__):
        raise AssertionError("the gallery's features were computed again")

    monkeypatch.setattr(embeddings, "embeddings_of", again)
    main(config)
    assert rows(tmp_path / "out") == found


def test_cut_out_people_are_ranked_on_white_whatever_lies_below(network, crops, tmp_path, capsys):
    """Two cut-outs of one person, with other colours below their transparent part; said once for all pictures."""
    person = np.zeros((40, 20, 4), np.uint8)
    person[10:30, 5:15] = (0, 0, 255, 255)
    for name, hidden in (("a.png", (0, 255, 0)), ("b.webp", (255, 0, 0)), ("c.tif", (9, 9, 9))):
        picture = person.copy()
        picture[person[..., 3] == 0, :3] = hidden
        Image.fromarray(picture[..., [2, 1, 0, 3]]).save(crops / name, lossless=True, exact=True)
    Image.fromarray(person[..., [2, 1, 0, 3]]).save(tmp_path / "query.png")
    main(Config(query=tmp_path / "query.png", gallery=crops, network=network, out=str(tmp_path / "out"), device="cpu"))
    found = rows(tmp_path / "out")
    assert {row["name"] for row in found[:3]} == {"a.png", "b.webp", "c.tif"}
    assert [float(row["similarity"]) for row in found[:3]] == pytest.approx([1.0] * 3, abs=1e-5)
    said = [line for line in capsys.readouterr().out.splitlines() if "put on white" in line]
    white = "pictures with an alpha channel or a transparent colour are put on white"
    assert said == [f"note: crops: {white}: 3", f"note: --query {tmp_path / 'query.png'}: {white}: 1"]


def test_a_name_that_is_not_utf_8_is_found_like_any_other(network, crops, tmp_path, capsys):
    name = os.fsdecode(b"r\xf6t.png")
    try:
        (crops / "red.png").rename(crops / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (crops / "Thumbs.db").write_bytes(b"x")
    (crops / "._green.png").write_bytes(b"x")
    (tmp_path / os.fsdecode(b"qu\xe9.png")).write_bytes((tmp_path / "query.png").read_bytes())
    query = tmp_path / os.fsdecode(b"qu\xe9.png")
    main(Config(query=query, gallery=crops, network=network, out=str(tmp_path / "out"), device="cpu"))
    assert rows(tmp_path / "out")[0]["name"] == "r\\xf6t.png"
    assert len(rows(tmp_path / "out")) == 3
    said = capsys.readouterr().out
    assert "r\\xf6t.png" in said
    assert "2 files of operating systems" in said


def test_the_threshold_of_an_evaluation(network, crops, tmp_path, capsys):
    record = {"thresholds": {"one_percent": {"similarity": 0.9999}}, "network": {"sha256": load_reid(network).sha256}}
    (tmp_path / "ranking.json").write_text(json.dumps(record))
    config = Config(
        query=tmp_path / "query.png", gallery=crops, network=network, out=str(tmp_path / "out"), device="cpu",
        evaluation=tmp_path / "ranking.json", top=2,
    )  # fmt: skip
    main(config)
    assert [row["same_person"] for row in rows(tmp_path / "out")][0] == "yes"
    assert "1% false accepts" in capsys.readouterr().out
    record["network"]["sha256"] = "other"
    (tmp_path / "ranking.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="of another network"):
        main(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": Path("nowhere.png")}, "--query nowhere.png"),
        ({"gallery": Path("nowhere")}, "nowhere is not a folder"),
        ({"network": Path("nowhere.safetensors")}, "nowhere.safetensors"),
        ({"evaluation": Path("nowhere.json")}, "--evaluation nowhere.json"),
        ({"top": 0}, "--top 0"),
        ({"judge": JudgeOptions(scale=0.0)}, "--scale 0.0: must be above 0"),
    ],
)
def test_bad_input_is_one_clear_line(network, crops, tmp_path, changes, message):
    values = {"query": tmp_path / "query.png", "gallery": crops, "network": network, "device": "cpu"}
    with pytest.raises(InputError) as caught:
        main(Config(out=str(tmp_path / "out"), **values | changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / TABLE).exists()
