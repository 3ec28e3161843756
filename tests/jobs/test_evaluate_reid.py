"""The evaluation job: known rankings, on Ray as in this process, features of other tools, bad input in one line."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.io import savemat

from datasets.people.readers import read_split
from datasets.reid.feature_files import read_features
from jobs import find_person
from jobs.common import JudgeOptions, parse
from jobs.evaluate_reid import FEATURES, QUERIES, RANKING, SHEET, Config, main
from passersby.errors import InputError
from passersby.metrics.ranking import evaluate_ranking
from passersby.reid.checkpoint import save_reid
from passersby.reid.network import ReidConfig, ReidNetwork
from tests.helpers import onnx_reid
from tests.helpers.onnx_reid import STATED, write_reid_onnx

HEIGHT, WIDTH = 32, 16
COLOURS = {1: (255, 0, 0), 2: (0, 255, 0), 3: (0, 0, 255)}


def picture(path: Path, colour: tuple[int, int, int], noise: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(len(path.name))
    image = np.array(colour) + random.normal(0, noise, (HEIGHT, WIDTH, 3))
    cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "reid.safetensors"
    made = ReidNetwork(ReidConfig(3, "resnet10", "bnneck", HEIGHT, WIDTH, stem="small"))
    save_reid(path, made, class_names=("a", "b", "c"), record={"steps": 0})
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Three people of one colour each, by cameras 1 and 2; a picture of person 1 that looks like person 2; a
    distractor, junk, and a damaged file."""
    root = tmp_path_factory.mktemp("tree")
    for person, colour in COLOURS.items():
        picture(root / f"query/{person:04d}_c1s1_000001_00.png", colour)
        picture(root / f"bounding_box_test/{person:04d}_c1s1_000002_00.png", (9, 9, 9))  # the query's own camera
        picture(root / f"bounding_box_test/{person:04d}_c2s1_000003_00.png", colour)
    picture(root / "bounding_box_test/0001_c2s1_000004_00.png", COLOURS[2])
    picture(root / "bounding_box_test/0000_c2s1_000005_00.png", (255, 255, 0))
    picture(root / "bounding_box_test/-1_c2s1_000006_00.png", COLOURS[1])
    (root / "bounding_box_test/0002_c2s1_000007_00.png").write_bytes(b"damaged")
    return root


