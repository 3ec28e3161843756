"""The data of a study: those that say whom to test with stay as they are, others get a table with people set aside."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.people.readers import read_split
from datasets.storage.output import Output
from passersby.errors import InputError
from pipeline.study.data import TABLE, facts_of, prepared
from tests.helpers import sweep_data
from tune.leak_guard import read_data_set

SPLITS = ("train", "query", "gallery")


def write_folder(root: Path, people: int, pictures: int = 3) -> Path:
    for person in range(people):
        (root / f"person {person}").mkdir(parents=True)
        for number in range(pictures):
            image = np.full((32, 16, 3), 10 * person, np.uint8)
            cv2.imwrite(str(root / f"person {person}/{number}, left.png"), image)
    return root


def people_of(data: Path) -> dict[str, set[str]]:
    return {split: set(read_split(data, split).people.values()) for split in SPLITS}


def test_data_with_query_and_gallery_stay_as_they_are(tmp_path):
    data, output = Path(sweep_data.write_data(tmp_path)["data"]), Output(str(tmp_path / "out"))
    assert prepared(data, output) == data
    assert not (tmp_path / "out").exists()
    facts = facts_of(data, 4, 0)
    assert (facts.people, facts.pictures, facts.cameras, facts.many, facts.unlabelled) == (6, 30, 2, 0, 10)
    assert (facts.queries, facts.test_people, facts.test_pictures) == (5, 5, 25)
    assert facts.lines()[0] == "market (Market-1501) train: 30 pictures of 6 people to train on, 2 cameras"
    with pytest.raises(InputError, match="--labelled-people 7: .* has 6 people"):
        facts_of(data, 7, 0)


def test_of_a_folder_a_quarter_of_the_people_is_set_aside_for_the_test(tmp_path):
    data, output = write_folder(tmp_path / "pictures", 9), Output(str(tmp_path / "out"))
    table = prepared(data, output)
    assert table == tmp_path / "out" / TABLE
    people = people_of(table)
    assert people["query"] == people["gallery"]
    assert not people["train"] & people["query"]
    assert (len(people["train"]), len(people["query"])) == (7, 2)
    assert len(read_split(table, "query")) == 2
    assert len(read_split(table, "gallery")) == 4
    assert all(path.is_file() for split in SPLITS for path in read_split(table, split).files)
    read_data_set(table)  # the sweep takes it
    before = table.read_bytes()
    output.write("steps/look.json", b"{}")
    write_folder(tmp_path / "pictures/more", 1)
    assert prepared(data, output) == table  # whoever is set aside stays so
    assert table.read_bytes() == before


def test_before_a_step_has_ended_other_data_can_be_given(tmp_path):
    output = Output(str(tmp_path / "out"))
    first = prepared(write_folder(tmp_path / "first", 8), output).read_bytes()
    second = prepared(write_folder(tmp_path / "second", 9), output)
    assert second.read_bytes() != first
    assert len(people_of(second)["train"]) == 7
    data = Path(sweep_data.write_data(tmp_path)["data"])
    assert prepared(data, output) == data
    assert not second.exists()


def test_where_cameras_are_known_each_camera_has_a_query(tmp_path):
    rows = ["path,identity,camera"]
    for person in range(8):
        for number in range(4):
            name = f"{person}-{number}.png"
            cv2.imwrite(str(tmp_path / name), np.zeros((32, 16, 3), np.uint8))
            rows.append(f"{name},{person},{number % 2 + 1}")
    (tmp_path / "people.csv").write_text("\n".join(rows))
    table = prepared(tmp_path / "people.csv", Output(str(tmp_path / "out")))
    query = read_split(table, "query")
    assert sorted(query.cameras.tolist()) == [1, 1, 2, 2]
    assert len(read_split(table, "gallery")) == 4
    assert read_split(table, "train").has_cameras


@pytest.mark.parametrize(("people", "pictures"), [(7, 3), (12, 1)])
def test_too_few_people_for_a_test_are_refused_with_a_way_out(tmp_path, people, pictures):
    data = write_folder(tmp_path / "pictures", people, pictures)
    with pytest.raises(InputError, match=f"{people} people, .* and no query and gallery: .* give at least 8 people"):
        prepared(data, Output(str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="no such folder or table"):
        prepared(tmp_path / "nowhere", Output(str(tmp_path / "out")))


def test_data_without_their_gallery_are_not_whole(tmp_path):
    data = Path(sweep_data.write_data(tmp_path)["data"])
    shutil.rmtree(data / "bounding_box_test")
    with pytest.raises(InputError, match="pictures of the split query and none of the split gallery.*not whole"):
        prepared(data, Output(str(tmp_path / "out")))
    shutil.rmtree(data / "query")
    with pytest.raises(InputError, match="no query and gallery: a study sets one in 4 people aside"):
        prepared(data, Output(str(tmp_path / "out")))  # of its 6 people


def test_queries_that_only_their_own_camera_shows_end_a_study_before_it_begins(tmp_path):
    data = Path(sweep_data.write_data(tmp_path)["data"])
    for path in [*data.rglob("*_c2s*.jpg"), *data.rglob("*_c2s*.png")]:
        path.unlink()
    with pytest.raises(InputError, match="none of the . queries can be found: .* own camera only.*several cameras"):
        facts_of(data, None, 0)
