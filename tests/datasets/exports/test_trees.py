"""Market-1501 trees and folders of people, as the common tools read them.

The three functions that read names state the rules of each tool, which datasets/exports/trees.py cites.
"""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from datasets.exports.manifest import RunManifest
from datasets.exports.record import identities_csv
from datasets.exports.selection import ExportImages, Options, People, assign
from datasets.exports.trees import loader_notes, write_empty_notes
from datasets.exports.write import run_tasks, tasks
from datasets.people.market1501 import list_split
from datasets.people.names import parse_name
from datasets.runs.run import open_run
from datasets.storage.output import Output
from passersby.errors import InputError
from tests.helpers import export_runs as runs
from tests.helpers.listings import known_labels


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Output:
    return runs.make_run(str(tmp_path_factory.mktemp("run")))


def export(run: Output, folder: Path, options: Options) -> tuple[Output, People]:
    manifest, out = RunManifest(open_run(run)), Output(str(folder))
    people = assign(manifest, options)
    run_tasks(tasks(manifest, out, options, people, set()), 2, lambda task: None)
    return out, people


def read_by_torchreid_and_fast_reid(path: Path) -> tuple[int, int]:
    """The first digits (or -), `_c` and one digit anywhere in the path; files end in .jpg; strict bounds."""
    assert path.name.endswith(".jpg")
    found = re.search("([-0-9]+)_c([0-9])", str(path))
    identity, camera = int(found[1]), int(found[2])
    assert identity == -1 or 0 <= identity <= 1501
    assert 1 <= camera <= 6
    return identity, camera


def read_by_person_reid_baseline_pytorch(path: Path) -> tuple[int, int]:
    """The folder is what stands before the first _; tests read four characters, and one after the first c."""
    name = path.name
    assert name[-3:] == "jpg"
    assert int(name.split("_")[0]) == int(name[:4])
    return int(name[:4]), int(name.split("c")[1][0])


def test_every_loader_reads_the_same_identity_and_camera(run, tmp_path):
    _, people = export(run, tmp_path, Options("market1501", first_identity=101, cameras=6))
    paths = sorted((tmp_path / "bounding_box_train").iterdir())
    ours = known_labels(list_split(tmp_path, "train"))
    assert len(ours) == people.images.sum() == 26
    assert [read_by_torchreid_and_fast_reid(path) for path in paths] == ours
    assert [read_by_person_reid_baseline_pytorch(path) for path in paths] == ours
    assert {identity for identity, _ in ours} == set(people.identity[people.exported].tolist())
    assert {camera for _, camera in ours} == {1, 3, 4, 6, 2}
    assert paths[0].name == "0101_c1s1_000000_00.jpg"


def test_images_are_the_stored_bytes(run, tmp_path):
    export(run, tmp_path, Options("market1501"))
    for path in list_split(tmp_path, "train").contents:
        image = parse_name(path)
        assert path.read_bytes() == runs.picture(image.identity - 1, image.frame)


def test_the_first_image_of_test_people_is_a_query_and_none_is_trained_on(run, tmp_path):
    out, people = export(run, tmp_path, Options("market1501", cameras=6, test_people=2))
    train, query, gallery = (list_split(tmp_path, split) for split in ("train", "query", "gallery"))
    assert query.people.keys() == gallery.people.keys() == {7, 8}
    assert not {7, 8} & train.people.keys()
    assert [(image.identity, image.frame) for image in map(parse_name, query.names)] == [(7, 0), (8, 0)]
    assert len(train) + len(query) + len(gallery) == people.images.sum()
    lines = identities_csv(people).decode().splitlines()
    assert lines[-3:] == ["6,4,train,5,1005,2,", "7,,test,6,1006,4,", "8,,test,7,1007,4,"]
    write_empty_notes(out, Options("market1501", cameras=6, test_people=2))
    assert not list(tmp_path.rglob("*.txt"))