@pytest.fixture(scope="module")
def here(network, tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("here") / "out"
    main(Config(out=str(out), network=network, data=tree, here=True, device="cpu", rerank=True))
    return out


def test_a_network_as_onnx_ranks_and_its_threshold_finds_people(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PASSERSBY_CACHE", str(tmp_path / "cache"))
    path, out = write_reid_onnx(tmp_path / "a.onnx", batch=2), tmp_path / "out"
    given = {"mean": tuple(STATED["mean"]), "deviation": tuple(STATED["deviation"]), "channels": "bgr"}
    main(Config(out=str(out), network=path, data=tree, here=True, device="cpu", judge=JudgeOptions(**given)))
    record = json.loads((out / RANKING).read_text())
    assert record["scores"]["single_query"]["valid"] == 3
    assert record["network"]["kind"] == "onnx"
    assert record["network"]["input"]["channels"] == "bgr"
    options = record["configuration"]  # in the order in which older versions wrote them
    assert list(options)[6:-3] == ["metric", *(field.name for field in dataclasses.fields(JudgeOptions))]
    assert (options["channels"], options["mean"], options["height"]) == ("bgr", STATED["mean"], None)
    assert "bgr, (byte x 0.00392157 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]" in capsys.readouterr().out
    stored = read_features(out / FEATURES).query
    pixels = np.stack([cv2.imread(str(tree / "query" / name))[:, :, ::-1] for name in stored.names])
    np.testing.assert_allclose(stored.features, onnx_reid.features(pixels, **given), atol=1e-5)
    query = next((tree / "query").glob("0001*"))
    found = {"query": query, "gallery": tree / "query", "network": path, "out": str(tmp_path / "found")}
    find_person.main(find_person.Config(**found, evaluation=out / RANKING, device="cpu", judge=JudgeOptions(**given)))
    assert re.search(rf"\n   1  1\.000 .*{query.name}", capsys.readouterr().out)
    other = JudgeOptions(**given | {"channels": "rgb"})
    with pytest.raises(InputError, match="of another network"):  # other values of the input give other features
        find_person.main(find_person.Config(**found, evaluation=out / RANKING, judge=other))


@pytest.mark.parametrize("kind", [Config, find_person.Config])
def test_the_options_about_a_network_have_no_prefix_on_the_command_line(kind):
    words = "--out o --network n --query q --gallery g --neck-feature before --channels bgr --scale 1 --mean 1 2 3 "
    words += "--deviation 4 5 6 --flip False --height 64 --width 32 --activation none"
    if kind is Config:
        words = words.replace("--query q --gallery g ", "")
    config = parse(kind, words.split())
    stated = {"channels": "bgr", "scale": 1.0, "mean": (1.0, 2.0, 3.0), "deviation": (4.0, 5.0, 6.0), "flip": False}
    assert config.judge == JudgeOptions("none", "before", height=64, width=32, **stated)


def test_a_known_ranking(here):
    record = json.loads((here / RANKING).read_text())
    scores = record["scores"]["single_query"]
    assert (scores["queries"], scores["valid"], scores["rank1"]) == (3, 3, pytest.approx(2 / 3))
    queries = pq.read_table(here / QUERIES).to_pylist()
    (one, two, three) = [row for row in queries if row["ranking"] == "single_query"]
    assert three["average_precision"] == 1.0
    # Person 1 in person 2's colour is as alike as person 2 is, and stands before: the gallery's order decides.
    assert two["top_similarities"][:2] == [pytest.approx(1.0)] * 2
    assert (two["first_hit"], two["average_precision"]) == (1, 0.5)
    assert one["matches"] == 2
    assert 0.5 < one["average_precision"] < 1.0  # its other picture has another's colour
    names = [name for row in queries for name in row["top_names"]]
    assert not any("-1_c2" in name or "000007" in name for name in names)  # junk, and the damaged file
    for row in queries:  # nobody is found in the camera that asks
        assert not any(f"{row['identity']:04d}_c1" in name for name in row["top_names"])
    assert any("0000_c2" in name for name in names)  # distractors stay
    assert "reranked" in " ".join(record["scores"])
    assert any("000007" in note for note in record["notes"])
    for name in ("queries.png", "cmc.png", "similarities.png"):
        assert cv2.imread(str(here / name)) is not None, name


def test_pictures_whose_names_are_not_utf_8_or_end_twice_are_ranked(network, tree, here, tmp_path):
    shutil.copytree(tree, tmp_path / "tree")
    gallery = tmp_path / "tree/bounding_box_test"
    try:
        (gallery / "0001_c2s1_000003_00.png").rename(gallery / os.fsdecode(b"0001_c2s1_\xe9.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (gallery / "0003_c2s1_000003_00.png").rename(gallery / "0003_c2s1_000003_00.png.png")
    main(Config(out=str(tmp_path / "out"), network=network, data=tmp_path / "tree", here=True, device="cpu"))
    scores, same = (
        json.loads((folder / RANKING).read_text())["scores"]["single_query"] for folder in (tmp_path / "out", here)
    )
    assert scores == same
    names = pq.read_table(tmp_path / "out" / FEATURES)["name"].to_pylist()
    assert {"0001_c2s1_\\xe9.png", "0003_c2s1_000003_00.png.png"} <= set(names)


@pytest.mark.slow
def test_ray_gives_the_same_features(ray_cluster, network, tree, here, tmp_path):
    main(Config(out=str(tmp_path), network=network, data=tree, device="cpu", workers=1))
    one, two = (pq.read_table(folder / FEATURES) for folder in (here, tmp_path))
    assert one.drop(["feature"]) == two.drop(["feature"])
    features = [np.array(table["feature"].to_pylist()) for table in (one, two)]
    np.testing.assert_allclose(*features, atol=1e-5)
    scores = [json.loads((folder / RANKING).read_text())["scores"]["single_query"] for folder in (here, tmp_path)]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_our_features_and_those_of_layumis_tool_and_torchreid_rank_alike(here, tmp_path):
    random = np.random.default_rng(0)
    query, gallery = random.normal(size=(6, 5)).astype(np.float32), random.normal(size=(30, 5)).astype(np.float32)
    people, cameras = [np.arange(6) % 3 + 1, random.integers(-1, 4, 30)], [np.ones(6, int), random.integers(1, 3, 30)]
    arrays = {"query": (query, people[0], cameras[0]), "gallery": (gallery, people[1], cameras[1])}
    layumi = {}
    for name, (features, identities, where) in arrays.items():
        layumi |= {f"{name}_f": features, f"{name}_label": identities, f"{name}_cam": where}
    savemat(tmp_path / "pytorch_result.mat", layumi)
    torchreid = {"qf": query, "q_pids": people[0], "q_camids": cameras[0]}
    torchreid |= {"gf": gallery, "g_pids": people[1], "g_camids": cameras[1]}
    np.savez(tmp_path / "features.npz", **torchreid)
    torch.save({name: torch.from_numpy(value) for name, value in torchreid.items()}, tmp_path / "features.pt")
    wanted = evaluate_ranking(query, gallery, people[0], people[1], cameras[0], cameras[1])
    for name in ("pytorch_result.mat", "features.npz", "features.pt"):
        main(Config(out=str(tmp_path / "out"), features=tmp_path / name))
        scores = json.loads((tmp_path / "out" / RANKING).read_text())["scores"]["single_query"]
        assert scores["mAP"] == pytest.approx(wanted.mAP, abs=1e-6), name
        assert scores["rank1"] == pytest.approx(wanted.rank1), name
    main(Config(out=str(tmp_path / "again"), features=here / FEATURES))
    again, first = (json.loads((folder / RANKING).read_text()) for folder in (tmp_path / "again", here))
    assert again["scores"]["single_query"] == first["scores"]["single_query"]


@pytest.mark.slow
def test_pictures_of_features_are_found_by_name_or_by_order(here, tree, tmp_path):
    main(Config(out=str(tmp_path / "named"), features=here / FEATURES, data=tree))
    assert (tmp_path / "named" / SHEET).read_bytes() == (here / SHEET).read_bytes()
    gallery = read_split(tree, "gallery")
    random = np.random.default_rng(0)
    arrays = {"qf": random.normal(size=(3, 4)), "q_pids": [1, 2, 3], "q_camids": [1, 1, 1]}
    arrays |= {"gf": random.normal(size=(len(gallery), 4)), "g_pids": gallery.identities, "g_camids": gallery.cameras}
    main(Config(out=str(tmp_path / "ordered"), features=saved(tmp_path / "f.npz", **arrays), data=tree))
    assert (tmp_path / "ordered" / SHEET).is_file()
    names = pq.read_table(tmp_path / "ordered" / QUERIES)["name"].to_pylist()
    assert names == list(read_split(tree, "query").names)
    # Others' features in the same folder: the old pictures must not stay beside the new figures.
    main(Config(out=str(tmp_path / "ordered"), features=saved(tmp_path / "other.npz"), data=tree))
    assert not (tmp_path / "ordered" / SHEET).exists()
    notes = json.loads((tmp_path / "ordered" / RANKING).read_text())["notes"]
    assert any("no pictures: the gallery images" in note for note in notes)


def test_the_images_of_a_query_ask_together(network, tree, tmp_path):
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy)
    for person, colour in COLOURS.items():  # no images of person 3 by the camera that asks
        picture(copy / f"gt_bbox/{person:04d}_c{1 + (person == 3)}s1_000008_00.png", colour, noise=20)
        picture(copy / f"gt_bbox/{person:04d}_c{1 + (person == 3)}s1_000009_00.png", colour, noise=20)
    main(Config(out=str(tmp_path / "out"), network=network, data=copy, here=True, device="cpu", multi_query=True))
    record = json.loads((tmp_path / "out" / RANKING).read_text())
    assert set(record["scores"]) == {"single_query", "multi_query"}
    assert any("1 of 3 queries have no multi-query images" in note for note in record["notes"])
    # The same by hand, from the features that it has kept.
    table = pq.read_table(tmp_path / "out" / FEATURES).to_pylist()
    sets = {split: [row for row in table if row["split"] == split] for split in ("query", "gallery", "multi-query")}
    asking = []
    for query in sets["query"]:
        own = [
            row["feature"]
            for row in sets["multi-query"]
            if (row["identity"], row["camera"]) == (query["identity"], query["camera"])
        ]
        asking.append(np.mean(own or [query["feature"]], 0))
    people = [np.array([row["identity"] for row in sets[split]]) for split in ("query", "gallery")]
    cameras = [np.array([row["camera"] for row in sets[split]]) for split in ("query", "gallery")]
    features = np.array([row["feature"] for row in sets["gallery"]], np.float32)
    wanted = evaluate_ranking(np.array(asking, np.float32), features, *people, *cameras)
    assert record["scores"]["multi_query"]["mAP"] == pytest.approx(wanted.mAP, abs=1e-6)
    with pytest.raises(InputError, match="--multi-query: .* has no features of multi-query images"):
        main(Config(out=str(tmp_path / "out"), features=saved(tmp_path / "f.npz"), multi_query=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "neither --network nor --features: give one of them"),
        ({"network": Path("x.safetensors")}, "--network needs images: give --data"),
        ({"network": Path("nowhere.safetensors"), "data": Path("nowhere")}, "nowhere.safetensors"),
        ({"features": Path("nowhere.npz")}, "nowhere.npz"),
        ({"features": Path("nowhere.npz"), "workers": 0}, "--workers 0"),
        ({"features": Path("nowhere.npz"), "judge": JudgeOptions(height=7)}, "--height 7: must be 8 or more"),
    ],
)
def test_bad_options_are_one_clear_line(tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        main(Config(out=str(tmp_path / "out"), **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / RANKING).exists()


def saved(path: Path, **changes) -> Path:
    random = np.random.default_rng(0)
    arrays = {"qf": random.normal(size=(2, 4)), "q_pids": [1, 2], "q_camids": [1, 1]}
    arrays |= {"gf": random.normal(size=(4, 4)), "g_pids": [1, 2, 1, 0], "g_camids": [2, 2, 2, 2]}
    np.savez(path, **{name: np.asarray(value) for name, value in (arrays | changes).items()})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qf": np.empty((0, 4)), "q_pids": [], "q_camids": []}, "0 queries"),
        ({"qf": np.full((2, 4), np.nan)}, "finite"),
        ({"gf": np.zeros((4, 3))}, "different lengths"),
        ({"g_pids": [1, 2]}, "g"),
    ],
)
def test_features_that_cannot_be_ranked_are_one_clear_line(tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        main(Config(out=str(tmp_path / "out"), features=saved(tmp_path / "f.npz", **changes)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nobody_found_and_identical_images_are_results(tmp_path):
    main(Config(out=str(tmp_path / "none"), features=saved(tmp_path / "f.npz", g_pids=[7, 8, 7, 0])))
    record = json.loads((tmp_path / "none" / RANKING).read_text())
    assert record["scores"]["single_query"]["valid"] == 0
    assert record["scores"]["single_query"]["mAP"] is None
    assert any("no query has a match" in note for note in record["notes"])
    same = {"qf": np.ones((2, 4)), "gf": np.ones((4, 4))}
    main(Config(out=str(tmp_path / "same"), features=saved(tmp_path / "s.npz", **same)))
    scores = json.loads((tmp_path / "same" / RANKING).read_text())["scores"]["single_query"]
    assert scores["rank1"] == 0.5  # in the gallery's order: a match stands first for one of the two