def test_test_people_need_two_cameras_and_somebody_to_train_on(run):
    with pytest.raises(InputError, match="give --cameras 2"):
        assign(RunManifest(open_run(run)), Options("market1501", test_people=2))
    with pytest.raises(InputError, match="the export has 7 people"):
        assign(RunManifest(open_run(run)), Options("market1501", cameras=2, test_people=7))


def test_all_three_folders_exist_though_two_are_empty(run, tmp_path):
    out, _ = export(run, tmp_path, Options("market1501"))
    write_empty_notes(out, Options("market1501"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bounding_box_test", "bounding_box_train", "query"]
    assert not [path for folder in ("query", "bounding_box_test") for path in (tmp_path / folder).glob("*.jpg")]


@pytest.mark.parametrize(
    ("options", "folder", "message"),
    [
        ({"first_identity": 1495}, "out", "identities go up to 1502, .* give --compact-ids"),
        ({"first_identity": 1496, "compact_ids": True}, "out", "give --people 6 "),
        ({"first_identity": 1502}, "out", "--first-identity of at most 1501"),
        ({"cameras": 7}, "out", "cameras 1 to 7: torchreid and fast-reid take 1 to 6"),
        ({}, "run-2_c3", "would find '-2_c3' in --out"),
    ],
)
def test_trees_that_strict_loaders_refuse_are_refused_with_a_way_out(run, tmp_path, options, folder, message):
    options = Options("market1501", **options)
    people, out = assign(RunManifest(open_run(run)), options), Output(f"/data/{folder}")
    with pytest.raises(InputError, match=message) as caught:
        loader_notes(out, options, people, strict=True)
    assert "--no-loader-limits" in str(caught.value)
    assert re.search(
        message.replace("give --people 6 ", "give --people 6"), loader_notes(out, options, people, False)[0]
    )


def test_the_limits_themselves_are_taken(run):
    options = Options("market1501", first_identity=1494, cameras=6)  # person 7 is 1501
    people = assign(RunManifest(open_run(run)), options)
    assert people.identity.max() == 1501
    assert len(loader_notes(Output("/data/market1501"), options, people, strict=True)) == 1


def test_people_with_one_image_are_mentioned(run):
    options = Options("market1501", per_person=1)
    notes = loader_notes(Output("/data/x"), options, assign(RunManifest(open_run(run)), options), True)
    assert any(note.startswith("7 people have one image") for note in notes)


def test_a_folder_a_person_is_what_imagefolder_reads(run, tmp_path):
    # five digits beside four: the order of names must still be that of identities
    _, people = export(run, tmp_path, Options("folder", first_identity=9996))
    data = ImageFolder(tmp_path)
    assert [int(name) for name in data.classes] == people.identity[people.exported].tolist()
    rows = [line.split(",") for line in identities_csv(people).decode().splitlines()[1:]]
    assert {int(row[0]): int(row[1]) for row in rows} == {int(n): i for n, i in data.class_to_idx.items()}
    assert np.bincount(data.targets).tolist() == people.images[people.exported].tolist()
    image, label = data[0]
    assert (image.size, label) == ((8, 16), 0)


def test_png_is_converted_on_request_only(tmp_path):
    run = runs.make_run(str(tmp_path / "run"), people=1, image_format="png")
    export(run, tmp_path / "png", Options("folder"))
    assert (tmp_path / "png/0001/0001_c1s1_000000_00.png").read_bytes() == runs.picture(0, 0, ".png")
    export(run, tmp_path / "jpg", Options("market1501", jpeg_quality=100))
    first = cv2.imread(str(list_split(tmp_path / "jpg", "train").contents[0]))
    difference = np.abs(first.astype(int) - cv2.imdecode(np.frombuffer(runs.picture(0, 0, ".png"), np.uint8), 1))
    assert difference.mean() < 12  # JPEG halves the resolution of colours; swapped channels would be 30 and more
    assert ExportImages(RunManifest(open_run(run))).suffix == "png"
